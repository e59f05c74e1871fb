"""Passwords that were sent in every form are in nothing that the gateway writes, and a planted leak is found."""

from __future__ import annotations

import base64
import imaplib
import json
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from mailgate.net import certificate
from tests.real.conftest import Gateway
from tests.real.test_clients import imap, message, pop3
from tests.support import secrets
from tests.support.servers import Program, free_ports

pytestmark = pytest.mark.real


def _base64(secret: str, prefix: bytes) -> bytes:
    return base64.b64encode(prefix + secret.encode() + b"tail")


@pytest.mark.parametrize(
    "write",
    [
        lambda secret: secret.encode(),
        lambda secret: _base64(secret, b"\0user\0"),
        lambda secret: _base64(secret, b"\0users\0"),
        lambda secret: _base64(secret, b"\0users1\0"),
        lambda secret: urllib.parse.quote(secret).encode(),
        lambda secret: urllib.parse.urlencode({"p": secret}).encode(),
        lambda secret: json.dumps({"error": secret}).encode(),
        lambda secret: repr(secret.encode()).encode(),
        lambda secret: b'a LOGIN x "' + secret.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"',
        lambda secret: secret.encode().hex().encode(),
    ],
)
@pytest.mark.parametrize("make", [secrets.canary, secrets.nasty_canary])
def test_a_secret_is_found_in_whatever_form_it_leaks(write: Callable[[str], bytes], make: Callable[[], str]) -> None:
    secret = make()
    assert secrets.leaks(b"before " + write(secret) + b" after", [secret])
    assert secrets.leaks(b"before " + write(make()) + b" after", [secret]) == []


def plain(text: str) -> bytes:
    return base64.b64encode(text.encode())


def say(gateway: Gateway, protocol: str, *lines: bytes) -> bytes:
    """Send lines one after another, each when the one before was answered; return all answers."""
    answers = b""
    with socket.create_connection(("127.0.0.1", gateway.port(protocol, "plain")), 20) as sock:
        sock.settimeout(20)
        answers += sock.recv(65_536)
        for line in lines:
            sock.sendall(line + b"\r\n")
            answers += sock.recv(65_536)
    return answers


def test_no_password_is_written_anywhere_whichever_way_it_came(gateway: Gateway, user: tuple[str, str]) -> None:
    name, password = user
    started = gateway.administer("POST", "/v1/trace", {"address": "127.0.0.1", "seconds": 600, "bodies": True})
    wrong = [secrets.nasty_canary() for _ in range(3)] + [secrets.canary() for _ in range(8)]
    token = secrets.canary()
    gateway.secrets += [*wrong, token]
    quoted = wrong[0].replace("\\", "\\\\").replace('"', '\\"').encode()
    literal = wrong[1].encode()

    said = say(gateway, "imap", b'a LOGIN %b "%b"' % (name.encode(), quoted))
    assert b"a BAD" in said or b"a NO" in said
    say(gateway, "imap", b"a LOGIN %b {%d+}\r\n%b" % (name.encode(), len(literal), literal))
    say(gateway, "imap", b"a LOGIN %b {%d}" % (name.encode(), len(wrong[3])), wrong[3].encode())
    say(gateway, "imap", b"a AUTHENTICATE PLAIN " + plain(f"\0{name}\0{wrong[4]}"))
    say(gateway, "imap", b"a AUTHENTICATE LOGIN", plain(name), plain(wrong[5]))
    say(gateway, "imap", b"a AUTHENTICATE PLAIN", b"*** " + wrong[5].encode())
    say(gateway, "imap", b"a LOGIN %b %b extra" % (name.encode(), wrong[6].encode()))
    say(gateway, "imap", wrong[6].encode(), b"a " + wrong[6].encode())
    say(gateway, "imap", b"a AUTHENTICATE XOAUTH2 " + plain(f"user={name}\x01auth=Bearer {token}\x01\x01"))
    say(gateway, "imap", b"a AUTHENTICATE OAUTHBEARER " + plain(f"n,a={name},\x01auth=Bearer {token}\x01\x01"))
    say(gateway, "pop3", b"USER " + name.encode(), b"PASS " + wrong[7].encode())
    say(gateway, "pop3", b"USER " + name.encode(), b"PASS " + wrong[2].encode())
    say(gateway, "pop3", b"PASS " + wrong[8].encode())
    say(gateway, "pop3", b"AUTH PLAIN " + plain(f"\0{name}\0{wrong[9]}"))
    say(gateway, "pop3", b"AUTH LOGIN", plain(name), plain(wrong[10]))
    with imap(gateway, "starttls", "starttls") as connection:
        connection.login(name, password)
        connection.append("INBOX", None, None, message(300))
        connection.select()
        connection.fetch("1", "(BODY[])")
        # A second login would be masked as well, and is refused.
        with pytest.raises(imaplib.IMAP4.error):
            connection._simple_command("LOGIN", name, wrong[3])  # type: ignore[attr-defined]
    with imap(gateway, "implicit") as connection:
        connection.authenticate("PLAIN", lambda _: f"\0{name}\0{password}".encode())
    for client in ("implicit", "starttls"):
        pop = pop3(gateway, client, "starttls")
        pop.user(name)
        pop.pass_(password)
        pop.quit()

    written = gateway.everything_written()
    assert secrets.leaks(written, [password, *wrong, token]) == []
    # The traces are there and show the dialogue, so that what is searched is not just empty.
    trace = Path(str(started["file"])).read_bytes()
    assert b"APPEND" in trace
    assert Path(str(started["file"])).stat().st_mode & 0o777 == 0o600
    for one in gateway.administer("GET", "/v1/trace")["traces"]:  # type: ignore[attr-defined]
        gateway.administer("DELETE", f"/v1/trace/{one['id']}")
    assert b"trace stopped" in gateway.program.output().encode()


LEAKY = """
import sys
from mailgate import cli
from mailgate.session import run
attempt = run._BeforeLogin._attempt
async def leaky(self, login):
    print("debug:", login.user, {how}, file=sys.stderr, flush=True)
    return await attempt(self, login)
run._BeforeLogin._attempt = leaky
sys.argv = ["mailgate", "run", sys.argv[1]]
cli.main()
"""


@pytest.mark.parametrize(
    "how", ["login.secret.reveal()", "__import__('base64').b64encode(b'12' + login.secret.reveal())", "repr(login)"]
)
def test_a_leak_planted_in_the_gateway_is_found(tmp_path: Path, how: str) -> None:
    port, upstream = free_ports(2)
    (tmp_path / "leaky.py").write_text(LEAKY.format(how=how))
    (tmp_path / "m.toml").write_text(
        f'[[listener]]\nname = "a"\nprotocol = "imap"\nbind = ["127.0.0.1:{port}"]\ntls = "off"\n'
        f'[pool.b]\nprotocol = "imap"\nservers = ["127.0.0.1:{upstream}"]\ntls = "off"\n'
    )
    password = secrets.canary()
    program = Program([sys.executable, str(tmp_path / "leaky.py"), str(tmp_path / "m.toml")], tmp_path, "leaky")
    try:
        program.wait_for([port])
        with imaplib.IMAP4("127.0.0.1", port) as connection, pytest.raises(imaplib.IMAP4.error):
            connection.login("alice", password)
    finally:
        program.stop()
    found = secrets.leaks(program.output().encode(), [password])
    # A Secret that is printed by mistake still tells nothing; whoever reveals it is found out.
    assert bool(found) == ("reveal" in how)


def test_a_bad_configuration_does_not_show_its_secrets(tmp_path: Path) -> None:
    password = secrets.canary()
    pair = certificate.self_signed(["localhost"], days=1)
    certificate.write(tmp_path / "c.pem", tmp_path / "k.pem", *pair)
    (tmp_path / "m.toml").write_text(
        f'[tls]\ncertificate = "c.pem"\nkey = {{ file = "k.pem", password = "{password}" }}\n'
        f'[[listener]]\nname = "a"\nprotocol = "imap"\nbind = ["127.0.0.1:1"]\npassword = "{password}"\n'
    )
    for command in (["check", "--print"], ["run"]):
        done = subprocess.run(
            [sys.executable, "-m", "mailgate", *command, str(tmp_path / "m.toml")],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode != 0
        assert secrets.leaks(done.stdout + done.stderr, [password]) == []

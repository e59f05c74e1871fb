"""Real mail clients through the gateway to a real Dovecot, on every kind of port."""

from __future__ import annotations

import hashlib
import imaplib
import poplib
import random
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import needed
from tests.real.conftest import UPSTREAM_LEGS, Gateway

pytestmark = pytest.mark.real

User = tuple[str, str]


def imap(gateway: Gateway, client: str, upstream: str = "off") -> imaplib.IMAP4:
    port = gateway.port("imap", client, upstream)
    if client == "implicit":
        return imaplib.IMAP4_SSL("localhost", port, ssl_context=gateway.context, timeout=60)
    connection = imaplib.IMAP4("127.0.0.1", port, timeout=60)
    if client == "starttls":
        connection.starttls(gateway.context)
    return connection


def pop3(gateway: Gateway, client: str, upstream: str = "off") -> poplib.POP3:
    port = gateway.port("pop3", client, upstream)
    if client == "implicit":
        return poplib.POP3_SSL("localhost", port, context=gateway.context, timeout=60)
    connection = poplib.POP3("127.0.0.1", port, timeout=60)
    if client == "starttls":
        connection.stls(gateway.context)
    return connection


def message(size: int, seed: int = 1) -> bytes:
    """A message of about ``size`` bytes whose lines are all different, some of them dots."""
    source = random.Random(seed)
    lines = [b"From: a@example.org", b"Subject: %d bytes" % size, b"", b".", b"..", b"", b"* 1 FETCH {3}", b"a1 OK no"]
    total = sum(map(len, lines)) + 2 * len(lines)
    while total < size:
        line = source.randbytes(36).hex().encode()
        lines.append(line)
        total += len(line) + 2
    return b"\r\n".join(lines) + b"\r\n"


def fetched(connection: imaplib.IMAP4, number: int = 1) -> bytes:
    _, parts = connection.fetch(str(number), "(BODY.PEEK[])")
    return next(part[1] for part in parts if isinstance(part, tuple))


@pytest.mark.parametrize("upstream", UPSTREAM_LEGS)
@pytest.mark.parametrize("client", ["implicit", "starttls", "plain"])
def test_imaplib_works_through_every_leg(gateway: Gateway, user: User, client: str, upstream: str) -> None:
    mail = message(2_000)
    with imap(gateway, client, upstream) as connection:
        assert "COMPRESS=DEFLATE" not in connection.capabilities
        connection.login(*user)
        assert connection.append("INBOX", "(\\Flagged)", None, mail)[0] == "OK"
        assert connection.select("INBOX") == ("OK", [b"1"])
        assert fetched(connection) == mail
        assert connection.uid("SEARCH", "FLAGGED") == ("OK", [b"1"])
        assert connection.store("1", "+FLAGS", "(\\Deleted)")[0] == "OK"
        assert connection.expunge() == ("OK", [b"1"])
        assert connection.create("Archive")[0] == "OK"
        assert [line for line in connection.list()[1] if b"Archive" in line]
        assert connection.xatom("COMPRESS", "DEFLATE") == ("NO", [b"[CANNOT] This command is not available here."])
        assert connection.noop()[0] == "OK"


@pytest.mark.parametrize("upstream", UPSTREAM_LEGS)
@pytest.mark.parametrize("client", ["implicit", "starttls", "plain"])
def test_poplib_works_through_every_leg(gateway: Gateway, user: User, client: str, upstream: str) -> None:
    mail = message(2_000)
    with imap(gateway, "implicit") as uploading:
        uploading.login(*user)
        uploading.append("INBOX", None, None, mail)
    connection = pop3(gateway, client, upstream)
    assert "UIDL" in connection.capa()
    connection.user(user[0])
    connection.pass_(user[1])
    assert connection.stat() == (1, len(mail))
    assert b"\r\n".join(connection.retr(1)[1]) + b"\r\n" == mail
    assert connection.top(1, 1)[1][:4] == mail.split(b"\r\n")[:4]
    assert connection.dele(1).startswith(b"+OK")
    assert connection.quit().startswith(b"+OK")
    again = pop3(gateway, client, upstream)
    again.user(user[0])
    again.pass_(user[1])
    assert again.stat() == (0, 0)
    again.quit()


@pytest.mark.parametrize("client", ["implicit", "starttls", "plain"])
def test_five_megabytes_arrive_byte_for_byte_both_ways(gateway: Gateway, user: User, client: str) -> None:
    mail = message(5_000_000)
    with imap(gateway, client, "implicit") as connection:
        connection.login(*user)
        assert connection.append("INBOX", None, None, mail)[0] == "OK"
        connection.select("INBOX")
        assert hashlib.sha256(fetched(connection)).digest() == hashlib.sha256(mail).digest()
    download = pop3(gateway, client, "implicit")
    download.user(user[0])
    download.pass_(user[1])
    got = b"\r\n".join(download.retr(1)[1]) + b"\r\n"
    download.quit()
    assert hashlib.sha256(got).digest() == hashlib.sha256(mail).digest()


@pytest.mark.parametrize("auth", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("client", ["implicit", "starttls", "plain"])
@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_curl_reads_mail(gateway: Gateway, user: User, protocol: str, client: str, auth: str, tmp_path: Path) -> None:
    mail = message(3_000)
    with imap(gateway, "implicit") as uploading:
        uploading.login(*user)
        uploading.append("INBOX", None, None, mail)
    secure = "s" if client == "implicit" else ""
    place = "INBOX;MAILINDEX=1" if protocol == "imap" else "1"
    url = f"{protocol}{secure}://localhost:{gateway.port(protocol, client)}/{place}"
    command = [needed("curl"), "-sS", "--max-time", "30", "--cacert", str(gateway.authority)]
    command += ["--login-options", f"AUTH={auth}"]
    command += ["--ssl-reqd"] if client == "starttls" else []
    # The password comes from a file: it must not be in a process list either.
    (tmp_path / "user").write_text(f'user = "{user[0]}:{user[1]}"\n')
    done = subprocess.run([*command, "-K", str(tmp_path / "user"), url], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == mail


def test_curl_uploads_with_append(gateway: Gateway, user: User, tmp_path: Path) -> None:
    mail = message(200_000)
    (tmp_path / "mail").write_bytes(mail)
    (tmp_path / "user").write_text(f'user = "{user[0]}:{user[1]}"\n')
    url = f"imaps://localhost:{gateway.port('imap', 'implicit')}/INBOX"
    command = [
        needed("curl"),
        "-sS",
        "--max-time",
        "30",
        "--cacert",
        str(gateway.authority),
        "-T",
        str(tmp_path / "mail"),
    ]
    done = subprocess.run([*command, "-K", str(tmp_path / "user"), url], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with imap(gateway, "implicit") as connection:
        connection.login(*user)
        connection.select("INBOX")
        assert fetched(connection) == mail


MBSYNC = """
IMAPAccount gate
Host localhost
Port {port}
User {user}
PassCmd "cat {folder}/password"
SSLType {tls}
SSLVersions TLSv1.2 TLSv1.3
CertificateFile {authority}
PipelineDepth 20

IMAPStore far
Account gate

MaildirStore near
Path {folder}/near/
Inbox {folder}/near/INBOX

Channel all
Far :far:
Near :near:
Patterns INBOX
Create Near
Sync All
Expunge Both
SyncState *
"""


@pytest.mark.parametrize(("client", "tls"), [("implicit", "IMAPS"), ("starttls", "STARTTLS"), ("plain", "None")])
def test_mbsync_keeps_two_sides_the_same(gateway: Gateway, user: User, client: str, tls: str, tmp_path: Path) -> None:
    mails = [message(1_000 + 4_000 * number, seed=number) for number in range(20)]
    with imap(gateway, client) as connection:
        connection.login(*user)
        for mail in mails:
            connection.append("INBOX", None, None, mail)
    (tmp_path / "near").mkdir()
    (tmp_path / "password").write_text(user[1])
    (tmp_path / "mbsyncrc").write_text(
        MBSYNC.format(
            port=gateway.port("imap", client), user=user[0], tls=tls, authority=gateway.authority, folder=tmp_path
        )
    )
    sync = [needed("mbsync"), "-c", str(tmp_path / "mbsyncrc"), "all"]
    done = subprocess.run(sync, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    inbox = tmp_path / "near" / "INBOX"
    files = [path.read_bytes() for folder in ("new", "cur") for path in (inbox / folder).iterdir()]
    down = sorted(re.sub(rb"X-TUID: [^\n]+\n", b"", file) for file in files)
    assert down == sorted(mail.replace(b"\r\n", b"\n") for mail in mails)

    upload = message(30_000, seed=99).replace(b"\r\n", b"\n")
    (inbox / "new" / "1.local").write_bytes(upload)
    removed = next((inbox / "new").glob("*_*"))
    removed.rename(inbox / "cur" / f"{removed.name.partition(':')[0]}:2,ST")
    done = subprocess.run(sync, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with imap(gateway, client) as connection:
        connection.login(*user)
        assert connection.select("INBOX") == ("OK", [b"20"])
        bodies = {fetched(connection, number).replace(b"\r\n", b"\n") for number in range(1, 21)}
        assert any(upload.split(b"\n\n", 1)[1] in body for body in bodies)


def test_two_clients_of_a_mailbox_see_each_other_through_idle(gateway: Gateway, user: User) -> None:
    with imap(gateway, "implicit") as watching, imap(gateway, "starttls", "implicit") as working:
        watching.login(*user)
        working.login(*user)
        watching.select("INBOX")
        watching.send(b"i1 IDLE\r\n")
        assert watching.readline().startswith(b"+ ")
        working.append("INBOX", None, None, message(500))
        assert watching.readline() == b"* 1 EXISTS\r\n"
        watching.readline()
        working.select("INBOX")
        working.store("1", "+FLAGS", "(\\Answered)")
        line = watching.readline()
        assert line.startswith(b"* 1 FETCH")
        assert b"\\Answered" in line
        watching.send(b"DONE\r\n")
        while not (line := watching.readline()).startswith(b"i1 "):
            assert line.startswith(b"* ")
        assert line.startswith(b"i1 OK")
    assert gateway.metric("mailgate_commands_total", verb="IDLE", result="ok") >= 1


def test_pop_clients_that_leave_mail_see_the_same_unique_ids_in_every_session(gateway: Gateway, user: User) -> None:
    with imap(gateway, "implicit") as uploading:
        uploading.login(*user)
        for number in range(5):
            uploading.append("INBOX", None, None, message(500, seed=number))

    def unique_ids(client: str, *deleted: int) -> list[bytes]:
        connection = pop3(gateway, client)
        connection.user(user[0])
        connection.pass_(user[1])
        found = connection.uidl()[1]
        for number in deleted:
            connection.dele(number)
        connection.quit()
        return [line.split()[1] for line in found]

    first = unique_ids("implicit")
    assert len(set(first)) == 5
    assert unique_ids("starttls", 2) == first
    assert unique_ids("plain") == first[:1] + first[2:]


@pytest.mark.parametrize("client", ["implicit", "starttls", "plain"])
def test_a_wrong_password_is_refused_and_the_right_one_works_after_it(
    gateway: Gateway, user: User, client: str
) -> None:
    before = gateway.metric("mailgate_logins_total", result="failed", reason="auth_failed")
    with imap(gateway, client) as connection:
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            connection.login(user[0], "wrong")
        connection.login(*user)
        assert connection.noop()[0] == "OK"
    pop = pop3(gateway, client)
    pop.user(user[0])
    with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
        pop.pass_("wrong")
    pop.user(user[0])
    assert pop.pass_(user[1]).startswith(b"+OK")
    pop.quit()
    assert gateway.metric("mailgate_logins_total", result="failed", reason="auth_failed") == before + 2


def test_a_client_that_guesses_is_cut_off(gateway: Gateway, user: User) -> None:
    connection = imap(gateway, "implicit")
    for _ in range(2):
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            connection.login(user[0], "guess")
    with pytest.raises(imaplib.IMAP4.error):
        connection.login(user[0], "guess")
    with pytest.raises((imaplib.IMAP4.abort, OSError)):
        connection.noop()
    connection.shutdown()


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_no_password_is_taken_in_clear_where_tls_is_needed(gateway: Gateway, user: User, protocol: str) -> None:
    port = gateway.port(protocol, "starttls")
    if protocol == "imap":
        with imaplib.IMAP4("127.0.0.1", port, timeout=30) as connection:
            assert "LOGINDISABLED" in connection.capabilities
            assert not [name for name in connection.capabilities if name.startswith("AUTH=")]
            with pytest.raises(imaplib.IMAP4.error, match="PRIVACYREQUIRED"):
                connection.login(*user)
    else:
        pop = poplib.POP3("127.0.0.1", port, timeout=30)
        assert "USER" not in pop.capa()
        with pytest.raises(poplib.error_proto, match="-ERR"):
            pop.user(user[0])
        pop.quit()

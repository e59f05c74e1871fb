"""Mail clients: those of the system's packages, and scripts of what others say on the wire."""

from __future__ import annotations

import base64
import os
import poplib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import needed
from tests.real.pop3.conftest import Translated
from tests.real.pop3.test_defects import MAIL, held
from tests.support.pop3_client import Pop3
from tests.support.stores import mail_owner

pytestmark = pytest.mark.real

STUFFED = b"From: a@example.org\r\nSubject: dots\r\n\r\n.\r\n..\r\nend\r\n"
LARGE = b"From: a@example.org\r\nSubject: large\r\n\r\n" + (b"l" * 70 + b"\r\n") * 8_000
MESSAGES = [*MAIL, STUFFED, LARGE]
DOORS = ["pop3s", "pop3"]


@pytest.fixture
def full(gate: Translated, user: str) -> str:
    """A user with seven messages."""
    for one in MESSAGES:
        gate.store.deliver(user, one)
    return user


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may come to, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="mailgate-client-") as name:
        yield Path(name)


Fetch = Callable[..., list[bytes]]
"""Runs a client once; returns the new messages, and deletes them at the server with ``delete``."""


def by_poplib(gate: Translated, user: str, door: str, folder: Path) -> Fetch:
    known: set[bytes] = set()

    def fetch(*, delete: bool = False) -> list[bytes]:
        port = gate.ports[door]
        client: poplib.POP3
        if door == "pop3s":
            client = poplib.POP3_SSL("localhost", port, context=gate.context, timeout=30)
        else:
            client = poplib.POP3("localhost", port, timeout=30)
            client.stls(gate.context)
        client.user(user)
        client.pass_(gate.store.users[user])
        found = []
        for line in client.uidl()[1]:
            number, uidl = line.split()
            if uidl not in known:
                found.append(b"\r\n".join(client.retr(int(number))[1]) + b"\r\n")
                known.add(uidl)
            if delete:
                client.dele(int(number))
        client.quit()
        return found

    return fetch


def by_curl(gate: Translated, user: str, door: str, folder: Path) -> Fetch:
    known: set[bytes] = set()
    netrc = folder / "netrc"
    netrc.write_text(f"machine localhost login {user} password {gate.store.users[user]}\n")
    scheme = "pop3s" if door == "pop3s" else "pop3"
    command = [needed("curl"), "-sS", "--max-time", "60", "--cacert", str(gate.authority), "--ssl-reqd"]
    command += ["--netrc-file", str(netrc)]
    url = f"{scheme}://localhost:{gate.ports[door]}/"

    def fetch(*, delete: bool = False) -> list[bytes]:
        # Of an empty list it shows a blank line.
        listing = subprocess.run([*command, "-X", "UIDL", url], capture_output=True, check=True).stdout.strip()
        found = []
        for number, uidl in map(bytes.split, listing.splitlines()):
            if uidl not in known:
                done = subprocess.run([*command, url + number.decode()], capture_output=True, check=True)
                found.append(done.stdout)
                known.add(uidl)
        if delete:
            # Each call of curl is a session with a QUIT, so that numbers move between two of them.
            for _ in listing.splitlines():
                subprocess.run([*command, "-I", "-X", "DELE 1", url], capture_output=True, check=True)
        return found

    return fetch


def _maildir(folder: Path) -> Callable[[], list[bytes]]:
    """Make a Maildir; return what takes the messages out of it, as they were on the wire."""
    for name in ("cur", "new", "tmp"):
        (folder / name).mkdir(parents=True)

    def take() -> list[bytes]:
        found = []
        for path in (folder / "new").iterdir():
            found.append(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
            path.unlink()
        return found

    return take


def _owned(path: Path, text: str) -> Path:
    """Write a file with a password in it, which clients insist on to be for one's own eyes."""
    path.touch(0o600)
    path.write_text(text)
    return path


def by_mpop(gate: Translated, user: str, door: str, folder: Path) -> Fetch:
    take = _maildir(folder / "mail")

    def fetch(*, delete: bool = False) -> list[bytes]:
        config = f"""\
account default
host localhost
port {gate.ports[door]}
user {user}
password {gate.store.users[user]}
tls on
tls_starttls {"off" if door == "pop3s" else "on"}
tls_trust_file {gate.authority}
delivery maildir {folder}/mail
uidls_file {folder}/uidls
received_header off
keep {"off" if delete else "on"}
"""
        path = _owned(folder / "mpoprc", config)
        subprocess.run(
            [needed("mpop"), "-q", "-C", path], check=True, timeout=60, env=os.environ | {"HOME": str(folder)}
        )
        return take()

    return fetch


def by_getmail(gate: Translated, user: str, door: str, folder: Path) -> Fetch:
    take = _maildir(folder / "mail")
    # It has no STLS: there it comes in clear.
    secure = door == "pop3s"
    port = gate.ports["pop3s" if secure else "unseen"]

    def fetch(*, delete: bool = False) -> list[bytes]:
        config = f"""\
[retriever]
type = SimplePOP3{"SSL" if secure else ""}Retriever
server = localhost
port = {port}
username = {user}
password = {gate.store.users[user]}
{f"ca_certs = {folder}/authority.pem" if secure else ""}
[destination]
type = Maildir
path = {folder}/mail/
[options]
read_all = false
delete = {str(delete).lower()}
delivered_to = false
received = false
verbose = 0
"""
        path = _owned(folder / "getmailrc", config)
        command = [needed("getmail"), f"--getmaildir={folder}", f"--rcfile={path}"]
        # It refuses to write mail as root.
        (folder / "authority.pem").write_bytes(gate.authority.read_bytes())
        uid, gid = mail_owner()
        for place in (folder, *folder.rglob("*")):
            os.chown(place, uid, gid)
        subprocess.run(command, check=True, timeout=60, cwd=folder, user=uid, group=gid, extra_groups=[])
        return [message.removeprefix(b"Return-Path: <unknown>\r\n") for message in take()]

    return fetch


CLIENTS = {"poplib": by_poplib, "curl": by_curl, "mpop": by_mpop, "getmail": by_getmail}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", CLIENTS)
def test_clients_download_all_once_then_the_new_then_delete(
    gate: Translated, full: str, name: str, door: str, folder: Path
) -> None:
    fetch = CLIENTS[name](gate, full, door, folder)
    assert sorted(fetch()) == sorted(MESSAGES)
    assert fetch() == []
    assert held(gate, full) == MESSAGES
    new = b"From: a@example.org\r\nSubject: new\r\n\r\nnew\r\n"
    gate.store.deliver(full, new)
    assert fetch() == [new]
    assert fetch(delete=True) == []
    assert held(gate, full) == []
    assert fetch() == []


class Thunderbird:
    """What Thunderbird says (Pop3Client.sys.mjs), with what it remembers of a server."""

    def __init__(self, gate: Translated, user: str, door: str) -> None:
        self.gate, self.user, self.door = gate, user, door
        self.known: set[bytes] = set()

    def run(self, *, leave: bool = True) -> list[bytes]:
        client = Pop3(self.gate.ports[self.door], self.gate.context if self.door == "pop3s" else None, seconds=110)
        capabilities = client.capabilities()
        if self.door == "pop3":
            assert b"STLS" in capabilities
            client.stls(self.gate.context)
            capabilities = client.capabilities()
        (sasl,) = (line for line in capabilities if line.startswith(b"SASL "))
        assert b"PLAIN" in sasl.split()
        assert b"UIDL" in capabilities
        client.send(b"AUTH PLAIN")
        assert client.line().startswith(b"+")
        client.good(base64.b64encode(f"\0{self.user}\0{self.gate.store.users[self.user]}".encode()))
        found = []
        count, _ = client.stat()
        if count == 0:
            self.known.clear()
        else:
            sizes, uidls = client.sizes(), client.uidls()
            assert [*sizes] == [*uidls] == [*range(1, count + 1)]
            self.known &= {*uidls.values()}
            for number, uidl in uidls.items():
                if uidl not in self.known:
                    found.append(client.fetch(b"RETR %d" % number))
                    self.known.add(uidl)
                if not leave:
                    client.good(b"DELE %d" % number)
        began = time.monotonic()
        assert client.quit().startswith(b"+OK")
        assert time.monotonic() - began < 3
        return found


@pytest.mark.parametrize("door", DOORS)
def test_thunderbird_downloads_each_message_once(gate: Translated, full: str, door: str) -> None:
    thunderbird = Thunderbird(gate, full, door)
    assert thunderbird.run() == MESSAGES
    assert thunderbird.run() == []
    gate.store.deliver(full, STUFFED)
    gate.store.expunge(full, [gate.store.contents(full)[0].uid])
    assert thunderbird.run() == [STUFFED]
    assert thunderbird.run(leave=False) == []
    assert thunderbird.run() == []
    assert thunderbird.known == set()


class Outlook:
    """What Outlook says ([MS-STANOPOP3]): it asks for mechanisms by a bare AUTH, and never for one unique-id."""

    def __init__(self, gate: Translated, user: str) -> None:
        self.gate, self.user = gate, user
        self.known: dict[bytes, int] = {}
        self.runs = 0

    def run(self, *, days: int = 99) -> list[bytes]:
        """Download what is new, and delete what was downloaded so many runs ago."""
        self.runs += 1
        client = Pop3(self.gate.ports["pop3s"], self.gate.context)
        # Both spellings are seen; the answer may be a list or a refusal, but the dialogue must stand it.
        for discovery in (b"AUTH", b"AUTH "):
            if client.ask(discovery).startswith(b"+OK"):
                assert b"PLAIN" in client.block().split()
        client.login(self.user, self.gate.store.users[self.user])
        client.ask(b"UTF8")
        found = []
        count, _ = client.stat()
        uidls = client.uidls()
        assert len({*uidls.values()}) == count
        sizes = client.sizes()
        for number, uidl in uidls.items():
            if uidl not in self.known:
                message = client.fetch(b"RETR %d" % number)
                assert b"\0" not in message
                assert len(message) == sizes[number]
                found.append(message)
                self.known[uidl] = self.runs
            elif self.runs - self.known[uidl] >= days:
                client.good(b"DELE %d" % number)
        client.good(b"QUIT")
        client.sock.close()
        return found


def test_outlook_leaves_messages_for_some_days(gate: Translated, full: str) -> None:
    outlook = Outlook(gate, full)
    assert outlook.run() == MESSAGES
    gate.store.deliver(full, STUFFED)
    assert outlook.run() == [STUFFED]
    assert outlook.run(days=2) == []
    assert held(gate, full) == [STUFFED]
    assert outlook.run() == []


def test_k9_asks_for_single_messages_and_previews(gate: Translated, full: str) -> None:
    """Thunderbird for Android with many messages: LIST n, UIDL n, and TOP with a number of lines made of a size."""
    client = Pop3(gate.ports["pop3s"], gate.context)
    assert {b"UIDL", b"TOP"} <= {*client.capabilities()}
    client.send(b"AUTH PLAIN")
    client.line()
    client.good(base64.b64encode(f"\0{full}\0{gate.store.users[full]}".encode()))
    count, _ = client.stat()
    for number in range(count, 0, -1):
        assert client.good(b"UIDL %d" % number).split()[0] == b"%d" % number
        size = int(client.good(b"LIST %d" % number).split()[1])
        assert size < 2**31
        assert MESSAGES[number - 1].startswith(client.fetch(b"TOP %d %d" % (number, size // 76)))
    assert client.quit().startswith(b"+OK")


def test_fetchmail_peeks_by_top_and_asks_for_last(gate: Translated, full: str) -> None:
    client = Pop3(gate.ports["pop3s"], gate.context).login(full, gate.store.users[full])
    assert client.stat()[0] == len(MESSAGES)
    client.ask(b"LAST")
    low, high = 1, len(MESSAGES)
    while low < high:
        middle = (low + high) // 2
        assert len(client.good(b"UIDL %d" % middle).split()) == 2
        low = middle + 1
    for number, message in enumerate(MESSAGES, 1):
        assert client.fetch(b"TOP %d 99999999" % number) == message
        client.good(b"DELE %d" % number)
    assert client.quit().startswith(b"+OK")
    assert held(gate, full) == []

"""What the tests ask of any mail server, whichever it is: users, mail laid into it, and what it holds afterwards.

Dovecot, Cyrus, Courier and pymap stand in ``tests/support/store_*.py``; :func:`running` starts one by its name.
"""

from __future__ import annotations

import contextlib
import imaplib
import os
import pwd
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import needed, needed_folder
from tests.support import secrets

NAMES = ("dovecot", "cyrus", "courier", "pymap")
PATIENCE = 30.0
"""Seconds that a mail client here waits for a server."""


class Message(NamedTuple):
    """A message as IMAP shows it."""

    uid: int
    flags: frozenset[str]
    data: bytes


class Store:
    """A running mail server. What is here is done by IMAP; a server with a way of its own overrides it."""

    name = ""
    lenient = True
    """Whether a message may have bare LFs and NULs, be it because it is laid into the store past the server."""

    def __init__(self, imap: int, pop3: int | None) -> None:
        self.imap = imap
        self.pop3 = pop3
        self.users: dict[str, str] = {}

    def add_user(self, name: str, password: str) -> None:
        """Let somebody in, who has an empty INBOX at the first login."""
        raise NotImplementedError

    def new_user(self) -> str:
        """Let somebody new in, and return the name; the password is in ``users``."""
        name = f"user{len(self.users)}"
        self.add_user(name, secrets.canary())
        return name

    @contextlib.contextmanager
    def client(self, user: str, folder: str | None = "INBOX") -> Iterator[imaplib.IMAP4]:
        """Sign somebody in by IMAP past the gateway, with a folder selected."""
        with imaplib.IMAP4("127.0.0.1", self.imap, timeout=PATIENCE) as imap:
            # A literal's end is a small write of its own, which would wait for an acknowledgement.
            imap.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            imap.login(user, self.users[user])
            if folder is not None:
                said(imap.select(folder))
            yield imap

    def deliver(self, user: str, message: bytes, folder: str = "INBOX") -> None:
        """Lay a message into a folder, without flags.

        Messages lie in the order in which they came, those that came by :meth:`append` before a client saw them first.
        """
        self.append(user, message, folder)

    def append(self, user: str, message: bytes, folder: str = "INBOX", flags: str = "") -> None:
        """Lay a message into a folder as another mail client would, by APPEND."""
        with self.client(user, None) as imap:
            # imaplib would make CRLF of every bare LF; what is appended is what was given.
            imap.literal = message  # type: ignore[attr-defined]
            said(imap._simple_command("APPEND", folder, f"({flags})"))  # type: ignore[attr-defined]

    def contents(self, user: str, folder: str = "INBOX") -> list[Message]:
        """Return all that a folder holds, by UID."""
        found: dict[int, dict[str, object]] = {}
        with self.client(user, folder) as imap:
            if imap.untagged_responses.get("EXISTS", [b"0"])[-1] == b"0":
                return []
            for part in said(imap.uid("FETCH", "1:*", "(UID FLAGS BODY.PEEK[])")):
                if isinstance(part, tuple):
                    head, data = part
                    uid = int(re.search(rb"UID (\d+)", head)[1])  # type: ignore[index]
                    found.setdefault(uid, {})["data"] = data
                else:
                    head = part or b""
                if (flags := re.search(rb"FLAGS \(([^)]*)\)", head)) is not None:
                    if (named := re.search(rb"UID (\d+)", head)) is not None:
                        uid = int(named[1])
                    found.setdefault(uid, {})["flags"] = frozenset(flags[1].decode().split()) - {"\\Recent"}
        return [Message(uid, one.get("flags", frozenset()), one["data"]) for uid, one in sorted(found.items())]  # type: ignore[arg-type]

    def set_flags(self, user: str, uids: Sequence[int], flags: str, sign: str = "+", folder: str = "INBOX") -> None:
        """Set (``+``) or clear (``-``) flags of some messages, as another mail client would."""
        with self.client(user, folder) as imap:
            said(imap.uid("STORE", ",".join(map(str, uids)), f"{sign}FLAGS.SILENT", f"({flags})"))

    def expunge(self, user: str, uids: Sequence[int], folder: str = "INBOX") -> None:
        """Remove some messages, as another mail client would."""
        with self.client(user, folder) as imap:
            among = ",".join(map(str, uids))
            said(imap.uid("STORE", among, "+FLAGS.SILENT", "(\\Deleted)"))
            said(imap.uid("EXPUNGE", among))


class Maildirs(Store):
    """A server that keeps each user's mail in a Maildir that tests may write."""

    def __init__(self, imap: int, pop3: int | None, owner: tuple[int, int]) -> None:
        super().__init__(imap, pop3)
        self.owner = owner
        self._delivered = 0

    def maildir(self, user: str, folder: str = "INBOX") -> Path:
        """Return the folder's own folder, which need not be there."""
        raise NotImplementedError

    def deliver(self, user: str, message: bytes, folder: str = "INBOX") -> None:
        """Lay a message into ``new``, as a delivery agent would; its bytes are taken as they are."""
        maildir = self.maildir(user, folder)
        for place in (maildir, *(maildir / name for name in ("cur", "new", "tmp"))):
            if not place.exists():
                place.mkdir(parents=True)
                os.chown(place, *self.owner)
        self._delivered += 1
        name = f"{int(time.time())}.M{self._delivered:06}P{os.getpid()}.test"
        (maildir / "tmp" / name).write_bytes(message)
        os.chown(maildir / "tmp" / name, *self.owner)
        (maildir / "tmp" / name).rename(maildir / "new" / name)


def said(answer: tuple[str, list], wanted: str = "OK") -> list:  # type: ignore[type-arg]
    """Return the data of an imaplib answer that must be good."""
    status, data = answer
    assert status == wanted, (status, data)
    return data


def mail_owner() -> tuple[int, int]:
    """Return whom the mail belongs to: servers that are started by root insist on somebody else."""
    if os.getuid() != 0:
        return os.getuid(), os.getgid()
    mail = pwd.getpwnam("mail")
    return mail.pw_uid, mail.pw_gid


def unpacked(name: str) -> Path:
    """Return where ``scripts/test`` unpacked a server that cannot be installed beside Dovecot."""
    return needed_folder(Path(sys.prefix) / "servers" / name)


@contextlib.contextmanager
def running(name: str, certificate: Path, key: Path) -> Iterator[Store]:
    """Run one of :data:`NAMES` in a temporary folder until the block ends; only Dovecot knows the certificate."""
    from tests.support import store_courier, store_cyrus, store_dovecot, store_pymap

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"mailgate-{name}-")))
        # The servers drop their rights, so that every folder above must let them pass.
        folder.chmod(0o755)
        if name == "dovecot":
            yield stack.enter_context(store_dovecot.run(needed("dovecot"), folder, certificate, key))
        elif name == "cyrus":
            yield stack.enter_context(store_cyrus.run(unpacked("cyrus"), folder))
        elif name == "courier":
            yield stack.enter_context(store_courier.run(unpacked("courier"), folder))
        else:
            yield stack.enter_context(store_pymap.run(folder))

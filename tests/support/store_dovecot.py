"""Dovecot as a store: its IMAP and POP3 on one Maildir."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support import secrets
from tests.support.servers import Dovecot, dovecot
from tests.support.stores import Maildirs, mail_owner


class DovecotStore(Maildirs):
    """See the module."""

    name = "dovecot"

    def __init__(self, server: Dovecot) -> None:
        super().__init__(server.imap, server.pop3, mail_owner())
        self.server = server
        self._fresh: list[str] = []

    def add_user(self, name: str, password: str) -> None:
        self.users[name] = password
        self.server.add_user(name, password)
        time.sleep(1.1)

    def new_user(self) -> str:
        # Dovecot looks at the file of users once in a second, so that many come at a time.
        if not self._fresh:
            self._fresh = [f"fresh{len(self.users) + number}" for number in range(200)]
            for name in self._fresh:
                self.server.add_user(name, secrets.canary())
            time.sleep(1.1)
        name = self._fresh.pop(0)
        self.users[name] = self.server.users[name]
        return name

    def maildir(self, user: str, folder: str = "INBOX") -> Path:
        home = self.server.folder / "mail" / user / "Maildir"
        return home if folder == "INBOX" else home / f".{folder}"


@contextlib.contextmanager
def run(binary: str, folder: Path, certificate: Path, key: Path, extra: str = "") -> Iterator[DovecotStore]:
    """Run Dovecot in ``folder`` until the block ends."""
    with dovecot(binary, folder, certificate, key, extra) as server:
        yield DovecotStore(server)

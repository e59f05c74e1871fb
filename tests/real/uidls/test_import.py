"""``mailgate uidl import`` from real POP3 servers and their files: what clients knew is what they see afterwards."""

from __future__ import annotations

import csv
import io
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from mailgate.cli import main
from mailgate.config import Config, Endpoint, load
from mailgate.model import Secret
from mailgate.translate.opening import open_maildrop
from mailgate.uidls.comparing import Comparison, Listing, compare
from mailgate.uidls.homes import Homes
from mailgate.uidls.places import Place
from mailgate.uidls.servers import Pop3Place
from tests.support.stores import Maildirs, Store

pytestmark = pytest.mark.real

CONFIG = """
[[listener]]
name = "pop3"
protocol = "pop3"
bind = "127.0.0.1:1"
tls = "off"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:{imap}"]
tls = "off"
[pop3]
uidl = "{template}"
store.path = "{folder}/pop3.sqlite"
"""


def message(number: int, body: bytes = b"body") -> bytes:
    return b"Subject: %03d\r\nMessage-ID: <%d@example.org>\r\n\r\n%b\r\n" % (number, number, body)


MAIL = [
    *(message(number) for number in range(20)),
    # The same message three times, one header with two bodies of one size, and a message of nothing.
    *[message(30)] * 3,
    message(31, b"one"),
    message(31, b"two"),
    b"\r\n",
    message(40, b".\r\n..\r\nx\r\n" * 50),
]


@dataclass
class Migration:
    """A user of a server with POP3, and a gateway's configuration in front of its IMAP."""

    store: Store
    user: str
    folder: Path

    def configured(self, template: str = "cyrus") -> Path:
        path = self.folder / "mailgate.toml"
        path.write_text(CONFIG.format(imap=self.store.imap, template=template, folder=self.folder))
        return path

    def run(self, *arguments: str, template: str = "cyrus") -> Result:
        config = str(self.configured(template))
        env = {"MAILGATE_PASSWORD": self.store.users[self.user], "MAILGATE_CONFIG": config}
        result = CliRunner().invoke(main, ["uidl", *arguments], env=env)
        assert self.store.users[self.user] not in result.output
        return result

    def old(self) -> Listing:
        """Return what the server's own POP3 shows."""
        assert self.store.pop3 is not None
        place = Pop3Place(Place(Endpoint("127.0.0.1", self.store.pop3), implicit=False))

        async def ask() -> Listing:
            server = await place.sign_in(self.user.encode(), self.secret)
            try:
                return await server.listing()
            finally:
                await server.quit()

        return trio.run(ask)

    @property
    def secret(self) -> Secret:
        return Secret(self.store.users[self.user].encode())

    def new(self, template: str = "cyrus") -> Listing:
        """Return what a POP3 session of the gateway's shows."""
        config: Config = load(self.configured(template), {})

        async def ask() -> Listing:
            homes = Homes(config)
            name = self.user.encode()
            try:
                async with homes.client(name, self.secret) as client:
                    memories = homes.memories(name)
                    opened = await open_maildrop(client, config.pop3, memories, [b"INBOX"], time.time())
                    drop = opened.maildrop
                    numbers = range(1, drop.total + 1)
                    return Listing(tuple(map(drop.uidl, numbers)), tuple(map(drop.size, numbers)))
            finally:
                await homes.aclose()

        return trio.run(ask)

    def compared(self, template: str = "cyrus") -> Comparison:
        return compare(self.old(), self.new(template))


@pytest.fixture
def migration(store: Store, user: str, tmp_path: Path) -> Migration:
    for one in MAIL:
        store.deliver(user, one)
    return Migration(store, user, tmp_path)


def test_without_import_and_with_the_wrong_template_everything_comes_again(migration: Migration) -> None:
    found = migration.compared()
    assert found.everything
    assert found.verdict == f"clients would download everything again: {len(MAIL)} messages"


def test_with_the_right_template_nothing_differs(migration: Migration) -> None:
    if migration.store.name == "dovecot":
        assert migration.compared("dovecot").same
    else:
        # Its numbers are not those of its IMAP server, so that a template only gives the looks.
        pattern = re.compile(rb"UID[0-9]+-[0-9]+")
        shown = [*migration.old().uidls, *migration.new("courier").uidls]
        assert [uidl for uidl in shown if not pattern.fullmatch(uidl)] == []


def test_from_a_living_server_nothing_differs(migration: Migration) -> None:
    place = f"127.0.0.1:{migration.store.pop3}"
    tried = migration.run("import", migration.user, "--from-pop3", place, "--dry-run")
    assert f"{len(MAIL)} unique-ids would be brought over" in tried.output, tried.output
    done = migration.run("import", migration.user, "--from-pop3", place)
    assert done.exit_code == 0, done.output
    assert f"{migration.user}: {len(MAIL)} of {len(MAIL)} messages matched, {len(MAIL)} unique-ids brought over; " in (
        done.stdout
    )
    assert migration.compared().same
    again = migration.run("import", migration.user, "--from-pop3", place)
    assert "matched, 0 unique-ids brought over" in again.stdout


def test_mail_that_comes_later_follows_the_template(migration: Migration) -> None:
    migration.run("import", migration.user, "--from-pop3", f"127.0.0.1:{migration.store.pop3}")
    before = migration.old()
    migration.store.deliver(migration.user, message(99))
    found = compare(before, migration.new())
    assert (len(found.new), found.gone, found.moved) == (1, (), ())
    shown = migration.run("show", migration.user)
    assert f"{len(MAIL)} unique-ids of their own" in shown.stdout


def test_what_is_exported_can_be_imported(migration: Migration) -> None:
    place = f"127.0.0.1:{migration.store.pop3}"
    assert migration.run("import", migration.user, "--from-pop3", place).exit_code == 0
    exported = migration.run("export", migration.user)
    rows = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert [row["uidl"].encode() for row in rows] == list(migration.old().uidls)
    table = migration.folder / "uidls.csv"
    table.write_text(exported.stdout)
    (migration.folder / "pop3.sqlite").rename(migration.folder / "elsewhere.sqlite")
    done = migration.run("import", migration.user, "--from-csv", str(table))
    assert done.exit_code == 0, done.output
    assert migration.compared().same


def test_from_the_servers_own_file_nothing_differs(migration: Migration) -> None:
    assert isinstance(migration.store, Maildirs)
    maildir = migration.store.maildir(migration.user)
    old = migration.old()
    migration.new()
    (migration.folder / "pop3.sqlite").unlink()
    if migration.store.name == "courier":
        files = ["--from-courier", str(maildir / "courierpop3dsizelist"), "--uids", str(maildir / "courierimapuiddb")]
    else:
        files = ["--from-dovecot", str(maildir / "dovecot-uidlist"), "--format", "dovecot"]
    done = migration.run("import", migration.user, *files)
    assert done.exit_code == 0, done.output
    assert compare(old, migration.new()).same


def test_sizes_alone_are_not_guessed_from(migration: Migration) -> None:
    old = migration.old()
    table = migration.folder / "sizes.csv"
    lines = [f"{size},{uidl.decode()}" for size, uidl in zip(old.sizes, old.uidls, strict=True)]
    table.write_text("\n".join(["size,uidl", *lines, "987654,lost", ""]))
    refused = migration.run("import", migration.user, "--from-csv", str(table))
    assert refused.exit_code == 1
    assert "not brought over: nothing tells these messages apart" in refused.stdout
    assert migration.run("show", migration.user).stdout == f"{migration.user}: nothing is remembered\n"
    certain = migration.run("import", migration.user, "--from-csv", str(table), "--certain")
    assert certain.exit_code == 0
    # Only the long one and the empty one have sizes of their own.
    assert "2 unique-ids brought over" in certain.stdout
    assert "not in the mailbox: lost (size 987654)" in certain.stdout


def test_who_is_not_there_is_told(migration: Migration) -> None:
    shown = migration.run("show", "nobody@example.org")
    assert shown.stdout == "nobody@example.org: nothing is remembered\n"

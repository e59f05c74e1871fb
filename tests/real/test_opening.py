"""A maildrop made of Dovecot's IMAP is the one that Dovecot's own POP3 shows, also when others change the mailbox."""

from __future__ import annotations

import imaplib
import poplib
import socket

import pytest
import trio

from mailgate.config.pop3 import Pop3Policy
from mailgate.stream import SocketStream
from mailgate.translate.imap_client import ImapClient
from mailgate.translate.maildrop import Maildrop
from mailgate.translate.opening import open_maildrop
from tests.support.memories import Kept
from tests.support.servers import Dovecot

pytestmark = pytest.mark.real


class Counting(SocketStream):
    """A connection that counts the bursts that it sends."""

    sent = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        Counting.sent += 1
        await super().send_all(data)


async def opened(server: Dovecot, user: tuple[str, str], kept: Kept, **policy: object) -> tuple[Maildrop, int]:
    """Return the maildrop, and in how many round trips it came."""
    with trio.fail_after(60):
        stream = Counting(socket.create_connection(("127.0.0.1", server.imap)))
        buffer = bytearray(65_536)
        client = ImapClient(stream, buffer, frozenset())
        # The greeting is read like any untagged line.
        await client.command(b"LOGIN %b %b" % (user[0].encode(), user[1].encode()))
        await client.command(b"CAPABILITY")
        Counting.sent = 0
        found = await open_maildrop(client, Pop3Policy.model_validate(policy), kept, (b"INBOX",), 0.0)
        trips = Counting.sent
        await client.logout()
        return found.maildrop, trips


def listed(server: Dovecot, user: tuple[str, str]) -> list[tuple[bytes, int]]:
    """Return what Dovecot's own POP3 shows: UIDL and size of each message."""
    pop3 = poplib.POP3("127.0.0.1", server.pop3, timeout=20)
    pop3.user(user[0])
    pop3.pass_(user[1])
    uidls = [line.split()[1] for line in pop3.uidl()[1]]
    sizes = [int(line.split()[1]) for line in pop3.list()[1]]
    pop3.rset()
    pop3.close()
    return list(zip(uidls, sizes, strict=True))


def shown(drop: Maildrop) -> list[tuple[bytes, int]]:
    return [(drop.uidl(number), drop.size(number)) for number in range(1, drop.total + 1)]


@pytest.mark.parametrize("size", ["trust", "exact"])
def test_the_maildrop_is_the_one_that_dovecot_shows(server: Dovecot, user: tuple[str, str], size: str) -> None:
    kept = Kept()
    imap = imaplib.IMAP4("127.0.0.1", server.imap)
    imap.login(*user)
    for number in range(20):
        imap.append("INBOX", "", "", b"Subject: %d\r\n\r\n" % number + b"..x\r\n" * number)
    drop, _ = trio.run(lambda: opened(server, user, kept, size=size))
    assert shown(drop) == listed(server, user)
    assert drop.total == 20
    # Nothing new: SELECT, and which are deleted. Dovecot tells HIGHESTMODSEQ only to those who ask for CONDSTORE.
    again, trips = trio.run(lambda: opened(server, user, kept, size=size))
    assert (shown(again), trips) == (shown(drop), 2)
    # Somebody expunges, another message comes, a third is marked as deleted.
    imap.select("INBOX")
    imap.store("3:5", "+FLAGS", "\\Deleted")
    imap.expunge()
    imap.append("INBOX", "", "", b"Subject: new\r\n\r\nnew\r\n")
    drop, _ = trio.run(lambda: opened(server, user, kept, size=size))
    assert shown(drop) == listed(server, user)
    assert drop.total == 18
    imap.store("1", "+FLAGS", "\\Deleted")
    imap.noop()
    drop, trips = trio.run(lambda: opened(server, user, kept, size=size))
    assert drop.total == 17
    assert trips == 2
    assert shown(drop) == listed(server, user)[1:]
    imap.store("1", "-FLAGS", "\\Deleted")
    drop, _ = trio.run(lambda: opened(server, user, kept, size=size, show_deleted=True))
    assert shown(drop) == listed(server, user)
    imap.logout()


@pytest.mark.parametrize("uidl", ["{emailid}", "{header_md5}", "{message_id}", "uw"])
def test_other_templates_keep_uidls_over_logins(server: Dovecot, user: tuple[str, str], uidl: str) -> None:
    kept = Kept()
    imap = imaplib.IMAP4("127.0.0.1", server.imap)
    imap.login(*user)
    for number in (1, 2, 1, 3):
        imap.append("INBOX", "", "", b"Message-ID: <%d@example.org>\r\nSubject: x\r\n\r\nbody\r\n" % number)
    first = shown(trio.run(lambda: opened(server, user, kept, uidl=uidl))[0])
    assert len({name for name, _ in first}) == 4
    imap.select("INBOX")
    imap.store("1", "+FLAGS", "\\Deleted")
    imap.expunge()
    imap.append("INBOX", "", "", b"Message-ID: <1@example.org>\r\nSubject: x\r\n\r\nbody\r\n")
    imap.logout()
    later = shown(trio.run(lambda: opened(server, user, kept, uidl=uidl))[0])
    assert later[:3] == first[1:]
    assert later[3] not in first

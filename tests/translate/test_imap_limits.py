"""Servers that never come to an end: what a command may take of time, of other sessions' turns, and of memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mailgate.stream import TrioStream
from mailgate.translate import imap_client, imap_connection
from mailgate.translate.imap_client import ImapClient, Malformed, UpstreamLost
from mailgate.translate.imap_connection import COMMAND_SECONDS, EVENTS_AT_ONCE, MESSAGES

Step = Callable[[trio.abc.Stream], object]


@asynccontextmanager
async def talking(*said: bytes, every: float = 0.0) -> AsyncIterator[ImapClient]:
    """Give a client of a server that says the same lines again and again, with a pause, whatever it is asked."""
    near, far = trio.testing.memory_stream_pair()
    client = ImapClient(TrioStream(near), bytearray(65_536), frozenset())

    async def serve() -> None:
        await far.receive_some(1000)
        while True:
            for line in said:
                await trio.sleep(every)
                await far.send_all(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield client
        nursery.cancel_scope.cancel()


async def test_a_server_that_says_that_it_is_there_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(b"* OK Still here\r\n", every=50) as client:
        began = trio.current_time()
        with pytest.raises(UpstreamLost, match="in time"):
            await client.noop()
        assert trio.current_time() - began == pytest.approx(COMMAND_SECONDS, abs=1)
        assert not client.alive


async def test_rows_that_come_slowly_are_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    rows = [b"* %d FETCH (UID %d FLAGS () RFC822.SIZE 1)\r\n" % (uid, uid) for uid in range(1, 20)]
    async with talking(*rows, b"m1 OK done\r\n", every=50) as client:
        client.exists = len(rows)
        assert len(await client.overview()) == len(rows)


async def test_a_message_that_comes_slowly_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    pieces = [b"* 1 FETCH (UID 1 BODY[] {20}\r\n", *[b"x"] * 20, b")\r\nm1 OK done\r\n"]
    async with talking(*pieces, every=50) as client:
        await client.begin_body(1)
        got = b""
        while (piece := await client.next_piece()) is not None:
            got += piece
        assert got == b"x" * 20


async def test_others_have_their_turn_in_a_flood() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    near, far = trio.testing.memory_stream_pair()
    client = ImapClient(TrioStream(near), bytearray(1 << 20), frozenset())
    await far.send_all(b"* 1 EXPUNGE\r\n" * (20 * EVENTS_AT_ONCE) + b"m1 OK done\r\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await client.noop()
        nursery.cancel_scope.cancel()
    assert turns >= 20


async def test_no_mailbox_has_so_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    async with talking(b"* %d EXISTS\r\n" % (MESSAGES + 1)) as client:
        with pytest.raises(Malformed):
            await client.noop()
    monkeypatch.setattr(imap_client, "MESSAGES", 3)
    async with talking(b"* SEARCH 1 2 3 3\r\nm1 OK done\r\n") as client:
        assert [*await client.search(b"ALL")] == [1, 2, 3]
    async with talking(b"* SEARCH 1 2 3 4\r\nm1 OK done\r\n") as client:
        with pytest.raises(Malformed):
            await client.search(b"ALL")
        assert not client.alive


async def test_of_what_nobody_asked_for_nothing_is_kept() -> None:
    codes = b"".join(b"* OK [X-%d y] z\r\n" % number for number in range(100))
    async with talking(codes + b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\nm1 OK [READ-WRITE] done\r\n") as client:
        opening = imap_connection.Opening()
        client.opening = opening
        await client.command(b"SELECT INBOX")
        assert opening.codes.keys() == {"UIDVALIDITY"}
    async with talking(b"* ENABLED X-1 UTF8=ACCEPT X-2\r\nm1 OK done\r\n") as client:
        assert await client.enable("UTF8=ACCEPT") == {"UTF8=ACCEPT"}
    listed = b"".join(b'* LIST (\\Trash) "/" trash%d\r\n' % number for number in range(100))
    async with talking(listed + b"m1 OK done\r\n") as client:
        assert await client.special_use("\\Trash") == b"trash0"


async def test_numbers_that_cannot_be_are_not_believed() -> None:
    flags = b"* FLAGS (\\Deleted)\r\n* 1 EXISTS\r\n"
    odd = b"* OK [UIDNEXT 4294967296] x\r\n* OK [HIGHESTMODSEQ 9223372036854775808] x\r\n"
    async with talking(flags + odd + b"* OK [UIDVALIDITY 4294967295] x\r\nm1 OK done\r\n") as client:
        selected = await client.select(b"INBOX")
        assert (selected.uidvalidity, selected.uidnext, selected.highestmodseq) == (4294967295, None, None)
    async with talking(flags + b"* OK [UIDVALIDITY 4294967296] x\r\nm1 OK done\r\n") as client:
        with pytest.raises(Malformed):
            await client.select(b"INBOX")
        assert not client.alive

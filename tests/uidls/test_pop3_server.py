"""The POP3 server that is compared or imported from, as a script on a memory stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from mailgate.stream import TrioStream
from mailgate.uidls.comparing import Listing
from mailgate.uidls.pop3_server import MessageDigest, Pop3Error, Pop3Server

PIPELINING = frozenset({"PIPELINING"})


class Script:
    """The other side: what it hears is compared, what it says is sent in pieces of ``size``."""

    def __init__(self, stream: trio.abc.Stream, size: int = 1000) -> None:
        self.stream = stream
        self.size = size

    async def expect(self, wanted: bytes) -> None:
        heard = b""
        while len(heard) < len(wanted):
            data = await self.stream.receive_some(len(wanted) - len(heard))
            assert data, heard
            heard += bytes(data)
        assert heard == wanted

    async def say(self, data: bytes) -> None:
        for start in range(0, len(data), self.size):
            await self.stream.send_all(data[start : start + self.size])
            await trio.testing.wait_all_tasks_blocked()

    async def answer(self, wanted: bytes, data: bytes) -> None:
        await self.expect(wanted)
        await self.say(data)


@contextlib.asynccontextmanager
async def talking(
    *answers: tuple[bytes, bytes], residual: bytes = b"", capabilities: frozenset[str] = frozenset(), size: int = 1000
) -> AsyncIterator[Pop3Server]:
    ours, theirs = trio.testing.memory_stream_pair()
    script = Script(theirs, size)

    async def play() -> None:
        # A client that has heard enough may leave in the middle.
        with contextlib.suppress(trio.BrokenResourceError):
            for wanted, data in answers:
                await script.answer(wanted, data)
            await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play)
        yield Pop3Server(TrioStream(ours), residual, capabilities)
        await ours.aclose()


UIDL = (b"UIDL\r\n", b"+OK\r\n1 a\r\n2 b c\r\n3 .d\r\n.\r\n")
LIST = (b"LIST\r\n", b"+OK 3 messages\r\n1 100\r\n2 200 octets\r\n3 300\r\n.\r\n")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_a_maildrop_is_what_uidl_and_list_show(autojump_clock: trio.testing.MockClock, size: int) -> None:
    async with talking(UIDL, LIST, size=size) as server:
        assert await server.listing() == Listing((b"a", b"b c", b".d"), (100, 200, 300))


async def test_an_empty_maildrop_is_empty(autojump_clock: trio.testing.MockClock) -> None:
    async with talking((b"UIDL\r\n", b"+OK\r\n.\r\n"), (b"LIST\r\n", b"+OK\r\n.\r\n"), residual=b"") as server:
        assert await server.listing() == Listing((), ())


@pytest.mark.parametrize(
    ("uidl", "sizes", "said"),
    [
        (b"-ERR no", b"", "the server says -ERR no"),
        (b"hello", b"", "neither"),
        (b"+OK\r\n1 a\r\n1 b\r\n.", b"", "none"),
        (b"+OK\r\nx a\r\n.", b"", "none"),
        (b"+OK\r\n1\r\n.", b"", "none"),
        (b"+OK\r\n1 a\r\n.", b"+OK\r\n.", "do not name the same"),
        (b"+OK\r\n2 a\r\n.", b"+OK\r\n2 1\r\n.", "do not name the same"),
        (b"+OK\r\n1 a\r\n.", b"+OK\r\n1 many\r\n.", "no size"),
        (b"+" * 9000, b"", "too long"),
    ],
)
async def test_what_is_no_list_is_told(
    autojump_clock: trio.testing.MockClock, uidl: bytes, sizes: bytes, said: str
) -> None:
    answers = [(b"UIDL\r\n", uidl + b"\r\n")] + ([(b"LIST\r\n", sizes + b"\r\n")] if sizes else [])
    async with talking(*answers) as server:
        with pytest.raises(Pop3Error, match=said):
            await server.listing()


async def test_a_server_that_goes_away_or_is_silent_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with talking((b"UIDL\r\n", b"+OK\r\n1 a\r\n")) as server:
        with pytest.raises(Pop3Error, match="closed the connection"):
            await server.listing()
    ours, theirs = trio.testing.memory_stream_pair()
    with pytest.raises(Pop3Error, match="silent for 60 s"):
        await Pop3Server(TrioStream(ours), b"", frozenset()).listing()
    await theirs.aclose()


async def test_headers_are_asked_for_ahead_where_the_server_can(autojump_clock: trio.testing.MockClock) -> None:
    headers = [b"Subject: %d\r\n\r\n" % number for number in range(1, 61)]
    replies = [b"+OK\r\n%b.\r\n" % header for header in headers]
    asked = [b"TOP %d 0\r\n" % number for number in range(1, 61)]
    ahead = [
        (asked[0], replies[0]),
        (b"".join(asked[1:51]), b"".join(replies[1:51])),
        (b"".join(asked[51:]), b"".join(replies[51:])),
    ]
    for answers, capabilities in ((ahead, PIPELINING), (list(zip(asked, replies, strict=True)), frozenset())):
        found: dict[int, bytes] = {}
        async with talking(*answers, capabilities=capabilities) as server:
            await server.headers(range(1, 61), found.__setitem__)
        assert found == dict(enumerate(headers, 1))


async def test_a_server_without_top_gives_whole_messages(autojump_clock: trio.testing.MockClock) -> None:
    found: dict[int, bytes] = {}
    async with talking(
        (b"TOP 1 0\r\n", b"-ERR what\r\n"),
        (b"RETR 1\r\n", b"+OK\r\nSubject: 1\r\n\r\nbody\r\n\r\n.\r\n"),
        (b"RETR 2\r\n", b"+OK\r\nSubject: 2\r\n.\r\n"),
        (b"RETR 3\r\n", b"+OK\r\n\r\nno header\r\n.\r\n"),
        capabilities=PIPELINING,
    ) as server:
        await server.headers([1, 2, 3], found.__setitem__)
    assert found == {1: b"Subject: 1\r\n\r\n", 2: b"Subject: 2\r\n", 3: b"\r\n"}


async def test_a_message_that_is_refused_later_is_an_error(autojump_clock: trio.testing.MockClock) -> None:
    async with talking((b"TOP 1 0\r\n", b"+OK\r\na: b\r\n.\r\n"), (b"TOP 2 0\r\n", b"-ERR gone\r\n")) as server:
        with pytest.raises(Pop3Error, match="says -ERR gone"):
            await server.headers([1, 2], lambda number, header: None)


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_message_is_the_same_whatever_its_line_ends_and_dots(
    autojump_clock: trio.testing.MockClock, size: int
) -> None:
    async with talking((b"RETR 7\r\n", b"+OK\r\n..a: b\r\n\r\n..\r\n...x\r\n.\r\n"), size=size) as server:
        found = await server.digest(7)
    for other in ([b".a: b\n\n.\n..x\n"], [b".a: b\r", b"\n\r\n.\r\n..x"], [b".a: b\r\n\r\n.\r\n..x\r\n\r\n"]):
        digest = MessageDigest()
        for piece in other:
            digest.update(memoryview(piece))
        assert digest.digest() == found
    different = MessageDigest()
    different.update(b".a: b\n\n.\n.x\n")
    assert different.digest() != found


async def test_leaving_waits_for_nobody_long(autojump_clock: trio.testing.MockClock) -> None:
    async with talking((b"QUIT\r\n", b"+OK bye\r\n")) as server:
        await server.quit()
    ours, theirs = trio.testing.memory_stream_pair()
    before = trio.current_time()
    await Pop3Server(TrioStream(ours), b"", frozenset()).quit()
    assert trio.current_time() - before == pytest.approx(5)
    await theirs.aclose()

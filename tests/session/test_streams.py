"""The relay's shell alone, between streams of every kind: pressure, delays, turns and ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mailgate.events import BytesRelayed, CommandFinished, Event
from mailgate.model import ALLOW, Delay, End, Peer, Protocol, Session, Side, Verdict
from mailgate.policy.access import KNOWN_VERBS
from mailgate.session.relay import Relay, Watch
from mailgate.session.streams import Pumps
from mailgate.stream import ByteStream, SocketStream, TrioStream, burst_buffer
from mailgate.wire.relay import CopyRelay, RelayCore
from mailgate.wire.relay_imap import ImapRelay
from mailgate.wire.relay_pop3 import Pop3Relay


class Wires:
    """A relay between two far ends, without a dialogue before it."""

    def __init__(self, client: ByteStream, upstream: ByteStream, core: RelayCore, farewell: bytes = b"") -> None:
        self.events: list[Event] = []
        self.watch = Watch()
        self.session = Session("s1", Protocol.IMAP, "test", Peer("192.0.2.1", 1), trio.current_time())
        self.relay = Relay(
            core, self.session, self.events.append, idle=60.0, linger=5.0, farewell=lambda reason: farewell
        )
        self.pumps = Pumps(self.relay, client, upstream, self.watch, buffer=burst_buffer())
        self.end: End | None = None
        self.ended = trio.Event()
        self._streams = (client, upstream)

    async def run(self) -> None:
        self.end = await self.pumps.run()
        self.ended.set()
        for stream in self._streams:
            await stream.aclose()

    @property
    def finished(self) -> list[tuple[str, str, float]]:
        return [(one.verb, one.result, one.seconds) for one in self.events if isinstance(one, CommandFinished)]


def imap_core(decide: Callable[[str], Verdict] = lambda verb: ALLOW) -> ImapRelay:
    return ImapRelay(
        decide=decide,
        visible=list,
        verbs=KNOWN_VERBS[Protocol.IMAP],
        capabilities=frozenset({"LITERAL+"}),
    )


def pop3_core() -> Pop3Relay:
    return Pop3Relay(decide=lambda verb: ALLOW, visible=list, verbs=KNOWN_VERBS[Protocol.POP3])


def sockets() -> tuple[ByteStream, trio.SocketStream]:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return SocketStream(near), trio.SocketStream(trio.socket.from_stdlib_socket(far))


def lockstep() -> tuple[ByteStream, trio.abc.HalfCloseableStream]:
    near, far = trio.testing.lockstep_stream_pair()
    return TrioStream(near), far


def memory() -> tuple[ByteStream, trio.abc.HalfCloseableStream]:
    near, far = trio.testing.memory_stream_pair()
    return TrioStream(near), far


@asynccontextmanager
async def wired(
    core: RelayCore, pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]] = memory, farewell: bytes = b""
) -> AsyncIterator[tuple[Wires, trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]]:
    near_client, client = pair()
    near_upstream, upstream = pair()
    wires = Wires(near_client, near_upstream, core, farewell)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wires.run)
        yield wires, client, upstream
        await client.aclose()
        await upstream.aclose()


async def read(stream: trio.abc.HalfCloseableStream, size: int, *, at_a_time: int = 65536, pause: float = 0.0) -> bytes:
    got = bytearray()
    while len(got) < size:
        await trio.sleep(pause)
        piece = await stream.receive_some(min(at_a_time, size - len(got)))
        assert piece, f"the end came after {len(got)} of {size} bytes"
        got += piece
    return bytes(got)


BODY = bytes(range(256)) * 4096
UPLOAD = b"a APPEND inbox {%d}\r\n%b\r\n" % (len(BODY), BODY)
ANNOUNCED = UPLOAD.index(b"\n") + 1
GO_ON = b"+ go on\r\n"
DOWNLOAD = b"* 1 FETCH (BODY[] {%d}\r\n%b)\r\nz OK done\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("make", [imap_core, CopyRelay])
@pytest.mark.parametrize("pair", [memory, lockstep, sockets])
async def test_both_sides_send_much_at_once(
    autojump_clock: object,
    make: Callable[[], RelayCore],
    pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]],
) -> None:
    async with wired(make(), pair) as (_, client, upstream), trio.open_nursery() as nursery:
        got: dict[str, bytes] = {}

        async def take(name: str, stream: trio.abc.HalfCloseableStream, size: int) -> None:
            got[name] = got.get(name, b"") + await read(stream, size)

        nursery.start_soon(client.send_all, UPLOAD)
        await take("upstream", upstream, ANNOUNCED)
        nursery.start_soon(upstream.send_all, GO_ON + DOWNLOAD)
        nursery.start_soon(take, "client", client, len(GO_ON + DOWNLOAD))
        nursery.start_soon(take, "upstream", upstream, len(UPLOAD) - ANNOUNCED)
    assert got == {"client": GO_ON + DOWNLOAD, "upstream": UPLOAD}


@pytest.mark.parametrize("pair", [memory, lockstep])
async def test_writers_of_one_byte_at_a_time(
    autojump_clock: object, pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]]
) -> None:
    asked = b'a FETCH 1 BODY[]\r\nb APPEND "x" {4}\r\n'
    answer = b"* 1 FETCH (BODY[] {8}\r\na OK no\n)\r\na OK done\r\n* CAPABILITY IDLE\r\nb NO [X] {3}\r\n"

    async def trickle(stream: trio.abc.Stream, data: bytes) -> None:
        for at in range(len(data)):
            await stream.send_all(data[at : at + 1])
            await trio.sleep(0.01)

    async with wired(imap_core(), pair) as (wires, client, upstream):
        for source, sink, data in ((client, upstream, asked), (upstream, client, answer)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle, source, data)
                assert await read(sink, len(data)) == data
        await trio.testing.wait_all_tasks_blocked()
        assert [(verb, result) for verb, result, _ in wires.finished] == [("FETCH", "ok"), ("APPEND", "no")]


@pytest.mark.parametrize("pair", [lockstep, sockets])
async def test_a_slow_reader_holds_the_sender_back_and_loses_nothing(
    autojump_clock: object,
    pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]],
) -> None:
    data = DOWNLOAD[:100_000]
    async with wired(imap_core(), pair) as (wires, client, upstream), trio.open_nursery() as nursery:
        nursery.start_soon(upstream.send_all, data)
        assert await read(client, len(data), at_a_time=5000, pause=0.01) == data
        await trio.testing.wait_all_tasks_blocked()
        assert wires.session.bytes_out == len(data)


async def test_answers_of_the_gateway_keep_their_place_beside_a_blocked_send(autojump_clock: object) -> None:
    body = b"* 1 FETCH (BODY[] {200000}\r\n%b)\r\n" % (b"x" * 200_000)
    async with wired(imap_core(), sockets) as (_, client, upstream), trio.open_nursery() as nursery:
        nursery.start_soon(upstream.send_all, body)
        await trio.sleep(0.05)
        refused = b"".join(b"t%d\r\n" % number for number in range(3))
        await client.send_all(refused)
        await trio.sleep(0.05)
        answers = b"* BAD Expected a tag and a command\r\n" * 3
        assert await read(client, len(body) + len(answers)) == body + answers


async def test_both_pumps_take_turns_at_the_client(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep) as (_, client, upstream), trio.open_nursery() as nursery:
        # The first send to the client is not read, so whatever comes behind it must wait in order.
        await upstream.send_all(b"* 1 EXISTS\r\n")
        nursery.start_soon(client.send_all, b"one\r\n")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(upstream.send_all, b"* 2 EXISTS\r\n")
        await trio.testing.wait_all_tasks_blocked()
        expected = b"* 1 EXISTS\r\n* BAD Expected a tag and a command\r\n* 2 EXISTS\r\n"
        assert await read(client, len(expected)) == expected


async def test_a_delay_of_the_gate_holds_a_command_back(autojump_clock: object) -> None:
    def decide(verb: str) -> Verdict:
        return Delay(3.0, "test") if verb == "SELECT" else ALLOW

    async with wired(imap_core(decide)) as (wires, client, upstream):
        began = trio.current_time()
        await client.send_all(b"a SELECT inbox\r\nb NOOP\r\n")
        assert await read(upstream, 16) == b"a SELECT inbox\r\n"
        assert trio.current_time() - began == 3.0
        assert await read(upstream, 8) == b"b NOOP\r\n"
        assert trio.current_time() - began == 3.0
        await upstream.send_all(b"a OK done\r\nb OK done\r\n")
        await read(client, 22)
        assert wires.finished == [("SELECT", "ok", 3.0), ("NOOP", "ok", 0.0)]


@pytest.mark.parametrize("answer", [b"a OK done\r\n", b"a OK done\r\n* 1 EXISTS\r\n"])
async def test_a_slow_client_that_says_no_more_gets_all_of_its_answer(autojump_clock: object, answer: bytes) -> None:
    async with wired(imap_core(), lockstep) as (wires, client, upstream), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"a NOOP\r\n")
        await read(upstream, 8)
        await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()
        nursery.start_soon(upstream.send_all, answer)
        await trio.sleep(4)
        assert await read(client, len(answer)) == answer
    assert wires.end == End(Side.CLIENT, "closed")


async def test_a_client_that_neither_speaks_nor_reads_is_left(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep) as (wires, client, upstream):
        await upstream.send_all(b"* 1 EXISTS\r\n")
        began = trio.current_time()
        await client.send_eof()
        await wires.ended.wait()
        assert trio.current_time() - began == 5.0
    assert wires.end == End(Side.CLIENT, "closed")


async def test_a_client_that_does_not_read_its_farewell_is_left_after_a_moment(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep, farewell=b"* BYE\r\n") as (wires, client, _):
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        wires.watch.end_idle("shutting_down")
        assert await client.receive_some(1) == b"*"
        await wires.ended.wait()
        assert trio.current_time() - began == 1.0
    assert wires.end == End(Side.PROXY, "shutting_down")
    assert wires.session.bytes_out == 0


async def test_a_client_that_is_gone_before_its_farewell(autojump_clock: object) -> None:
    async with wired(imap_core(), memory, farewell=b"* BYE\r\n") as (wires, client, _):
        await trio.testing.wait_all_tasks_blocked()
        wires.relay.end(Side.PROXY, "shutting_down")
        await client.aclose()
    assert wires.end == End(Side.PROXY, "shutting_down")


async def test_a_relay_that_is_sending_is_not_quiet(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep) as (wires, client, upstream):
        await upstream.send_all(b"* 1 EXISTS\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert not wires.relay.quiet
        await read(client, 12)
        await trio.testing.wait_all_tasks_blocked()
        assert wires.relay.quiet


async def test_the_first_reason_is_the_one_that_counts(autojump_clock: object) -> None:
    async with wired(pop3_core()) as (wires, _, _):
        await trio.testing.wait_all_tasks_blocked()
        wires.relay.end(Side.PROXY, "idle")
        wires.relay.end(Side.SERVER, "closed")
        assert wires.relay.ended
    assert wires.end == End(Side.PROXY, "idle")
    assert len(wires.watch) == 0


@pytest.mark.parametrize("make", [imap_core, pop3_core, CopyRelay])
async def test_what_came_before_the_relay_comes_first(autojump_clock: object, make: Callable[[], RelayCore]) -> None:
    (near_client, client), (near_upstream, upstream) = memory(), memory()
    wires = Wires(near_client, near_upstream, make())
    await client.send_all(b"b NOOP\r\n" if make is imap_core else b"NOOP\r\n")
    await upstream.send_all(b"* 2 EXISTS\r\n" if make is imap_core else b"+OK 2\r\n")
    async with trio.open_nursery() as nursery:
        early = (b"a NOOP\r\n", b"* 1 EXISTS\r\n") if make is imap_core else (b"STAT\r\n", b"+OK 1\r\n")
        nursery.start_soon(wires.pumps.run, *early)
        rest = (b"b NOOP\r\n", b"* 2 EXISTS\r\n") if make is imap_core else (b"NOOP\r\n", b"+OK 2\r\n")
        for stream, parts in ((upstream, (early[0], rest[0])), (client, (early[1], rest[1]))):
            assert await read(stream, len(b"".join(parts))) == b"".join(parts)
        nursery.cancel_scope.cancel()
    told = [event for event in wires.events if isinstance(event, BytesRelayed)]
    assert sum(one.sent for one in told) == wires.session.bytes_out > 0

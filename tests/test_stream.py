"""The contract of a byte stream, over real sockets in clear and inside TLS, and over Trio's streams."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mailgate.stream import (
    BURST,
    LONE,
    PROBE_SECONDS,
    PROBE_SPREAD,
    ROUNDS,
    ByteStream,
    SocketStream,
    TrioStream,
    acknowledge_at_once,
    burst_buffer,
    keep_alive,
    probe_seconds,
)
from tests.support.certificates import Authority, authority

BIG = 3 * 1024 * 1024


@pytest.fixture(scope="module")
def ca() -> Authority:
    return authority()


@pytest.fixture(scope="module")
def server_context(ca: Authority) -> ssl.SSLContext:
    return ca.issue("mail.example.org").server()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    return accepted, client


Pair = Callable[[], Any]


@asynccontextmanager
async def plain() -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    near, far = (SocketStream(sock) for sock in tcp_pair())
    try:
        with trio.fail_after(20):
            yield near, far
    finally:
        near.abort()
        far.abort()


@asynccontextmanager
async def secured(context: ssl.SSLContext, client: ssl.SSLContext) -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    async with plain() as (near, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: near.start_tls(context, server_side=True))
            await far.start_tls(client, server_side=False, server_hostname="mail.example.org")
        yield near, far


@pytest.fixture(params=["clear", "TLS 1.2", "TLS 1.3"])
def pair(request: pytest.FixtureRequest, ca: Authority, server_context: ssl.SSLContext) -> Pair:
    if request.param == "clear":
        return plain
    version = ssl.TLSVersion.TLSv1_2 if request.param == "TLS 1.2" else ssl.TLSVersion.TLSv1_3
    return lambda: secured(server_context, ca.client(minimum_version=version, maximum_version=version))


async def read(stream: ByteStream, size: int = 1 << 30) -> bytes:
    """Return what comes until the end, or until there are ``size`` bytes."""
    buffer, found = bytearray(65536), bytearray()
    while len(found) < size and (count := await stream.receive(memoryview(buffer))):
        found += buffer[:count]
    return bytes(found)


def reset(stream: SocketStream) -> None:
    """Drop a connection without a word."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.abort()


# ---------------------------------------------------------------- both kinds of socket


async def test_words_in_both_directions(pair: Pair) -> None:
    async with pair() as (near, far):
        await near.send_all(b"* OK hello\r\n")
        assert await read(far, 12) == b"* OK hello\r\n"
        await far.send_all(memoryview(b"a NOOP\r\n"))
        assert await read(near, 8) == b"a NOOP\r\n"
        await near.send_all(b"")


async def test_a_burst_fills_no_more_than_the_buffer(pair: Pair) -> None:
    async with pair() as (near, far):
        await far.send_all(b"0123456789")
        buffer = bytearray(4)
        parts = []
        while len(b"".join(parts)) < 10:
            count = await near.receive(memoryview(buffer))
            parts.append(bytes(buffer[:count]))
        assert parts == [b"0123", b"4567", b"89"]


async def test_only_a_short_first_record_ends_a_burst(ca: Authority, server_context: ssl.SSLContext) -> None:
    async with secured(server_context, ca.client()) as (near, far):
        for size in (LONE, LONE + 1, 20, 16_000, 1, LONE + 1, 1):
            await near.send_all(b"x" * size)
        buffer = memoryview(burst_buffer())
        assert await far.receive(buffer) == LONE
        assert await far.receive(buffer) == 2 * LONE + 16_024
        buffer = buffer[:100]
        await near.send_all(b"y" * 150)
        assert await far.receive(buffer) == 100
        # The rest of the record is inside OpenSSL, where waiting for the socket would be in vain.
        assert await far.receive(buffer) == 50


async def test_a_cut_connection_and_a_polite_one_end_alike(pair: Pair) -> None:
    for polite in (True, False):
        async with pair() as (near, far):
            await far.send_all(b"last words")
            await far.aclose() if polite else far.abort()
            assert await read(near) == b"last words"
            assert await near.receive(memoryview(bytearray(10))) == 0


async def test_a_reset_is_told_as_broken(pair: Pair) -> None:
    async with pair() as (near, far):
        reset(far)
        if near.tls is None:
            with pytest.raises(trio.BrokenResourceError):
                await near.receive(memoryview(bytearray(10)))
        else:
            with contextlib.suppress(trio.BrokenResourceError):
                assert await near.receive(memoryview(bytearray(10))) == 0
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x")


async def test_sending_to_one_who_went_is_told_as_broken(pair: Pair) -> None:
    async with pair() as (near, far):
        await far.aclose()
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012
            while True:
                await near.send_all(b"x" * 65536)


async def test_what_was_closed_here_is_told_as_closed(pair: Pair) -> None:
    async with pair() as (near, _):
        await near.aclose()
        await near.aclose()
        for call in (
            lambda: near.receive(memoryview(bytearray(10))),
            lambda: near.send_all(b"x"),
            lambda: near.peek(10),
            lambda: near.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server_side=True),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await call()


@pytest.mark.parametrize("kind", ["receive", "send"])
async def test_closing_wakes_up_who_waits(kind: str, pair: Pair) -> None:
    async with pair() as (near, _):
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "receive": lambda: near.receive(memoryview(bytearray(10))),
            "send": lambda: near.send_all(bytes(BIG * 8)),
        }

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await calls[kind]()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            near.abort()


async def test_big_transfers_in_both_directions_at_once(pair: Pair) -> None:
    async with pair() as (near, far):
        there, back = (bytes(range(seed, 251)) * (BIG // (251 - seed)) for seed in (0, 7))
        digests: dict[str, bytes] = {}

        async def send(stream: SocketStream, data: bytes) -> None:
            for at in range(0, len(data), 100_000):
                await stream.send_all(memoryview(data)[at : at + 100_000])

        async def take(name: str, stream: SocketStream, size: int) -> None:
            buffer, digest, left = burst_buffer(), hashlib.sha256(), size
            while left:
                count = await stream.receive(memoryview(buffer))
                digest.update(memoryview(buffer)[:count])
                left -= count
            digests[name] = digest.digest()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, near, there)
            nursery.start_soon(send, far, back)
            nursery.start_soon(take, "there", far, len(there))
            nursery.start_soon(take, "back", near, len(back))
        assert digests == {"there": hashlib.sha256(there).digest(), "back": hashlib.sha256(back).digest()}


async def test_what_waits_to_be_sent_is_a_copy(pair: Pair) -> None:
    async with pair() as (near, far):
        data = bytearray(b"a" * (BIG * 4))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, memoryview(data))
            await trio.testing.wait_all_tasks_blocked()
            data[:] = b"X" * len(data)
            received = await read(far, len(data))
        assert received == b"a" * len(data)


async def test_what_waits_for_its_turn_is_a_copy(pair: Pair) -> None:
    """After some sends at once a stream lets the others run, who may use the buffer meanwhile."""
    async with pair() as (near, far):
        data = bytearray(b"a")
        for _ in range(ROUNDS):
            await near.send_all(data)

        async def spoil() -> None:
            data[:] = b"X"
            await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(spoil)
            await near.send_all(data)
        assert await read(far, ROUNDS + 1) == b"a" * (ROUNDS + 1)


@pytest.mark.parametrize("direction", ["receive", "send"])
async def test_a_busy_stream_lets_others_run(direction: str, pair: Pair) -> None:
    async with pair() as (near, far):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        buffer = memoryview(bytearray(1))
        await far.send_all(b"x" * 100)
        await trio.sleep(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.lowlevel.checkpoint()
            before = turns
            for _ in range(4 * ROUNDS):
                await (near.receive(buffer) if direction == "receive" else near.send_all(b"y"))
            assert turns - before >= 2
            nursery.cancel_scope.cancel()


async def test_receiving_takes_no_checkpoint_behind_its_bytes(pair: Pair) -> None:
    """One buffer serves all sessions, so nobody may run between the reading and the return."""
    async with pair() as (near, far):
        buffer = memoryview(bytearray(100))
        others: list[bytes] = []

        async def other() -> None:
            while True:
                others.append(bytes(buffer[:3]))
                buffer[:3] = b"zzz"
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for number in range(20):
                await far.send_all(b"%03d" % number)
                count = await near.receive(buffer)
                assert bytes(buffer[:count]) == b"%03d" % number
            nursery.cancel_scope.cancel()
        assert others


async def test_a_cancelled_call_takes_nothing(pair: Pair) -> None:
    async with pair() as (near, far):
        with trio.move_on_after(0.01) as scope:
            await near.receive(memoryview(bytearray(10)))
        assert scope.cancelled_caught
        await far.send_all(b"abc")
        with trio.CancelScope() as scope:
            scope.cancel()
            await near.receive(memoryview(bytearray(10)))
        assert scope.cancelled_caught
        assert await read(near, 3) == b"abc"


async def test_closing_works_when_cancelled(pair: Pair) -> None:
    async with pair() as (near, far):
        with trio.CancelScope() as scope:
            scope.cancel()
            await near.aclose()
        assert scope.cancelled_caught
        assert near.socket.fileno() == -1
        assert await read(far) == b""


# ---------------------------------------------------------------- sockets in clear


async def test_looking_ahead_takes_nothing() -> None:
    async with plain() as (near, far):
        await far.send_all(b"\x16\x03")
        assert await near.peek(100) == b"\x16\x03"
        assert await near.peek(1) == b"\x16"
        async with trio.open_nursery() as nursery:
            seen = []

            async def more() -> None:
                seen.append(await near.peek(100, more_than=2))

            nursery.start_soon(more)
            await trio.testing.wait_all_tasks_blocked()
            assert seen == []
            await far.send_all(b"\x01")
        assert seen == [b"\x16\x03\x01"]
        assert await read(near, 3) == b"\x16\x03\x01"


async def test_looking_ahead_on_a_unix_socket() -> None:
    near, far = (SocketStream(sock) for sock in socket.socketpair())
    await far.send_all(b"\x16\x03")
    assert await near.peek(100) == b"\x16\x03"
    seen = []

    async def more() -> None:
        seen.append(await near.peek(100, more_than=2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(more)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        await far.send_all(b"\x01")
    assert seen == [b"\x16\x03\x01"]
    far.abort()
    assert await read(near) == b"\x16\x03\x01"
    assert await near.peek(100) == b""
    near.abort()


async def test_looking_ahead_at_the_end() -> None:
    async with plain() as (near, far):
        await far.send_all(b"abc")
        far.abort()
        assert await near.peek(100, more_than=50) == b"abc"
    async with plain() as (near, far):
        reset(far)
        with pytest.raises(trio.BrokenResourceError):
            await near.peek(100)


async def test_connecting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        stream = SocketStream(socket.socket())
        await stream.connect(address)
        accepted, _ = listening.accept()
        with accepted:
            await stream.send_all(b"hello")
            assert accepted.recv(10) == b"hello"
        stream.abort()
    missing = str(tmp_path / "nobody")
    for family, where, error in ((socket.AF_INET, address, ConnectionRefusedError), (socket.AF_UNIX, missing, OSError)):
        stream = SocketStream(socket.socket(family))
        with pytest.raises(error):
            await stream.connect(where)
        stream.abort()


async def test_a_cancelled_connect_goes_no_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stream = SocketStream(socket.socket())
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.connect(listening.getsockname())
        assert scope.cancelled_caught
        stream.abort()


async def test_options_of_a_connection() -> None:
    near, far = tcp_pair()
    stream = SocketStream(near)
    keep_alive(near, idle=100, interval=20, count=3)
    tcp = socket.IPPROTO_TCP
    assert near.getsockopt(tcp, socket.TCP_NODELAY) == 1
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    assert [near.getsockopt(tcp, option) for option in options] == [100, 20, 3]
    assert near.getblocking() is False
    acknowledge_at_once(near)
    assert near.getsockopt(tcp, socket.TCP_QUICKACK) == 1
    stream.abort()
    far.close()
    unix, other = socket.socketpair()
    keep_alive(unix)
    acknowledge_at_once(unix)
    unix.close()
    other.close()


def test_peers_of_sockets_made_together_are_probed_at_different_times() -> None:
    sockets = [socket.socket() for _ in range(PROBE_SPREAD + 1)]
    times = {probe_seconds(sock) for sock in sockets}
    for sock in sockets:
        sock.close()
    assert len(times) > PROBE_SPREAD / 2
    assert PROBE_SECONDS - PROBE_SPREAD <= min(times) <= max(times) <= PROBE_SECONDS


async def test_an_error_of_the_system_is_told_as_broken() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    stream = SocketStream(near)
    far.close()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x" * (1 << 24))
    never = SocketStream(socket.socket())
    for call in (lambda: never.receive(memoryview(bytearray(1))), lambda: never.send_all(b"x")):
        with pytest.raises(trio.BrokenResourceError):
            await call()
    never.abort()
    stream.abort()


async def test_closing_wakes_up_who_looks_ahead() -> None:
    async with plain() as (near, _), trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.peek(10)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        near.abort()


def test_the_shared_buffer_holds_a_burst() -> None:
    assert len(burst_buffer()) == BURST == 262_144


# ---------------------------------------------------------------- TLS


async def test_what_a_handshake_agrees_on(ca: Authority, server_context: ssl.SSLContext) -> None:
    async with secured(server_context, ca.client()) as (near, far):
        assert near.tls is not None
        assert far.tls is not None
        assert near.tls.version == far.tls.version == "TLSv1.3"
        assert near.tls.cipher == far.tls.cipher == "TLS_AES_256_GCM_SHA384"
        assert (near.tls.resumed, near.peer_certificate) == (False, None)
        assert far.peer_certificate is not None
    async with plain() as (near, _):
        assert near.peer_certificate is None


async def test_a_polite_end_says_so(ca: Authority, server_context: ssl.SSLContext) -> None:
    context = ca.client()
    # Some Pythons ask OpenSSL to overlook a missing farewell, which is what is looked for here.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    for farewell in (True, False):
        async with plain() as (near, far):
            raw = far.socket.dup()
            raw.setblocking(False)
            client = trio.SSLStream(
                trio.SocketStream(trio.socket.from_stdlib_socket(raw)),
                context,
                server_hostname="mail.example.org",
                https_compatible=False,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.do_handshake)
                await near.start_tls(server_context, server_side=True)
            await near.send_all(b"bye")
            await near.aclose() if farewell else near.abort()
            assert await client.receive_some(3) == b"bye"
            if farewell:
                assert await client.receive_some() == b""
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()
            await trio.aclose_forcefully(client)


@pytest.mark.parametrize("how", ["close", "reset", "reset before"])
async def test_a_peer_that_goes_during_the_handshake(how: str, server_context: ssl.SSLContext) -> None:
    async with plain() as (near, far):
        if how == "reset before":
            reset(far)

        async def leave() -> None:
            await trio.testing.wait_all_tasks_blocked()
            if how != "reset before":
                far.abort() if how == "close" else reset(far)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            with pytest.raises(trio.BrokenResourceError, match="the peer went during the TLS handshake"):
                await near.start_tls(server_context, server_side=True)
        await near.aclose()
    gc.collect()


async def test_a_handshake_that_fails(ca: Authority, server_context: ssl.SSLContext) -> None:
    async with plain() as (near, far):
        await far.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
            await near.start_tls(server_context, server_side=True)
        assert near.tls is None
        await near.aclose()


async def test_garbage_inside_tls_is_told_as_broken(ca: Authority, server_context: ssl.SSLContext) -> None:
    async with secured(server_context, ca.client()) as (near, far):
        await far.send_all(b"good")
        socket.socket.send(far.socket, b"\x17\x03\x03\x00\x05XXXXX")
        await trio.sleep(0.01)
        assert await read(near, 4) == b"good"
        with pytest.raises(trio.BrokenResourceError, match="TLS: "):
            await near.receive(memoryview(bytearray(10)))
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x")


async def test_a_handshake_waits_for_room_to_write(ca: Authority, server_context: ssl.SSLContext) -> None:
    async with plain() as (near, far):
        near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with contextlib.suppress(BlockingIOError):
            while True:
                near.socket.send(b"\x00" * 65536)
        with trio.move_on_after(0.05) as scope:
            await near.start_tls(ca.client(), server_side=False, server_hostname="mail.example.org")
        assert scope.cancelled_caught


# ---------------------------------------------------------------- Trio's streams


async def test_the_adapter_over_a_memory_stream() -> None:
    near, far = trio.testing.memory_stream_pair()
    stream = TrioStream(near)
    data = bytearray(b"hello")
    await stream.send_all(memoryview(data))
    data[:] = b"XXXXX"
    assert await far.receive_some() == b"hello"
    await far.send_all(b"0123456789")
    buffer = bytearray(4)
    assert [await stream.receive(memoryview(buffer)) for _ in range(3)] == [4, 4, 2]
    assert bytes(buffer[:2]) == b"89"
    await far.aclose()
    assert await stream.receive(memoryview(buffer)) == 0
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive(memoryview(buffer))
    assert stream.tls is None


async def test_the_adapter_does_tls(ca: Authority, server_context: ssl.SSLContext) -> None:
    near, far = (TrioStream(stream) for stream in trio.testing.memory_stream_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: near.start_tls(server_context, server_side=True))
        info = await far.start_tls(ca.client(), server_side=False, server_hostname="mail.example.org")
    assert (info.version, info.cipher, info.resumed) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384", False)
    assert far.tls == info
    await near.send_all(b"inside")
    assert await read(far, 6) == b"inside"
    await near.aclose()
    assert await read(far) == b""
    await far.aclose()

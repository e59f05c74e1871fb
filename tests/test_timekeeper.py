"""Deadlines of what waits: when they strike, and that those that never do leave nothing behind."""

from __future__ import annotations

import contextlib
import gc
import math
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from mailgate import timekeeper
from mailgate.stream import ROUNDS, ByteStream, SocketStream, TrioStream

Pair = tuple[ByteStream, ByteStream]


@contextmanager
def sockets() -> Iterator[Pair]:
    near, far = (SocketStream(sock) for sock in socket.socketpair())
    try:
        yield near, far
    finally:
        near.abort()
        far.abort()


@contextmanager
def memory() -> Iterator[Pair]:
    near, far = trio.testing.lockstep_stream_pair()
    yield TrioStream(near), TrioStream(far)


@pytest.fixture(params=[sockets, memory])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    make: Callable[[], contextmanager[Pair]] = request.param  # type: ignore[type-arg, valid-type]
    with make() as streams:  # type: ignore[attr-defined]
        yield streams


async def receive(stream: ByteStream) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: await stream.receive(memoryview(buffer))])


# ---------------------------------------------------------------- what strikes


async def test_who_waits_to_receive_is_told_at_that_moment(autojump_clock: object, pair: Pair) -> None:
    near, far = pair
    began = trio.current_time()
    near.deadline = began + 10
    with pytest.raises(trio.TooSlowError):
        await receive(near)
    assert trio.current_time() == began + 10
    # The connection is there, and goes on with another deadline.
    near.deadline = math.inf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, b"too late")
        assert await receive(far) == b"too late"


async def test_who_waits_to_send_is_told_at_that_moment(autojump_clock: object, pair: Pair) -> None:
    near, _ = pair
    began = trio.current_time()
    near.deadline = began + 10
    with pytest.raises(trio.TooSlowError):
        await near.send_all(bytes(10_000_000))
    assert trio.current_time() == began + 10


async def test_a_handshake_that_is_not_answered(autojump_clock: object, pair: Pair) -> None:
    near, _ = pair
    began = trio.current_time()
    near.deadline = began + 10
    with pytest.raises(trio.TooSlowError):
        await near.start_tls(ssl.create_default_context(), server_side=False, server_hostname="mail.example.org")
    assert trio.current_time() == began + 10


async def test_a_deadline_that_is_moved(autojump_clock: object, pair: Pair) -> None:
    near, far = pair
    began = trio.current_time()
    for seconds in (10, 20, 5, math.inf, 15):
        near.deadline = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.send_all, b"a NOOP")
            assert await receive(near) == b"a NOOP"
        await trio.sleep(1)
    with pytest.raises(trio.TooSlowError):
        await receive(near)
    assert trio.current_time() == began + 4 + 15


async def test_many_deadlines_strike_in_their_order(autojump_clock: object) -> None:
    struck: list[float] = []

    async def wait(stream: ByteStream, seconds: float) -> None:
        stream.deadline = trio.current_time() + seconds
        with pytest.raises(trio.TooSlowError):
            await receive(stream)
        struck.append(trio.current_time() - began)

    began = trio.current_time()
    pairs = [socket.socketpair() for _ in range(20)]
    try:
        async with trio.open_nursery() as nursery:
            for number, (near, _) in enumerate(pairs):
                nursery.start_soon(wait, SocketStream(near), float(number * 7 % 20 + 1))
    finally:
        for near, far in pairs:
            near.close()
            far.close()
    assert struck == [float(number) for number in range(1, 21)]


async def test_one_that_has_come_already_ends_the_next_wait(autojump_clock: object, pair: Pair) -> None:
    near, _ = pair
    began = trio.current_time()
    near.deadline = began - 1
    with pytest.raises(trio.TooSlowError):
        await receive(near)
    assert trio.current_time() == began


async def test_a_peer_that_never_lets_this_side_wait_is_ended_too(autojump_clock: object) -> None:
    with sockets() as (near, far):
        await far.send_all(bytes(60_000))
        assert await near.receive(memoryview(bytearray(1000))) == 1000
        near.deadline = trio.current_time() + 1
        await trio.sleep(2)
        received = 0
        with contextlib.suppress(trio.TooSlowError):
            while received < 50_000:
                received += await near.receive(memoryview(bytearray(1000)))
        assert received <= 1000 * ROUNDS


async def test_bytes_that_trickle_do_not_put_it_off(autojump_clock: object, pair: Pair) -> None:
    near, far = pair
    began = trio.current_time()
    near.deadline = began + 10.25

    async def trickle() -> None:
        while True:
            await far.send_all(b"x")
            await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        with contextlib.suppress(trio.TooSlowError):
            while True:
                await receive(near)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == began + 10.25


async def test_closing_is_no_deadline(autojump_clock: object) -> None:
    with sockets() as (near, _):
        near.deadline = trio.current_time() + 10

        async def close() -> None:
            await trio.sleep(5)
            near.abort()  # type: ignore[attr-defined]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            with pytest.raises(trio.ClosedResourceError):
                await receive(near)


# ---------------------------------------------------------------- what stays


async def test_streams_that_are_done_are_not_kept(autojump_clock: object) -> None:
    """A login's two streams are watched for some seconds, and live for some milliseconds."""
    before = sum(type(one) is SocketStream for one in gc.get_objects())
    for _ in range(50):
        with sockets() as (near, _):
            near.deadline = trio.current_time() + 10
            with trio.move_on_after(0.001):
                await receive(near)
    del near, _
    assert sum(type(one) is SocketStream for one in gc.get_objects()) <= before + 2


async def test_those_behind_one_that_waits_go_little_by_little(mock_clock: trio.testing.MockClock) -> None:
    class Waiting:
        deadline = math.inf
        looked = 0

        def look_at_time(self, now: float) -> float:
            self.looked += 1
            return self.deadline if self.deadline > now else math.inf

    many = [Waiting() for _ in range(100)]
    for number, one in enumerate(many):
        one.deadline = 10.0 + number / 1000
        timekeeper.watch(one)
    for one in many[1:]:
        one.deadline = math.inf
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(10.0)
    await trio.testing.wait_all_tasks_blocked()
    assert [one.looked for one in many] == [1] + [0] * 99
    for _ in range(30):
        fresh = Waiting()
        fresh.deadline = 100.0
        timekeeper.watch(fresh)
    mock_clock.jump(20.0)
    await trio.testing.wait_all_tasks_blocked()
    assert sum(one.looked for one in many) == 1

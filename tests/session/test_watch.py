"""The watch over all relays of a worker: idle limits, byte counts, and the patience of the others."""

from __future__ import annotations

import trio

from mailgate.events import BytesRelayed, Event
from mailgate.model import End, Peer, Protocol, Session, Side
from mailgate.session.relay import SWEEP_SECONDS, SWEPT_AT_ONCE, Relay, Watch
from mailgate.wire.relay import CopyRelay


def relay(emit: list[Event], idle: float = 60.0) -> Relay:
    """Return a relay of a session of its own, which tells its events to a list."""
    session = Session("s", Protocol.IMAP, "test", Peer("192.0.2.1", 1), trio.current_time())
    return Relay(CopyRelay(), session, emit.append, idle=idle, linger=5.0, farewell=lambda reason: b"")


async def test_bytes_are_told_at_each_sweep(autojump_clock: object) -> None:
    told: list[Event] = []
    watch, one = Watch(), relay(told)
    watch.add(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        one.client_sent(bytearray(b"hello"), 5, trio.current_time())
        await trio.sleep(SWEEP_SECONDS + 0.1)
        one.delivered(7, trio.current_time())
        await trio.sleep(2 * SWEEP_SECONDS)
        nursery.cancel_scope.cancel()
    assert told == [BytesRelayed(one.session, 5, 0), BytesRelayed(one.session, 0, 7)]


async def test_a_sweep_of_many_lets_others_run(autojump_clock: object) -> None:
    told: list[Event] = []
    watch = Watch()
    relays = [relay(told, idle=1.0) for _ in range(3 * SWEPT_AT_ONCE)]
    for one in relays:
        watch.add(one)
    ended = []

    async def look() -> None:
        await trio.sleep(SWEEP_SECONDS)
        for _ in range(10):
            ended.append(sum(one.ended for one in relays))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        nursery.start_soon(look)
        await trio.sleep(SWEEP_SECONDS + 1)
        nursery.cancel_scope.cancel()
    assert set(ended) & {SWEPT_AT_ONCE, 2 * SWEPT_AT_ONCE}, "nobody ran in the middle"
    assert ended[-1] == len(relays)
    assert {one.outcome for one in relays} == {End(Side.PROXY, "idle")}


async def test_a_relay_that_left_meanwhile_is_not_swept(autojump_clock: object) -> None:
    told: list[Event] = []
    watch = Watch()
    first, last = relay(told, idle=1.0), relay(told, idle=1.0)

    class Shell:
        def wake(self) -> None:
            watch.remove(last)

    first.shell = Shell()
    for one in (first, last):
        watch.add(one)
    with trio.move_on_after(SWEEP_SECONDS + 1):
        await watch.run()
    assert first.ended
    assert not last.ended

"""How sessions end when the gateway stops: who is told, when, and who is left."""

from __future__ import annotations

import math
from collections.abc import Container

import pytest
import trio
from trio.testing import MockClock

from mailgate.drain import drain, thin_out
from mailgate.model import Peer, Protocol, Session, Side, State
from mailgate.session.relay import Relay, Watch


class Quiet:
    """A relay, of which a drain sees whether it is quiet."""

    def __init__(self, house: House, session: Session, quiet_at: float) -> None:
        self.house = house
        self.session = session
        self.quiet_at = quiet_at
        self.ended = False

    @property
    def protocol(self) -> Protocol:
        return self.session.protocol

    @property
    def quiet(self) -> bool:
        return trio.current_time() >= self.quiet_at

    def end(self, side: Side, reason: str) -> None:
        assert (side, reason) == (Side.PROXY, "shutting_down")
        assert not self.ended
        self.ended = True
        self.house.left(self.session)


class House:
    def __init__(self) -> None:
        self.began = trio.current_time()
        self.sessions: dict[str, Session] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self.watch = Watch()
        self.ends: dict[str, float] = {}

    def enter(self, protocol: Protocol, state: State) -> Session:
        name = str(len(self.sessions))
        session = Session(name, protocol, protocol.value, Peer("192.0.2.1", 1), self.began)
        session.state = state
        self.sessions[name], self.scopes[name] = session, trio.CancelScope()
        return session

    def relay(self, protocol: Protocol = Protocol.IMAP, quiet_after: float = 0.0) -> Session:
        session = self.enter(protocol, State.RELAY)
        relay: Relay = Quiet(self, session, self.began + quiet_after)  # type: ignore[assignment]
        self.watch.add(relay)
        return session

    def left(self, session: Session) -> None:
        self.ends[session.id] = round(trio.current_time() - self.began, 3)
        del self.sessions[session.id], self.scopes[session.id]

    async def before_login(self, session: Session) -> None:
        with self.scopes[session.id]:
            await trio.sleep_forever()
        self.left(session)

    async def drained(self, seconds: float = 10.0) -> int:
        return await drain(self.sessions, self.scopes, self.watch, seconds)

    @property
    def seconds(self) -> float:
        return round(trio.current_time() - self.began, 3)


async def test_nobody_is_there(autojump_clock: MockClock) -> None:
    house = House()
    assert await house.drained() == 0
    assert house.seconds == 0


async def test_few_idle_sessions_are_told_at_once(autojump_clock: MockClock) -> None:
    house = House()
    for _ in range(10):
        house.relay()
    assert await house.drained() == 0
    assert set(house.ends.values()) == {0.0}


@pytest.mark.parametrize(("count", "seconds", "last"), [(100, 10, 0.45), (2_000, 10, 4.95), (2_000, 60, 9.95)])
async def test_many_are_spread_over_half_of_the_time_at_most(
    count: int, seconds: float, last: float, autojump_clock: MockClock
) -> None:
    house = House()
    for _ in range(count):
        house.relay()
    assert await house.drained(seconds) == 0
    assert max(house.ends.values()) == last
    each = [list(house.ends.values()).count(tick) for tick in dict.fromkeys(house.ends.values())]
    assert set(each) == {each[0]}


async def test_who_works_is_told_when_the_command_is_answered(autojump_clock: MockClock) -> None:
    house = House()
    house.relay(quiet_after=6.99)
    house.relay()
    assert await house.drained() == 0
    assert house.ends == {"1": 0.0, "0": 7.0}


async def test_who_works_for_too_long_is_left_to_the_caller(autojump_clock: MockClock) -> None:
    house = House()
    house.relay(quiet_after=10.01)
    assert await house.drained() == 1
    assert house.seconds == 10


async def test_a_pop3_session_may_reach_quit(autojump_clock: MockClock) -> None:
    house = House()
    quits, stays = house.relay(Protocol.POP3), house.relay(Protocol.POP3)
    house.relay()

    async def quit_later() -> None:
        await trio.sleep(6)
        house.left(quits)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(quit_later)
        assert await house.drained() == 1
    assert house.ends == {"2": 0.0, quits.id: 6.0}
    assert list(house.sessions) == [stays.id]


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("state", [State.HANDSHAKE, State.LOGIN])
async def test_who_has_not_logged_in_has_its_turn_first(
    protocol: Protocol, state: State, autojump_clock: MockClock
) -> None:
    house = House()
    relays = [house.relay() for _ in range(10)]
    async with trio.open_nursery() as nursery:
        for _ in range(25):
            nursery.start_soon(house.before_login, house.enter(protocol, state))
        await trio.testing.wait_all_tasks_blocked()
        assert await house.drained() == 0
    ticks = [house.ends[str(number)] for number in range(len(relays), 35)]
    assert [ticks.count(tick) for tick in (0.0, 0.05, 0.1)] == [10, 10, 5]
    assert sorted(house.ends[relay.id] for relay in relays) == [0.1] * 5 + [0.15] * 5


async def test_a_login_that_succeeds_meanwhile_is_told_too(autojump_clock: MockClock) -> None:
    house = House()
    for _ in range(10):
        house.relay()
    late = house.enter(Protocol.IMAP, State.LOGIN)
    house.scopes[late.id].cancel()

    async def log_in() -> None:
        await trio.sleep(1)
        late.state = State.RELAY
        relay: Relay = Quiet(house, late, 0)  # type: ignore[assignment]
        house.watch.add(relay)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in)
        assert await house.drained() == 0
    assert house.ends[late.id] == 1.0


def test_a_watch_ends_only_so_many_and_not_the_spared() -> None:
    async def scene() -> None:
        house = House()
        for protocol in (Protocol.POP3, Protocol.IMAP, Protocol.IMAP):
            house.relay(protocol)
        spared: Container[Protocol] = {Protocol.POP3}
        assert house.watch.end_idle("shutting_down", 1, spared) == 2
        assert house.watch.end_idle("shutting_down", 0) == 2
        assert house.watch.end_idle("shutting_down", 5, spared) == 1
        assert house.watch.end_idle("shutting_down") == 0

    trio.run(scene)


# ---------------------------------------------------------------- much time


async def test_idle_sessions_are_told_one_by_one_over_half_of_the_time(autojump_clock: MockClock) -> None:
    house = House()
    for _ in range(10):
        house.relay()
    await thin_out(house.sessions, house.watch, 3600.0)
    ends = list(house.ends.values())
    assert ends == [180.0 * number for number in range(1, 11)]
    assert trio.current_time() - house.began <= 1801


async def test_who_logs_in_reads_pop3_or_is_busy_goes_on(autojump_clock: MockClock) -> None:
    house = House()
    house.enter(Protocol.IMAP, State.LOGIN)
    pop3, busy = house.relay(Protocol.POP3), house.relay(quiet_after=70.0)
    idle = house.relay()
    await thin_out(house.sessions, house.watch, 100.0)
    assert round(trio.current_time() - house.began, 3) == 100.0
    assert not any(scope.cancel_called for scope in house.scopes.values())
    assert pop3.id in house.sessions
    assert house.ends[idle.id] == 12.5
    assert 70.0 <= house.ends[busy.id] <= 90.0


@pytest.mark.parametrize("seconds", [60.0, math.inf])
async def test_it_is_over_when_the_last_session_is(seconds: float, autojump_clock: MockClock) -> None:
    house = House()
    session = house.relay(quiet_after=math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thin_out, house.sessions, house.watch, seconds)
        await trio.sleep(33.3)
        house.left(session)
    assert trio.current_time() - house.began < 34

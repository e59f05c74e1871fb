"""Who has a maildrop: sessions of one worker, of several, and those that are killed or cancelled."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mailgate.ledger import Held, InUse, MaildropLocks, Register
from mailgate.ledger.maildrops import TELL_SECONDS
from mailgate.workers.bus import AloneBus
from tests.support.children import child_at, ended
from tests.support.locker import Locker, locker

KEY = b"main\0joe\0INBOX"


def failed(error: Exception) -> None:
    raise error


@pytest.fixture
def register() -> Register:
    return Register.create()


@pytest.fixture
def locks(register: Register) -> MaildropLocks:
    return MaildropLocks(register, AloneBus(failed))


@pytest.fixture
def other(register: Register) -> Iterator[Locker]:
    """Return another worker."""
    with locker(register) as one:
        yield one


def never() -> None:
    raise AssertionError("nobody was to be told to give way")


async def take(locks: MaildropLocks, conflict: Any = "wait", give_way: Callable[[], None] = never) -> Held:
    return await locks.take([KEY], conflict=conflict, wait=10.0, give_way=give_way)


# ---------------------------------------------------------------- one worker


async def test_a_maildrop_has_one_session_at_a_time(locks: MaildropLocks, other: Locker, register: Register) -> None:
    held = await take(locks, "refuse")
    assert held.waited == 0
    assert not other.may_lock(register.place(KEY))
    with pytest.raises(InUse) as refused:
        await take(locks, "refuse")
    assert refused.value.seconds == 0
    another = await locks.take([b"main\0ann\0INBOX"], conflict="refuse", wait=10.0, give_way=never)
    held.release()
    held.release()
    assert other.may_lock(register.place(KEY))
    with await take(locks, "refuse"):
        held.release()
        assert not other.may_lock(register.place(KEY)), "it is another session's now"
    another.release()
    assert len(locks) == 0


async def test_without_a_lock_everybody_has_it(locks: MaildropLocks, other: Locker, register: Register) -> None:
    one, two = await take(locks, "off"), await take(locks, "off")
    assert other.may_lock(register.place(KEY))
    one.release()
    two.release()


async def test_sessions_wait_in_the_order_in_which_they_came(locks: MaildropLocks, autojump_clock: MockClock) -> None:
    order: list[tuple[int, float]] = []

    async def session(number: int) -> None:
        held = await take(locks)
        order.append((number, held.waited))
        await trio.sleep(1)
        held.release()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(session, number)
            await trio.testing.wait_all_tasks_blocked()
    assert order == [(number, float(number)) for number in range(5)]
    assert len(locks) == 0


async def test_who_has_waited_long_enough_is_refused(locks: MaildropLocks, autojump_clock: MockClock) -> None:
    with await take(locks):
        with pytest.raises(InUse) as refused:
            await take(locks)
        assert refused.value.seconds == 10
        with pytest.raises(InUse):
            await locks.take([KEY], conflict="wait", wait=0.0, give_way=never)
    (await take(locks)).release()
    assert len(locks) == 0


async def test_one_that_is_refused_at_once_does_not_wait_behind_those_that_wait(
    locks: MaildropLocks, other: Locker, register: Register, autojump_clock: MockClock
) -> None:
    assert other.lock(register.place(KEY))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, locks)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(InUse):
            await take(locks, "refuse")
        other.unlock(register.place(KEY))


# ---------------------------------------------------------------- giving way


async def test_the_session_that_has_it_is_told_to_give_way(locks: MaildropLocks, autojump_clock: MockClock) -> None:
    told = trio.Event()

    async def session() -> None:
        with await take(locks, give_way=told.set):
            await told.wait()
            await trio.sleep(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session)
        await trio.testing.wait_all_tasks_blocked()
        held = await take(locks, "takeover")
        assert held.waited == 2
        held.release()


async def test_one_that_does_not_end_is_told_once_and_keeps_it(locks: MaildropLocks, autojump_clock: MockClock) -> None:
    told = []
    with await take(locks, give_way=lambda: told.append(trio.current_time())) as held:
        assert not held.told
        for _ in range(2):
            with pytest.raises(InUse) as refused:
                await take(locks, "takeover")
            assert refused.value.seconds == 10
    assert len(told) == 1
    assert held.told


async def test_one_that_has_read_quit_is_not_disturbed(locks: MaildropLocks, autojump_clock: MockClock) -> None:
    held = await take(locks, give_way=never)
    held.keep()
    with pytest.raises(InUse):
        await take(locks, "takeover")
    held.release()
    held.give_way()
    assert not held.told


async def test_of_two_that_take_over_from_a_third_the_first_has_it(
    locks: MaildropLocks, autojump_clock: MockClock
) -> None:
    third = await take(locks, give_way=lambda: None)
    had: list[int] = []
    waited: list[float] = []

    async def newcomer(number: int) -> None:
        try:
            with await take(locks, "takeover"):
                had.append(number)
                await trio.sleep(20)
        except InUse as refused:
            waited.append(refused.seconds)

    async with trio.open_nursery() as nursery:
        for number in (1, 2):
            nursery.start_soon(newcomer, number)
            await trio.testing.wait_all_tasks_blocked()
        third.release()
    assert (had, waited) == ([1], [10])


# ---------------------------------------------------------------- several workers


async def test_a_maildrop_of_another_worker_is_waited_for(
    locks: MaildropLocks, other: Locker, register: Register, autojump_clock: MockClock
) -> None:
    place = register.place(KEY)
    assert other.lock(place)
    with pytest.raises(InUse):
        await take(locks, "refuse")

    async def free() -> None:
        await trio.sleep(3)
        other.unlock(place)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(free)
        held = await take(locks)
    assert 3 <= held.waited <= 3.25
    assert not other.may_lock(place)
    held.release()
    assert other.may_lock(place)


async def test_only_one_of_those_that_wait_asks_the_kernel(
    locks: MaildropLocks, other: Locker, register: Register, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    lock = register.lock

    def counted(place: int) -> bool:
        asked.append(trio.current_time())
        return lock(place)

    monkeypatch.setattr(register, "lock", counted)
    assert other.lock(register.place(KEY))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(refused, locks)
    assert len(asked) < 60
    assert len(locks) == 0


async def refused(locks: MaildropLocks) -> None:
    with pytest.raises(InUse):
        await take(locks)


async def test_a_session_that_was_killed_with_its_worker_has_nothing_any_more(
    locks: MaildropLocks, other: Locker, register: Register, autojump_clock: MockClock
) -> None:
    assert other.lock(register.place(KEY))

    async def kill() -> None:
        await trio.sleep(1)
        other.kill()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        (await take(locks)).release()


class Line:
    """The bus between two workers that each have one end of a socket, and hear on it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = trio.socket.from_stdlib_socket(end)
        self._own = AloneBus(failed)

    def answer(self, kind: str, handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._own.answer(kind, handler)

    async def ask_all(self, kind: str, **facts: object) -> None:
        await self._own.ask_all(kind, **facts)
        await self._end.send(json.dumps({"kind": kind} | facts).encode())
        assert await self._end.recv(10) == b"done"

    async def hear(self) -> None:
        facts = json.loads(await self._end.recv(1000))
        (reply,) = await self._own.ask_all(facts.pop("kind"), **facts)
        assert not reply.error
        await self._end.send(b"done")


def test_a_session_of_another_worker_gives_way(register: Register) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def work(tell: Callable[[], None]) -> None:
        async def session() -> None:
            line = Line(theirs)
            told = trio.Event()
            with await take(MaildropLocks(register, line), give_way=told.set):
                tell()
                await line.hear()
                await told.wait()

        ours.close()
        trio.run(session)

    async def newcomer() -> float:
        locks = MaildropLocks(register, Line(ours))
        with pytest.raises(InUse):
            await take(locks, "refuse")
        with await take(locks, "takeover") as held:
            return held.waited

    pid = child_at(work)
    theirs.close()
    with ours:
        assert 0 < trio.run(newcomer) < 10
    assert ended(pid) == 0


class HangingBus:
    """The bus of a worker one of whose peers hangs."""

    def answer(self, kind: str, handler: object) -> None:
        """Hear of nothing."""

    async def ask_all(self, kind: str, **facts: object) -> None:
        await trio.sleep(7)


async def test_a_worker_that_hangs_keeps_nobody_from_a_maildrop_that_is_free(
    register: Register, other: Locker, autojump_clock: MockClock
) -> None:
    locks = MaildropLocks(register, HangingBus())
    assert other.lock(register.place(KEY))

    async def free() -> None:
        await trio.sleep(0.1)
        other.unlock(register.place(KEY))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(free)
        held = await take(locks, "takeover")
    assert held.waited == TELL_SECONDS
    held.release()


# ---------------------------------------------------------------- cancelled at any moment


class CancelsAt(trio.abc.Instrument):
    """Cancels at a task's n-th step."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.scope: trio.CancelScope | None = None
        self.task: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task and self.scope is not None:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


@pytest.mark.parametrize("conflict", ["wait", "takeover", "refuse"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same worker", "other worker"])
def test_a_session_that_is_cancelled_anywhere_leaves_nothing(
    register: Register, other: Locker, conflict: str, elsewhere: bool
) -> None:
    place = register.place(KEY)

    async def scenario(steps: int) -> bool:
        locks = MaildropLocks(register, AloneBus(failed))
        cancels = CancelsAt(steps)
        trio.lowlevel.add_instrument(cancels)
        holder = None
        if elsewhere:
            assert other.lock(place)
        else:
            holder = await take(locks, give_way=lambda: None)

        async def free() -> None:
            await trio.sleep(0.3)
            if holder is not None:
                holder.release()
            else:
                other.unlock(place)

        async def session() -> None:
            cancels.task = trio.lowlevel.current_task()
            with trio.CancelScope() as cancels.scope:
                try:
                    with await take(locks, conflict):
                        await trio.sleep(0.1)
                except InUse:
                    await trio.lowlevel.checkpoint()

        async def waits_behind() -> None:
            (await take(locks)).release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(free)
            nursery.start_soon(session)
            nursery.start_soon(waits_behind)
        assert len(locks) == 0
        assert other.may_lock(place)
        return cancels.left <= 0

    steps = 1
    while trio.run(partial(scenario, steps), clock=MockClock(autojump_threshold=0)):
        steps += 1
    assert steps > (1 if conflict == "refuse" else 2)


KEYS = st.sets(st.sampled_from([b"inbox", b"spam", b"archive"]), min_size=1)
MOMENTS = st.floats(0, 3)
SESSIONS = st.tuples(KEYS, MOMENTS, MOMENTS, MOMENTS, st.sampled_from(["wait", "refuse", "takeover"]))


@given(st.lists(SESSIONS, max_size=12))
def test_never_do_two_sessions_have_a_mailbox_and_never_do_they_wait_for_each_other(
    sessions: list[tuple[set[bytes], float, float, float, Any]],
) -> None:
    async def all_of_them() -> None:
        locks = MaildropLocks(Register.create(), AloneBus(failed))
        open_ones = set[bytes]()

        async def session(keys: set[bytes], begin: float, patience: float, stay: float, conflict: Any) -> None:
            await trio.sleep(begin)
            leave = trio.Event()
            with trio.move_on_after(2.5):
                try:
                    held = await locks.take(keys, conflict=conflict, wait=patience, give_way=leave.set)
                except InUse:
                    return
                with held:
                    assert not open_ones & keys
                    open_ones.update(keys)
                    try:
                        with trio.move_on_after(stay):
                            await leave.wait()
                    finally:
                        open_ones.difference_update(keys)

        async with trio.open_nursery() as nursery:
            for facts in sessions:
                nursery.start_soon(session, *facts)
        assert len(locks) == 0
        # Whoever waits has what is left of its patience, however many mailboxes there are.
        assert trio.current_time() <= 3 + 2.5 + 0.001

    trio.run(all_of_them, clock=MockClock(autojump_threshold=0))


async def test_mailboxes_in_common_are_enough_to_be_in_each_others_way(
    locks: MaildropLocks, autojump_clock: MockClock
) -> None:
    told: list[str] = []
    with await locks.take(
        [b"inbox", b"spam", b"spam"], conflict="wait", wait=1.0, give_way=lambda: told.append("merged")
    ):
        assert len(locks) == 2
        (await locks.take([b"archive"], conflict="refuse", wait=1.0, give_way=never)).release()
        with pytest.raises(InUse):
            await locks.take([b"archive", b"spam"], conflict="refuse", wait=1.0, give_way=never)
        with pytest.raises(InUse) as refused:
            await locks.take([b"spam", b"inbox"], conflict="takeover", wait=1.0, give_way=never)
        assert refused.value.seconds == 1
        assert told == ["merged"]
    assert len(locks) == 0


def test_a_stopped_worker_makes_others_wait_for_what_it_has_only(register: Register) -> None:
    with locker(register) as other:
        assert other.lock(register.place(b"its"))
        os.kill(other.pid, signal.SIGSTOP)
        assert not register.lock(register.place(b"its"))
        assert register.lock(register.place(b"another"))

"""Several workers that count together: limits that hold over all of them, in whatever order things happen."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailgate.balance.turns import PATIENCE, YIELD
from mailgate.ledger import Ledger, Seat, table
from mailgate.ledger.table import HALF_OPEN, OWED, OWED_ANY, SESSIONS
from mailgate.model import ALLOW, Deny
from mailgate.policy import answers
from mailgate.policy.gate import Admission, Gate, GateSettings, address_key
from tests.support.children import child, child_at, ended

Workers = list[tuple[Gate, Seat]]


def workers(number: int, **limits: int) -> Workers:
    ledger = Ledger.create(number, 1000)
    seats = [Seat(ledger, slot, pytest.fail) for slot in range(number)]
    return [(Gate(GateSettings(**limits), counts=seat), seat) for seat in seats]


def test_sessions_of_an_address_count_over_all_workers() -> None:
    (one, _), (two, _) = workers(2, sessions_per_address=2)
    assert one.admit("a", "192.0.2.1", 0.0).verdict is ALLOW
    assert two.admit("b", "192.0.2.1", 0.0).verdict is ALLOW
    assert one.admit("c", "192.0.2.1", 0.0) == Admission(Deny(answers.CONNECTION_LIMIT, "sessions_per_address"))
    assert two.admit("d", "192.0.2.2", 0.0).verdict is ALLOW
    assert (one.sessions, two.sessions, one.half_open) == (3, 3, 3)
    two.logged_in("b")
    two.left("b")
    two.left("b")
    assert one.admit("e", "192.0.2.1", 0.0).verdict is ALLOW


@pytest.mark.parametrize(
    ("limits", "rule_name"),
    [
        ({"half_open_per_address": 3}, "half_open_per_address"),
        ({"half_open": 3}, "half_open"),
        ({"sessions": 3}, "sessions"),
    ],
)
def test_the_worker_with_most_half_open_connections_makes_room(limits: dict[str, int], rule_name: str) -> None:
    (one, first), (two, second) = workers(2, **limits)
    for name in "ab":
        one.admit(name, "192.0.2.1", 0.0)
    two.admit("c", "192.0.2.1", 0.0)
    assert two.admit("d", "192.0.2.1", 0.0) == Admission(ALLOW, (), rule_name)
    assert (one.sessions, one.half_open) == (3, 3), "it is out of the counts at once"
    assert [name for name, _ in first.due()] == ["a"]
    assert (first.due(), second.due()) == ([], [])
    one.left("a")
    assert two.admit("e", "192.0.2.1", 0.0) == Admission(ALLOW, ("c",), rule_name)
    assert (one.sessions, one.half_open) == (3, 3)


def test_one_that_ends_by_itself_pays_for_what_was_asked() -> None:
    (one, first), (two, _) = workers(2, half_open_per_address=2)
    for name in "ab":
        one.admit(name, "192.0.2.1", 0.0)
    two.admit("c", "192.0.2.1", 0.0)
    one.left("b")
    assert first.due() == []
    assert one.sessions == 2


@pytest.mark.parametrize("limit", ["half_open_per_address", "half_open"])
def test_one_that_logs_in_after_room_was_made_of_it_is_ended_all_the_same(limit: str) -> None:
    (one, first), (two, _) = workers(2, **{limit: 1})
    one.admit("a", "192.0.2.1", 0.0)
    assert two.admit("b", "192.0.2.1", 0.0) == Admission(ALLOW, (), limit)
    one.logged_in("a")
    assert first.due() == [("a", limit)]
    one.left("a")
    assert (one.sessions, one.half_open) == (1, 1)


def test_nobody_can_make_room_where_nobody_is_half_open() -> None:
    (one, _), (two, _) = workers(2, sessions=1)
    one.admit("a", "192.0.2.1", 0.0)
    one.logged_in("a")
    assert two.admit("b", "192.0.2.2", 0.0) == Admission(Deny(answers.PROCESS_FULL, "sessions"))


@pytest.mark.parametrize(
    ("limit", "refusal"),
    [("half_open_per_address", answers.CONNECTION_LIMIT), ("half_open", answers.PROCESS_FULL)],
)
def test_a_worker_that_does_not_listen_is_not_asked(limit: str, refusal: object) -> None:
    (one, first), (two, _) = workers(2, **{limit: 1})
    one.admit("a", "192.0.2.1", 0.0)
    for _ in range(16):
        os.write(first._ledger.pipes[0][1], bytes(4096))
    assert two.admit("b", "192.0.2.1", 0.0) == Admission(Deny(refusal, limit))  # type: ignore[arg-type]
    assert (one.sessions, one.half_open) == (1, 1)


def test_what_is_left_in_the_pipe_of_a_dead_worker_ends_nobody() -> None:
    (one, first), (two, _) = workers(2, half_open=1)
    one.admit("a", "192.0.2.1", 0.0)
    two.admit("b", "192.0.2.1", 0.0)
    first._ledger.forget(0)
    heir = Seat(first._ledger, 0, pytest.fail)
    gate = Gate(GateSettings(), counts=heir)
    gate.admit("c", "192.0.2.1", 0.0)
    assert heir.due() == []
    assert gate.sessions == 2


def test_addresses_without_a_cell_count_in_their_worker_alone() -> None:
    ledger = Ledger.create(2, 1)
    told: list[str] = []
    seats = [Seat(ledger, slot, lambda: told.append("full")) for slot in range(2)]
    one, two = (Gate(GateSettings(sessions_per_address=1, half_open_per_address=5), counts=seat) for seat in seats)
    for number in range(table.BUCKET):
        assert one.admit(str(number), f"192.0.2.{number}", 0.0).verdict is ALLOW
    assert told == []
    assert one.admit("more", "198.51.100.1", 0.0).verdict is ALLOW
    assert isinstance(one.admit("again", "198.51.100.1", 0.0).verdict, Deny)
    assert two.admit("other", "198.51.100.1", 0.0).verdict is ALLOW, "another worker cannot know"
    assert told == ["full", "full"]
    assert one.sessions == two.sessions == table.BUCKET + 2
    one.logged_in("more")
    one.left("more")
    assert one.admit("next", "198.51.100.1", 0.0).verdict is ALLOW
    two.left("other")
    one.left("next")
    assert (one.sessions, one.half_open) == (table.BUCKET, table.BUCKET)


def test_a_worker_without_a_cell_makes_room_of_its_own() -> None:
    ledger = Ledger.create(2, 1)
    seat = Seat(ledger, 0, lambda: None)
    gate = Gate(GateSettings(half_open_per_address=1), counts=seat)
    for number in range(table.BUCKET):
        gate.admit(str(number), f"192.0.2.{number}", 0.0)
    gate.admit("more", "198.51.100.1", 0.0)
    assert gate.admit("next", "198.51.100.1", 0.0) == Admission(ALLOW, ("more",), "half_open_per_address")


# ---------------------------------------------------------------- any order

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
SLOTS = 3


class LedgerMachine(RuleBasedStateMachine):
    """Connections come to any worker, log in and leave; workers look at what they owe, or die."""

    @initialize(
        sessions=st.integers(1, 8),
        per_address=st.integers(1, 5),
        half_open=st.integers(1, 6),
        half_open_per_address=st.integers(1, 4),
    )
    def begin(self, sessions: int, per_address: int, half_open: int, half_open_per_address: int) -> None:
        self.settings = GateSettings(sessions, per_address, half_open, half_open_per_address)
        self.ledger = Ledger.create(SLOTS, 1000)
        self.seats: list[Seat] = []
        self.gates: list[Gate] = []
        self.open: dict[str, tuple[int, str]] = {}
        self.waiting: set[str] = set()
        self.number = 0
        for slot in range(SLOTS):
            self.hire(slot)

    def hire(self, slot: int) -> None:
        self.seats[slot:slot] = [Seat(self.ledger, slot, pytest.fail)]
        self.gates[slot:slot] = [Gate(self.settings, counts=self.seats[slot])]

    @rule(slot=st.integers(0, SLOTS - 1), address=st.sampled_from(ADDRESSES))
    def connect(self, slot: int, address: str) -> None:
        self.number += 1
        name = str(self.number)
        admission = self.gates[slot].admit(name, address, float(self.number))
        for member in admission.shed:
            assert member in self.waiting, "only a half-open connection gives way"
            assert self.open[member][0] == slot
            self.forget(member)
        if admission.verdict == ALLOW:
            self.open[name] = slot, address_key(address)
            self.waiting.add(name)
        else:
            assert not admission.shed

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def log_in(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        self.gates[self.open[name][0]].logged_in(name)
        self.waiting.remove(name)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.gates[self.open[name][0]].left(name)
        self.forget(name)

    @rule(slot=st.integers(0, SLOTS - 1))
    def look(self, slot: int) -> None:
        for member, _ in self.seats[slot].due():
            # One that has left by itself meanwhile is told of all the same; ending it does nothing.
            if member in self.open:
                assert self.open[member][0] == slot
                self.gates[slot].left(member)
                self.forget(member)

    @rule(slot=st.integers(0, SLOTS - 1))
    def die(self, slot: int) -> None:
        for name in [name for name, (its, _) in self.open.items() if its == slot]:
            self.forget(name)
        del self.seats[slot], self.gates[slot]
        self.ledger.forget(slot)
        self.hire(slot)

    def forget(self, name: str) -> None:
        self.open.pop(name, None)
        self.waiting.discard(name)

    @invariant()
    def counts_are_right_and_within_the_limits(self) -> None:
        settings, totals = self.settings, self.ledger.totals.tolist()
        owed = [totals[OWED * SLOTS + slot] + totals[OWED_ANY * SLOTS + slot] for slot in range(SLOTS)]
        for slot, seat in enumerate(self.seats):
            assert totals[SESSIONS * SLOTS + slot] == len(seat._members)
            assert owed[slot] <= totals[HALF_OPEN * SLOTS + slot] == len(seat._half_open)
            assert {name for name, (its, _) in self.open.items() if its == slot} == {
                *seat._members,
                *(member for member, _ in seat._doomed if member in self.open),
            }
        assert self.gates[0].sessions == sum(len(seat._members) for seat in self.seats) - sum(owed)
        assert 0 <= self.gates[0].half_open <= self.gates[0].sessions <= settings.sessions
        assert self.gates[0].half_open <= settings.half_open
        for key, number in Counter(key for _, key in self.open.values()).items():
            standing = self.seats[0].standing(key)
            assert 0 <= standing.half_open_of_key <= min(settings.half_open_per_address, standing.of_key)
            assert standing.of_key <= min(settings.sessions_per_address, number)

    def teardown(self) -> None:
        if not hasattr(self, "seats"):
            return
        for slot in range(SLOTS):
            self.look(slot)
        assert not any(self.ledger.totals[OWED * SLOTS :])
        gate = self.gates[0]
        assert (gate.sessions, gate.half_open) == (len(self.open), len(self.waiting))
        for name in list(self.open):
            self.gates[self.open[name][0]].left(name)
        assert (gate.sessions, gate.half_open, self.ledger.in_use()) == (0, 0, 0)
        assert not any(self.ledger.cells)
        self.ledger.close()


TestLedgerMachine = LedgerMachine.TestCase


# ---------------------------------------------------------------- real processes


def forget(ledger: Ledger, slot: int) -> None:
    """Clear a slot while others count."""
    while not ledger.forget(slot):
        continue


def hammer(ledger: Ledger, slot: int, rounds: int, limit: int) -> None:
    """Come and go at random, then leave what is open; fails where more than ``limit`` of an address are let in."""
    choose = random.Random(slot)
    seat = Seat(ledger, slot, lambda: None)
    gate = Gate(GateSettings(sessions_per_address=limit, half_open=20), counts=seat)
    mine: list[str] = []
    for number in range(rounds):
        gone = [name for name, _ in seat.due()]
        if mine and choose.random() < 0.5:
            gone.append(mine[choose.randrange(len(mine))])
        else:
            address = f"192.0.2.{choose.randrange(4)}"
            admission = gate.admit(str(number), address, 0.0)
            gone += admission.shed
            if admission.verdict is ALLOW:
                mine.append(str(number))
            with seat:
                assert seat.standing(address).of_key <= limit
        for name in gone:
            gate.left(name)
            if name in mine:
                mine.remove(name)
        if mine and choose.random() < 0.5:
            gate.logged_in(mine[-1])
    for name in mine[:-1]:
        gate.left(name)


def test_processes_that_count_at_once_lose_nothing() -> None:
    ledger = Ledger.create(4, 1000)
    pids = [child(lambda slot=slot: hammer(ledger, slot, 3000, 10)) for slot in range(4)]  # type: ignore[misc]
    assert [ended(pid) for pid in pids] == [0] * 4
    totals = ledger.totals.tolist()
    assert max(totals[SESSIONS * 4 : HALF_OPEN * 4]) <= 1
    assert sum(ledger.cells[at] for at in range(0, len(ledger.cells), 12)) == totals[4]
    for slot in range(4):
        ledger.forget(slot)
    assert ledger.in_use() == 0
    assert not any(ledger.cells)
    assert not any(ledger.totals)
    ledger.close()


def test_a_process_that_is_killed_with_the_lock_stops_nobody() -> None:
    ledger = Ledger.create(2, 1000)

    def hold(tell: Callable[[], None]) -> None:
        seat = Seat(ledger, 1, lambda: None)
        Gate(GateSettings(), counts=seat).admit("a", "192.0.2.1", 0.0)
        with seat:
            seat.enter("b", "192.0.2.1")
            tell()
            signal.pause()

    pid = child_at(hold)
    waiting = child(lambda: hammer(ledger, 0, 100, 10))
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    assert ended(waiting) == 0
    gate = Gate(GateSettings(sessions_per_address=2), counts=Seat(ledger, 0, pytest.fail))
    assert isinstance(gate.admit("c", "192.0.2.1", 0.0).verdict, Deny), "nobody has taken it out yet"
    ledger.forget(1)
    assert gate.admit("c", "192.0.2.1", 0.0).verdict is ALLOW
    ledger.close()


@pytest.mark.parametrize("seed", range(3))
def test_processes_that_are_killed_at_any_moment_leave_no_trace(seed: int) -> None:
    ledger = Ledger.create(3, 1000)
    for _ in range(5):
        pids = [child(lambda slot=slot: hammer(ledger, slot, 10**9, 10)) for slot in (1, 2)]  # type: ignore[misc]
        hammer(ledger, 0, random.Random(seed).randrange(200, 500), 10)
        for slot, pid in enumerate(pids, 1):
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            forget(ledger, slot)
        ledger.forget(0)
        assert ledger.in_use() == 0
        assert not any(ledger.cells)
        assert not any(ledger.totals)
    ledger.close()


# ---------------------------------------------------------------- accepting


def test_who_has_more_leaves_connections_to_one_that_serves() -> None:
    now = 0.0
    ledger = Ledger.create(3, 1000)
    one, two = (Seat(ledger, slot, pytest.fail, lambda: now) for slot in (0, 1))
    assert one.pause() == 0, "it does not serve itself"
    one.serving(True)
    for _ in range(3):
        one.took(False)
    assert one.pause() == 0, "there is nobody else"
    two.serving(True)
    assert (one.pause(), two.pause()) == (YIELD, 0)
    for _ in range(PATIENCE):
        one.took(True)
    assert one.pause() == 0, "waiting was in vain again and again"
    one.missed()
    now = 60.0
    assert one.pause() == 0, "what came long ago counts no more"
    gate = Gate(GateSettings(), counts=one)
    for name in "ab":
        gate.admit(name, "192.0.2.1", now)
    assert one.pause() == YIELD, "what is open does"
    two.serving(False)
    assert one.pause() == 0
    ledger.close()

"""The gate: what it says at connect, login and command, and that its counts can neither leak nor go wrong."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailgate.model import ALLOW, Deny, Protocol
from mailgate.policy import answers
from mailgate.policy.gate import Admission, Gate, GateSettings, address_key
from mailgate.policy.limits import OneWorker


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("unix", "unix"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_what_is_counted_for_an_address(address: str, key: str) -> None:
    assert address_key(address) == key


def full(**limits: int) -> Gate:
    return Gate(GateSettings(**limits))


def test_an_address_with_all_its_sessions_is_told_so() -> None:
    gate = full(sessions_per_address=2)
    assert [gate.admit(name, "192.0.2.1", 0.0).verdict for name in "ab"] == [ALLOW, ALLOW]
    assert gate.admit("c", "192.0.2.1", 0.0) == Admission(Deny(answers.CONNECTION_LIMIT, "sessions_per_address"))
    assert gate.admit("d", "192.0.2.2", 0.0).verdict == ALLOW
    gate.left("a")
    assert gate.admit("e", "192.0.2.1", 0.0).verdict == ALLOW
    assert gate.sessions == 3


def test_addresses_of_one_ipv6_network_count_together() -> None:
    gate = full(sessions_per_address=1)
    assert gate.admit("a", "2001:db8::1", 0.0).verdict == ALLOW
    assert isinstance(gate.admit("b", "2001:db8::2", 0.0).verdict, Deny)
    assert gate.admit("c", "2001:db8:0:1::2", 0.0).verdict == ALLOW


def test_the_oldest_half_open_connection_of_an_address_makes_room() -> None:
    gate = full(half_open_per_address=2)
    gate.admit("other", "192.0.2.2", 0.0)
    for name in "ab":
        gate.admit(name, "192.0.2.1", 0.0)
    assert gate.admit("c", "192.0.2.1", 0.0) == Admission(ALLOW, ("a",), "half_open_per_address")
    gate.logged_in("b")
    assert gate.admit("d", "192.0.2.1", 0.0) == Admission(ALLOW)
    assert (gate.sessions, gate.half_open) == (4, 3)


def test_the_oldest_half_open_connection_of_all_makes_room() -> None:
    gate = full(half_open=2)
    for number, name in enumerate("ab"):
        gate.admit(name, f"192.0.2.{number}", 0.0)
    assert gate.admit("c", "192.0.2.9", 0.0) == Admission(ALLOW, ("a",), "half_open")
    assert (gate.sessions, gate.half_open) == (2, 2)


def test_a_full_process_sheds_the_half_open_before_it_turns_anybody_away() -> None:
    gate = full(sessions=2)
    gate.admit("works", "192.0.2.1", 0.0)
    gate.logged_in("works")
    gate.admit("waits", "192.0.2.2", 0.0)
    assert gate.admit("new", "192.0.2.3", 0.0) == Admission(ALLOW, ("waits",), "sessions")
    gate.logged_in("new")
    assert gate.admit("late", "192.0.2.4", 0.0) == Admission(Deny(answers.PROCESS_FULL, "sessions"))
    assert (gate.sessions, gate.half_open) == (2, 0)


def test_a_session_leaves_only_once() -> None:
    gate = full()
    gate.admit("a", "192.0.2.1", 0.0)
    for _ in range(3):
        gate.left("a")
    gate.left("never came")
    gate.logged_in("never came")
    assert (gate.sessions, gate.half_open) == (0, 0)


def test_failed_logins_wait_longer_and_longer_and_end() -> None:
    gate = Gate(GateSettings(failures_per_session=3, failure_delay=2.0, failure_delay_max=5.0))
    denied = Deny(answers.TOO_MANY_FAILURES, "failures_per_session")
    assert [gate.login_failed(count) for count in (1, 2, 3, 4)] == [
        (ALLOW, 2.0),
        (ALLOW, 4.0),
        (denied, 5.0),
        (denied, 5.0),
    ]


def test_bad_commands_end() -> None:
    gate = full(bad_commands=3)
    denied = Deny(answers.TOO_MANY_BAD_COMMANDS, "bad_commands")
    assert [gate.bad_command(count) for count in (1, 2, 3, 4)] == [ALLOW, ALLOW, denied, denied]


@pytest.mark.parametrize(
    ("protocol", "verb", "allowed"),
    [
        (Protocol.IMAP, "UID FETCH", True),
        (Protocol.IMAP, "XUNHEARDOF", True),
        (Protocol.IMAP, "COMPRESS", False),
        (Protocol.IMAP, "USER", True),
        (Protocol.POP3, "RETR", True),
        (Protocol.POP3, "USER", False),
        (Protocol.POP3, "COMPRESS", True),
    ],
)
def test_the_command_gate(protocol: Protocol, verb: str, allowed: bool) -> None:
    expected = ALLOW if allowed else Deny(answers.DENIED_COMMAND, "denied_command")
    assert full().command(protocol, verb) == expected


ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")


class GateMachine(RuleBasedStateMachine):
    """Connections come, log in and leave in any order; shed ones learn of it and leave a second time."""

    @initialize(
        sessions=st.integers(1, 6),
        per_address=st.integers(1, 4),
        half_open=st.integers(1, 5),
        half_open_per_address=st.integers(1, 3),
    )
    def begin(self, sessions: int, per_address: int, half_open: int, half_open_per_address: int) -> None:
        self.settings = GateSettings(sessions, per_address, half_open, half_open_per_address)
        self.gate = Gate(self.settings)
        self.open: dict[str, str] = {}
        self.waiting: list[str] = []
        self.number = 0

    @rule(address=st.sampled_from(ADDRESSES))
    def connect(self, address: str) -> None:
        self.number += 1
        name = str(self.number)
        admission = self.gate.admit(name, address, float(self.number))
        assert bool(admission.shed) == bool(admission.shed_rule)
        for member in admission.shed:
            assert member in self.waiting, "only a half-open connection gives way"
            self.forget(member)
        if admission.verdict == ALLOW:
            self.open[name] = address_key(address)
            self.waiting.append(name)
        else:
            assert not admission.shed, "nobody gives way to one that is turned away"

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def log_in(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.waiting))
        self.gate.logged_in(name)
        self.waiting.remove(name)

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = str(data.draw(st.integers(1, self.number)))
        self.gate.left(name)
        self.forget(name)

    def forget(self, name: str) -> None:
        self.open.pop(name, None)
        if name in self.waiting:
            self.waiting.remove(name)

    @invariant()
    def counts_are_right_and_within_the_limits(self) -> None:
        settings = self.settings
        assert self.gate.sessions == len(self.open) <= settings.sessions
        assert self.gate.half_open == len(self.waiting) <= settings.half_open
        for key in set(self.open.values()):
            names = [name for name, its in self.open.items() if its == key]
            assert len(names) <= settings.sessions_per_address
            assert len([name for name in names if name in self.waiting]) <= settings.half_open_per_address

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        for name in list(self.open):
            self.gate.left(name)
        gate = self.gate
        assert (gate.sessions, gate.half_open) == (0, 0)
        counts = gate._counts
        assert isinstance(counts, OneWorker)
        assert (counts._keys, len(counts._sessions), counts._half_open._by_key) == ({}, 0, {})


TestGateMachine = GateMachine.TestCase


def test_the_next_gate_goes_on_counting_with_rules_of_its_own() -> None:
    first = Gate(GateSettings(sessions_per_address=2, half_open=5, failures_per_session=3, bad_commands=3))
    assert first.admit("a", "192.0.2.1", 0.0).verdict is ALLOW
    second = Gate(GateSettings(sessions_per_address=1, half_open=1, failures_per_session=1, bad_commands=1), first)
    assert isinstance(second.admit("b", "192.0.2.1", 1.0).verdict, Deny)
    shedding = second.admit("c", "192.0.2.2", 1.0)
    assert (shedding.shed, shedding.shed_rule) == (("a",), "half_open")
    assert (first.sessions, first.half_open) == (second.sessions, second.half_open) == (1, 1)
    second.logged_in("c")
    first.left("c")
    assert (second.sessions, second.half_open) == (0, 0)
    assert first.bad_command(2) is ALLOW
    assert isinstance(second.bad_command(2), Deny)
    assert first.login_failed(2)[0] is ALLOW
    assert isinstance(second.login_failed(2)[0], Deny)

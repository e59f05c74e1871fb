"""How soon a user may log in again, as sessions ask it."""

from __future__ import annotations

import time

import pytest

from mailgate.ledger import LoginDelays, Register


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def delays(clock: Clock) -> LoginDelays:
    return LoginDelays(Register.create(), clock)


def test_the_delay_begins_with_what_is_noted(delays: LoginDelays, clock: Clock) -> None:
    assert delays.remaining(b"joe", 60) == 0
    assert delays.remaining(b"joe", 60) == 0
    delays.note(b"joe")
    assert delays.remaining(b"joe", 60) == 60
    clock.now += 10
    assert delays.remaining(b"joe", 60) == 50
    assert delays.remaining(b"ann", 60) == 0
    clock.now += 50
    assert delays.remaining(b"joe", 60) == 0, "one that was refused does not begin the delay anew"


def test_without_a_delay_everybody_may_log_in(delays: LoginDelays) -> None:
    delays.note(b"joe")
    assert delays.remaining(b"joe", 0) == 0
    assert delays.remaining(b"ann", 0) == 0


def test_workers_of_one_register_know_of_each_other(clock: Clock) -> None:
    register = Register.create()
    one, two = LoginDelays(register, clock), LoginDelays(register, clock)
    one.note(b"joe")
    assert two.remaining(b"joe", 60) == 60


def test_the_clock_is_one_that_all_processes_have() -> None:
    delays = LoginDelays(Register.create())
    delays.note(b"joe")
    assert 59 < delays.remaining(b"joe", 60) <= 60
    assert time.get_clock_info("monotonic").implementation == "clock_gettime(CLOCK_MONOTONIC)"

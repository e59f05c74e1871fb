"""When a dead worker is replaced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailgate.workers.restarts import AT_ONCE, EARLY, FIRST_DELAY, LONGEST_DELAY, MEMORY, Restarts


def test_some_deaths_are_replaced_at_once_and_then_ever_later() -> None:
    restarts = Restarts()
    delays = [restarts.died(float(number), 0.1, 0) for number in range(AT_ONCE + 4)]
    assert delays == [0.0] * AT_ONCE + [FIRST_DELAY, FIRST_DELAY * 2, FIRST_DELAY * 4, FIRST_DELAY * 8]


def test_a_long_life_is_no_sign_of_trouble() -> None:
    restarts = Restarts()
    for number in range(100):
        assert restarts.died(float(number), EARLY, 0) == 0.0


def test_old_deaths_are_forgotten() -> None:
    restarts = Restarts()
    for number in range(AT_ONCE):
        restarts.died(float(number), 0.1, 0)
    assert restarts.died(AT_ONCE + MEMORY, 0.1, 0) == 0.0


def test_an_event_that_kills_all_workers_is_one_death_of_each() -> None:
    restarts = Restarts()
    delays = [[restarts.died(float(event), 0.1, slot) for slot in range(16)] for event in range(AT_ONCE + 2)]
    assert delays == [[0.0] * 16] * AT_ONCE + [[FIRST_DELAY] * 16, [FIRST_DELAY * 2] * 16]


def test_one_that_dies_again_and_again_has_no_credit_of_the_others() -> None:
    restarts = Restarts()
    for number in range(AT_ONCE):
        restarts.died(float(number), 0.1, 1)
    assert restarts.died(AT_ONCE, 0.1, 0) == 0.0
    assert restarts.died(AT_ONCE, 0.1, 1) == FIRST_DELAY


@given(st.lists(st.floats(0.0, 1.0), min_size=20, max_size=200))
def test_there_is_never_a_storm(lives: list[float]) -> None:
    """However they die, forks of one slot within any minute are few: each waits for what the one before it was told."""
    restarts, now, forks = Restarts(), 0.0, []
    for lived in lives:
        now += lived
        delay = restarts.died(now, lived, 0)
        assert 0.0 <= delay <= LONGEST_DELAY
        now += delay
        forks.append(now)
    for moment in forks:
        # At once, and then so many as doubling delays allow until the first are forgotten.
        assert sum(moment <= fork < moment + 30 for fork in forks) <= 3 * AT_ONCE

"""The delay between logins against a model that forgets nothing and rounds nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.policy.login_delay import EMPTY, TICKS, noted, remaining, tag

WORDS = 8
USERS = st.integers(1, 2**32 - 1)
MOMENTS = st.floats(0, 1e8)


def bucket(*logins: tuple[int, float]) -> list[int]:
    words = [EMPTY] * WORDS
    for user, moment in logins:
        index, word = noted(words, user, moment)
        words[index] = word
    return words


@given(USERS, MOMENTS, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_user_waits_for_the_rest_of_the_delay_and_no_longer(
    user: int, moment: float, passed: float, seconds: float
) -> None:
    left = remaining(bucket((user, moment)), user, moment + passed, seconds)
    exact = max(0.0, seconds - passed)
    assert exact - 1 / TICKS - 1e-6 <= left <= exact + 1e-6


@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0.1, 30))), st.integers(1, 60))
def test_the_latest_logins_are_remembered_whoever_else_logs_in(steps: list[tuple[int, float]], seconds: int) -> None:
    words, latest, now = bucket(), dict[int, float](), 1000.0
    for user, passed in steps:
        now += passed
        index, word = noted(words, user, now)
        words[index] = word
        latest.pop(user, None)
        latest[user] = now
        kept = list(latest)[-WORDS:]
        for one in range(1, 13):
            exact = max(0.0, seconds - (now - latest[one])) if one in kept else 0.0
            assert remaining(words, one, now, seconds) == pytest.approx(exact, abs=1 / TICKS)
        assert len([word for word in words if word != EMPTY]) == len(kept)


def test_who_never_logged_in_waits_for_nothing() -> None:
    assert remaining(bucket(), 1, 0.0, 60) == 0
    assert remaining(bucket((2, 99.0)), 1, 100.0, 60) == 0


def test_a_login_a_little_ahead_of_this_clock_counts_as_one_of_now() -> None:
    assert remaining(bucket((1, 100.5)), 1, 100.0, 60) == 60


def test_moments_are_compared_where_their_number_begins_anew() -> None:
    end = 2**32 / TICKS
    words = bucket((1, end - 5.0))
    assert remaining(words, 1, end + 5.0, 60) == 50
    assert remaining(words, 1, end + 60.0, 60) == 0


def test_no_tag_is_that_of_an_empty_word() -> None:
    assert tag(0) == tag(2**32) == 1
    assert tag(7 * 2**32 + 5) == 5
    index, word = noted([EMPTY], 1, 0.0)
    assert (index, word) == (0, 2**32)

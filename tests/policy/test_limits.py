"""The limits against plain models: whatever order things happen in, the counts are what a list would say."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.policy.limits import Concurrency, FailureDelay, HalfOpen

KEYS = st.sampled_from(["a", "b", "c"])
MEMBERS = st.sampled_from(["1", "2", "3", "4", "5"])


@given(st.lists(st.tuples(st.booleans(), KEYS)))
def test_concurrency_counts_like_a_counter(steps: list[tuple[bool, str]]) -> None:
    counted, model = Concurrency(), Counter[str]()
    for enters, key in steps:
        if enters:
            counted.enter(key)
            model[key] += 1
        else:
            counted.leave(key)
            model[key] = max(0, model[key] - 1)
        assert {one: counted[one] for one in "abc"} == {one: model[one] for one in "abc"}
        assert counted.total == model.total()
        assert len(counted) == len(+model)


def test_a_key_that_nobody_holds_costs_nothing() -> None:
    counted = Concurrency()
    for number in range(1000):
        counted.enter(str(number))
        counted.leave(str(number))
    assert (len(counted), counted.total, counted["7"]) == (0, 0, 0)


@given(st.lists(st.tuples(st.booleans(), MEMBERS, KEYS)))
def test_half_open_keeps_the_order_of_arrival(steps: list[tuple[bool, str, str]]) -> None:
    half_open = HalfOpen()
    model: list[tuple[str, str]] = []
    for enters, member, key in steps:
        present = [name for name, _ in model]
        if enters and member not in present:
            half_open.enter(member, key)
            model.append((member, key))
        elif not enters:
            half_open.leave(member)
            model = [entry for entry in model if entry[0] != member]
        assert len(half_open) == len(model)
        assert {name for name in "12345" if name in half_open} == {name for name, _ in model}
        if model:
            assert half_open.oldest() == model[0][0]
        for one in "abc":
            of_key = [name for name, its in model if its == one]
            assert half_open.of(one) == len(of_key)
            if of_key:
                assert half_open.oldest(one) == of_key[0]
    for name, _ in model:
        half_open.leave(name)
    assert (len(half_open), half_open._by_key) == (0, {})


@pytest.mark.parametrize(
    ("first", "longest", "seconds"),
    [
        (2.0, 15.0, [2.0, 4.0, 8.0, 15.0, 15.0]),
        (0.0, 15.0, [0.0, 0.0, 0.0]),
        (20.0, 15.0, [15.0, 15.0]),
        (0.5, 0.0, [0.0, 0.0]),
    ],
)
def test_delays_double_up_to_the_longest(first: float, longest: float, seconds: list[float]) -> None:
    delay = FailureDelay(first, longest)
    assert [delay.after(number) for number in range(1, len(seconds) + 1)] == seconds


@given(st.integers(1, 10**9), st.floats(0, 300), st.floats(0, 300))
def test_a_delay_is_finite_and_within_its_limit(failures: int, first: float, longest: float) -> None:
    delay = FailureDelay(first, longest)
    assert 0 <= delay.after(failures) <= longest
    assert math.isfinite(delay.after(failures))
    assert delay.after(failures) <= delay.after(failures + 1)

"""Who takes a connection that several workers see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.balance.turns import HALF_LIFE, IMPATIENCE, LONGEST_IMPATIENCE, PATIENCE, Turns, decayed


@pytest.mark.parametrize(
    ("own", "others", "leaves"),
    [
        (5, [], False),
        (0, [0], False),
        (1, [0], False),
        (2, [0], True),
        (2, [2, 1], False),
        (3, [9, 1], True),
        (1000, [900], False),
        (1000, [800], True),
        (0, [5], False),
    ],
)
def test_who_is_ahead_leaves_it(own: float, others: list[float], leaves: bool) -> None:
    assert Turns().leaves(own, others, 0.0) is leaves


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
def test_somebody_always_takes_it(loads: list[float]) -> None:
    assert not all(Turns().leaves(load, [*loads[:at], *loads[at + 1 :]], 0.0) for at, load in enumerate(loads))


def test_whoever_waits_in_vain_again_and_again_stops_for_longer_and_longer() -> None:
    turns, now, whiles = Turns(), 1.0, []
    for _ in range(12):
        assert turns.leaves(9, [0], now)
        turns.in_vain(now)
        began = now
        while not turns.leaves(9, [0], now):
            now += IMPATIENCE / 2
        whiles.append(now - began)
    assert whiles == pytest.approx([0, 0, *(IMPATIENCE * 2**n for n in range(7)), *[LONGEST_IMPATIENCE] * 3], abs=0.02)


def test_patience_comes_back_when_another_takes_its_share() -> None:
    turns = Turns()
    for _ in range(PATIENCE - 1):
        turns.in_vain(0.0)
    turns.rewarded()
    turns.in_vain(0.0)
    assert turns.leaves(9, [0], 0.0)


def test_what_came_counts_less_and_less() -> None:
    assert decayed(8.0, 0.0) == 8.0
    assert decayed(8.0, HALF_LIFE) == 4.0
    assert decayed(8.0, 3 * HALF_LIFE) == 1.0
    assert decayed(8.0, -1.0) == 8.0
    assert decayed(8.0, 1e9) == 0.0

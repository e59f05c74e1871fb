"""Ratios of pairs: their median, and an interval that is as certain as it says."""

from __future__ import annotations

import pytest

from benchmarks.ratios import Ratio, median, ratio


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([], None), ([None, None], None), ([3.0], 3.0), ([1.0, None, 9.0, 2.0], 2.0), ([1.0, 2.0], 1.5)],
)
def test_median_leaves_out_rounds_without_a_figure(samples: list[float | None], expected: float | None) -> None:
    assert median(samples) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([], [], None),
        ([1.0], [], None),
        ([1.0], [0.0], None),
        ([None, 1.0], [2.0, None], None),
        ([1.0], [2.0], Ratio(0.5, 0.5, 0.5, 1, certain=False)),
        ([1.0, None, 6.0], [2.0, 5.0, 2.0], Ratio(1.75, 0.5, 3.0, 2, certain=False)),
        ([1.0, 6.0, 9.0], [2.0, 2.0], Ratio(1.75, 0.5, 3.0, 2, certain=False)),
    ],
)
def test_a_ratio_takes_pairs_of_the_same_round(
    ours: list[float | None], theirs: list[float | None], expected: Ratio | None
) -> None:
    assert ratio(ours, theirs) == expected


@pytest.mark.parametrize(
    ("pairs", "low", "high", "certain"),
    [
        # The ranks are those of the tables of the binomial distribution with p = 1/2, two-sided at 5 %.
        (5, 1, 5, False),
        (6, 1, 6, True),
        (7, 1, 7, True),
        (8, 1, 8, True),
        (9, 2, 8, True),
        (12, 3, 10, True),
        (20, 6, 15, True),
        (30, 10, 21, True),
    ],
)
def test_the_interval_holds_the_median_with_95_percent(pairs: int, low: int, high: int, certain: bool) -> None:
    ours = [float(number) for number in range(pairs, 0, -1)]
    found = ratio(ours, [1.0] * pairs)
    assert found == Ratio((pairs + 1) / 2, low, high, pairs, certain)

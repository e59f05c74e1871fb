"""Medians, and ratios of pairs with the interval in which the median lies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95

Samples = Sequence[float | None]
"""One figure of one way: its value in each round, None where there is none."""


@dataclass(frozen=True)
class Ratio:
    """A ratio's median over the pairs, and its interval, which is only the range if there are too few pairs."""

    median: float
    low: float
    high: float
    pairs: int
    certain: bool
    """Whether the interval holds the median with 95 %."""


def median(samples: Samples) -> float | None:
    """Return the median of the values that there are."""
    values = [value for value in samples if value is not None]
    return statistics.median(values) if values else None


def ratio(ours: Samples, theirs: Samples) -> Ratio | None:
    """Return the ratio of two ways that were measured in the same rounds, one after the other."""
    pairs = zip(ours, theirs, strict=False)
    values = sorted(one / other for one, other in pairs if one is not None and other)
    if not values:
        return None
    outside = _outside(len(values))
    rank = outside or 0
    return Ratio(statistics.median(values), values[rank], values[-1 - rank], len(values), outside is not None)


def _outside(count: int) -> int | None:
    """Return how many of the sorted values lie below the interval, and as many above it.

    None says that not even all of them make one that is wide enough.

    The median lies below the r-th smallest value exactly if fewer than r of the values are below the median,
    which is a matter of tossing coins, whatever the values' distribution is.
    """
    found = None
    for rank in range(count // 2):
        missed = 2 * sum(math.comb(count, number) for number in range(rank + 1)) / 2**count
        if missed > 1 - CONFIDENCE:
            break
        found = rank
    return found

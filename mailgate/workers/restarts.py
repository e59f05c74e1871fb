"""When a worker that died is replaced: at once, unless workers die again and again."""

from __future__ import annotations

from collections import deque
from typing import Final

EARLY: Final = 10.0
"""Seconds within which a death counts as an early one: whatever ended it will soon end the next."""

AT_ONCE: Final = 5
"""Early deaths that are followed at once by a new worker, within MEMORY: somebody may be killing them by hand."""

MEMORY: Final = 60.0
"""Seconds for which an early death is remembered."""

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 15.0
"""Seconds until a worker is replaced when they die again and again; it doubles from the first to the longest."""


class Restarts:
    """Remembers early deaths, over all workers: what is wrong is seldom wrong with one of them."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def died(self, now: float, lived: float) -> float:
        """Note that a worker died at the moment ``now``; return how many seconds to wait until it is replaced."""
        if lived < EARLY:
            self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > MEMORY:
            self._deaths.popleft()
        again = len(self._deaths) - AT_ONCE
        if again <= 0 or lived >= EARLY:
            return 0.0
        # The exponent is bounded, since a deque may be long and a float is not.
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(again - 1, 10))

"""When a worker that died is replaced: at once, unless workers die again and again."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final

EARLY: Final = 10.0
"""Seconds within which a death counts as an early one: whatever ended it will soon end the next."""

AT_ONCE: Final = 5
"""Early deaths in one worker's place that are followed at once by a new one, within MEMORY: somebody may be killing
them by hand."""

MEMORY: Final = 60.0
"""Seconds for which an early death is remembered."""

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 15.0
"""Seconds until a worker is replaced when they die again and again; it doubles from the first to the longest."""


class Restarts:
    """Remembers early deaths in each worker's place, so that an event that kills many at once is one for each."""

    def __init__(self) -> None:
        self._deaths: defaultdict[int, deque[float]] = defaultdict(deque)

    def died(self, now: float, lived: float, slot: int) -> float:
        """Note that the worker of a slot died at the moment ``now``; return in how many seconds to replace it."""
        deaths = self._deaths[slot]
        if lived < EARLY:
            deaths.append(now)
        while deaths and now - deaths[0] > MEMORY:
            deaths.popleft()
        again = len(deaths) - AT_ONCE
        if again <= 0 or lived >= EARLY:
            return 0.0
        # The exponent is bounded, since a deque may be long and a float is not.
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(again - 1, 10))

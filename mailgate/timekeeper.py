"""Deadlines that are often moved and rarely come, such as those of a login: one task keeps them for all streams.

To enter a cancel scope, move its deadline and leave it is some fifty calls in Trio. A login has four time limits,
which change seven times, and nearly none of them ever strikes. Here a limit is an attribute of what waits, and only
the first wait under it makes an entry.
"""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import Final, Protocol

import trio

TIDIED: Final = 4
"""Entries without use that are dropped for each new one, so that few are kept and no turn drops many."""


class Timed(Protocol):
    """What waits until its ``deadline`` at the latest; it is infinite while there is none."""

    deadline: float

    def look_at_time(self, now: float) -> float:
        """End a wait whose deadline has come; return when to look again, infinity for not before the next wait."""
        ...


class _Timekeeper:
    """Looks at what waits when its deadline comes.

    An entry stays where it is when its deadline is moved to later: when it is due, the waiting one says when to look
    again. Who moves it to an earlier moment makes another entry.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Timed]] = []
        self._order = count()
        self._sleeper = trio.lowlevel.ParkingLot()
        self._wakes_at = math.inf

    def watch(self, waiting: Timed) -> None:
        """See :func:`watch`."""
        entries = self._entries
        for _ in range(TIDIED):
            if not entries or entries[0][2].deadline < math.inf:
                break
            heapq.heappop(entries)
        heapq.heappush(entries, (waiting.deadline, next(self._order), waiting))
        if waiting.deadline < self._wakes_at:
            self._wakes_at = waiting.deadline
            self._sleeper.unpark()

    async def run(self) -> None:
        """Look when it is time, until cancelled."""
        while True:
            with trio.move_on_at(self._wakes_at):
                await self._sleeper.park()
            self._look(trio.current_time())

    def _look(self, now: float) -> None:
        entries = self._entries
        while entries and entries[0][0] <= now:
            waiting = heapq.heappop(entries)[2]
            again = waiting.look_at_time(now)
            if again < math.inf:
                heapq.heappush(entries, (again, next(self._order), waiting))
        self._wakes_at = entries[0][0] if entries else math.inf


_timekeepers: Final[trio.lowlevel.RunVar[_Timekeeper]] = trio.lowlevel.RunVar("_timekeepers")


def watch(waiting: Timed) -> None:
    """Have what waits looked at when its deadline has come, which must be ahead.

    The timekeeper is a Trio run's own, and begins with the first that is watched.
    """
    try:
        keeper = _timekeepers.get()
    except LookupError:
        keeper = _Timekeeper()
        _timekeepers.set(keeper)
        trio.lowlevel.spawn_system_task(keeper.run)
    keeper.watch(waiting)

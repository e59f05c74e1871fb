"""Limits as plain state machines: facts and the time in, a decision out, memory bounded.

Nothing here reads a clock or knows a protocol. Every entry that is made is released again, and
none of the tables can outgrow the number of connections that the gate admits.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


class Concurrency:
    """How many of something each key has at the moment.

    A key without any costs no memory, so a million addresses that come and go leave nothing.
    """

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.total = 0

    def __getitem__(self, key: str) -> int:
        return self._counts.get(key, 0)

    def __len__(self) -> int:
        return len(self._counts)

    def enter(self, key: str) -> None:
        """Count one more for ``key``."""
        self._counts[key] = self._counts.get(key, 0) + 1
        self.total += 1

    def leave(self, key: str) -> None:
        """Count one less; a ``key`` that has none is left as it is."""
        count = self._counts.get(key, 0)
        if count == 0:
            return
        self.total -= 1
        if count == 1:
            del self._counts[key]
        else:
            self._counts[key] = count - 1


class HalfOpen:
    """Connections that have not logged in, in the order in which they came.

    When there are too many, of one key or in all, the oldest is named, because a flood of new
    ones must not keep people out, while whoever is really logging in does so within moments.
    """

    __slots__ = ("_all", "_by_key")

    def __init__(self) -> None:
        self._all: OrderedDict[str, str] = OrderedDict()
        self._by_key: dict[str, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, member: str) -> bool:
        return member in self._all

    def of(self, key: str) -> int:
        """Return how many ``key`` has."""
        return len(self._by_key.get(key, ()))

    def enter(self, member: str, key: str) -> None:
        """Add ``member`` as the youngest."""
        self._all[member] = key
        self._by_key.setdefault(key, OrderedDict())[member] = None

    def leave(self, member: str) -> None:
        """Take ``member`` out; does nothing if it is not in."""
        key = self._all.pop(member, None)
        if key is None:
            return
        members = self._by_key[key]
        del members[member]
        if not members:
            del self._by_key[key]

    def oldest(self, key: str | None = None) -> str:
        """Return the oldest member, of ``key`` or of all; there must be one."""
        return next(iter(self._all if key is None else self._by_key[key]))


@dataclass(frozen=True, slots=True)
class FailureDelay:
    """How long the answer to a session's n-th failed login waits: ``first`` seconds, then twice as long
    each time, at most ``longest``."""

    first: float
    longest: float

    def after(self, failures: int) -> float:
        """Return the seconds to wait after ``failures`` failed logins (1 or more)."""
        # The exponent is bounded so that a huge count cannot overflow the float.
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 64))

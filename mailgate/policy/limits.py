"""Limits as plain state machines: facts and the time in, a decision out, memory bounded.

Nothing here reads a clock or knows a protocol. Every entry that is made is released again, and
none of the tables can outgrow the number of connections that the gate admits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class Concurrency(Generic[K]):
    """How many of something each key has at the moment.

    A key without any costs no memory, so a million addresses that come and go leave nothing.
    """

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}
        self.total = 0

    def __getitem__(self, key: K) -> int:
        return self._counts.get(key, 0)

    def __len__(self) -> int:
        return len(self._counts)

    def enter(self, key: K) -> None:
        """Count one more for ``key``."""
        self._counts[key] = self._counts.get(key, 0) + 1
        self.total += 1

    def leave(self, key: K) -> None:
        """Count one less; a ``key`` that has none is left as it is."""
        count = self._counts.get(key, 0)
        if count == 0:
            return
        self.total -= 1
        if count == 1:
            del self._counts[key]
        else:
            self._counts[key] = count - 1


class HalfOpen(Generic[K]):
    """Connections that have not logged in, in the order in which they came.

    When there are too many, of one key or in all, the oldest is named, because a flood of new
    ones must not keep people out, while whoever is really logging in does so within moments.
    """

    __slots__ = ("_all", "_by_key")

    def __init__(self) -> None:
        self._all: OrderedDict[str, K] = OrderedDict()
        self._by_key: dict[K, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, member: str) -> bool:
        return member in self._all

    def of(self, key: K) -> int:
        """Return how many ``key`` has."""
        return len(self._by_key.get(key, ()))

    def enter(self, member: str, key: K) -> None:
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

    def oldest(self, key: K | None = None) -> str:
        """Return the oldest member, of ``key`` or of all; there must be one."""
        return next(iter(self._all if key is None else self._by_key[key]))


@dataclass(frozen=True, slots=True)
class Standing:
    """What is counted when a connection comes: of its key, and in all."""

    of_key: int
    half_open_of_key: int
    sessions: int
    half_open: int


class Counts(Protocol):
    """The connections that count together, of one worker or of several.

    ``with counts:`` keeps all others from counting meanwhile, so that a decision and its count are one step.
    What is asked and changed inside is ``standing``, ``make_room`` and ``enter``; the other methods stand alone.
    """

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def standing(self, key: str) -> Standing:
        """Return what is counted for ``key`` and in all."""

    def make_room(self, key: str | None) -> tuple[str, ...] | None:
        """Take a half-open connection, of ``key`` or of any, out of the counts: one that must be ended now.

        Return it if it is this worker's, nothing if another worker was asked to end one of its own,
        None if there is none that could be ended.
        """

    def enter(self, member: str, key: str) -> None:
        """Count a new connection, half-open."""

    def logged_in(self, member: str) -> None:
        """Note that a connection is half-open no more."""

    def left(self, member: str) -> None:
        """Note that a connection is over; does nothing the second time."""


class OneWorker:
    """The connections of a process that is alone: nothing to keep others from, and nobody to ask."""

    __slots__ = ("_half_open", "_keys", "_sessions")

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._sessions = Concurrency[str]()
        self._half_open = HalfOpen[str]()

    def __enter__(self) -> OneWorker:
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody was kept out."""

    def standing(self, key: str) -> Standing:
        """Return what is counted for ``key`` and in all."""
        sessions, half_open = self._sessions, self._half_open
        return Standing(sessions[key], half_open.of(key), sessions.total, len(half_open))

    def make_room(self, key: str | None) -> tuple[str, ...] | None:
        """Take the oldest half-open connection out, of ``key`` or of all; there must be one."""
        member = self._half_open.oldest(key)
        self.left(member)
        return (member,)

    def enter(self, member: str, key: str) -> None:
        """Count a new connection, half-open."""
        self._keys[member] = key
        self._sessions.enter(key)
        self._half_open.enter(member, key)

    def logged_in(self, member: str) -> None:
        """Note that a connection is half-open no more."""
        self._half_open.leave(member)

    def left(self, member: str) -> None:
        """Note that a connection is over; does nothing the second time."""
        key = self._keys.pop(member, None)
        if key is not None:
            self._sessions.leave(key)
            self._half_open.leave(member)


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

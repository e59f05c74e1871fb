"""One worker's part in the ledger: the counts that its gate asks, and its turn to accept.

Limits hold exactly over all workers. Where a half-open connection must go to make room, it is the oldest of the worker
that has most of them. If that is another, it is taken out of the counts at once ("owed"), and the other is told
through its pipe to end it: the counts never exceed a limit, and the connection ends within one turn of that
worker's loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from mailgate.balance.turns import YIELD, Turns, decayed
from mailgate.ledger.table import HALF_OPEN, OWED, OWED_ANY, SERVING, SESSIONS, Ledger
from mailgate.policy.limits import Concurrency, HalfOpen, Standing

_ANY = bytes(8)
"""What is written to a worker that shall end a half-open connection of any address."""

_ALONE = -1
"""In the place of a cell: the ledger had none left, so that the address counts in this worker alone."""


class Seat:
    """The counts of all workers as one of them keeps them; see :class:`mailgate.policy.limits.Counts`.

    ``overflowed`` is called for each connection that could be counted by address in this worker alone.
    """

    def __init__(
        self,
        ledger: Ledger,
        slot: int,
        overflowed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        slots = ledger.slots
        self.slot = slot
        self._ledger = ledger
        self._slots = slots
        self._overflowed = overflowed
        self._clock = clock
        self._turns = Turns()
        self._sessions = SESSIONS * slots + slot
        self._half_opens = HALF_OPEN * slots + slot
        self._owed = OWED * slots + slot
        self._owed_any = OWED_ANY * slots + slot
        self._members: dict[str, tuple[bytes, int]] = {}
        self._half_open = HalfOpen[bytes]()
        self._alone = Concurrency[bytes]()
        self._doomed: list[tuple[str, str]] = []

    # ---------------------------------------------------------------- counts

    def __enter__(self) -> Seat:
        self._ledger.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.__exit__()

    def standing(self, key: str) -> Standing:
        """Return what is counted for ``key`` and in all, over all workers."""
        ledger, slots = self._ledger, self._slots
        digest = ledger.digest(key)
        numbers = ledger.find(digest)
        if numbers < 0:
            of_key, half_open_of_key = self._alone[digest], self._half_open.of(digest)
        else:
            row = ledger.cells[numbers : numbers + 3 * slots].tolist()
            owed = sum(row[2 * slots :])
            of_key, half_open_of_key = sum(row[:slots]) - owed, sum(row[slots : 2 * slots]) - owed
            if self._alone.total:
                of_key += self._alone[digest]
                half_open_of_key = max(half_open_of_key, self._half_open.of(digest))
        totals = ledger.totals.tolist()
        owed = sum(totals[OWED * slots :])
        return Standing(
            of_key,
            half_open_of_key,
            sum(totals[SESSIONS * slots : HALF_OPEN * slots]) - owed,
            sum(totals[HALF_OPEN * slots : OWED * slots]) - owed,
        )

    def enter(self, member: str, key: str) -> None:
        """Count a new connection, half-open."""
        ledger = self._ledger
        digest = ledger.digest(key)
        numbers = ledger.find(digest)
        if numbers < 0 and not self._alone[digest]:
            numbers = ledger.claim(digest)
        if numbers < 0:
            self._alone.enter(digest)
            self._overflowed()
        else:
            ledger.cells[numbers + self.slot] += 1
            ledger.cells[numbers + self._slots + self.slot] += 1
        ledger.totals[self._sessions] += 1
        ledger.totals[self._half_opens] += 1
        self._members[member] = digest, numbers
        self._half_open.enter(member, digest)

    def logged_in(self, member: str) -> None:
        """Note that a connection is half-open no more."""
        if member not in self._half_open:
            return
        _, numbers = self._members[member]
        ledger, totals = self._ledger, self._ledger.totals
        with ledger:
            self._half_open.leave(member)
            totals[self._half_opens] -= 1
            if numbers != _ALONE:
                ledger.cells[numbers + self._slots + self.slot] -= 1
            if self._owes_more(numbers):
                # Room was made of this one already, which has logged in just before it was told.
                rule = self._pay(numbers)
                self._leave(member)
                self._doomed.append((member, rule))

    def _owes_more(self, numbers: int) -> bool:
        """Whether more is owed, of an address or in all, than there are half-open connections to end."""
        cells, totals, slots = self._ledger.cells, self._ledger.totals, self._slots
        if numbers != _ALONE and cells[numbers + 2 * slots + self.slot] > cells[numbers + slots + self.slot]:
            return True
        return totals[self._owed] + totals[self._owed_any] > totals[self._half_opens]

    def left(self, member: str) -> None:
        """Note that a connection is over; does nothing the second time."""
        if member in self._members:
            with self._ledger:
                if member in self._half_open:
                    self._pay(self._members[member][1])
                self._leave(member)

    def _pay(self, numbers: int) -> str:
        """Strike one from what this worker owes, if it owes, since a half-open connection of this address ends.

        Return the name of the limit for which it was owed.
        """
        cells, totals = self._ledger.cells, self._ledger.totals
        owed = numbers + 2 * self._slots + self.slot
        if numbers != _ALONE and cells[owed]:
            cells[owed] -= 1
            # One who was killed between writing the two left this one behind.
            totals[self._owed] = max(0, totals[self._owed] - 1)
            return "half_open_per_address"
        if totals[self._owed_any]:
            totals[self._owed_any] -= 1
        return "half_open"

    def _leave(self, member: str) -> None:
        digest, numbers = self._members.pop(member)
        ledger, totals = self._ledger, self._ledger.totals
        totals[self._sessions] -= 1
        half_open = member in self._half_open
        if half_open:
            self._half_open.leave(member)
            totals[self._half_opens] -= 1
        if numbers == _ALONE:
            self._alone.leave(digest)
            return
        cells = ledger.cells
        cells[numbers + self.slot] -= 1
        if half_open:
            cells[numbers + self._slots + self.slot] -= 1
        if not cells[numbers + self.slot]:
            ledger.release(numbers)

    # ---------------------------------------------------------------- room for newcomers

    def make_room(self, key: str | None) -> tuple[str, ...] | None:
        """Take a half-open connection, of ``key`` or of any, out of the counts: the oldest of who has most."""
        ledger, slots = self._ledger, self._slots
        cells, totals = ledger.cells, ledger.totals
        all_ = totals.tolist()
        have = [
            all_[HALF_OPEN * slots + slot] - all_[OWED * slots + slot] - all_[OWED_ANY * slots + slot]
            for slot in range(slots)
        ]
        digest, numbers = _ANY, _ALONE
        if key is not None:
            digest = ledger.digest(key)
            numbers = ledger.find(digest)
            row = [0] * 3 * slots if numbers < 0 else cells[numbers : numbers + 3 * slots].tolist()
            of_key = [row[slots + slot] - row[2 * slots + slot] for slot in range(slots)]
            if numbers < 0:
                of_key[self.slot] = self._half_open.of(digest)
            # What a worker owes of any address may be owed of this one.
            have = list(map(min, have, of_key))
        most = max(range(slots), key=lambda slot: (have[slot], slot == self.slot))
        if most != self.slot and have[most] > 0 and self._ask(most, digest):
            if numbers == _ALONE:
                totals[OWED_ANY * slots + most] += 1
            else:
                cells[numbers + 2 * slots + most] += 1
                totals[OWED * slots + most] += 1
            return ()
        if have[self.slot] <= 0:
            return None
        member = self._half_open.oldest(None if key is None else digest)
        its = self._members[member][1]
        if key is None and its != _ALONE and cells[its + 2 * slots + self.slot]:
            # It may be the one that was owed of its address; another of any address can be that now.
            self._pay(its)
            totals[self._owed_any] += 1
        self._leave(member)
        return (member,)

    def _ask(self, slot: int, digest: bytes) -> bool:
        """Tell another worker that it owes; returns whether it could be told."""
        try:
            os.write(self._ledger.pipes[slot][1], digest)
        except BlockingIOError:
            # It has not looked for thousands of these, so nothing that it is asked for would happen soon.
            return False
        return True

    def fileno(self) -> int:
        """Return what becomes readable when another worker made room at this one's expense."""
        return self._ledger.pipes[self.slot][0]

    def due(self) -> list[tuple[str, str]]:
        """Return the connections that must be ended now, out of the counts already, each with the rule's name."""
        found, self._doomed = self._doomed, []
        try:
            asked = os.read(self.fileno(), 65536)
        except BlockingIOError:
            return found
        cells, totals = self._ledger.cells, self._ledger.totals
        with self._ledger:
            # What was asked only says where to look: how many are owed is in the counts.
            digests = {asked[at : at + 8] for at in range(0, len(asked), 8)}
            for digest in digests - {_ANY}:
                numbers = self._ledger.find(digest)
                owed = numbers + 2 * self._slots + self.slot
                while numbers >= 0 and cells[owed] and self._half_open.of(digest):
                    found.append(self._end_oldest(digest))
            while totals[self._owed_any] and len(self._half_open):
                found.append(self._end_oldest(None))
        return found

    def _end_oldest(self, digest: bytes | None) -> tuple[str, str]:
        member = self._half_open.oldest(digest)
        rule = self._pay(self._members[member][1])
        self._leave(member)
        return member, rule

    # ---------------------------------------------------------------- accepting

    def serving(self, serving: bool) -> None:
        """Say whether this worker accepts connections; others leave some to it only while it does."""
        self._ledger.totals[SERVING * self._slots + self.slot] = serving

    def pause(self) -> float:
        """Return for how many seconds to leave a connection that waits to other workers; 0 is to take it."""
        slots = self._slots
        totals = self._ledger.totals[: 2 * slots].tolist()
        if sum(totals[:slots]) <= 1:
            # At most one worker serves: there is nobody to leave anything to.
            return 0.0
        now = self._clock()
        rates = self._ledger.rates.tolist()
        loads = [
            totals[slots + slot] + decayed(rates[2 * slot], now - rates[2 * slot + 1]) if totals[slot] else None
            for slot in range(slots)
        ]
        own = loads[self.slot]
        if own is None:
            return 0.0
        others = (load for slot, load in enumerate(loads) if slot != self.slot and load is not None)
        return YIELD if self._turns.leaves(own, others, now) else 0.0

    def took(self, waited: bool) -> None:
        """Note that a connection was accepted, perhaps one that was left to others in vain."""
        now = self._clock()
        rates, at = self._ledger.rates, 2 * self.slot
        rates[at] = decayed(rates[at], now - rates[at + 1]) + 1.0
        rates[at + 1] = now
        if waited:
            self._turns.in_vain(now)

    def missed(self) -> None:
        """Note that another worker took what was left to it."""
        self._turns.rewarded()

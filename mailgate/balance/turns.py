"""Which of several workers takes a connection that waits in the queue that they share.

All of them see it at the same time. The one with the fewest connections takes it at once; one that is ahead leaves it
for a moment and takes it if it is still there then, so that nobody waits for a worker that is stuck or busy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

HALF_LIFE: Final = 5.0
"""Seconds in which a connection that was accepted counts half: quick sessions are work too, though none stays."""

YIELD: Final = 0.002
"""Seconds for which a connection is left to others: a few turns of an idle worker's loop, unfelt in a handshake."""

PATIENCE: Final = 3
"""How often in a row a worker leaves something in vain before it stops doing so for a while: one that slept may
need longer than usual to wake, but waiting for ones that have no time makes accepting as slow as they are."""

IMPATIENCE: Final = 0.02
"""Seconds of the first such while; each that ends in vain again makes the next twice as long."""

LONGEST_IMPATIENCE: Final = 1.28
"""Seconds of the longest: so soon is it noticed that a worker that was stuck goes on."""


def decayed(rate: float, since: float) -> float:
    """Return what is left of a moving count after ``since`` seconds."""
    # Clocks of one machine agree, but two readings of it may be written down in the other order.
    return float(rate * 0.5 ** (max(since, 0.0) / HALF_LIFE))


class Turns:
    """One worker's manners at the queue. Pure: times are seconds on a clock that only goes forward."""

    def __init__(self) -> None:
        self._vain = 0
        self._impatient_until = float("-inf")

    def leaves(self, own: float, others: Iterable[float], now: float) -> bool:
        """Whether a worker with the load ``own`` leaves a connection to one of ``others`` for a moment."""
        if now < self._impatient_until:
            return False
        least = min(others, default=own)
        # Exactly even is not worth the wakes of waiting: one connection is nothing, nor is an eighth of many.
        return own - least > 1 + least / 8

    def in_vain(self, now: float) -> None:
        """Note that a connection that was left was still there afterwards."""
        self._vain += 1
        if self._vain >= PATIENCE:
            doublings = min(self._vain - PATIENCE, 16)
            self._impatient_until = now + min(IMPATIENCE * 2**doublings, LONGEST_IMPATIENCE)

    def rewarded(self) -> None:
        """Note that another took what was left to it."""
        self._vain = 0

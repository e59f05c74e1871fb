"""The delay between logins of one user (RFC 2449 §6.5), decided on a handful of words that several workers share.

A word is one number of 64 bits, the last login of one user: 32 bits that stand for the user above 32 bits that stand
for the moment, in sixteenths of a second. It is read and written as a whole, so that processes which do so at the same
time need no lock: at worst one login of two at the same moment is not noted, or another user's is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

TICKS: Final = 16
"""Moments in a second. A login is noted up to one of them too early, so nobody waits longer than they are told."""

EMPTY: Final = 0
"""A word in which no login was noted."""

_MOMENTS: Final = 1 << 32
_HALF: Final = _MOMENTS // 2
"""Moments are compared modulo 2^32: what is up to four years old is told apart from what is to come."""


def tag(digest: int) -> int:
    """Return the 32 bits that stand for a user of whom ``digest`` is a hash; never 0, which is nobody's."""
    return digest % _MOMENTS or 1


def remaining(words: Sequence[int], user: int, now: float, seconds: float) -> float:
    """Return for how many seconds the user with the tag ``user`` may not log in; 0 if they may.

    ``seconds`` is the delay, ``now`` a moment of the clock by which logins were noted.
    """
    ages = [_age(word, now) for word in words if word // _MOMENTS == user]
    # One that another worker notes at this moment may be ahead of this one's clock.
    return max(0.0, seconds - max(0.0, min(ages))) if ages else 0.0


def noted(words: Sequence[int], user: int, now: float) -> tuple[int, int]:
    """Return which word has to become what for the login of ``user`` at the moment ``now`` to be noted.

    It is the user's own word, or an empty one, or else that of the login that is the longest ago.
    """

    def worth(index: int) -> tuple[bool, bool, float]:
        word = words[index]
        return word // _MOMENTS != user, word != EMPTY, -_age(word, now)

    return min(range(len(words)), key=worth), user * _MOMENTS + int(now * TICKS) % _MOMENTS


def _age(word: int, now: float) -> float:
    """Return how many seconds ago a login was."""
    return ((now * TICKS - word % _MOMENTS + _HALF) % _MOMENTS - _HALF) / TICKS

"""How soon a user may log in again, over all workers of one machine (RFC 2449 §6.5 and §8.1.1)."""

from __future__ import annotations

import time
from collections.abc import Callable

from mailgate.ledger.register import Register


class LoginDelays:
    """The logins of all workers. The table is bounded: where it is full, the oldest logins are forgotten.

    ``clock`` has to tell all processes the same time, as the monotonic clock of the system does; Trio's does not.
    """

    def __init__(self, register: Register, clock: Callable[[], float] = time.monotonic) -> None:
        self._register = register
        self._clock = clock

    def remaining(self, key: bytes, seconds: float) -> float:
        """Return for how many seconds the user ``key`` may not log in yet; 0 if they may.

        ``seconds`` is the least time between two logins. For a delay that is the user's own it is to be asked only
        after the credentials were accepted, since the answer tells that there is such a user.
        """
        return self._register.remaining(key, self._clock(), seconds) if seconds > 0 else 0.0

    def note(self, key: bytes) -> None:
        """Note that the user ``key`` has logged in; logins that fail behind it, as for a lock, are not to be noted."""
        self._register.note(key, self._clock())

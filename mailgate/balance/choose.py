"""Which server of a pool a login tries first, and which ones after it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

S = TypeVar("S", bound=Hashable)

# Long enough that a dead server does not cost every login its connect time, short enough that one
# that came back is used again soon. It is still tried within that time when all others fail.
RETRY_AFTER: Final = 30.0


class RoundRobin(Generic[S]):
    """Gives every login the next server; those that lately failed to connect come last.

    Pure: time is what the caller says (seconds on any clock that only goes forward). Memory is one
    entry for each server that has failed and not succeeded since.
    """

    def __init__(self, retry_after: float = RETRY_AFTER) -> None:
        self._retry_after = retry_after
        self._next = 0
        self._failed: dict[S, float] = {}

    def order(self, servers: Sequence[S], now: float) -> list[S]:
        """Return all of ``servers`` in the order in which to try them.

        Healthy servers come first, turning by one with each call. Behind them stand those that
        failed within the last ``retry_after`` seconds, the one that failed longest ago first.
        """
        healthy = [server for server in servers if not self._is_down(server, now)]
        down = sorted((server for server in servers if self._is_down(server, now)), key=self._failed.__getitem__)
        if healthy:
            # The turn counts healthy servers only: over all of them, the one behind a dead server
            # would get the dead one's share as well.
            start = self._next % len(healthy)
            self._next = start + 1
            healthy = healthy[start:] + healthy[:start]
        return healthy + down

    def failed(self, server: S, now: float) -> None:
        """Remember that ``server`` could not be used at ``now``."""
        self._failed[server] = now

    def succeeded(self, server: S) -> None:
        """Forget that ``server`` ever failed."""
        self._failed.pop(server, None)

    def down(self, servers: Sequence[S], now: float) -> list[S]:
        """Return those of ``servers`` that failed within the last ``retry_after`` seconds."""
        return [server for server in servers if self._is_down(server, now)]

    def _is_down(self, server: S, now: float) -> bool:
        failed = self._failed.get(server)
        return failed is not None and now - failed < self._retry_after

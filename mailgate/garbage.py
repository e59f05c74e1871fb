"""Collections of garbage in a worker that holds many sessions: what has survived one is not searched again.

Python searches everything that a process has for reference cycles whenever a quarter as much is new. With 10,000
sessions that stops a worker for a tenth of a second or more. Sessions that end leave no cycles, so that what is old
need not be searched.
"""

from __future__ import annotations

import gc
from typing import Final

GENERATIONS: Final = (700, 10, 5)
"""Python's own thresholds, but for the last: a full collection comes twice as often, with half as much to search."""

ROUNDS: Final = 200
"""Every so many full collections everything is searched: cycles that were alive when a collection passed must not
add up, such as a retired configuration. That is some 100,000 logins or more."""


class Collections:
    """Hears of the interpreter's collections (``gc.callbacks``)."""

    def __init__(self) -> None:
        self._left = ROUNDS

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """Set aside what a full collection has left, or take it all back before it begins."""
        if info["generation"] < 2:
            return
        if phase == "stop":
            gc.freeze()
            return
        self._left -= 1
        if not self._left:
            self._left = ROUNDS
            gc.unfreeze()


def spare_what_lasts() -> None:
    """Let this process's collections search little, from now until it ends."""
    gc.freeze()
    gc.set_threshold(*GENERATIONS)
    gc.callbacks.append(Collections())

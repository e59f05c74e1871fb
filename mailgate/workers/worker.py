"""A worker as the supervisor sees it, and how those are answered that wait for something which the supervisor does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mailgate.workers.packets import Channel


@dataclass(eq=False, slots=True)
class Worker:
    """A worker as the supervisor sees it.

    ``state`` is starting, ready, leaving or ending; or former, of a worker of the program before an upgrade that serves
    until this one's do. ``leave_by`` is the moment of the monotonic clock at which one that leaves is killed.
    """

    slot: int
    pid: int
    channel: Channel
    began: float
    state: str = "starting"
    deaf: bool = False
    failure: str = ""
    leave_by: float = math.inf

    @property
    def serving(self) -> bool:
        """Whether it accepts connections, or soon will, as one of this program's."""
        return self.state in ("starting", "ready")


Wanted = list[tuple[Worker, int]]
"""Who waits for something that the supervisor does: workers, each with its number for that."""


def done(wanted: Wanted, **facts: object) -> None:
    """Tell those who wait for something what became of it."""
    for worker, number in wanted:
        worker.channel.put({"word": "done", "number": number} | facts)

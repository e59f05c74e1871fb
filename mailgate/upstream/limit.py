"""The time limits of the steps towards a server."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import trio

from mailgate.errors import UpstreamFailed
from mailgate.model import Failure


class Progress(Protocol):
    """Who can tell how far things have come, as ``sent/received``."""

    @property
    def state(self) -> str: ...  # noqa: D102


class StepLimit:
    """The time limit of the step that an attempt at a server is at; raises UpstreamFailed when it is over.

    The steps follow each other, so one cancel scope whose deadline is moved serves them all. A scope
    for each step would cost more than what most of them do.
    """

    __slots__ = ("_at", "_scope", "_seconds", "_server", "_what")

    def __init__(self, server: str, seconds: float) -> None:
        """Begin with the step of connecting."""
        self._server = server
        self._scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._at: Progress | str = "connect/none"
        self._what = "connection"
        self._seconds = seconds

    def begin(self, at: Progress | str, what: str, seconds: float, left: float | None = None) -> None:
        """Begin a step of which ``what`` is expected within ``seconds``, of which ``left`` are left."""
        self._at, self._what, self._seconds = at, what, seconds
        self._scope.deadline = trio.current_time() + (seconds if left is None else left)

    def __enter__(self) -> StepLimit:
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            state = self._at if isinstance(self._at, str) else self._at.state
            detail = f"no {self._what} within {self._seconds:g} s"
            raise UpstreamFailed(Failure.TIMEOUT, state, detail, self._server) from None

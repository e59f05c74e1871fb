"""The time limits of the steps towards a server."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Protocol

import trio

from mailgate.errors import UpstreamFailed
from mailgate.model import Failure
from mailgate.stream import SocketStream


class Progress(Protocol):
    """Who can tell how far things have come, as ``sent/received``."""

    @property
    def state(self) -> str: ...  # noqa: D102


class StepLimit:
    """The time limit of the step that an attempt at a server is at; raises UpstreamFailed when it is over.

    The steps follow each other, so one deadline that is moved serves them all: that of the stream they are made on.
    """

    __slots__ = ("_at", "_seconds", "_server", "_stream", "_what", "began", "deadline")

    def __init__(self, server: str, seconds: float) -> None:
        """Begin with the step of connecting."""
        self._server = server
        self.began = trio.current_time()
        self.deadline = self.began + seconds
        """When the step's time is over, for what waits for anything but the stream."""
        self._stream: SocketStream | None = None
        self._at: Progress | str = "connect/none"
        self._what = "connection"
        self._seconds = seconds

    def watch(self, stream: SocketStream) -> SocketStream:
        """Limit a stream's waits from now on."""
        self._stream = stream
        stream.deadline = self.deadline
        return stream

    def begin(self, at: Progress | str, what: str, seconds: float, until: float | None = None) -> None:
        """Begin a step of which ``what`` is expected within ``seconds``, or ``until`` then."""
        self._at, self._what, self._seconds = at, what, seconds
        self.deadline = trio.current_time() + seconds if until is None else until
        if self._stream is not None:
            self._stream.deadline = self.deadline

    def __enter__(self) -> StepLimit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.deadline = math.inf
        if isinstance(error, trio.TooSlowError):
            state = self._at if isinstance(self._at, str) else self._at.state
            detail = f"no {self._what} within {self._seconds:g} s"
            raise UpstreamFailed(Failure.TIMEOUT, state, detail, self._server) from None

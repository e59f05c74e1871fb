"""What a relay core is: bytes from either side in, bytes for either side out, and what finished.

A core is pure, so that the same rules run behind sockets, memory streams and whatever comes next:
the shell that drives it reads a burst, hands it over, sends what the core left in ``to_upstream``
and ``to_client``, and reports what it left in ``finished``. Pieces may be views into the buffer
that was handed over; the shell sends or copies them before it reads into that buffer again.

The rule that every core keeps is that client and upstream agree on where each command ends. What
the core cannot frame with certainty it answers itself and never forwards, because a client that
can make the gateway and the upstream disagree can hide a command from the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple, Protocol

from mailgate.model import Verdict

Buffer = bytes | bytearray | memoryview

MAX_IN_FLIGHT: Final = 1000
"""Commands that a client may have unanswered. Pipelining clients keep tens; beyond this the core
stops taking bytes until some are answered, so that a table of tags cannot grow without bound."""


class Finished(NamedTuple):
    """A command that was answered: its verb (``other`` if unknown), the result, the time it took.

    ``result`` is ``ok``, ``no``, ``bad`` or ``err`` as the upstream said it, ``refused`` where the
    gateway answered.
    """

    verb: str
    result: str
    seconds: float


SHORT: Final = 1024
"""Octets up to which a piece of a burst is copied, because that costs less than a view of it."""


def cut(data: bytes | bytearray, begin: int, end: int) -> Buffer:
    """Return ``data[begin:end]`` in the cheapest way; what is long is a view."""
    return data[begin:end] if end - begin <= SHORT else memoryview(data)[begin:end]


@cache
def spellings(verbs: frozenset[str]) -> dict[bytes, str]:
    """Return the verbs by the bytes that clients send for them: in upper, lower and title case.

    Other spellings, which no client uses, are found the long way. One table serves all cores.
    """
    return {spelled.encode("ascii"): verb for verb in verbs for spelled in (verb, verb.lower(), verb.title())}


Decide = Callable[[str], Verdict]
"""Asked once for each command, with its verb in upper case, before anything of it is forwarded."""

FilterCapabilities = Callable[[list[bytes]], list[bytes]]
"""Given the capabilities of an upstream's answer, returns those the client may see, in order."""


class RelayCore(Protocol):
    """Bytes in, bytes and facts out; see the module's text."""

    to_client: list[Buffer]
    to_upstream: list[Buffer]
    finished: list[Finished]
    delay: float
    """Seconds that the gate wants the shell to wait before it sends ``to_upstream``."""
    logged_out: bool
    """The client's LOGOUT or QUIT was answered: the end of this session is a regular one."""
    fatal: str
    """Why the session cannot go on soundly; empty while it can."""
    opaque: bool
    """Whether this core does not know commands, so that only silence tells that none is under way."""

    @property
    def at_boundary(self) -> bool:
        """Whether the client is at the end of a response, where a line of the gateway's may stand."""
        ...

    def client_sent(self, data: bytes | bytearray, end: int, now: float) -> int:
        """Take ``data[:end]`` from the client; return how many bytes were consumed.

        Fewer than ``end`` when the core is ``blocked``, a ``delay`` is due or much is to be sent
        first: the shell keeps the rest and offers it again.
        """
        ...

    def upstream_sent(self, data: bytes | bytearray, end: int, now: float) -> None:
        """Take ``data[:end]`` from the upstream; all of it is consumed."""
        ...

    @property
    def blocked(self) -> bool:
        """Whether the client's next bytes must wait for an answer of the upstream."""
        ...

    @property
    def held(self) -> bool:
        """Whether a complete command waits inside the core for ``blocked`` to end."""
        ...

    @property
    def awaited(self) -> int:
        """Commands whose answers are worth a short wait after the client has gone."""
        ...

    @property
    def busy(self) -> bool:
        """Whether an end now would cut off a command: one in flight, or one that is half sent."""
        ...


class Outbox:
    """What every core leaves for its shell; see :class:`RelayCore`."""

    __slots__ = ("delay", "fatal", "finished", "logged_out", "opaque", "to_client", "to_upstream")

    def __init__(self, *, opaque: bool) -> None:
        self.to_client: list[Buffer] = []
        self.to_upstream: list[Buffer] = []
        self.finished: list[Finished] = []
        self.delay = 0.0
        self.logged_out = False
        self.fatal = ""
        self.opaque = opaque


class CopyRelay(Outbox):
    """Copies bytes without looking at them (``inspect = "login"``)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(opaque=True)

    def client_sent(self, data: bytes | bytearray, end: int, now: float) -> int:
        """Forward all of it."""
        self.to_upstream.append(memoryview(data)[:end])
        return end

    def upstream_sent(self, data: bytes | bytearray, end: int, now: float) -> None:
        """Forward all of it."""
        self.to_client.append(memoryview(data)[:end])

    @property
    def at_boundary(self) -> bool:
        """Never: where a response ends is not known."""
        return False

    @property
    def blocked(self) -> bool:
        """Never: nothing is known of what the bytes mean."""
        return False

    @property
    def held(self) -> bool:
        """Never, for the same reason."""
        return False

    @property
    def awaited(self) -> int:
        """Always one: something may be under way, and only the upstream's close would tell."""
        return 1

    @property
    def busy(self) -> bool:
        """Always, as far as can be known."""
        return True

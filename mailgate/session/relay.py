"""What a session is from its accepted login to its end, without any input or output.

A :class:`Relay` stands between a relay core, which knows the protocol, and a shell, which moves
bytes: ``streams.py`` over any two streams, ``engine.py`` over many pairs of sockets at once. It
decides what both have to do alike: whether the client may be read, how long the answers for a client
that has gone are awaited, how the session ended and what the client is told then.

A shell hands over what it reads (``client_sent``, ``upstream_sent``), sends what there is then
(``for_upstream``, ``for_client``), says what became of both sides, and stops when ``over`` says so.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Container
from typing import Final, Protocol

import trio

from mailgate.events import BytesRelayed, CommandFinished, CrashedSession, Emit, Trace
from mailgate.model import End, Session, Side
from mailgate.model import Protocol as Mail
from mailgate.wire.relay import Buffer, RelayCore

SWEEP_SECONDS: Final = 5.0
"""How often idle limits are checked and byte counts told: one task for all sessions costs less than
a deadline for each burst, and no idle limit is short enough to need more."""

SWEPT_AT_ONCE: Final = 500
"""Relays that are swept before others have their turn: some 200 µs, which nobody notices."""

QUIET_SECONDS: Final = 2.0
"""How long a relay whose commands are not seen must have been silent to count as idle in a drain."""


class Watched(Protocol):
    """A session after its login, whatever serves it, as a :class:`Watch` sees it."""

    @property
    def session(self) -> Session:
        """What is known of the client."""
        ...

    @property
    def protocol(self) -> Mail:
        """What the client speaks."""
        ...

    @property
    def ended(self) -> bool:
        """Whether its end is decided."""
        ...

    @property
    def quiet(self) -> bool:
        """Whether no command is under way, so that ending now takes nothing from anybody."""
        ...

    def end(self, side: Side, reason: str) -> None:
        """End it now; the first reason given is the one that is logged."""
        ...

    def sweep(self, now: float) -> None:
        """Check the idle limit and tell what was relayed since the last time."""
        ...


class Watch:
    """Ends relays that were idle for too long and tells their byte counts, for a whole worker."""

    def __init__(self) -> None:
        self._relays: dict[Watched, None] = {}

    def add(self, relay: Watched) -> None:
        """Begin to watch a relay."""
        self._relays[relay] = None

    def remove(self, relay: Watched) -> None:
        """Stop watching a relay."""
        self._relays.pop(relay, None)

    def __len__(self) -> int:
        return len(self._relays)

    def end(self, session: Session, reason: str) -> bool:
        """End a session's relay; return whether there is one."""
        for relay in self._relays:
            if relay.session is session:
                relay.end(Side.PROXY, reason)
                return True
        return False

    def end_idle(self, reason: str, at_most: int = sys.maxsize, spared: Container[Mail] = ()) -> int:
        """End relays that have no command under way; return how many are left (for a drain).

        ``at_most`` so many are ended by one call, and those of ``spared`` protocols are not.
        """
        for relay in list(self._relays):
            if at_most <= 0:
                break
            if not relay.ended and relay.quiet and relay.protocol not in spared:
                relay.end(Side.PROXY, reason)
                at_most -= 1
        return sum(not relay.ended for relay in self._relays)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            for number, relay in enumerate(list(self._relays), 1):
                if relay in self._relays:
                    relay.sweep(now)
                if not number % SWEPT_AT_ONCE:
                    await trio.lowlevel.checkpoint()


class Shell(Protocol):
    """What moves a relay's bytes, as the relay sees it."""

    def wake(self) -> None:
        """Hear that the relay was ended from outside."""
        ...


class _Nobody:
    """Stands in the place of a shell that has not begun, or has done its work."""

    def wake(self) -> None:
        """Do nothing."""


NOBODY: Final = _Nobody()


class Relay:
    """One session's relay, from the upstream's acceptance of the login to the end.

    ``idle`` is the limit in seconds without a byte in either direction, ``linger`` how long
    commands in flight are awaited after the client has gone. ``farewell`` makes, for a reason, the
    line that a client is told when the gateway ends its session at the end of a response.

    For its shell: while ``stalled`` the client is not read, and there may be more to see to: ``outcome`` is
    set once the end is in sight, and ``over`` says that it has come; at the time ``due`` it wants to be told
    by ``tick``. The shell keeps ``sending`` true while the client has not taken what it was sent, and sets
    ``shell``, which is told when the relay is ended from outside.
    """

    __slots__ = (
        "_active",
        "_delayed",
        "_emit",
        "_farewell",
        "_final",
        "_give_up_at",
        "_idle",
        "_linger",
        "_mute",
        "_rest",
        "_resume_at",
        "_told_in",
        "_told_out",
        "_trace",
        "core",
        "deaf",
        "outcome",
        "sending",
        "session",
        "shell",
        "stalled",
    )

    def __init__(
        self,
        core: RelayCore,
        session: Session,
        emit: Emit,
        *,
        idle: float,
        linger: float,
        farewell: Callable[[str], bytes],
        trace: Trace | None = None,
    ) -> None:
        self.core = core
        self.session = session
        self.outcome: End | None = None
        self.stalled = False
        self.sending = False
        self.deaf = False
        self.shell: Shell = NOBODY
        self._emit = emit
        self._idle = idle
        self._linger = linger
        self._farewell = farewell
        self._trace = trace
        self._active = trio.current_time()
        self._told_in = session.bytes_in
        self._told_out = session.bytes_out
        self._rest = b""
        self._delayed = b""
        self._final = False
        self._mute = False
        self._resume_at = math.inf
        self._give_up_at = math.inf

    # ---------------------------------------------------------------- from outside

    @property
    def protocol(self) -> Mail:
        """What the client speaks."""
        return self.session.protocol

    @property
    def ended(self) -> bool:
        """Whether the end of this relay is decided."""
        return self.outcome is not None

    @property
    def quiet(self) -> bool:
        """Whether no command is under way, so that ending now takes nothing from anybody."""
        if self.sending:
            return False
        if self.core.opaque:
            return trio.current_time() - self._active >= QUIET_SECONDS
        return not self.core.busy

    def end(self, side: Side, reason: str) -> None:
        """End the relay now; the first reason given is the one that is logged."""
        self._decide(side, reason)
        self.shell.wake()

    def sweep(self, now: float) -> None:
        """Check the idle limit and tell what was relayed since the last time."""
        self.tell_bytes()
        if now - self._active > self._idle:
            self.end(Side.PROXY, "idle")

    # ---------------------------------------------------------------- what the two sides send

    def client_sent(self, data: bytearray, end: int, now: float) -> None:
        """Take ``data[:end]`` from the client."""
        self._active = now
        self.session.bytes_in += end
        if self._trace is not None:
            self._trace.client(bytes(data[:end]))
        core = self.core
        used = core.client_sent(data, end, now)
        if used < end:
            self._rest = bytes(memoryview(data)[used:end])
        if core.finished:
            self._tell_finished()
        if used < end or core.held or core.delay or core.fatal:
            self._hold(now)

    def client_said(self, data: bytes, now: float) -> None:
        """Take what the client sent before the relay began, which is counted already."""
        self.session.bytes_in -= len(data)
        self.client_sent(bytearray(data), len(data), now)

    def again(self, now: float) -> None:
        """Offer the core what it has not taken; to be called when ``ready``, the others having had their turn."""
        rest, core = self._rest, self.core
        used = core.client_sent(rest, len(rest), now)
        self._rest = rest[used:]
        if core.finished:
            self._tell_finished()
        self._hold(now)

    @property
    def ready(self) -> bool:
        """Whether the core may be offered ``again`` what it has not taken."""
        core = self.core
        if not self.stalled or self._delayed or self._mute or core.fatal:
            return False
        return (bool(self._rest) or core.held) and not core.blocked

    def _hold(self, now: float) -> None:
        """See why the client's bytes cannot all go on, and whether they ever can."""
        core = self.core
        if core.delay:
            self._delayed = b"".join(core.to_upstream)
            core.to_upstream.clear()
            self._resume_at = now + core.delay
            core.delay = 0.0
        self.stalled = bool(self._rest or self._delayed or core.held or core.fatal or self._mute or self.outcome)
        if core.fatal:
            self._decide(Side.PROXY, "protocol")

    def upstream_sent(self, data: bytearray, end: int, now: float) -> None:
        """Take ``data[:end]`` from the upstream."""
        self._active = now
        core = self.core
        core.upstream_sent(data, end, now)
        if core.finished:
            self._tell_finished()
        if core.fatal:
            self._decide(Side.PROXY, "protocol")

    def for_upstream(self) -> Buffer:
        """Take what goes to the upstream now."""
        pieces = self.core.to_upstream
        return pieces.pop() if len(pieces) == 1 else _joined(pieces)

    def for_client(self) -> Buffer:
        """Take what goes to the client now: nothing more when it has stopped listening."""
        pieces = self.core.to_client
        out = pieces.pop() if len(pieces) == 1 else _joined(pieces)
        if self.deaf:
            return b""
        if self._trace is not None:
            self._trace.upstream(bytes(out))
        return out

    def delivered(self, count: int, now: float) -> None:
        """Note that the client took so many bytes."""
        self._active = now
        self.session.bytes_out += count

    # ---------------------------------------------------------------- how the two sides end

    def client_left(self, reason: str, now: float) -> None:
        """Await the commands in flight for a short while, then end.

        A client that says no more may still listen, and is sent the answers until a send fails.
        """
        if self.outcome is None:
            self.outcome = End(Side.CLIENT, reason)
            self._give_up_at = now + self._linger
            self.stalled = True

    def client_deaf(self, now: float) -> None:
        """Send the client nothing more. Commands in flight are still awaited, though nobody reads their answers."""
        self.deaf = True
        self.client_left("reset", now)

    def client_lost(self, now: float) -> None:
        """Send the client nothing more, and wait for what it said before it went, which is still to be read."""
        self.deaf = True
        if self.outcome is None:
            self._give_up_at = min(self._give_up_at, now + self._linger)

    def upstream_left(self, reason: str) -> None:
        """End, since nothing more can come."""
        self._decide(Side.SERVER, reason)

    def upstream_deaf(self, now: float) -> None:
        """Send the upstream nothing more, and wait for what it said before it went, which is still to be read."""
        self._mute = self.stalled = True
        self._give_up_at = min(self._give_up_at, now + self._linger)

    @property
    def due(self) -> float:
        """When ``tick`` is to be called next; infinity while nothing waits for the time."""
        return min(self._resume_at, self._give_up_at)

    def tick(self, now: float) -> None:
        """Go on with what waited for this moment."""
        if self._resume_at <= now:
            self._resume_at = math.inf
            self.core.to_upstream.append(self._delayed)
            self._delayed = b""
            self._hold(now)
        if self._give_up_at <= now:
            self._decide(Side.SERVER if self._mute else Side.CLIENT, "reset")

    def _decide(self, side: Side, reason: str) -> None:
        self.outcome = self.outcome or End(side, reason)
        self._final = self.stalled = True

    @property
    def over(self) -> bool:
        """Whether the shell shall stop: at once, or because the answers that a client left behind have come."""
        return self._final or (self.outcome is not None and not self.sending and not self.core.awaited)

    def last_words(self) -> tuple[End, bytes]:
        """Return how this relay ended, and the line that the client is told, which may be empty."""
        core = self.core
        end = self.outcome or End(Side.PROXY, "internal")
        if core.logged_out and end.side is not Side.PROXY:
            end = End(Side.CLIENT, "logged_out")
        if end.side is not Side.PROXY or not core.at_boundary or self.sending or self.deaf:
            return end, b""
        line = self._farewell(end.reason)
        if line and self._trace is not None:
            self._trace.upstream(line)
        return end, line

    # ---------------------------------------------------------------- telling

    def _tell_finished(self) -> None:
        session, emit = self.session, self._emit
        finished = self.core.finished
        session.commands += len(finished)
        for verb, result, seconds in finished:
            emit(CommandFinished(session, verb, result, seconds))
        finished.clear()

    def tell_bytes(self) -> None:
        """Tell what was relayed since the last time."""
        session = self.session
        received, sent = session.bytes_in - self._told_in, session.bytes_out - self._told_out
        if received or sent:
            self._told_in, self._told_out = session.bytes_in, session.bytes_out
            self._emit(BytesRelayed(session, received, sent))

    def crashed(self, error: BaseException) -> None:
        """Tell of an error of the gateway's own, which ends this session and no other."""
        self._emit(CrashedSession(self.session, error))
        self._decide(Side.PROXY, "internal")


def _joined(pieces: list[Buffer]) -> Buffer:
    """Take all pieces as one."""
    out = b"".join(pieces)
    pieces.clear()
    return out

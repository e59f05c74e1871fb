"""The stream shell of a relay core: two pumps over two streams, and no knowledge of any protocol.

Each pump reads a burst into the one buffer that all sessions of a worker share, hands it to the
core and sends what the core returns. The buffer may be reused because a stream reads into it
without a checkpoint before it returns, and copies what it could not send before it waits.

Both pumps may write to the client, since the core answers refused commands itself. They take turns
in the order in which the bytes were produced: a line of the gateway's own must never land inside
a literal of the upstream's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from mailgate.errors import LinkBroken
from mailgate.events import BytesRelayed, CommandFinished, Emit
from mailgate.model import Protocol as Mail
from mailgate.model import Session, Side
from mailgate.stream import ByteStream
from mailgate.wire.relay import Buffer, RelayCore

SWEEP_SECONDS: Final = 5.0
"""How often idle limits are checked and byte counts told: one task for all sessions costs less than
a deadline for each burst, and no idle limit is short enough to need more."""

QUIET_SECONDS: Final = 2.0
"""How long a relay whose commands are not seen must have been silent to count as idle in a drain."""

FAREWELL_SECONDS: Final = 1.0
"""How long a client that does not read may hold up the last line that it is told."""


class Trace(Protocol):
    """Where a session's dialogue is written for an administrator; masks credentials by itself."""

    def client(self, data: bytes) -> None:
        """Note what the client sent."""
        ...

    def upstream(self, data: bytes) -> None:
        """Note what the client was sent."""
        ...


@dataclass(frozen=True, slots=True)
class End:
    """Who ended a session, and why, in one word of a closed set."""

    side: Side
    reason: str


class Watch:
    """Ends relays that were idle for too long and tells their byte counts, for a whole worker."""

    def __init__(self) -> None:
        self._relays: dict[Relay, None] = {}

    def add(self, relay: Relay) -> None:
        """Begin to watch a relay."""
        self._relays[relay] = None

    def remove(self, relay: Relay) -> None:
        """Stop watching a relay."""
        self._relays.pop(relay, None)

    def __len__(self) -> int:
        return len(self._relays)

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
            for relay in list(self._relays):
                relay.sweep(now)


class Relay:
    """One session's relay, from the upstream's acceptance of the login to the end.

    ``idle`` is the limit in seconds without a byte in either direction, ``linger`` how long
    commands in flight are awaited after the client has gone. ``farewell`` makes, for a reason, the
    line that a client is told when the gateway ends its session at the end of a response.
    """

    def __init__(
        self,
        client: ByteStream,
        upstream: ByteStream,
        core: RelayCore,
        session: Session,
        emit: Emit,
        watch: Watch,
        *,
        buffer: bytearray,
        idle: float,
        linger: float,
        farewell: Callable[[str], bytes],
        trace: Trace | None = None,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._core = core
        self._session = session
        self._emit = emit
        self._watch = watch
        self._buffer = buffer
        self._idle = idle
        self._linger = linger
        self._farewell = farewell
        self._trace = trace
        self._end: End | None = None
        self._nursery: trio.Nursery | None = None
        self._active = trio.current_time()
        self._told_in = session.bytes_in
        self._told_out = session.bytes_out
        self._resume: trio.Event | None = None
        self._progress: trio.Event | None = None
        self._client_deaf = False
        self._sending = False
        self._turns = trio.lowlevel.ParkingLot()

    # ---------------------------------------------------------------- from outside

    @property
    def protocol(self) -> Mail:
        """What the client speaks."""
        return self._session.protocol

    @property
    def ended(self) -> bool:
        """Whether the end of this relay is decided."""
        return self._end is not None

    @property
    def quiet(self) -> bool:
        """Whether no command is under way, so that ending now takes nothing from anybody."""
        if self._sending:
            return False
        if self._core.opaque:
            return trio.current_time() - self._active >= QUIET_SECONDS
        return not self._core.busy

    def end(self, side: Side, reason: str) -> None:
        """End the relay now; the first reason given is the one that is logged."""
        if self._end is None:
            self._end = End(side, reason)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def sweep(self, now: float) -> None:
        """Check the idle limit and tell what was relayed since the last time."""
        self._tell_bytes()
        if now - self._active > self._idle:
            self.end(Side.PROXY, "idle")

    async def run(self, early_client: bytes = b"", early_upstream: bytes = b"") -> End:
        """Relay until one side ends, and return which and why.

        ``early_client`` is what the client sent behind its login, ``early_upstream`` what the
        upstream sent behind its acceptance; both come before anything else.
        """
        self._watch.add(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._pump_client, early_client)
                await self._pump_upstream(early_upstream)
            end = self._end or End(Side.PROXY, "internal")
            if self._core.logged_out and end.side is not Side.PROXY:
                end = End(Side.CLIENT, "logged_out")
            if end.side is Side.PROXY and self._core.at_boundary and not self._sending:
                await self._say(self._farewell(end.reason))
            return end
        finally:
            self._watch.remove(self)
            self._tell_bytes()

    # ---------------------------------------------------------------- the two pumps

    async def _pump_client(self, early: bytes) -> None:
        view = memoryview(self._buffer)
        try:
            if early:
                await self._from_client(bytearray(early), len(early))
            while not self._core.fatal:
                count = await self._client.receive(view)
                if count == 0:
                    self._client_left("closed")
                    return
                self._active = trio.current_time()
                self._session.bytes_in += count
                await self._from_client(self._buffer, count)
            self.end(Side.PROXY, "protocol")
        except trio.BrokenResourceError:
            self._client_left("reset")
        except LinkBroken as error:
            # What the upstream said before it went may still be on its way to the client: the other pump reads
            # it and then meets the end by itself.
            await trio.sleep(self._linger)
            self.end(error.side, error.detail)

    async def _from_client(self, data: bytearray, end: int) -> None:
        core = self._core
        if self._trace is not None:
            self._trace.client(bytes(data[:end]))
        used = core.client_sent(data, end, trio.current_time())
        rest = bytes(memoryview(data)[used:end]) if used < end else b""
        await self._pass_on()
        while (rest or core.held) and not core.fatal:
            if core.blocked:
                self._resume = trio.Event()
                await self._resume.wait()
            else:
                # The core has said enough for now: other sessions have their turn.
                await trio.lowlevel.checkpoint()
            used = core.client_sent(rest, len(rest), trio.current_time())
            rest = rest[used:]
            await self._pass_on()

    async def _pass_on(self) -> None:
        """Send what the core made of the client's bytes: upstream first, as views may be among it."""
        core = self._core
        if core.finished:
            self._tell_finished()
        if core.to_upstream:
            out = _joined(core.to_upstream)
            if core.delay:
                out = bytes(out)
                seconds, core.delay = core.delay, 0.0
                await trio.sleep(seconds)
            try:
                await self._upstream.send_all(out)
            except trio.BrokenResourceError as error:
                raise LinkBroken(Side.SERVER, "reset") from error
        if core.to_client:
            await self._to_client(_joined(core.to_client))

    async def _pump_upstream(self, early: bytes) -> None:
        view = memoryview(self._buffer)
        reason = "closed"
        try:
            if early:
                await self._from_upstream(bytearray(early), len(early))
            while not self._core.fatal:
                count = await self._upstream.receive(view)
                if count == 0:
                    break
                self._active = trio.current_time()
                await self._from_upstream(self._buffer, count)
        except trio.BrokenResourceError:
            reason = "reset"
        if self._core.fatal:
            self.end(Side.PROXY, "protocol")
        self.end(Side.SERVER, reason)

    async def _from_upstream(self, data: bytearray, end: int) -> None:
        core = self._core
        core.upstream_sent(data, end, trio.current_time())
        out = _joined(core.to_client) if core.to_client else b""
        if core.finished:
            self._tell_finished()
        if self._resume is not None and not core.blocked:
            self._resume.set()
            self._resume = None
        if out:
            await self._to_client(out)
        if self._progress is not None:
            self._progress.set()

    # ---------------------------------------------------------------- sending to the client

    async def _to_client(self, out: Buffer) -> None:
        """Send in the order of the calls, whichever pump makes them."""
        if self._client_deaf:
            # Commands in flight are still awaited; what they answer has no reader any more.
            return
        if self._trace is not None:
            self._trace.upstream(bytes(out))
        if self._sending:
            out = bytes(out)
            await self._turns.park()
            # The pump that was sending has handed its turn over: ``_sending`` is still true.
        self._sending = True
        try:
            await self._client.send_all(out)
            self._session.bytes_out += len(out)
            self._active = trio.current_time()
        except trio.BrokenResourceError:
            self._client_deaf = True
            self._client_left("reset")
        if self._turns:
            self._turns.unpark()
        else:
            self._sending = False

    def _client_left(self, reason: str) -> None:
        """Await the commands in flight for a short while, then end.

        A client that says no more may still listen, and is sent the answers until a send fails.
        """
        if self._end is None:
            self._end = End(Side.CLIENT, reason)
            if self._nursery is not None:
                self._nursery.start_soon(self._await_commands)

    async def _await_commands(self) -> None:
        with trio.move_on_after(self._linger):
            while self._core.awaited or self._sending:
                self._progress = trio.Event()
                await self._progress.wait()
        self.end(Side.CLIENT, "closed")

    async def _say(self, line: bytes) -> None:
        if not line:
            return
        if self._trace is not None:
            self._trace.upstream(line)
        with trio.move_on_after(FAREWELL_SECONDS, shield=True):
            try:
                await self._client.send_all(line)
                self._session.bytes_out += len(line)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The client went before it could be told; the log has the reason.
                return

    # ---------------------------------------------------------------- telling

    def _tell_finished(self) -> None:
        session, emit = self._session, self._emit
        for done in self._core.finished:
            session.commands += 1
            emit(CommandFinished(session, done.verb, done.result, done.seconds))
        self._core.finished.clear()

    def _tell_bytes(self) -> None:
        session = self._session
        received, sent = session.bytes_in - self._told_in, session.bytes_out - self._told_out
        if received or sent:
            self._told_in, self._told_out = session.bytes_in, session.bytes_out
            self._emit(BytesRelayed(session, received, sent))


def _joined(pieces: list[Buffer]) -> Buffer:
    """Take all pieces as one, without a copy where there is only one."""
    out = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    pieces.clear()
    return out

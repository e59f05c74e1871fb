"""The stream shell of a relay: two pumps over any two streams, for memory streams and WebSocket.

Each pump reads a burst into the one buffer that all sessions of a worker share, hands it to the
relay and sends what there is to send then. The buffer may be reused because a stream reads into it
without a checkpoint before it returns, and copies what it could not send before it waits.

Both pumps may write to the client, since the core answers refused commands itself. They take turns
in the order in which the bytes were produced: a line of the gateway's own must never land inside
a literal of the upstream's.
"""

from __future__ import annotations

from typing import Final

import trio

from mailgate.model import End
from mailgate.session.relay import Relay, Watch
from mailgate.stream import ByteStream
from mailgate.wire.relay import Buffer

FAREWELL_SECONDS: Final = 1.0
"""How long a client that does not read may hold up the last line that it is told."""


class Pumps:
    """Moves the bytes of one relay between two streams until it is over; closes neither."""

    def __init__(
        self, relay: Relay, client: ByteStream, upstream: ByteStream, watch: Watch, *, buffer: bytearray
    ) -> None:
        self._relay = relay
        self._client = client
        self._upstream = upstream
        self._watch = watch
        self._buffer = buffer
        self._turns = trio.lowlevel.ParkingLot()
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        relay.shell = self

    async def run(self, early_client: bytes = b"", early_upstream: bytes = b"") -> End:
        """Relay until one side ends, and return which and why.

        ``early_client`` is what the client sent behind its login, ``early_upstream`` what the
        upstream sent behind its acceptance; both come before anything else.
        """
        relay = self._relay
        self._watch.add(relay)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump_client, early_client)
                    nursery.start_soon(self._pump_upstream, early_upstream)
                    nursery.start_soon(self._keep_time)
            end, line = relay.last_words()
            if line:
                await self._say(line)
            return end
        finally:
            self._watch.remove(relay)
            relay.tell_bytes()

    def wake(self) -> None:
        """Let whoever waits for the relay look at it again; stop when it is over."""
        if self._relay.over:
            self._scope.cancel()
        self._stir()

    def _stir(self) -> None:
        """Let whoever waits for the relay look at it again."""
        self._changed.set()
        self._changed = trio.Event()

    async def _keep_time(self) -> None:
        """Tell the relay when its moment has come."""
        relay = self._relay
        while True:
            with trio.move_on_at(relay.due):
                await self._changed.wait()
            now = trio.current_time()
            if relay.due <= now:
                relay.tick(now)
                self.wake()

    async def _pump_client(self, early: bytes) -> None:
        relay = self._relay
        view = memoryview(self._buffer)
        if early:
            relay.client_said(early, trio.current_time())
            await self._pass_on()
        while True:
            while relay.stalled:
                if relay.ready:
                    # The core has said enough for now: other sessions have their turn.
                    await trio.lowlevel.checkpoint()
                    relay.again(trio.current_time())
                else:
                    await self._changed.wait()
                await self._pass_on()
                if relay.outcome is not None:
                    self.wake()
            try:
                count = await self._client.receive(view)
            except trio.BrokenResourceError:
                relay.client_left("reset", trio.current_time())
            else:
                if count:
                    relay.client_sent(self._buffer, count, trio.current_time())
                    await self._pass_on()
                else:
                    relay.client_left("closed", trio.current_time())
            if relay.outcome is not None or relay.stalled:
                self.wake()

    async def _pass_on(self) -> None:
        """Send what the core made of the client's bytes: upstream first, as views may be among it."""
        relay = self._relay
        if relay.core.to_upstream:
            try:
                await self._upstream.send_all(relay.for_upstream())
            except trio.BrokenResourceError:
                relay.upstream_deaf(trio.current_time())
                self.wake()
        if relay.core.to_client:
            await self._to_client(relay.for_client())

    async def _pump_upstream(self, early: bytes) -> None:
        relay = self._relay
        view = memoryview(self._buffer)
        if early:
            relay.upstream_sent(bytearray(early), len(early), trio.current_time())
            await self._answer()
        while not relay.over:
            try:
                count = await self._upstream.receive(view)
            except trio.BrokenResourceError:
                relay.upstream_left("reset")
            else:
                if count:
                    relay.upstream_sent(self._buffer, count, trio.current_time())
                    await self._answer()
                else:
                    relay.upstream_left("closed")
            if relay.outcome is not None:
                self.wake()

    async def _answer(self) -> None:
        """Let the client's bytes go on where they waited for the upstream, and send what it said."""
        out = self._relay.for_client()
        if self._relay.stalled:
            self._stir()
        await self._to_client(out)

    async def _to_client(self, out: Buffer) -> None:
        """Send in the order of the calls, whichever pump makes them."""
        if not out:
            return
        relay = self._relay
        if relay.sending:
            out = bytes(out)
            await self._turns.park()
            # The pump that was sending has handed its turn over: ``sending`` is still true.
        relay.sending = True
        try:
            await self._client.send_all(out)
            relay.delivered(len(out), trio.current_time())
        except trio.BrokenResourceError:
            relay.client_deaf(trio.current_time())
        if self._turns:
            self._turns.unpark()
        else:
            relay.sending = False
        if relay.outcome is not None:
            self.wake()

    async def _say(self, line: bytes) -> None:
        with trio.move_on_after(FAREWELL_SECONDS, shield=True):
            try:
                await self._client.send_all(line)
                self._relay.session.bytes_out += len(line)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The client went before it could be told; the log has the reason.
                return

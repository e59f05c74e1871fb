"""The client's side of a translated POP3 session: its bytes, its time, and replies in the order of its commands."""

from __future__ import annotations

import abc
from typing import Final

import trio

from mailgate.events import BytesRelayed, Emit, Trace
from mailgate.model import End, Protocol, Refusal, Session, Side
from mailgate.policy import answers
from mailgate.stream import ByteStream
from mailgate.wire.framing import Limits
from mailgate.wire.pop3 import CommandReceiver

READ_SIZE: Final = 16 * 1024
"""Bytes of commands taken at a time: a thousand of them, and little enough to be nobody's burden."""

REPLIES_HELD: Final = 16 * 1024
"""Bytes of short replies that are gathered while more commands are at hand."""

KEEP_ALIVE_SECONDS: Final = 20 * 60.0
"""How long the server hears nothing from a silent client: it may close after 30 minutes (RFC 9051 §5.4)."""


class Over(Exception):
    """The session ends."""

    def __init__(self, side: Side, reason: str) -> None:
        super().__init__(reason)
        self.end = End(side, reason)


class Pop3Client(abc.ABC):
    """What receives a client's commands and sends it replies; ``buffer`` is what all sessions receive into."""

    def __init__(self, session: Session, emit: Emit, buffer: bytearray) -> None:
        self.session = session
        self.outcome: End | None = None
        self.quiet = False
        self._emit = emit
        self._view = memoryview(buffer)
        self._receiver = CommandReceiver(Limits(total=1 << 62))
        self._replies: list[bytes] = []
        self._held = 0
        # Whether the command under way was wrong, and when the server heard something the last time.
        self._wrong = False
        self._used = trio.current_time()
        self._told_in = self._told_out = 0
        self._stream: ByteStream
        self._trace: Trace | None = None
        self._idle = 0.0

    @abc.abstractmethod
    async def _keep_alive(self) -> None:
        """Let the server hear that its client is there."""

    def _begin_with(self, stream: ByteStream, early: bytes, idle: float, trace: Trace | None) -> None:
        """Serve this stream, on which ``early`` came behind the login; what was said before is told already."""
        self._stream, self._idle, self._trace = stream, idle, trace
        self._told_in, self._told_out = self.session.bytes_in, self.session.bytes_out
        self._receiver.receive(early)

    @property
    def protocol(self) -> Protocol:
        """What the client speaks."""
        return Protocol.POP3

    @property
    def ended(self) -> bool:
        """Whether the end of this session is decided."""
        return self.outcome is not None

    def sweep(self, now: float) -> None:
        """Tell what went through since the last time."""
        session = self.session
        received, sent = session.bytes_in - self._told_in, session.bytes_out - self._told_out
        if received or sent:
            self._told_in, self._told_out = session.bytes_in, session.bytes_out
            self._emit(BytesRelayed(session, received, sent))

    def _note(self, said: bytes) -> None:
        if self._trace is not None:
            self._trace.client(said)

    async def _fill(self) -> None:
        """Receive more from the client, while the server hears now and then that its client is there."""
        stream = self._stream
        silent_at = trio.current_time() + self._idle
        self.quiet = True
        try:
            while True:
                stream.deadline = min(silent_at, self._used + KEEP_ALIVE_SECONDS)
                try:
                    count = await stream.receive(self._view[:READ_SIZE])
                    break
                except trio.TooSlowError:
                    if trio.current_time() >= silent_at:
                        raise Over(Side.PROXY, "idle") from None
                    await self._keep_alive()
                    self._used = trio.current_time()
        except trio.BrokenResourceError:
            raise Over(Side.CLIENT, "reset") from None
        finally:
            self.quiet = False
        if count == 0:
            raise Over(Side.CLIENT, "closed")
        self.session.bytes_in += count
        self._receiver.receive(self._view[:count])

    async def _send(self, data: bytes | memoryview) -> None:
        """Send to the client, which must take it within the idle limit."""
        if self._trace is not None:
            self._trace.upstream(bytes(data))
        self._stream.deadline = trio.current_time() + self._idle
        try:
            await self._stream.send_all(data)
        except trio.TooSlowError:
            raise Over(Side.PROXY, "idle") from None
        except trio.BrokenResourceError:
            raise Over(Side.CLIENT, "reset") from None
        self.session.bytes_out += len(data)

    async def _say(self, reply: bytes) -> None:
        """Answer in the order of the commands; what is short goes out together with what follows."""
        self._replies.append(reply)
        self._held += len(reply)
        if self._held >= REPLIES_HELD:
            await self._flush()

    def _take_held(self) -> bytes:
        held = b"".join(self._replies)
        self._replies.clear()
        self._held = 0
        return held

    async def _flush(self) -> None:
        if self._replies:
            await self._send(self._take_held())

    async def _ok(self, text: str) -> bool:
        await self._say(b"+OK %b\r\n" % text.encode("ascii"))
        return True

    async def _refuse(self, why: str | Refusal) -> bool:
        """Answer ``-ERR``; a text of its own is for a command that was wrong, and never can be right."""
        self._wrong = self._wrong or isinstance(why, str)
        await self._say(answers.pop3_reply(why) if isinstance(why, Refusal) else f"-ERR {why}\r\n".encode("ascii"))
        return False

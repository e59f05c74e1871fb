"""Sessions as scripted dialogues: a text says who speaks when, and the harness plays and checks it.

Each line of a script is one step::

    S: * OK …            the client receives this line
    C: a LOGIN u p       the client sends this line
    login: u COMMAND     the gateway opens an upstream for this user and mechanism
    U: a OK done         the upstream says this line
    G: a NOOP            the upstream gets this line
    events: SessionEstablished CommandFinished(NOOP ok)
    close: client        the client's end (or the upstream's) goes away
    half-close: client   the client says no more but still listens
    reset: client        the client's connection (or the upstream's) is lost
    stall: client        the client (or the upstream) reads no more, and all buffers are full
    deaf: client         what is sent to the client (or the upstream) is answered with a reset
    closed: client       the client (or the upstream) sees the end
    silent: client       the client (or the upstream) is told nothing by now
    wait: 60             seconds pass

A line that ends in ``\\`` is sent, or expected, without CRLF; ``\\r \\n \\0 \\xNN`` are read as escapes. In an expected
line ``<*>`` stands for anything. A mismatch shows what was played so far, what was expected and what
came; bytes that nobody asked for at the end of a script are a failure too.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import trio
import trio.testing

from mailgate.events import (
    BytesRelayed,
    CommandFinished,
    Event,
    LimitStruck,
    LoginRefused,
    SessionClosed,
    SessionOpened,
)
from mailgate.model import Session
from mailgate.stream import SocketStream, TrioStream
from tests.support.certificates import contexts

PATIENCE = 100.0
"""Seconds of the virtual clock that a step may take."""


class Mismatch(AssertionError):
    """A dialogue did not go as its script says."""


def unescape(text: str) -> bytes:
    """Return the bytes that a script's text stands for."""
    raw = text.encode("utf-8")
    return re.sub(
        rb"\\(r|n|0|t|x[0-9a-f]{2})",
        lambda match: {b"r": b"\r", b"n": b"\n", b"0": b"\0", b"t": b"\t"}.get(
            match[1], bytes.fromhex(match[1][1:].decode()) if match[1].startswith(b"x") else b""
        ),
        raw,
    )


def shown(event: Event) -> str:
    """Return the short form in which scripts name an event."""
    name = type(event).__name__
    match event:
        case CommandFinished(verb=verb, result=result):
            return f"{name}({verb} {result})"
        case LoginRefused(reason=reason):
            return f"{name}({reason})"
        case LimitStruck(rule=rule, action=action):
            return f"{name}({rule} {action})"
        case SessionClosed(side=side, reason=reason):
            return f"{name}({side} {reason})"
        case _:
            return name


@dataclass
class Side:
    """The far end of one of the session's streams, as a script plays it."""

    name: str
    stream: trio.abc.HalfCloseableStream
    unread: bytearray = field(default_factory=bytearray)

    async def line(self) -> bytes:
        """Return the next line that arrived here, without CRLF."""
        while b"\n" not in self.unread:
            await self._receive()
        line, _, rest = bytes(self.unread).partition(b"\n")
        self.unread[:] = rest
        return line.removesuffix(b"\r")

    async def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes that arrived here."""
        while len(self.unread) < size:
            await self._receive()
        taken = bytes(self.unread[:size])
        del self.unread[:size]
        return taken

    async def _receive(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise Mismatch(f"{self.name}: the end came, with {bytes(self.unread)!r} before it")
        self.unread += data

    async def say_no_more(self) -> None:
        """Tell the session that nothing more comes, unless this end or the session's is gone already."""
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            await self.stream.send_eof()

    async def end(self) -> None:
        """Wait for the end, before which nothing may come."""
        while data := await self.stream.receive_some():
            self.unread += data
        if self.unread:
            raise Mismatch(f"{self.name}: unexpected {bytes(self.unread)!r} before the end")


class Wire(TrioStream):
    """The session's end of a stream, which a script can break."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.deaf = False
        self.stalled = False
        self.closed = False
        self._lost = False
        self._receiving: trio.CancelScope | None = None

    def reset(self) -> None:
        """Lose the connection, also for a task that waits for it at the moment."""
        self._lost = self.deaf = True
        if self._receiving is not None:
            self._receiving.cancel()

    def go_deaf(self) -> None:
        """Let sending to the far end fail, but not receiving from it."""
        self.deaf = True

    def stall(self) -> None:
        """Let sending to the far end take for ever."""
        self.stalled = True

    async def receive(self, buffer: memoryview) -> int:
        if not self._lost:
            with trio.CancelScope() as self._receiving:
                return await super().receive(buffer)
        raise trio.BrokenResourceError("reset by the test")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.deaf:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("reset by the test")
        if self.stalled:
            with trio.fail_at(self.deadline):
                await trio.sleep_forever()
        await super().send_all(data)

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


class SocketWire(SocketStream):
    """The session's end of a socket pair, which a script can break."""

    def __init__(self) -> None:
        self.near, far = socket.socketpair()
        far.setblocking(False)
        super().__init__(self.near)
        self.far = trio.SocketStream(trio.socket.from_stdlib_socket(far))

    @property
    def closed(self) -> bool:
        """Whether the session, or who took the socket over from it, has closed it."""
        return self.near.fileno() < 0

    def reset(self) -> None:
        """Lose the connection: a Unix socket that is closed with bytes unread resets its peer."""
        if self.near.fileno() >= 0 and self.far.socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.near.send(b"unread")
            self.far.socket.close()

    def go_deaf(self) -> None:
        """Let sending to the far end fail, but not receiving from it."""
        with contextlib.suppress(OSError):
            self.far.socket.shutdown(socket.SHUT_RD)

    def stall(self) -> None:
        """Fill all buffers on the way to the far end."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.near.send(b"x" * 65536)


class TlsFar:
    """The far end of a TLS connection."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.socket = sock
        self._stream = SocketStream(sock)

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self) -> bytes:
        buffer = bytearray(65536)
        return bytes(buffer[: await self._stream.receive(memoryview(buffer))])

    async def send_eof(self) -> None:
        """Say the farewell of TLS, after which its connection stays."""
        await trio.lowlevel.checkpoint()
        with contextlib.suppress(OSError, ValueError):
            self.socket.unwrap()

    async def aclose(self) -> None:
        await self.send_eof()
        await self._stream.aclose()


class TlsWire(SocketWire):
    """The session's end of a TLS connection over a socket pair; ``serves`` says that it is the server's."""

    def __init__(self, *, serves: bool) -> None:
        near, far = socket.socketpair()
        serving, asking = contexts()
        ends = [
            context.wrap_socket(
                sock,
                server_side=context is serving,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
                server_hostname=None if context is serving else "localhost",
            )
            for sock, context in zip((near, far), (serving, asking) if serves else (asking, serving), strict=True)
        ]
        for end in ends:
            end.setblocking(False)
        waiting = True
        while waiting:
            waiting = False
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    waiting = True
        self.near, distant = ends
        SocketStream.__init__(self, self.near)
        self.far = TlsFar(distant)

    def go_deaf(self) -> None:
        # The method of the class itself would forget TLS.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.far.socket, socket.SHUT_RD)

    def stall(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.near.fileno(), b"x" * 65536)


class Stage:
    """Both far ends, the events, and the upstream that the gateway opens.

    With ``sockets`` the session's ends are sockets, which the engine takes over for the relay, and with
    ``tls`` they have TLS from the beginning.
    """

    sockets: ClassVar[bool] = False
    tls: ClassVar[bool] = False

    def __init__(self) -> None:
        self.near_client, far = self._pair(serves=True)
        self.near_upstream: Wire | SocketWire | None = None
        self.client = Side("client", far)
        self.upstream: Side | None = None
        self.events: list[Event] = []
        self.relayed: list[BytesRelayed] = []
        self.logins: list[str] = []
        self.login_seen = trio.Event()
        self.played: list[str] = []

    def _pair(self, *, serves: bool) -> tuple[Wire | SocketWire, trio.abc.HalfCloseableStream]:
        if self.sockets:
            wire = TlsWire(serves=serves) if self.tls else SocketWire()
            return wire, wire.far
        near, far = trio.testing.memory_stream_pair()
        return Wire(near), far

    def emit(self, event: Event) -> None:
        """Collect an event; stands behind the session as its observer."""
        if isinstance(event, BytesRelayed):
            self.relayed.append(event)
        elif not isinstance(event, SessionOpened):
            self.events.append(event)

    def open_upstream(self, user: bytes, mechanism: str) -> Wire | SocketWire:
        """Make the upstream's stream pair and return the gateway's end of it."""
        self.near_upstream, far = self._pair(serves=False)
        self.upstream = Side("upstream", far)
        self.logins.append(f"{user.decode('utf-8', 'backslashreplace')} {mechanism}")
        self.login_seen.set()
        return self.near_upstream

    async def play(self, script: str) -> None:
        """Play a script's steps in order."""
        for step in script.strip().splitlines():
            step = step.strip()
            if not step or step.startswith("#"):
                continue
            kind, _, text = step.partition(":")
            with trio.move_on_after(math.inf if kind == "wait" else PATIENCE) as limit:
                await self._step(kind, text.removeprefix(" "))
            if limit.cancelled_caught:
                raise Mismatch("\n".join([*self.played, f"nothing came for: {step}"]))
            self.played.append(step)

    async def _step(self, kind: str, text: str) -> None:
        steps: dict[str, Callable[[str], Awaitable[None]]] = {
            "C": self._client_says,
            "S": self._client_hears,
            "U": self._upstream_says,
            "G": self._upstream_hears,
            "login": self._login,
            "events": self._events,
            "close": self._close,
            "half-close": self._half_close,
            "reset": self._reset,
            "deaf": self._deaf,
            "stall": self._stall,
            "closed": self._closed,
            "silent": self._silent,
            "wait": self._wait,
        }
        if kind not in steps:
            raise Mismatch(f"no such step: {kind!r}")
        await steps[kind](text)

    @property
    def _up(self) -> Side:
        if self.upstream is None:
            raise Mismatch("\n".join([*self.played, "no upstream was opened"]))
        return self.upstream

    async def _say(self, side: Side, text: str) -> None:
        data = unescape(text.removesuffix("\\")) + (b"" if text.endswith("\\") else b"\r\n")
        await side.stream.send_all(data)

    async def _hear(self, side: Side, text: str) -> None:
        expected = unescape(text)
        if text.endswith("\\"):
            expected = unescape(text.removesuffix("\\"))
        try:
            line = await (side.take(len(expected)) if text.endswith("\\") else side.line())
        except Mismatch as mismatch:
            raise Mismatch("\n".join([*self.played, f"expected {expected!r}", str(mismatch)])) from None
        if not re.fullmatch(b".*".join(re.escape(part) for part in expected.split(b"<*>")), line, re.DOTALL):
            raise Mismatch(
                "\n".join([*self.played, f"- {side.name} expected {expected!r}", f"+ {side.name} got      {line!r}"])
            )

    async def _client_says(self, text: str) -> None:
        await self._say(self.client, text)

    async def _client_hears(self, text: str) -> None:
        await self._hear(self.client, text)

    async def _upstream_says(self, text: str) -> None:
        await self._say(self._up, text)

    async def _upstream_hears(self, text: str) -> None:
        await self._hear(self._up, text)

    async def _login(self, text: str) -> None:
        await self.login_seen.wait()
        self.login_seen = trio.Event()
        if self.logins[-1] != text:
            raise Mismatch("\n".join([*self.played, f"- login {text}", f"+ login {self.logins[-1]}"]))

    async def _events(self, text: str) -> None:
        await trio.testing.wait_all_tasks_blocked()
        told = " ".join(shown(event) for event in self.events)
        self.events.clear()
        if told != text:
            raise Mismatch("\n".join([*self.played, f"- events {text}", f"+ events {told}"]))

    async def _close(self, text: str) -> None:
        side = self.client if text == "client" else self._up
        await side.stream.aclose()

    async def _half_close(self, text: str) -> None:
        await (self.client if text == "client" else self._up).stream.send_eof()

    async def _reset(self, text: str) -> None:
        self._near(text).reset()

    async def _deaf(self, text: str) -> None:
        self._near(text).go_deaf()

    async def _stall(self, text: str) -> None:
        self._near(text).stall()

    def _near(self, name: str) -> Wire | SocketWire:
        near = self.near_client if name == "client" else self.near_upstream
        if near is None:
            raise Mismatch("\n".join([*self.played, "no upstream was opened"]))
        return near

    async def _closed(self, text: str) -> None:
        await (self.client if text == "client" else self._up).end()

    async def _silent(self, text: str) -> None:
        side = self.client if text == "client" else self._up
        with trio.move_on_after(0.001):
            side.unread += await side.stream.receive_some()
        if side.unread:
            raise Mismatch("\n".join([*self.played, f"- silent {text}", f"+ {bytes(side.unread)!r}"]))

    async def _wait(self, text: str) -> None:
        await trio.sleep(float(text))

    async def finish(self) -> None:
        """Check that the session has closed both of its streams, and said nothing that no script asked for."""
        for side in (self.client, self.upstream):
            if side is None:
                continue
            with trio.move_on_after(PATIENCE) as limit:
                try:
                    await side.end()
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    pass
                except Mismatch as mismatch:
                    raise Mismatch("\n".join([*self.played, str(mismatch)])) from None
            if limit.cancelled_caught:
                raise Mismatch("\n".join([*self.played, f"the stream to the {side.name} was left open"]))
            await side.stream.aclose()


__all__ = ["Mismatch", "Session", "Stage", "shown", "unescape"]

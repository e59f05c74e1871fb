"""Mail servers that play a script on loopback, and what asks them: one script for each connection.

A script has one step on each line::

    S: * OK hello        the server says this line
    S: + go on\\         … without CRLF at its end
    C: C1 CAPABILITY     the server expects this line; ``<*>`` stands for anything
    C4: abcd             it expects these four bytes, with no line's end behind them
    wait                 it says nothing until the test sets ``go_on``
    tls                  the handshake, with the context that the server was given
    silence              it says nothing more until the client goes
    close / reset        the connection ends, politely or not

A script that ends waits for the client's end. ``\\r \\n \\0 \\xNN`` are read as escapes.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from mailgate.config import Config, Endpoint, Listener, Pool, RouteRule
from mailgate.events import Event
from mailgate.model import Login, Mechanism, Peer, Protocol, Route, Secret, Session
from mailgate.upstream.leg import SignedIn
from mailgate.upstream.pool import Upstreams
from tests.support.dialogue import unescape

PATIENCE = 5.0


class Deviation(AssertionError):
    """A client did not do what a script expects."""


@dataclass
class FakeServer:
    """A mail server; ``connections`` counts who came, ``heard`` is every line that was said to it."""

    scripts: list[str]
    tls: ssl.SSLContext | None
    implicit: bool
    lenient: bool = False
    address: str = ""
    connections: int = 0
    heard: list[bytes] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    certificates: list[bytes | None] = field(default_factory=list)
    go_on: trio.Event = field(default_factory=trio.Event)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def serve(self, stream: trio.SocketStream) -> None:
        number = self.connections
        self.connections += 1
        script = self.scripts[min(number, len(self.scripts) - 1)]
        played = _Played(self, stream)
        try:
            await played.play(("tls\n" if self.implicit else "") + script)
        except Deviation as deviation:
            if self.lenient:
                return
            self.deviations.append("\n".join([*played.steps, str(deviation)]))
        except (trio.BrokenResourceError, ssl.SSLError):
            # A client may go at any time, and has its reason; the test knows whether it was a good one.
            pass
        finally:
            stream.socket.close()


class _Played:
    """One connection."""

    def __init__(self, server: FakeServer, stream: trio.SocketStream) -> None:
        self.server = server
        self.socket = stream
        self.stream: trio.abc.Stream = stream
        self.unread = b""
        self.steps: list[str] = []

    async def play(self, script: str) -> None:
        for step in script.strip().splitlines():
            step = step.strip()
            kind, _, text = step.partition(":")
            text = text.removeprefix(" ")
            if kind == "S":
                await self.stream.send_all(
                    unescape(text.removesuffix("\\")) + (b"" if text.endswith("\\") else b"\r\n")
                )
            elif kind.startswith("C"):
                await self._hear(text, int(kind[1:] or 0))
            elif kind == "tls":
                await self._start_tls()
            elif kind == "wait":
                await self.server.go_on.wait()
            elif kind == "silence":
                while await self.stream.receive_some():
                    pass
                return
            elif kind == "reset":
                self.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            elif kind == "close":
                return
            elif step:
                raise Deviation(f"no such step: {step!r}")
            self.steps.append(step)
        if self.unread or (rest := await self._more()):
            raise Deviation(f"unexpected at the end: {self.unread or rest!r}")

    async def _more(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            return b""

    async def _hear(self, text: str, size: int) -> None:
        while len(self.unread) < size if size else b"\n" not in self.unread:
            data = await self._more()
            if not data:
                raise Deviation(f"expected {text!r}, got the end after {self.unread!r}")
            self.unread += data
        end = size or self.unread.index(b"\n") + 1
        line, self.unread = self.unread[:end], self.unread[end:]
        line = line if size else line.removesuffix(b"\n").removesuffix(b"\r")
        self.server.heard.append(line)
        pattern = "<*>".join(re.escape(part) for part in unescape(text).decode("latin-1").split("<*>"))
        if not re.fullmatch(pattern.replace("<*>", ".*"), line.decode("latin-1"), re.DOTALL):
            raise Deviation(f"expected {unescape(text)!r}\n     got {line!r}")

    async def _start_tls(self) -> None:
        assert self.server.tls is not None
        stream = trio.SSLStream(self.socket, self.server.tls, server_side=True, https_compatible=True)
        await stream.do_handshake()
        self.server.certificates.append(stream.getpeercert(binary_form=True))
        self.stream = stream


@asynccontextmanager
async def serving(
    *scripts: str,
    tls: ssl.SSLContext | None = None,
    implicit: bool = False,
    path: Path | None = None,
    lenient: bool = False,
) -> AsyncIterator[FakeServer]:
    """Run a server until the block ends; the last script is played for all later connections too.

    A ``lenient`` one minds no client that goes in the middle of its script.
    """
    server = FakeServer(list(scripts), tls, implicit, lenient)
    if tls is not None:
        tls.sni_callback = lambda _, name, __: server.names.append(name)  # type: ignore[assignment]
    if path is None:
        listening = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.address = f"127.0.0.1:{listening[0].socket.getsockname()[1]}"
    else:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await sock.bind(str(path))
        sock.listen()
        listening = [trio.SocketListener(sock)]
        server.address = f"unix:{path}"
    patience = trio.CancelScope()
    try:
        async with trio.open_nursery() as connections:
            patience = connections.cancel_scope
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, server.serve, listening, handler_nursery=connections)
                )
                yield server
                accepting.cancel_scope.cancel()
            patience.deadline = trio.current_time() + PATIENCE
    except BaseException as error:
        if server.deviations:
            # What the client did wrong explains what went wrong in the test's own lines.
            raise Deviation("\n\n".join(server.deviations)) from error
        raise
    if patience.cancelled_caught:
        raise Deviation("a client did not close its connection")
    if server.deviations:
        raise Deviation("\n\n".join(server.deviations))


def a_pool(*servers: FakeServer | str, protocol: str = "imap", **settings: object) -> Pool:
    """Return a pool of servers, in clear unless ``tls`` is given."""
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    return Pool.model_validate({"protocol": protocol, "servers": addresses, "tls": "off"} | settings)


def a_config(**pools: Pool) -> Config:
    """Return a configuration with these pools and one listener for each of their protocols."""
    protocols = dict.fromkeys(pool.protocol for pool in pools.values())
    listeners = tuple(
        Listener(name=protocol.value, protocol=protocol, bind=(Endpoint("127.0.0.1", 0),), tls="off")
        for protocol in protocols
    )
    return Config(
        hostname="gateway.example.org",
        listener=listeners,
        pool=pools,
        route=tuple(RouteRule(name=f"to-{name}", pool=name) for name in pools),
    )


def a_login(
    user: bytes = b"joe",
    secret: bytes = b"secret",
    mechanism: Mechanism = Mechanism.COMMAND,
    protocol: Protocol = Protocol.IMAP,
    **more: object,
) -> Login:
    """Return a login."""
    return Login(protocol, user, Secret(secret), mechanism, **more)  # type: ignore[arg-type]


def a_session(protocol: Protocol = Protocol.IMAP) -> Session:
    """Return a session that has just begun."""
    return Session("5e5510", protocol, protocol.value, Peer("192.0.2.1", 4711), 0.0)


@dataclass
class Client:
    """What asks the servers: the pools, and the events that were told."""

    upstreams: Upstreams
    events: list[Event]
    session: Session

    @classmethod
    def of(cls, pool: Pool) -> Client:
        told: list[Event] = []
        return cls(Upstreams(a_config(main=pool), told.append), told, a_session(pool.protocol))

    async def open(self, login: Login) -> SignedIn:
        """Sign in somewhere; raises UpstreamFailed."""
        with trio.fail_after(PATIENCE):
            return await self.upstreams.open(Route("default", "main"), login, self.session)

    @property
    def told(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


__all__ = ["Client", "Deviation", "FakeServer", "a_config", "a_login", "a_pool", "a_session", "serving"]

"""A session on a stage: memory streams, a fake upstream that accepts or fails on demand, a virtual clock."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from mailgate import config
from mailgate.errors import UpstreamFailed
from mailgate.events import SessionClosed
from mailgate.model import ALLOW, End, Failure, Login, Peer, Protocol, Route, Session, Side, TlsInfo
from mailgate.policy.gate import Gate, GateSettings
from mailgate.session import engine
from mailgate.session.dialogue import Services, SessionOver
from mailgate.session.engine import Engine
from mailgate.session.relay import Watch
from mailgate.session.run import run_session
from mailgate.stream import ByteStream, burst_buffer
from mailgate.wire.framing import Limits
from tests.support.dialogue import Stage

UPSTREAM = frozenset(
    {
        "IMAP4REV1",
        "LITERAL+",
        "IDLE",
        "ID",
        "SASL-IR",
        "ENABLE",
        "COMPRESS=DEFLATE",
        "AUTH=PLAIN",
        "AUTH=XOAUTH2",
    }
    | {"AUTH=OAUTHBEARER", "TOP", "UIDL", "UTF8", "LANG", "PIPELINING", "RESP-CODES"}
)


def b64(text: str) -> str:
    """Return what a client sends for ``text`` in a SASL exchange."""
    return base64.b64encode(text.encode("latin-1")).decode("ascii")


PLAIN = b64("\0alice\0secret")
XOAUTH2 = b64("user=alice\1auth=Bearer token\1\1")
OAUTHBEARER = b64("n,a=alice,\1host=mail.example.org\1auth=Bearer token\1\1")


@dataclass
class FakeSignedIn:
    """An upstream that has accepted a login."""

    stream: ByteStream
    residual: bytes = b""
    untagged: tuple[bytes, ...] = ()
    capabilities: frozenset[str] = UPSTREAM
    shown: tuple[bytes, ...] = (b"IMAP4rev1", b"LITERAL+", b"IDLE", b"COMPRESS=DEFLATE")
    translated: bool = False

    async def aclose(self) -> None:
        await self.stream.aclose()


@dataclass
class FakeConnection:
    """A client's connection; ``tls_outcome`` is what a STARTTLS comes to."""

    stream: ByteStream
    session: Session
    offers_tls: bool
    tls_outcome: Exception | None = None
    when_ended: Callable[[End], None] = print

    @property
    def can_start_tls(self) -> bool:
        return self.offers_tls and self.session.tls is None

    async def start_tls(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.tls_outcome is not None:
            raise self.tls_outcome
        self.session.tls = TlsInfo("TLSv1.3", "TLS_AES_128_GCM_SHA256")

    def ended(self, end: End) -> None:
        self.when_ended(end)


@dataclass
class TraceDouble:
    """A trace that remembers what it is shown, by whom it was said."""

    lines: list[tuple[str, bytes]] = field(default_factory=list)

    def client(self, data: bytes) -> None:
        self.lines.append(("C", data))

    def upstream(self, data: bytes) -> None:
        self.lines.append(("S", data))


@dataclass
class World:
    """What a test may change before it plays: the listener, the upstream's answer, the route."""

    stage: Stage
    watch: Watch = field(default_factory=Watch)
    buffer: bytearray = field(default_factory=burst_buffer)
    logins: list[Login] = field(default_factory=list)
    fail: list[Failure] = field(default_factory=list)
    residual: bytes = b""
    untagged: tuple[bytes, ...] = ()
    route: Route | None = field(default_factory=lambda: Route("default", "backend"))
    known: list[frozenset[str]] = field(default_factory=lambda: [UPSTREAM])
    session: Session | None = None
    end: End | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    route_fails: Failure | None = None
    before_open: Callable[[], Awaitable[None]] | None = None
    trace: TraceDouble | None = None
    gate: Gate = field(
        default_factory=lambda: Gate(
            GateSettings(failures_per_session=3, failure_delay=2.0, failure_delay_max=15.0, bad_commands=4)
        )
    )

    def __post_init__(self) -> None:
        self.engine = Engine(self.buffer, self.watch)

    @property
    def login(self) -> Login:
        """The last login that was taken to an upstream."""
        return self.logins[-1]

    async def find_route(self, login: Login, session: Session) -> Route | None:
        await trio.lowlevel.checkpoint()
        if self.route_fails is not None:
            raise UpstreamFailed(self.route_fails, "none/none", "no answer from the source of routes")
        return self.route

    async def open(self, route: Route, login: Login, session: Session) -> FakeSignedIn:
        self.logins.append(login)
        if self.before_open is not None:
            await self.before_open()
        if self.fail:
            raise UpstreamFailed(self.fail.pop(0), "login/banner", "as the test wants it")
        stream = self.stage.open_upstream(login.user, str(login.mechanism))
        return FakeSignedIn(stream, self.residual, self.untagged)


@pytest.fixture(params=["guest", "task"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the engine wait in Trio's place, and as a task does where Trio's epoll is not to be found."""
    if request.param == "task":
        monkeypatch.setattr(engine, "_epoll_that_watches", lambda fd: None)
    return str(request.param)


def listener(protocol: str, **options: object) -> config.Listener:
    """A listener on loopback as a configuration would make it."""
    return config.Listener.model_validate(
        {"name": "test", "protocol": protocol, "bind": ["127.0.0.1:1"], "tls": "off", **options}
    )


def session_for(protocol: str, world: World, options: dict[str, Any]) -> Callable[[], Awaitable[None]]:
    """Return what serves the world's client on a listener with these options, as the gateway would."""
    stage = world.stage
    session = world.session = Session("s1", Protocol(protocol), "test", Peer("192.0.2.1", 4711), trio.current_time())
    if options.get("tls") == "implicit":
        session.tls = TlsInfo("TLSv1.3", "TLS_AES_128_GCM_SHA256")
    offers = str(options.get("tls", "off")).startswith("starttls")
    connection = FakeConnection(stage.near_client, session, offers, options.pop("tls_outcome", None))
    services = Services(
        hostname="mail.example.org",
        gate=world.gate,
        limits=Limits(),
        route=world.find_route,
        open_upstream=world.open,
        upstream_capabilities=lambda _: world.known,
        emit=stage.emit,
        watch=world.watch,
        engine=world.engine,
        trace=lambda _: world.trace,
        buffer=world.buffer,
        linger=5.0,
    )

    def ended(end: End) -> None:
        world.gate.left(session.id)
        stage.emit(SessionClosed(session, end.side, end.reason, 0.0))
        world.end = end
        world.ended.set()

    connection.when_ended = ended

    async def run() -> None:
        assert world.gate.admit(session.id, session.peer.address, session.started).verdict == ALLOW
        end: End | None = End(Side.PROXY, "internal")
        try:
            end = await run_session(connection, listener(protocol, **options), services)
        finally:
            if end is not None:
                ended(end)
            await stage.near_client.aclose()

    return run


@asynccontextmanager
async def on_stage(protocol: str, world: World | None = None, **options: Any) -> AsyncIterator[World]:
    """Run a session for a listener with the given options; the body plays its script.

    Behind the body the client says no more, and the session must come to its end by itself, having
    closed the upstream's stream and said nothing that the script did not expect.
    """
    world = world or World(Stage())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session_for(protocol, world, options))
        nursery.start_soon(world.watch.run)
        nursery.start_soon(world.engine.run)
        yield world
        await world.stage.client.say_no_more()
        await world.ended.wait()
        await world.stage.finish()
        assert (len(world.watch), world.gate.sessions, world.gate.half_open) == (0, 0, 0)
        nursery.cancel_scope.cancel()


__all__ = [
    "OAUTHBEARER",
    "PLAIN",
    "UPSTREAM",
    "XOAUTH2",
    "SessionOver",
    "TraceDouble",
    "World",
    "b64",
    "on_stage",
    "session_for",
]

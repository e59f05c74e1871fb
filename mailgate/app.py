"""The composition root: a configuration becomes objects, objects become nurseries, and signals end them.

The order of what nests decides what outlives what: listeners end first, sessions may go on for the
time of a drain, and what watches them (metrics, log, traces) is there until the last has ended.
"""

from __future__ import annotations

import resource
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
import trio

import mailgate
from mailgate import events
from mailgate.config import Config, Endpoint, Listener, Tls
from mailgate.config.checks import reached_by
from mailgate.errors import MailgateError, UpstreamFailed
from mailgate.model import Deny, Login, Peer, Protocol, Refusal, Route, Session, Side, State
from mailgate.net.listener import open_socket, serve
from mailgate.net.tls import HandshakeFailed, ServerTls, Use
from mailgate.observe import log
from mailgate.observe.metrics import Metrics
from mailgate.observe.trace import Tracer
from mailgate.policy import answers
from mailgate.policy.gate import Gate, GateSettings
from mailgate.routing.static import StaticRouter
from mailgate.session.dialogue import Services, SessionOver, SignedIn
from mailgate.session.relay import End, Trace, Watch
from mailgate.session.run import run_session
from mailgate.stream import SocketStream, burst_buffer
from mailgate.upstream.pool import Upstreams
from mailgate.web import admin, http
from mailgate.wire.framing import Limits

LINGER_SECONDS: Final = 5.0
"""How long commands in flight are awaited after their client has gone."""

DRAIN_SECONDS: Final = 10.0
"""How long sessions with a command under way may go on after a stop was asked for."""

SPARE_FILES: Final = 200
"""Open files beside the two sockets of each session: listeners, probes, scrapes, traces, the interpreter's own."""

EXPIRY_WARNING: Final = timedelta(days=14)
"""How early the log warns of a certificate's end; automatic renewal happens weeks before that."""


class Connection:
    """One client's connection, as sessions see it."""

    def __init__(self, stream: SocketStream, session: Session, gateway: Gateway, listener: Listener) -> None:
        self.stream = stream
        self.session = session
        self._gateway = gateway
        self._listener = listener

    @property
    def can_start_tls(self) -> bool:
        """Whether STARTTLS or STLS may be offered now."""
        return self._listener.tls.startswith("starttls") and self.session.tls is None

    async def start_tls(self) -> None:
        """Do the TLS handshake and tell of its outcome; raises SessionOver when it fails."""
        gateway, listener = self._gateway, self._listener
        if gateway.tls is None:
            raise RuntimeError("a listener with TLS was let in without [tls]")
        profile, protocol = _tls_use(listener, gateway.tls.settings)
        began = trio.current_time()
        try:
            self.session.tls = await gateway.tls.accept(self.stream, protocol, profile, listener.handshake_timeout)
        except HandshakeFailed as failed:
            gateway.emit(events.TlsFailed(self.session, failed.reason))
            raise SessionOver(Side.CLIENT, "tls_handshake_not_finished") from None
        gateway.emit(events.TlsFinished(self.session, trio.current_time() - began))


class Gateway:
    """One worker: everything that a configuration asks for, ready to run.

    Raises MailgateError or OSError where something cannot be used.
    """

    def __init__(self, config: Config, logger: structlog.stdlib.BoundLogger) -> None:
        self.config = config
        self.log = logger
        self.sessions: dict[str, Session] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._draining = False
        self.tls = None
        if config.tls is not None:
            wanted = (listener for listener in config.listener if listener.tls != "off")
            self.tls = ServerTls(config.tls, [_tls_use(listener, config.tls) for listener in wanted])
        self.metrics = Metrics(
            self.sessions,
            {listener.name: listener.protocol for listener in config.listener},
            self.tls.expiry if self.tls is not None else dict,
        )
        self.tracer = Tracer(config.trace.directory, trio.current_time, self._audit)
        self.emit: events.Emit = events.fan_out(
            (self.metrics, log.SessionLog(logger)), lambda _, error: self._observer_failed(error)
        )
        limits = config.limits
        self.gate = Gate(
            GateSettings(
                sessions=limits.sessions,
                sessions_per_address=limits.sessions_per_address,
                half_open=limits.half_open,
                half_open_per_address=limits.half_open_per_address,
                failures_per_session=limits.failures_per_session,
                failure_delay=limits.failure_delay,
                failure_delay_max=limits.failure_delay_max,
                bad_commands=limits.bad_commands,
            )
        )
        self.upstreams = Upstreams(config, self.emit)
        self.router = StaticRouter(config.route)
        self.watch = Watch()
        self._pools = {listener.name: self._pools_of(listener) for listener in config.listener}
        self.services = Services(
            hostname=config.hostname,
            gate=self.gate,
            limits=Limits(line=limits.line, literal=limits.literal, total=limits.total),
            route=self._route,
            open_upstream=self._open_upstream,
            upstream_capabilities=lambda session: self.upstreams.known_capabilities(self._pools[session.listener]),
            emit=self.emit,
            watch=self.watch,
            trace=self._trace,
            buffer=burst_buffer(),
            linger=LINGER_SECONDS,
        )

    # ---------------------------------------------------------------- what sessions are given

    def _pools_of(self, listener: Listener) -> tuple[str, ...]:
        """Return the pools that a login on this listener may be routed to."""
        rules = reached_by(listener, enumerate(self.config.route))
        return tuple(dict.fromkeys(rule.pool for _, rule in rules))

    async def _route(self, login: Login, session: Session) -> Route | None:
        return await self.router(login, session)

    async def _open_upstream(self, route: Route, login: Login, session: Session) -> SignedIn:
        return await self.upstreams.open(route, login, session)

    def _trace(self, session: Session) -> Trace | None:
        return self.tracer.for_session(session)

    def _audit(self, action: str, facts: dict[str, object]) -> None:
        self.log.info(action, audit=True, **facts)

    def _observer_failed(self, error: BaseException) -> None:
        self.metrics.observer_errors.inc()
        self.log.error("an observer of sessions failed", exc_info=error)

    # ---------------------------------------------------------------- one connection

    async def serve_client(self, listener: Listener, stream: SocketStream, peer: Peer) -> None:
        """Serve one connection from its acceptance to its end."""
        session = Session(secrets.token_hex(8), listener.protocol, listener.name, peer, trio.current_time())
        admission = self.gate.admit(session.id, peer.address, session.started)
        if isinstance(admission.verdict, Deny):
            self.emit(events.LimitStruck(session, admission.verdict.rule, "deny"))
            if listener.tls != "implicit":
                # Where TLS comes first, a word would cost a handshake.
                await self._tell(listener, stream, admission.verdict.refusal)
            return
        for name in admission.shed:
            self.emit(events.LimitStruck(self.sessions[name], admission.shed_rule, "shed"))
            self._scopes[name].cancel()
        self.sessions[session.id] = session
        self.emit(events.SessionOpened(session))
        end = End(Side.PROXY, "internal")
        farewell: Refusal | None = None
        try:
            with trio.CancelScope() as scope:
                self._scopes[session.id] = scope
                end = await self._session(listener, stream, session)
            if scope.cancelled_caught:
                farewell = answers.SHUTTING_DOWN if self._draining else answers.PROCESS_FULL
                end = End(Side.PROXY, farewell.reason)
        except trio.Cancelled:
            end = End(Side.PROXY, "shutting_down")
            raise
        except Exception as error:
            # The boundary around a session: what went wrong in one must not reach the others.
            farewell = answers.INTERNAL
            self.emit(events.CrashedSession(session, error))
        finally:
            self.gate.left(session.id)
            del self._scopes[session.id], self.sessions[session.id]
            seconds = trio.current_time() - session.started
            self.emit(events.SessionClosed(session, end.side, end.reason, seconds))
        if farewell is not None and session.state is State.LOGIN:
            # In the relay a line of our own could land inside a literal.
            await self._tell(listener, stream, farewell)
        with trio.move_on_after(1):
            await stream.aclose()

    async def _session(self, listener: Listener, stream: SocketStream, session: Session) -> End:
        connection = Connection(stream, session, self, listener)
        if listener.tls == "implicit":
            try:
                await connection.start_tls()
            except SessionOver as over:
                return End(over.side, over.reason)
        return await run_session(connection, listener, self.services)

    async def _tell(self, listener: Listener, stream: SocketStream, refusal: Refusal) -> None:
        """Tell a client why its connection ends, without waiting for one that does not listen."""
        reply = (
            answers.imap_reply(refusal, None, "BYE")
            if listener.protocol is Protocol.IMAP
            else answers.pop3_reply(refusal)
        )
        with trio.move_on_after(1):
            try:
                await stream.send_all(reply)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    # ---------------------------------------------------------------- running

    async def run(self, task_status: trio.TaskStatus[list[socket.socket]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT, or until cancelled; ``task_status`` gets the mail sockets."""
        self.log.info("starting", version=mailgate.__version__)
        mail: list[tuple[Listener, list[socket.socket]]] = []
        everything: list[socket.socket] = []
        try:
            for listener in self.config.listener:
                mail.append((listener, []))
                for endpoint in listener.bind:
                    everything.append(open_socket(endpoint))
                    mail[-1][1].append(everything[-1])
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                async with trio.open_nursery() as services:
                    self._start_services(services)
                    async with trio.open_nursery() as sessions:
                        async with trio.open_nursery() as listeners:
                            for listener, sockets in mail:
                                listeners.start_soon(self._listen, listener, sockets, sessions)
                            self._tell_start(mail)
                            task_status.started(everything)
                            await self._until_stopped(signals)
                            listeners.cancel_scope.cancel()
                        for sock in everything:
                            sock.close()
                        await self._drain_unless_hurried(signals)
                        sessions.cancel_scope.cancel()
                    services.cancel_scope.cancel()
        finally:
            for sock in everything:
                sock.close()
            self.tracer.close()
        self.log.info("stopped")

    async def _listen(self, listener: Listener, sockets: list[socket.socket], sessions: trio.Nursery) -> None:
        async def handle(stream: SocketStream, peer: Peer) -> None:
            await self.serve_client(listener, stream, peer)

        await serve(sockets, handle, sessions, self._pause)

    def _pause(self, reason: str) -> None:
        self.metrics.accept_pauses.inc()
        self.log.error("accepting rests for a moment", reason=reason, listener="all")

    def _start_services(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.watch.run)
        nursery.start_soon(self.upstreams.probe, self._probed)
        if self.tls is not None:
            nursery.start_soon(self.tls.watch, self._reloaded)
        if self.config.metrics is not None:
            app, endpoint = http.metrics_app(self.metrics.scrape, self._not_ready), self.config.metrics.bind
            nursery.start_soon(http.serve_http, app, open_socket(endpoint))
            self.log.info("listening", listener="metrics", protocol="http", bind=[str(endpoint)])
        if self.config.admin is not None:
            app, endpoint = admin.admin_app(self.tracer), Endpoint("", 0, self.config.admin.socket)
            nursery.start_soon(http.serve_http, app, open_socket(endpoint, private=True))
            self.log.info("listening", listener="admin", protocol="http", bind=[str(endpoint)])

    async def _until_stopped(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                self.log.info("stopping", signal=signal.Signals(number).name, sessions=len(self.sessions))
                return
            self._reloaded(self.tls.reload() if self.tls is not None else [])

    async def _drain_unless_hurried(self, signals: AsyncIterator[int]) -> None:
        """Drain; a second SIGTERM or SIGINT ends the sessions at once."""

        async def hurry(scope: trio.CancelScope) -> None:
            async for number in signals:
                if number != signal.SIGHUP:
                    self.log.warning("stopping at once", sessions=len(self.sessions))
                    scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hurry, nursery.cancel_scope)
            await self._drain()
            nursery.cancel_scope.cancel()

    async def _drain(self) -> None:
        """End the sessions: at once those that have nothing under way, the others when they are done."""
        self._draining = True
        for name, scope in self._scopes.items():
            if self.sessions[name].state is not State.RELAY:
                scope.cancel()
        deadline = trio.current_time() + DRAIN_SECONDS
        while self.watch.end_idle("shutting_down") or self.sessions:
            if trio.current_time() >= deadline:
                self.log.warning("sessions are cut off", sessions=len(self.sessions))
                return
            await trio.sleep(0.05)

    # ---------------------------------------------------------------- telling

    def _tell_start(self, mail: list[tuple[Listener, list[socket.socket]]]) -> None:
        for warning in self.config.warnings:
            self.log.warning("configuration", warning=warning)
        for listener, _ in mail:
            self.log.info(
                "listening",
                listener=listener.name,
                protocol=listener.protocol.value,
                tls=listener.tls,
                bind=[str(endpoint) for endpoint in listener.bind],
            )
        self._warn_of_expiry()

    def _warn_of_expiry(self) -> None:
        for path, end in (self.tls.expiry() if self.tls is not None else {}).items():
            if end - datetime.now(UTC) < EXPIRY_WARNING:
                self.log.warning("a certificate ends soon", path=path, not_after=end.isoformat())

    def _reloaded(self, problems: list[str]) -> None:
        for problem in problems:
            self.metrics.reload_failures.inc()
            self.log.error("a replaced certificate is unusable, the old one stays in force", problem=problem)
        if not problems:
            self.log.info("certificates are up to date")
        self._warn_of_expiry()

    def _probed(self, pool: str, server: str, failed: UpstreamFailed | None) -> None:
        self.metrics.probed(pool, server, failed is None)
        if failed is not None:
            self.log.warning(
                "upstream does not answer",
                pool=pool,
                upstream=server,
                failure=failed.failure.value,
                state=failed.state,
                detail=failed.detail,
            )

    def _not_ready(self) -> list[str]:
        if self._draining:
            return ["shutting down"]
        unreachable = self.upstreams.unreachable()
        if len(unreachable) == len(self.config.pool):
            return [f"pool {name}: no server can be reached" for name in unreachable]
        return []


def _tls_use(listener: Listener, tls: Tls) -> Use:
    return listener.profile or tls.profile, listener.protocol


async def _run(config: Config, logger: structlog.stdlib.BoundLogger) -> None:
    allow_files(config.limits.sessions, logger)
    await Gateway(config, logger).run()


def allow_files(sessions: int, logger: structlog.stdlib.BoundLogger) -> None:
    """Raise the process's limit on open files to what so many sessions need, as far as it may."""
    needed = 2 * sessions + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        logger.warning("too few open files", allowed=allowed, needed=needed, sessions=sessions)


def main(config: Config) -> int:
    """Run the gateway until it is stopped; return the exit status.

    Raises MailgateError or OSError, with what to do, when it cannot start.
    """
    run_alone(_run, config, log.configure(config.log.format, config.log.level))
    return 0


def run_alone(function: Callable[..., Awaitable[None]], *args: object) -> None:
    """Run an async function as the process's only one.

    Nurseries wrap what fails; MailgateError and OSError, whose reader wants the sentence inside, leave unwrapped.
    """
    try:
        trio.run(function, *args)
    except BaseExceptionGroup as group:
        expected, rest = group.split((MailgateError, OSError))
        if expected is None or rest is not None:
            raise
        raise _first(expected) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


__all__ = ["Gateway", "main", "run_alone"]

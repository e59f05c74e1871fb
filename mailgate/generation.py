"""Everything that is made from one configuration.

A reload makes the next generation beside the one in force. Connections that come from then on belong
to it; sessions that run keep the generation that they began with, its routes, pools, limits and
time limits, to their end. What must not begin anew with each configuration is handed on from
one generation to the next: the counts of the gate, TLS contexts, what is known of servers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from mailgate.config import Config, LimitSettings, Listener
from mailgate.config.checks import reached_by
from mailgate.events import Emit, Trace
from mailgate.ledger import LoginDelays, MaildropLocks
from mailgate.model import Login, Protocol, Refusal, Route, Session, TlsInfo
from mailgate.net.tls import ServerTls, Use
from mailgate.observe.trace import Tracer
from mailgate.policy.gate import Gate, GateSettings
from mailgate.policy.limits import Counts
from mailgate.routing.static import StaticRouter
from mailgate.session.dialogue import Services, SignedIn, Translated
from mailgate.session.engine import Engine
from mailgate.session.relay import Watch
from mailgate.stream import SocketStream
from mailgate.translating import Stores, Translating
from mailgate.upstream.pool import ProbeResult, Upstreams
from mailgate.wire.framing import Limits

LINGER_SECONDS: Final = 5.0
"""How long commands in flight are awaited after their client has gone."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """What outlives every configuration and serves the sessions of all of them.

    ``counts`` are what the gates of several workers count together; None where this process is alone. ``maildrops`` and
    ``login_delays`` are those of all workers where there are several.
    """

    emit: Emit
    watch: Watch
    engine: Engine
    tracer: Tracer
    buffer: bytearray
    counts: Counts | None
    maildrops: MaildropLocks
    login_delays: LoginDelays
    stores: Stores


class Generation:
    """One configuration at work. ``upstreams`` are its pools, made beforehand since reading authorities takes time.

    ``tls`` are its contexts where they were made beforehand too, by a supervisor for all of its workers.

    Raises MailgateError or OSError where a certificate cannot be used; then ``earlier`` is as it was.
    """

    def __init__(
        self,
        config: Config,
        lasting: Lasting,
        upstreams: Upstreams,
        earlier: Generation | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self.config = config
        self.upstreams = upstreams
        self.servers = {(name, server.name) for name, pool in config.pool.items() for server in pool.servers}
        self._tracer = lasting.tracer
        self._scope = trio.CancelScope()
        self.tls: ServerTls | None = tls or server_tls(config, earlier.tls if earlier is not None else None)
        if earlier is not None:
            upstreams.learn_from(earlier.upstreams)
        limits = config.limits
        self.gate: Gate = Gate(_gate_settings(limits), earlier.gate if earlier is not None else None, lasting.counts)
        self.router = StaticRouter(config.route)
        self.translating = Translating(
            config,
            lasting.emit,
            lasting.buffer,
            lasting.maildrops,
            lasting.login_delays,
            lasting.stores.get(config.pop3.store),
        )
        self._routes = {listener.name: self._reached(listener) for listener in config.listener}
        self.services = Services(
            hostname=config.hostname,
            gate=self.gate,
            limits=Limits(line=limits.line, literal=limits.literal, total=limits.total),
            route=self._route,
            open_upstream=self._open_upstream,
            upstream_capabilities=self._upstream_capabilities,
            emit=lasting.emit,
            watch=lasting.watch,
            engine=lasting.engine,
            trace=self._trace,
            buffer=lasting.buffer,
            linger=LINGER_SECONDS,
        )

    # ---------------------------------------------------------------- what sessions are given

    def _reached(self, listener: Listener) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the pools that a login on this listener may be routed to, and the routes to those that speak IMAP."""
        rules = [rule for _, rule in reached_by(listener, enumerate(self.config.route))]
        pools = self.config.pool
        to_imap = (rule.name for rule in rules if pools[rule.pool].protocol is Protocol.IMAP)
        return tuple(dict.fromkeys(rule.pool for rule in rules)), tuple(to_imap)

    def _upstream_capabilities(self, session: Session) -> list[frozenset[str]]:
        pools, translated = self._routes[session.listener]
        if session.protocol is Protocol.IMAP:
            return self.upstreams.known_capabilities(pools)
        found = []
        for name in pools:
            known = self.upstreams.known_capabilities((name,))
            if self.config.pool[name].protocol is not Protocol.POP3:
                known = self.translating.capabilities(known, translated)
            found += known
        if translated and not found:
            # Most of what a translated session can does not depend on its server.
            return self.translating.capabilities([frozenset()], translated)
        return found

    async def _route(self, login: Login, session: Session) -> Route | None:
        rewritten = self.translating.rewritten(login)
        if rewritten is not None:
            plain, mailbox = rewritten
            route = await self.router(plain, session)
            if route is not None and self.translating.policy(route, login.protocol) is not None:
                return replace(route, login=plain, mailbox=mailbox)
        return await self.router(login, session)

    async def _open_upstream(self, route: Route, login: Login, session: Session) -> SignedIn | Translated | Refusal:
        login = route.login or login
        policy = self.translating.policy(route, login.protocol)
        if policy is None:
            return await self.upstreams.open(route, login, session)

        async def dial() -> SignedIn:
            return await self.upstreams.open(route, login, session)

        return await self.translating.open(policy, login, session, dial, route.mailbox)

    def _trace(self, session: Session) -> Trace | None:
        # Without traces in its configuration a session may be one whose commands are not seen, and then nobody
        # could keep messages out.
        return self._tracer.for_session(session) if self.config.trace.directory is not None else None

    async def accept_tls(self, stream: SocketStream, listener: Listener) -> TlsInfo:
        """Do a client's handshake; raises HandshakeFailed."""
        if self.tls is None:
            raise RuntimeError("a listener with TLS was let in without [tls]")
        profile, protocol = _use(self.config, listener)
        return await self.tls.accept(stream, protocol, profile, listener.handshake_timeout)

    # ---------------------------------------------------------------- its life

    async def run(self, told_of_files: Callable[[list[str]], None], probed: ProbeResult) -> None:
        """Watch the files of certificates and ask the servers now and then, until retired or cancelled."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.upstreams.probe, probed)
                if self.tls is not None:
                    nursery.start_soon(self.tls.watch, told_of_files)

    def retire(self) -> None:
        """Watch and ask no more, since another generation does; sessions go on."""
        self._scope.cancel()


def server_tls(config: Config, earlier: ServerTls | None) -> ServerTls | None:
    """Return the TLS of a configuration towards clients; raises TlsFilesError, and then ``earlier`` is as it was."""
    if config.tls is None:
        return None
    uses = [_use(config, listener) for listener in config.listener if listener.tls != "off"]
    return ServerTls(config.tls, uses, earlier)


def _use(config: Config, listener: Listener) -> Use:
    default = config.tls.profile if config.tls is not None else "intermediate"
    return listener.profile or default, listener.protocol


def _gate_settings(limits: LimitSettings) -> GateSettings:
    return GateSettings(
        sessions=limits.sessions,
        sessions_per_address=limits.sessions_per_address,
        half_open=limits.half_open,
        half_open_per_address=limits.half_open_per_address,
        failures_per_session=limits.failures_per_session,
        failure_delay=limits.failure_delay,
        failure_delay_max=limits.failure_delay_max,
        bad_commands=limits.bad_commands,
    )

"""The composition root: a configuration becomes objects, objects become nurseries, and signals end them.

The order of what nests decides what outlives what: listeners end first, sessions may go on for the
time of a drain, and what watches them (metrics, log, traces) is there until the last has ended.
What one configuration makes is a :class:`~mailgate.generation.Generation`; a reload changes which one is
in force.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import trio

import mailgate
from mailgate import events, notices
from mailgate.administration import Administration
from mailgate.config import Config, Log
from mailgate.config.changes import changes
from mailgate.doors import Door, Doors, Opener, Plan, open_place, told
from mailgate.drain import drain, thin_out
from mailgate.errors import ConfigError, MailgateError, UpstreamFailed
from mailgate.generation import Generation, Lasting
from mailgate.heritage import LEAVE, Heritage, Load, Logger, Relog, allow_files, refusing
from mailgate.ledger import LoginDelays, MaildropLocks, Register, Seat
from mailgate.model import Peer, Protocol, Session, State
from mailgate.net.listener import serve, take_waiting
from mailgate.observe import log
from mailgate.observe.metrics import Metrics
from mailgate.observe.trace import Tracer
from mailgate.orders import Orders
from mailgate.policy import answers
from mailgate.reception import Reception
from mailgate.session.engine import Engine
from mailgate.session.relay import Watch
from mailgate.stream import SocketStream, burst_buffer
from mailgate.supervisor import Supervisor
from mailgate.translating import Stores
from mailgate.upgrade import rehearse
from mailgate.upstream.pool import Upstreams
from mailgate.web import admin, http
from mailgate.workers.bus import AloneBus, Bus, WorkerBus
from mailgate.workers.handover import received


@dataclass(frozen=True, slots=True)
class House:
    """The nurseries of a gateway that runs, the outermost first."""

    services: trio.Nursery
    sessions: trio.Nursery
    listeners: trio.Nursery


class Gateway:
    """One worker: everything that a configuration asks for, ready to run.

    With a ``heritage`` it is one of a supervisor's, which opens sockets, hears signals and reads configurations
    for all of its workers. Without, it does so itself: ``load`` reads the configuration again for a reload,
    ``relog`` returns a logger with other settings. Raises MailgateError or OSError where something cannot be used.
    """

    _house: House

    def __init__(
        self,
        config: Config,
        logger: Logger,
        load: Load | None = None,
        relog: Relog = lambda settings: log.configure(settings.format, settings.level),
        heritage: Heritage | None = None,
    ) -> None:
        self.log = logger
        self._heritage = heritage
        bus: Bus
        if heritage is None:
            bus, self._orders = AloneBus(self._answer_failed), None
        else:
            bus = WorkerBus(heritage.channel, heritage.slot, self._answer_failed)
            self._orders = Orders(self, bus)
        self._load = load
        self._relog = relog
        self._reloading = trio.Lock()
        self._stopping = False
        self._leaving = False
        self._protocols: dict[str, Protocol] = {}
        self.sessions: dict[str, Session] = {}
        shared = () if heritage is None else (heritage.cells, heritage.slot)
        self.metrics = Metrics(self._protocols, self._expiry, *shared)
        self.tracer = Tracer(config.trace.directory, trio.current_time, self._audit)
        self._session_log = log.SessionLog(logger)
        self.emit: events.Emit = events.fan_out(
            (self.metrics, self._session_log), lambda _, error: self._observer_failed(error)
        )
        self.reception = Reception(self.emit, self.sessions)
        self.watch = Watch()
        self.doors = Doors()
        self.administration = Administration(
            bus,
            heritage.slot if heritage is not None else 0,
            self.reception,
            self.watch,
            self.tracer,
            self._audit,
            self.reload,
            self.upgrade,
        )
        self._seat = Seat(heritage.ledger, heritage.slot, self._overflowed) if heritage is not None else None
        self._uncounted = False
        buffer = burst_buffer()
        self.engine = Engine(buffer, self.watch)
        register = heritage.register if heritage is not None else Register.create()
        self._lasting = Lasting(
            emit=self.emit,
            watch=self.watch,
            engine=self.engine,
            tracer=self.tracer,
            buffer=buffer,
            counts=self._seat,
            maildrops=MaildropLocks(register, bus),
            login_delays=LoginDelays(register),
            stores=Stores(),
        )
        if heritage is None:
            self.current = Generation(config, self._lasting, Upstreams(config, self._tell_of_upstream))
        else:
            heritage.ear.listener = self._tell_of_upstream
            self.current = Generation(config, self._lasting, heritage.upstreams, tls=heritage.tls)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.current.config

    def _audit(self, action: str, facts: dict[str, object]) -> None:
        self.log.info(action, audit=True, **facts)

    def _answer_failed(self, error: Exception) -> None:
        self.log.error("a question of the administration failed", exc_info=error)

    def _observer_failed(self, error: BaseException) -> None:
        self.metrics.observer_errors.inc()
        self.log.error("an observer of sessions failed", exc_info=error)

    # ---------------------------------------------------------------- running

    async def run(self, task_status: trio.TaskStatus[list[socket.socket]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT, or until cancelled; ``task_status`` gets the mail sockets."""
        self._say("starting", version=mailgate.__version__)
        plan = self.doors.plan(self.config) if self._heritage is None else Plan(opened=self._heritage.doors)
        try:
            if plan.error is not None:
                raise plan.error
            with self._signals() as signals:
                async with trio.open_nursery() as services:
                    services.start_soon(self.watch.run)
                    services.start_soon(self.engine.run)
                    if self._seat is not None:
                        services.start_soon(self._make_room, self._seat)
                    async with trio.open_nursery() as sessions:
                        async with trio.open_nursery() as listeners:
                            self._house = House(services, sessions, listeners)
                            self._enter(self.current, plan)
                            if self._seat is not None:
                                self._seat.serving(True)
                            self._tell_warnings()
                            task_status.started([door.socket for door in plan.opened if door.place.kind == "mail"])
                            if self._orders is not None:
                                services.start_soon(self._orders.obey)
                            await self._until_stopped(signals)
                            if self._seat is not None:
                                self._seat.serving(False)
                            listeners.cancel_scope.cancel()
                        if self._leaving and self._orders is not None:
                            await self._until_empty(signals, self._orders)
                        await self._drain_unless_hurried(signals)
                        sessions.cancel_scope.cancel()
                    services.cancel_scope.cancel()
        finally:
            plan.abandon()
            self.doors.close()
            self.tracer.close()
            await self._lasting.stores.aclose()
        self._say("stopped")

    def _say(self, event: str, **facts: object) -> None:
        """Tell what the supervisor tells for all workers where there is one."""
        self.log.log(logging.INFO if self._heritage is None else logging.DEBUG, event, **facts)

    @contextmanager
    def _signals(self) -> Iterator[AsyncIterator[int]]:
        """Return the signals that this worker is to obey; the supervisor hands on those of its workers."""
        if self._orders is not None:
            with self._orders.signals() as handed_on:
                yield handed_on
            return
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            # Whoever started this process may have held it back until it could be heard.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            yield signals

    def _enter(self, generation: Generation, plan: Plan) -> None:
        """Put a generation and its doors into force, without a checkpoint in between."""
        retired, self.current = self.current, generation
        self.doors.carry_out(plan, generation)
        if retired is not generation:
            retired.retire()
        self._protocols.clear()
        self._protocols.update((listener.name, listener.protocol) for listener in self.config.listener)
        for event, facts in told(plan):
            self._say(event, **facts)
        for door in plan.opened:
            nursery = self._house.listeners if door.place.kind == "mail" else self._house.services
            nursery.start_soon(self._serve_door, door)
        self._house.services.start_soon(generation.run, self._reloaded, self._probed)
        self.metrics.keep_servers(generation.servers)

    async def _serve_door(self, door: Door) -> None:
        """Let in whoever comes through a door until it is gone."""

        async def handle(stream: SocketStream, peer: Peer) -> None:
            if door.generation is not None and door.place.listener is not None:
                await self.reception.serve(door.generation, door.place.listener, stream, peer)

        try:
            with door.scope:
                match door.place.kind:
                    case "mail":
                        await serve([door.socket], handle, self._house.sessions, self._pause, self._seat)
                    case "metrics":
                        app = http.metrics_app(self.metrics.scrape, self._not_ready)
                        await http.serve_http(app, door.socket, door.gone)
                    case "admin":
                        app = admin.admin_app(self.administration)
                        await http.serve_http(app, door.socket, door.gone)
        finally:
            if door.place.kind == "mail":
                take_waiting(door.socket, handle, self._house.sessions)
            door.socket.close()

    def _pause(self, reason: str) -> None:
        self.metrics.accept_pauses.inc()
        self.log.error("accepting rests for a moment", reason=reason, listener="all")

    async def _make_room(self, seat: Seat) -> None:
        """End the sessions that give way to newcomers of other workers."""
        full = answers.PROCESS_FULL.reason
        while True:
            await trio.lowlevel.wait_readable(seat.fileno())
            for name, rule in seat.due():
                session = self.sessions.get(name)
                # It may have logged in since room was made of it.
                if session is not None and session.state is State.RELAY and self.watch.end(session, full):
                    self.emit(events.LimitStruck(session, rule, "shed"))
                else:
                    self.reception.shed(name, rule)

    def _overflowed(self) -> None:
        self.metrics.ledger_overflows.inc()
        if not self._uncounted:
            self._uncounted = True
            self.log.warning("an address is counted by this worker alone", sessions=self.config.limits.sessions)

    async def _until_stopped(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                self._stopping = True
                self._leaving = number == LEAVE
                self._say("stopping", signal=signal.Signals(number).name, sessions=len(self.sessions))
                return
            if self._load is None:
                self._reloaded(self.current.tls.reload() if self.current.tls is not None else [])
            else:
                # A stop must not wait for a configuration to be read.
                self._house.services.start_soon(self._reload_quietly)

    async def _until_empty(self, signals: AsyncIterator[int], orders: Orders) -> None:
        """Let all sessions go on to their end, for as long as they may, or until this worker is told to stop."""
        for door in self.doors.open:
            door.gone.set()

        async def stop(scope: trio.CancelScope) -> None:
            async for number in signals:
                if number not in (signal.SIGHUP, LEAVE):
                    scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop, nursery.cancel_scope)
            await thin_out(self.sessions, self.watch, orders.leave_within)
            nursery.cancel_scope.cancel()

    async def _drain_unless_hurried(self, signals: AsyncIterator[int]) -> None:
        """Drain; a second SIGTERM or SIGINT ends the sessions at once."""

        async def hurry(scope: trio.CancelScope) -> None:
            async for number in signals:
                if number not in (signal.SIGHUP, LEAVE):
                    self.log.warning("stopping at once", sessions=len(self.sessions))
                    scope.cancel()

        self.reception.closing = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hurry, nursery.cancel_scope)
            left = await drain(self.sessions, self.reception.scopes, self.watch, self.config.shutdown.drain)
            if left:
                self.log.warning("sessions are cut off", sessions=left)
            nursery.cancel_scope.cancel()

    # ---------------------------------------------------------------- reloading

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except MailgateError:
            # The log has said everything; a signal has nobody to answer to.
            return

    async def reload(self) -> dict[str, object]:
        """Read the configuration again and put it into force for new sessions; return what that changed.

        Raises ConfigError with everything that is wrong with it, and then nothing has changed; MailgateError
        when there is nothing to read or the gateway stops.
        """
        if self._orders is not None:
            return await self._orders.reload()
        if self._load is None:
            raise MailgateError("the gateway was started without a configuration file")
        async with self._reloading:
            try:
                changed = await self._reload(self._load)
            except ConfigError as error:
                notices.refused(error, self.metrics, self.log)
                raise
            notices.reloaded(changed, self.metrics, self.log)
            self._tell_warnings()
            return {"changed": changed, "warnings": list(self.config.warnings)}

    async def upgrade(self) -> dict[str, object]:
        """Have new code take over from the supervisor; return its version. Raises MailgateError."""
        if self._orders is None:
            raise MailgateError("only a gateway with a supervisor can be upgraded in place")
        return await self._orders.upgrade()

    async def _reload(self, load: Load) -> list[str]:
        """Make everything that may fail, then put it into force."""
        with refusing("file", self.log):
            config = await trio.to_thread.run_sync(load, abandon_on_cancel=True)
        return await self.adopt(config, open_place)

    async def adopt(self, config: Config, opener: Opener) -> list[str]:
        """Put a configuration into force; raises ConfigError or MailgateError, and then nothing has changed."""
        with refusing("pool", self.log):
            upstreams = await trio.to_thread.run_sync(Upstreams, config, self._tell_of_upstream)
        if self._stopping:
            raise MailgateError("the gateway is shutting down")
        before = self.config
        with refusing("file", self.log):
            changed = changes(before, config)
        if self._heritage is None and config.limits.sessions != before.limits.sessions:
            with refusing("limits.sessions", self.log):
                allow_files(config.limits.sessions, self.log)
        with refusing("listener", self.log):
            plan = self.doors.plan(config, opener)
        try:
            if plan.refused:
                raise ConfigError(plan.refused)
            with refusing("tls", self.log):
                generation = Generation(config, self._lasting, upstreams, self.current)
        except BaseException:
            plan.abandon()
            raise
        if generation.tls is not None:
            changed += [f"certificate {path}: new contents" for path in generation.tls.renewed]
        if (config.log, config.workers) != (before.log, before.workers):
            self.log = self._relog(config.log)
            if self._heritage is not None:
                self.log = self._heritage.named(self.log, config)
            self._session_log.use(self.log)
        self.tracer.directory = config.trace.directory
        self._enter(generation, plan)
        return changed

    # ---------------------------------------------------------------- telling

    def _tell_warnings(self) -> None:
        # The supervisor warns for all of its workers.
        if self._heritage is None:
            notices.warn(self.config, self.current.tls, self.log)

    def _expiry(self) -> dict[str, datetime]:
        return self.current.tls.expiry() if self.current.tls is not None else {}

    def _reloaded(self, problems: list[str]) -> None:
        # The supervisor looks at the same files, and tells of them once for all workers.
        if self._heritage is None:
            notices.certificates_read(problems, self.current.tls, self.metrics, self.log)

    def _tell_of_upstream(self, event: events.Event) -> None:
        self.emit(event)
        match event:
            case events.UpstreamConnected(pool=pool, server=server) | events.UpstreamRefused(pool=pool, server=server):
                # A session of an earlier configuration may still go to a server that this one does not have.
                if (pool, server) not in self.current.servers:
                    self.metrics.forget(pool, server)

    def _probed(self, pool: str, server: str, failed: UpstreamFailed | None) -> None:
        if (pool, server) not in self.current.servers:
            return
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
        if self.reception.closing:
            return ["shutting down"]
        unreachable = self.current.upstreams.unreachable()
        if len(unreachable) == len(self.config.pool):
            return [f"pool {name}: no server can be reached" for name in unreachable]
        return []


def main(config: Config, load: Load | None = None) -> int:
    """Run the gateway until it is stopped; return the exit status.

    ``load`` reads the configuration again for a reload; without it only certificates are. Raises
    MailgateError or OSError, with what to do, when it cannot start.
    """

    def relog(settings: Log) -> Logger:
        return log.configure(settings.format, settings.level)

    handed = received(os.environ)
    supervisor = Supervisor(config, relog(config.log), load, relog, _work, handed)
    return rehearse(supervisor) if handed is not None and handed.trial else supervisor.run()


def _work(config: Config, logger: Logger, heritage: Heritage) -> None:
    run_alone(Gateway(config, logger, heritage=heritage).run)


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

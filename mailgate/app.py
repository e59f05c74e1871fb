"""The composition root: a configuration becomes objects, objects become nurseries, and signals end them.

The order of what nests decides what outlives what: listeners end first, sessions may go on for the
time of a drain, and what watches them (metrics, log, traces) is there until the last has ended.
What one configuration makes is a :class:`~mailgate.generation.Generation`; a reload changes which one is
in force.
"""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
import trio

import mailgate
from mailgate import events
from mailgate.config import Config, Log
from mailgate.config.changes import changes
from mailgate.doors import Door, Doors, Plan
from mailgate.drain import drain
from mailgate.errors import ConfigError, ConfigProblem, MailgateError, UpstreamFailed
from mailgate.generation import Generation, Lasting
from mailgate.model import Peer, Protocol, Session
from mailgate.net.listener import serve, take_waiting
from mailgate.observe import log
from mailgate.observe.metrics import Metrics
from mailgate.observe.trace import Tracer
from mailgate.reception import Reception
from mailgate.session.relay import Watch
from mailgate.stream import SocketStream, burst_buffer
from mailgate.upstream.pool import Upstreams
from mailgate.web import admin, http

SPARE_FILES: Final = 200
"""Open files beside the two sockets of each session: listeners, probes, scrapes, traces, the interpreter's own."""

EXPIRY_WARNING: Final = timedelta(days=14)
"""How early the log warns of a certificate's end; automatic renewal happens weeks before that."""

Load = Callable[[], Config]
"""Reads the configuration again, in a thread; raises ConfigError with everything that is wrong."""


@dataclass(frozen=True, slots=True)
class House:
    """The nurseries of a gateway that runs, the outermost first."""

    services: trio.Nursery
    sessions: trio.Nursery
    listeners: trio.Nursery


class Gateway:
    """One worker: everything that a configuration asks for, ready to run.

    ``load`` reads that configuration again for a reload, ``relog`` returns a
    logger with other settings. Raises MailgateError or OSError where something cannot be used.
    """

    _house: House

    def __init__(
        self,
        config: Config,
        logger: structlog.stdlib.BoundLogger,
        load: Load | None = None,
        relog: Callable[[Log], structlog.stdlib.BoundLogger] = lambda settings: log.configure(
            settings.format, settings.level
        ),
    ) -> None:
        self.log = logger
        self._load = load
        self._relog = relog
        self._reloading = trio.Lock()
        self._stopping = False
        self._protocols: dict[str, Protocol] = {}
        self.sessions: dict[str, Session] = {}
        self.metrics = Metrics(self.sessions, self._protocols, self._expiry)
        self.tracer = Tracer(config.trace.directory, trio.current_time, self._audit)
        self._session_log = log.SessionLog(logger)
        self.emit: events.Emit = events.fan_out(
            (self.metrics, self._session_log), lambda _, error: self._observer_failed(error)
        )
        self.reception = Reception(self.emit, self.sessions)
        self.watch = Watch()
        self.doors = Doors()
        self._lasting = Lasting(self.emit, self.watch, self.tracer, burst_buffer())
        self.current = Generation(config, self._lasting, Upstreams(config, self._tell_of_upstream))

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.current.config

    def _audit(self, action: str, facts: dict[str, object]) -> None:
        self.log.info(action, audit=True, **facts)

    def _observer_failed(self, error: BaseException) -> None:
        self.metrics.observer_errors.inc()
        self.log.error("an observer of sessions failed", exc_info=error)

    # ---------------------------------------------------------------- running

    async def run(self, task_status: trio.TaskStatus[list[socket.socket]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT, or until cancelled; ``task_status`` gets the mail sockets."""
        self.log.info("starting", version=mailgate.__version__)
        plan = self.doors.plan(self.config)
        try:
            if plan.error is not None:
                raise plan.error
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                # Whoever started this process may have held it back until it could be heard.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
                async with trio.open_nursery() as services:
                    services.start_soon(self.watch.run)
                    async with trio.open_nursery() as sessions:
                        async with trio.open_nursery() as listeners:
                            self._house = House(services, sessions, listeners)
                            self._enter(self.current, plan)
                            self._tell_warnings()
                            task_status.started([door.socket for door in plan.opened if door.place.kind == "mail"])
                            await self._until_stopped(signals)
                            listeners.cancel_scope.cancel()
                        await self._drain_unless_hurried(signals)
                        sessions.cancel_scope.cancel()
                    services.cancel_scope.cancel()
        finally:
            plan.abandon()
            self.doors.close()
            self.tracer.close()
        self.log.info("stopped")

    def _enter(self, generation: Generation, plan: Plan) -> None:
        """Put a generation and its doors into force, without a checkpoint in between."""
        retired, self.current = self.current, generation
        self.doors.carry_out(plan, generation)
        if retired is not generation:
            retired.retire()
        self._protocols.clear()
        self._protocols.update((listener.name, listener.protocol) for listener in self.config.listener)
        self._tell_doors(plan)
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
                        await serve([door.socket], handle, self._house.sessions, self._pause)
                    case "metrics":
                        app = http.metrics_app(self.metrics.scrape, self._not_ready)
                        await http.serve_http(app, door.socket, door.gone)
                    case "admin":
                        app = admin.admin_app(self.tracer, self.reload)
                        await http.serve_http(app, door.socket, door.gone)
        finally:
            if door.place.kind == "mail":
                take_waiting(door.socket, handle, self._house.sessions)
            door.socket.close()

    def _pause(self, reason: str) -> None:
        self.metrics.accept_pauses.inc()
        self.log.error("accepting rests for a moment", reason=reason, listener="all")

    async def _until_stopped(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                self._stopping = True
                self.log.info("stopping", signal=signal.Signals(number).name, sessions=len(self.sessions))
                return
            if self._load is None:
                self._reloaded(self.current.tls.reload() if self.current.tls is not None else [])
            else:
                # A stop must not wait for a configuration to be read.
                self._house.services.start_soon(self._reload_quietly)

    async def _drain_unless_hurried(self, signals: AsyncIterator[int]) -> None:
        """Drain; a second SIGTERM or SIGINT ends the sessions at once."""

        async def hurry(scope: trio.CancelScope) -> None:
            async for number in signals:
                if number != signal.SIGHUP:
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
        if self._load is None:
            raise MailgateError("the gateway was started without a configuration file")
        async with self._reloading:
            try:
                changed = await self._reload(self._load)
            except ConfigError as error:
                self.metrics.reloads.labels("refused").inc()
                for problem in error.problems:
                    self.log.error("reload refused, the old configuration stays in force", problem=str(problem))
                raise
            self.metrics.reloads.labels("ok").inc()
            self.log.info("configuration reloaded", changed=changed)
            self._tell_warnings()
            return {"changed": changed, "warnings": list(self.config.warnings)}

    async def _reload(self, load: Load) -> list[str]:
        """Make everything that may fail, then put it into force."""
        with self._refusing("file"):
            config = await trio.to_thread.run_sync(load, abandon_on_cancel=True)
        with self._refusing("pool"):
            upstreams = await trio.to_thread.run_sync(Upstreams, config, self._tell_of_upstream)
        if self._stopping:
            raise MailgateError("the gateway is shutting down")
        before = self.config
        with self._refusing("file"):
            changed = changes(before, config)
        if config.limits.sessions != before.limits.sessions:
            with self._refusing("limits.sessions"):
                allow_files(config.limits.sessions, self.log)
        with self._refusing("listener"):
            plan = self.doors.plan(config)
        try:
            if plan.refused:
                raise ConfigError(plan.refused)
            with self._refusing("tls"):
                generation = Generation(config, self._lasting, upstreams, self.current)
        except BaseException:
            plan.abandon()
            raise
        if generation.tls is not None:
            changed += [f"certificate {path}: new contents" for path in generation.tls.renewed]
        if config.log != before.log:
            self.log = self._relog(config.log)
            self._session_log.use(self.log)
        self.tracer.directory = config.trace.directory
        self._enter(generation, plan)
        return changed

    @contextmanager
    def _refusing(self, path: str) -> Iterator[None]:
        """Make whatever goes wrong a reason to refuse the configuration: running sessions must not suffer from it."""
        try:
            yield
        except ConfigError:
            raise
        except (MailgateError, OSError) as error:
            raise ConfigError([ConfigProblem(path, "", f"cannot be used: {error}")]) from error
        except Exception as error:
            self.log.error("reload failed", exc_info=error)
            problem = ConfigProblem(path, "", "met an error of mailgate's own; its traceback is in the log")
            raise ConfigError([problem]) from error

    # ---------------------------------------------------------------- telling

    def _tell_doors(self, plan: Plan) -> None:
        """Tell what is listened on from now on, and what no more."""
        opened: dict[tuple[str, str, str], list[str]] = {}
        for door in plan.opened:
            opened.setdefault(door.place.facts, []).append(str(door.place.endpoint))
        for (name, protocol, tls), bind in opened.items():
            self.log.info("listening", listener=name, protocol=protocol, tls=tls, bind=bind)
        for door in plan.leaving:
            self.log.info("listening no more", listener=door.place.facts[0], bind=[str(door.place.endpoint)])

    def _tell_warnings(self) -> None:
        for warning in self.config.warnings:
            self.log.warning("configuration", warning=warning)
        self._warn_of_expiry()

    def _expiry(self) -> dict[str, datetime]:
        return self.current.tls.expiry() if self.current.tls is not None else {}

    def _warn_of_expiry(self) -> None:
        for path, end in self._expiry().items():
            if end - datetime.now(UTC) < EXPIRY_WARNING:
                self.log.warning("a certificate ends soon", path=path, not_after=end.isoformat())

    def _reloaded(self, problems: list[str]) -> None:
        for problem in problems:
            self.metrics.reload_failures.inc()
            self.log.error("a replaced certificate is unusable, the old one stays in force", problem=problem)
        if not problems:
            self.log.info("certificates are up to date")
        self._warn_of_expiry()

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


async def _run(config: Config, logger: structlog.stdlib.BoundLogger, load: Load | None) -> None:
    allow_files(config.limits.sessions, logger)
    await Gateway(config, logger, load).run()


def allow_files(sessions: int, logger: structlog.stdlib.BoundLogger) -> None:
    """Raise the process's limit on open files to what so many sessions need, as far as it may."""
    needed = 2 * sessions + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        logger.warning("too few open files", allowed=allowed, needed=needed, sessions=sessions)


def main(config: Config, load: Load | None = None) -> int:
    """Run the gateway until it is stopped; return the exit status.

    ``load`` reads the configuration again for a reload; without it only certificates are. Raises
    MailgateError or OSError, with what to do, when it cannot start.
    """
    run_alone(_run, config, log.configure(config.log.format, config.log.level), load)
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

"""A reload by the supervisor: it makes everything that can fail, then all workers put the configuration into force.

What it does is short except for reading the configuration and opening certificates, which a signal to stop breaks off.
"""

from __future__ import annotations

import base64
import math
import pickle
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mailgate import notices
from mailgate.config import Config
from mailgate.config.changes import changes
from mailgate.doors import Plan, told
from mailgate.errors import ConfigError
from mailgate.generation import server_tls
from mailgate.heritage import Load, allow_files, refusing
from mailgate.net.tls import ServerTls
from mailgate.upgrade import too_many
from mailgate.upstream.pool import Upstreams
from mailgate.workers.worker import Wanted, Worker, done

if TYPE_CHECKING:
    from mailgate.supervisor import Supervisor

APPLY_SECONDS: Final = 120.0
"""How long workers have to put a configuration into force: thousands of certificates are opened one by one."""


@dataclass(slots=True)
class Made:
    """What was made of a configuration before it is put into force."""

    config: Config
    upstreams: Upstreams
    plan: Plan = field(default_factory=Plan)
    tls: ServerTls | None = None


@dataclass(slots=True)
class Apply:
    """A configuration that workers put into force: who wanted it, what changed, who has still to do it."""

    wanted: Wanted
    changed: list[str]
    waiting: set[Worker]
    deadline: float


class _Interrupted(BaseException):
    """A signal to stop came while a configuration was read."""


class Reloads:
    """The part of the supervisor that reads again what may have changed: the configuration, and certificates."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._wanted: Wanted | None = None
        self._apply: Apply | None = None
        self._reading = False
        self._look_at_files = 0.0

    def want(self, *who: tuple[Worker, int]) -> None:
        """Reload soon, once for all that want it until then; ``who`` waits for it, a worker by its number for that."""
        if self._supervisor.stopping:
            done(list(who), error="the gateway is shutting down")
            return
        self._wanted = [*(self._wanted or []), *who]

    def stop(self) -> None:
        """Tell everybody who waits for a reload that there will be none, since the gateway stops."""
        done(self._wanted or [], error="the gateway is shutting down")
        self._wanted = None

    def break_off(self) -> None:
        """End the reading of a configuration, if one is read: for a signal's handler, which this raises out of."""
        if self._reading:
            raise _Interrupted

    def forget(self, worker: Worker) -> None:
        """Wait for a worker that has ended no more, and answer it no more."""
        if self._wanted is not None:
            self._wanted = [one for one in self._wanted if one[0] is not worker]
        if self._apply is not None:
            self._apply.wanted = [one for one in self._apply.wanted if one[0] is not worker]
            self._apply.waiting.discard(worker)
            self._finish()

    @property
    def quiet(self) -> bool:
        """Whether no reload is under way or wanted."""
        return self._apply is None and self._wanted is None

    @property
    def due(self) -> float:
        """The moment at which :meth:`expire` or :meth:`turn` has something to do by itself."""
        if self._apply is None and self._wanted is not None:
            return -math.inf
        deadline = self._apply.deadline if self._apply is not None else math.inf
        looks = self._supervisor.made.tls is not None and not self._supervisor.stopping
        return min(deadline, self._look_at_files if looks else math.inf)

    def expire(self, now: float) -> None:
        """Replace the workers that do not follow in time."""
        if self._apply is not None and now >= self._apply.deadline:
            for worker in list(self._apply.waiting):
                self.applied(worker, f"no answer within {APPLY_SECONDS:g} s")

    def turn(self) -> None:
        """Do what is wanted, and look at certificates when it is time to."""
        tls, now = self._supervisor.made.tls, time.monotonic()
        if tls is not None and now >= self._look_at_files:
            if self._look_at_files:
                tls.look(self._tell_of_certificates)
            self._look_at_files = now + tls.settings.reload_interval
        if self._apply is None and self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self.reload(wanted)

    # ---------------------------------------------------------------- a configuration

    def reload(self, wanted: Wanted) -> None:
        """Read the configuration again, and have all workers put it into force."""
        supervisor = self._supervisor
        supervisor.service.reloading()
        if supervisor.load is None:
            done(wanted, error="the gateway was started without a configuration file")
            return
        try:
            self._reading = True
            try:
                made, changed = self._make(supervisor.load)
            finally:
                self._reading = False
        except _Interrupted:
            done(wanted, error="the gateway is shutting down")
        except ConfigError as error:
            notices.refused(error, supervisor.metrics, supervisor.log)
            done(wanted, problems=[[one.path, one.value, one.message] for one in error.problems])
        else:
            self._put_into_force(made, changed, wanted)

    def _make(self, load: Load) -> tuple[Made, list[str]]:
        """Make everything that may fail; raises ConfigError, and then nothing has changed."""
        supervisor = self._supervisor
        before, logger = supervisor.config, supervisor.log
        with refusing("file", logger):
            config = load()
        with refusing("pool", logger):
            made = Made(config, Upstreams(config, supervisor.ear))
        if config.workers > supervisor.slots:
            raise ConfigError([too_many(config.workers, supervisor.slots)])
        with refusing("file", logger):
            changed = changes(before, config)
        with refusing("listener", logger):
            made.plan = supervisor.doors.plan(config)
        try:
            if made.plan.refused:
                raise ConfigError(made.plan.refused)
            with refusing("tls", logger):
                made.tls = server_tls(config, supervisor.made.tls)
            if config.limits.sessions != before.limits.sessions:
                with refusing("limits.sessions", logger):
                    allow_files(config.limits.sessions, logger, [worker.pid for worker in supervisor.workers])
        except BaseException:
            made.plan.abandon()
            raise
        if made.tls is not None:
            changed += [f"certificate {path}: new contents" for path in made.tls.renewed]
        return made, changed

    def _put_into_force(self, made: Made, changed: list[str], wanted: Wanted) -> None:
        supervisor = self._supervisor
        before, supervisor.made = supervisor.made, made
        plan, made.plan = made.plan, Plan()
        if made.config.log != before.config.log:
            supervisor.log = supervisor.relog(made.config.log)
        order = {
            "word": "apply",
            "config": base64.b64encode(pickle.dumps(made.config)).decode("ascii"),
            "doors": [[door.place.kind, str(door.place.endpoint)] for door in plan.opened],
        }
        descriptors = [door.socket.fileno() for door in plan.opened]
        supervisor.let_go()
        serving = [worker for worker in supervisor.workers if worker.serving and not worker.deaf]
        self._apply = Apply(wanted, changed, set(serving), time.monotonic() + APPLY_SECONDS)
        supervisor.doors.keep(plan)
        for worker in serving:
            if not worker.channel.put(order, descriptors):
                self.applied(worker, "it hangs")
        # Workers take what waits in a queue before they close a socket, so theirs must be the last copies.
        for door in plan.leaving:
            door.socket.close()
        self._look_at_files = 0.0
        notices.reloaded(changed, supervisor.metrics, supervisor.log)
        self.tell(plan)
        self._finish()

    def applied(self, worker: Worker, error: str) -> None:
        """Note that a worker has put the configuration into force, or replace it because it could not."""
        if self._apply is None or worker not in self._apply.waiting:
            return
        self._apply.waiting.discard(worker)
        if error:
            self._supervisor.log.error(
                "a worker is replaced: it cannot reload", worker=worker.slot, pid=worker.pid, error=error
            )
            self._supervisor.leave(worker)
        self._finish()

    def _finish(self) -> None:
        if self._apply is not None and not self._apply.waiting:
            over, self._apply = self._apply, None
            done(over.wanted, changed=over.changed, warnings=list(self._supervisor.config.warnings))

    def tell(self, plan: Plan) -> None:
        """Tell the log of what is in force now."""
        supervisor = self._supervisor
        for event, facts in told(plan):
            supervisor.log.info(event, **facts)
        notices.warn(supervisor.config, supervisor.made.tls, supervisor.log)

    # ---------------------------------------------------------------- certificates

    def read_certificates(self) -> None:
        """Read all certificates again."""
        if self._supervisor.made.tls is not None:
            self._tell_of_certificates(self._supervisor.made.tls.reload())

    def _tell_of_certificates(self, problems: list[str]) -> None:
        supervisor = self._supervisor
        notices.certificates_read(problems, supervisor.made.tls, supervisor.metrics, supervisor.log)

"""An upgrade in place: new code takes over the supervisor's process, its sockets and its workers.

The order makes sure that nothing is lost when something fails. First the new code is tried in a process of its own,
with everything that it will get; what it finds wrong refuses the upgrade. Then the supervisor executes it. The new
supervisor starts its own workers beside the earlier ones, which go on accepting, and only when all of its own are ready
it has those accept no more. An upgrade that fails at any of these steps leaves the earlier workers serving.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

import mailgate
from mailgate.errors import ConfigProblem
from mailgate.ledger import Ledger, Register
from mailgate.observe.cells import SharedCells
from mailgate.workers.handover import (
    VARIABLE,
    HandedPacket,
    HandedSocket,
    HandedWorker,
    Handover,
    command,
    execute,
)
from mailgate.workers.packets import Channel, Incoming, Packet
from mailgate.workers.worker import Wanted, Worker, done

if TYPE_CHECKING:
    from mailgate.supervisor import Supervisor

TRIAL_SECONDS: Final = 120.0
"""How long new code may take to make everything of the configuration: certificates are opened one by one."""

SETTLE_SECONDS: Final = 30.0
"""How long an upgrade waits for what is under way, such as workers that start, before it is refused."""

QUESTION_SECONDS: Final = 1.0
"""How long it waits for answers to questions; those that come later are lost, and who asked is told."""

LINES: Final = 20
"""How many of the last lines that the new code has said tell why it cannot be used."""


@dataclass(slots=True)
class Trial:
    """The new code, as it makes everything that may fail; ``handed`` are descriptors that were made for it."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]
    deadline: float

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.output.close()
        self.errors.close()

    def problem(self) -> str:
        """Return what it has said is wrong."""
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        said = "; ".join(lines[-LINES:])
        return said or f"the new code ended with status {self.process.returncode}"

    def version(self) -> str | None:
        """Return which version it says it is; None when it has not understood what it was asked."""
        self.output.seek(0)
        try:
            return str(json.loads(self.output.read())["trial"])
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(slots=True)
class Underway:
    """An upgrade: who waits for it, and how far it is. ``settle_by`` is set when all it waits for is a quiet moment."""

    wanted: Wanted = field(default_factory=list)
    trial: Trial | None = None
    version: str = ""
    settle_by: float = math.inf
    hurried: bool = False


class Upgrades:
    """The part of the supervisor that hands its process to new code, and that takes over from earlier code."""

    def __init__(self, supervisor: Supervisor, handed: Handover | None, execute: Callable[..., None] = execute) -> None:
        self._supervisor = supervisor
        self._execute = execute
        self._underway: Underway | None = None
        self._handed = handed
        self._told_failure = False
        self._wanted: Wanted = []

    # ---------------------------------------------------------------- the earlier code

    def want(self, *who: tuple[Worker, int]) -> None:
        """Upgrade soon; ``who`` waits for it, a worker by its number for that."""
        if self._supervisor.stopping:
            done(list(who), error="the gateway is shutting down")
            return
        self._underway = self._underway or Underway()
        self._underway.wanted += who

    def stop(self) -> None:
        """Give up what is under way, since the gateway stops."""
        self._refuse("the gateway is shutting down")
        done(self._wanted, error="the gateway is shutting down")
        self._wanted = []

    def forget(self, worker: Worker) -> None:
        """Answer a worker that has ended no more."""
        if self._underway is not None:
            self._underway.wanted = [one for one in self._underway.wanted if one[0] is not worker]
        self._wanted = [one for one in self._wanted if one[0] is not worker]

    @property
    def due(self) -> float:
        """The moment at which :meth:`turn` has something to do by itself."""
        underway = self._underway
        if underway is None:
            return math.inf
        if underway.trial is not None:
            # Its end is told by SIGCHLD.
            return underway.trial.deadline
        # Nobody tells when all is quiet.
        return time.monotonic() + 0.02

    def turn(self) -> None:
        """Do the next step."""
        self._take_turns()
        underway = self._underway
        if underway is None:
            return
        if underway.settle_by == math.inf:
            self._try(underway)
        elif self._settled(underway):
            self._go(underway)

    def _try(self, underway: Underway) -> None:
        now = time.monotonic()
        trial = underway.trial
        if trial is None:
            if self._supervisor.load is None:
                self._refuse("the gateway was started without a configuration file")
                return
            try:
                underway.trial = self._begin_trial()
            except OSError as error:
                self._refuse(f"the new code cannot be started: {error.strerror or error}")
            return
        if trial.process.poll() is None:
            if now >= trial.deadline:
                self._refuse(f"the new code was not done with its trial within {TRIAL_SECONDS:g} s")
            return
        version = trial.version()
        if trial.process.returncode != 0:
            self._refuse(trial.problem())
        elif version is None:
            self._refuse("what would take this program's place is no mailgate that can take over")
        else:
            trial.close()
            underway.trial, underway.version = None, version
            underway.settle_by = now + SETTLE_SECONDS + self._supervisor.config.shutdown.drain

    def _begin_trial(self) -> Trial:
        handed = handover(self._supervisor, trial=True)
        memory = handed.write()
        # In memory, since a service need not have a folder that it may write to.
        output, errors = (os.fdopen(os.memfd_create("mailgate-trial", os.MFD_CLOEXEC), "w+b") for _ in range(2))
        try:
            process = subprocess.Popen(  # noqa: S603
                command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=dict(os.environ) | {VARIABLE: str(memory)},
                pass_fds=[memory, *handed.descriptors],
            )
        except BaseException:
            output.close()
            errors.close()
            raise
        finally:
            os.close(memory)
        self._supervisor.log.info("the new code is tried", command=" ".join(command()))
        return Trial(process, output, errors, time.monotonic() + TRIAL_SECONDS)

    def _settled(self, underway: Underway) -> bool:
        """Whether nothing is under way that would be lost."""
        supervisor = self._supervisor
        now = time.monotonic()
        late = now >= underway.settle_by
        if any(worker.state == "starting" for worker in supervisor.workers):
            if late:
                self._refuse("workers are still starting")
            return False
        missing = len(supervisor.workers) + supervisor.config.workers - supervisor.slots
        if missing > 0:
            if late:
                self._refuse("too many workers of earlier upgrades still have sessions")
            elif not underway.hurried:
                underway.hurried = True
                leaving = [one for one in supervisor.workers if one.state == "leaving"]
                for worker in sorted(leaving, key=lambda one: one.leave_by)[:missing]:
                    supervisor.log.warning("a worker makes room for an upgrade", worker=worker.slot, pid=worker.pid)
                    supervisor.hurry(worker)
            return False
        if supervisor.questions.open and not late and now < underway.settle_by - SETTLE_SECONDS + QUESTION_SECONDS:
            return False
        return supervisor.quiet

    def _go(self, underway: Underway) -> None:
        """Execute the new code; when that is possible, this program ends here."""
        supervisor = self._supervisor
        with supervisor.holding_signals() as one_came:
            if one_came:
                # It would be lost; the next turn obeys it.
                return
            supervisor.questions.give_up("the gateway is being upgraded")
            handed = handover(supervisor, trial=False, wanted=underway.wanted)
            supervisor.log.info("upgrading", version=underway.version, before=mailgate.__version__)
            try:
                memory = handed.write()
                try:
                    environment = dict(os.environ) | {VARIABLE: str(memory)}
                    self._execute(command(), [memory, *handed.descriptors], environment)
                finally:
                    os.close(memory)
            except OSError as error:
                self._refuse(f"the new code cannot be executed: {error.strerror or error}")

    def _refuse(self, error: str) -> None:
        underway, self._underway = self._underway, None
        if underway is None:
            return
        if underway.trial is not None:
            underway.trial.close()
        self._supervisor.metrics.upgrades.inc("refused")
        self._supervisor.log.error("upgrade refused, everything goes on as it was", error=error)
        done(underway.wanted, error=error)

    # ---------------------------------------------------------------- the new code

    def take(self) -> list[Worker]:
        """Return the earlier program's workers, which are this one's now. From here on nothing is to fail."""
        handed = self._handed
        if handed is None:
            return []
        workers = [_worker(one) for one in handed.workers]
        by_pid = {worker.pid: worker for worker in workers}
        self._wanted = [(by_pid[pid], number) for pid, number in handed.wanted if pid in by_pid]
        # Of what is used of these there are copies.
        for descriptor in (
            handed.cells,
            *handed.ledger,
            *handed.maildrops,
            *(one.descriptor for one in handed.sockets),
        ):
            os.close(descriptor)
        return workers

    def _former(self) -> list[Worker]:
        return [worker for worker in self._supervisor.workers if worker.state == "former"]

    def _take_turns(self) -> None:
        """When this program's workers are all ready, have those before them accept no more."""
        supervisor = self._supervisor
        if self._handed is None or not supervisor.complete:
            return
        handed, self._handed = self._handed, None
        shutdown = supervisor.config.shutdown
        supervisor.metrics.upgrades.inc("ok")
        former = self._former()
        supervisor.log.info("upgraded", version=mailgate.__version__, before=handed.version, leaving=len(former))
        answer = {"version": mailgate.__version__, "before": handed.version, "leaving": len(former)}
        done(self._wanted, **answer)
        self._wanted = []
        for worker in former:
            supervisor.leave(worker, shutdown.upgrade_drain)

    def failed(self, error: str) -> bool:
        """Note that one of this program's workers could not start; return whether earlier ones serve in its place."""
        if self._handed is None or not self._former():
            return False
        problem = error or "a worker ended before it could serve; the log says why"
        if not self._told_failure:
            self._told_failure = True
            self._supervisor.metrics.upgrades.inc("failed")
        self._supervisor.log.error("upgrade failed, the earlier workers go on serving", error=problem)
        done(self._wanted, error=f"the new workers do not start, the earlier ones go on serving: {problem}")
        self._wanted = []
        return True


def handover(supervisor: Supervisor, *, trial: bool, wanted: Wanted | None = None) -> Handover:
    """Return what the next program needs of this one."""
    return Handover(
        version=mailgate.__version__,
        trial=trial,
        slots=supervisor.slots,
        questions=supervisor.questions.numbers,
        sockets=tuple(
            HandedSocket(kind=door.place.kind, endpoint=str(door.place.endpoint), descriptor=door.socket.fileno())
            for door in supervisor.doors.open
        ),
        workers=tuple(_handed(worker) for worker in supervisor.workers),
        ledger=tuple(supervisor.ledger.descriptors),
        cells=supervisor.cells.descriptor,
        maildrops=tuple(supervisor.register.descriptors),
        wanted=tuple((worker.pid, number) for worker, number in wanted or ()),
    )


def _handed(worker: Worker) -> HandedWorker:
    channel = worker.channel
    return HandedWorker(
        slot=worker.slot,
        pid=worker.pid,
        state=worker.state,
        began=worker.began,
        leave_by=worker.leave_by if worker.leave_by < math.inf else None,
        channel=channel.socket.fileno(),
        unsent=tuple(HandedPacket(data=one.data, descriptors=tuple(one.descriptors)) for one in channel.unsent),
        incoming=bytes(channel.incoming.data),
        incoming_descriptors=tuple(channel.incoming.descriptors),
    )


def _worker(handed: HandedWorker) -> Worker:
    unsent = [Packet(one.data, one.descriptors) for one in handed.unsent]
    incoming = Incoming(bytearray(handed.incoming), list(handed.incoming_descriptors))
    channel = Channel(socket.socket(fileno=handed.channel), unsent, incoming)
    # Those that served do so until there are others.
    state = handed.state if handed.state in ("leaving", "ending") else "former"
    leave_by = math.inf if handed.leave_by is None else handed.leave_by
    return Worker(handed.slot, handed.pid, channel, handed.began, state, leave_by=leave_by)


def shared(slots: int, sessions: int, handed: Handover | None) -> tuple[SharedCells, Ledger, Register]:
    """Return what workers share, an earlier program's where that is laid out as this one's.

    A trial gets cells of its own, since to open one's part is to write into it. Raises OSError.
    """
    cells = SharedCells.adopt(handed.cells, slots) if handed is not None and not handed.trial else None
    ledger = _adopted(handed.ledger, slots) if handed is not None else None
    register = Register.adopt(handed.maildrops) if handed is not None else None
    return cells or SharedCells(slots), ledger or Ledger.create(slots, sessions), register or Register.create()


def _adopted(descriptors: Sequence[int], slots: int) -> Ledger | None:
    """Return a ledger with descriptors of its own, if it is one for so many workers."""
    own = [os.dup(descriptor) for descriptor in descriptors]
    ledger = Ledger.adopt(own)
    if ledger is not None and ledger.slots == slots:
        return ledger
    for descriptor in own:
        os.close(descriptor)
    return None


def too_many(workers: int, slots: int) -> ConfigProblem:
    """Return what is wrong with so many workers where what they share has a place for fewer."""
    return ConfigProblem("workers", str(workers), f"more than {slots} need a restart")


def rehearse(supervisor: Supervisor) -> int:
    """Make everything that may fail, say so, and end; return the exit status. Raises what is wrong."""
    supervisor.rehearse()
    sys.stdout.write(json.dumps({"trial": mailgate.__version__}) + "\n")
    return 0

"""The process that starts the workers, hands them what they share, and replaces those that die.

It opens the listening sockets and makes the TLS contexts before it forks, so that any worker may accept any
connection and take any session ticket. It never runs Trio: a process that forks must hold no event loop. What
it does beside waiting is short, except for a reload, which a signal to stop breaks off.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import mailgate
from mailgate.config import Config
from mailgate.doors import Doors, Plan
from mailgate.errors import ConfigError, MailgateError
from mailgate.forking import HEARD, STOPS, fork
from mailgate.generation import server_tls
from mailgate.heritage import (
    LEAVE,
    Ear,
    Load,
    Logger,
    Relog,
    Work,
    allow_files,
)
from mailgate.inherited import Inherited
from mailgate.lockwatch import LockWatch
from mailgate.net.listener import ListenError
from mailgate.observe.metrics import SupervisorMetrics
from mailgate.reloading import Made, Reloads
from mailgate.service import Service
from mailgate.upgrade import Upgrades, shared, too_many
from mailgate.upstream.pool import Upstreams
from mailgate.workers.handover import Handover, taken
from mailgate.workers.packets import Message
from mailgate.workers.questions import Questions
from mailgate.workers.restarts import Restarts
from mailgate.workers.systemd import activated
from mailgate.workers.worker import Worker

SLOTS: Final = 16
"""Workers that there can be at once, those included that only let their last sessions end; three times as many as
are asked for at the start where that is more. What they share has a place for each."""

LATE_SECONDS: Final = 10.0
"""How long behind the drain's limit a worker may take to end before it is killed."""

FORK_SECONDS: Final = 1.0
"""How long to wait when the system has no memory, process or descriptor left for another worker."""

_UNHEEDED: Final = (signal.SIGUSR1,)
"""Signals that would end the process: other mail servers reopen their logs by SIGUSR1, so that scripts send it."""


class Supervisor:
    """Runs workers until it is told to stop. Raises MailgateError or OSError where something cannot be used.

    ``handed`` is what an earlier program, which executed this one, has handed over.
    """

    def __init__(
        self,
        config: Config,
        logger: Logger,
        load: Load | None,
        relog: Relog,
        work: Work,
        handed: Handover | None = None,
    ) -> None:
        self.log = logger
        self.workers: list[Worker] = []
        self.load = load
        self.relog = relog
        self.work = work
        self.ear = Ear()
        self.doors = Doors()
        self.made = Made(config, Upstreams(config, self.ear))
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._came: deque[int] = deque()
        self.questions = Questions(handed.questions if handed is not None else 0)
        self._restarts = Restarts()
        self._not_before = 0.0
        self._started = False
        self.stopping = False
        self._stop_by = 0.0
        self.slots = handed.slots if handed is not None else max(SLOTS, 3 * config.workers)
        self.cells, self.ledger, self.register = shared(self.slots, config.limits.sessions, handed)
        self._lock = LockWatch(self)
        self.metrics = SupervisorMetrics(self.cells)
        self._handed = handed
        self._reloads = Reloads(self)
        self._upgrades = Upgrades(self, handed)
        self.service = Service(self, os.environ)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.made.config

    # ---------------------------------------------------------------- from start to end

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status."""
        self.log.info("starting", version=mailgate.__version__, workers=self.config.workers)
        try:
            self._open()
            self._take_over()
            with self._hearing():
                self._reloads.tell(self.made.plan)
                self.made.plan = Plan()
                # One that ended while nobody was there to hear is told of by no signal.
                self._reap()
                self._keep_number()
                while self.workers or not self.stopping:
                    self._turn()
        finally:
            self._close()
        self.log.info("stopped")
        return 0

    def _open(self) -> None:
        """Make everything that can fail before the first worker."""
        made = self.made
        allow_files(made.config.limits.sessions, self.log)
        made.tls = server_tls(made.config, None)
        sockets = self._handed.sockets if self._handed is not None else ()
        inherited = Inherited(sockets, activated(os.environ))
        made.plan = self.doors.plan(made.config, inherited.open)
        try:
            if made.plan.error is not None:
                raise made.plan.error
            inherited.check()
        except ListenError:
            made.plan.abandon()
            raise
        finally:
            inherited.close()
        self.doors.keep(made.plan)

    def _take_over(self) -> None:
        """Make what an earlier program has handed over this one's own."""
        if self._handed is not None:
            taken(os.environ, self._handed)
            self.workers += self._upgrades.take()
            self._handed = None

    def rehearse(self) -> None:
        """Make everything that can fail, and let go of it. Raises ConfigError, MailgateError or OSError."""
        try:
            if self.config.workers > self.slots:
                raise ConfigError([too_many(self.config.workers, self.slots)])
            self._open()
        finally:
            self._close()

    def _close(self) -> None:
        """Close everything; workers are there only when something went wrong.

        Those that serve see the end of their channel, drain and end; those that have just begun are of no use.
        """
        for worker in self.workers:
            worker.channel.close()
            if not self._started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
        self.doors.close()
        self.ledger.close()
        self._wakeup.close()
        self._waker.close()

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        """Have signals wake the loop instead of ending the process."""
        before = {number: signal.signal(number, self._on_signal) for number in HEARD}
        before |= {number: signal.signal(number, signal.SIG_IGN) for number in _UNHEEDED}
        fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            # Whoever started this process may have held it back until it could be heard.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
            yield
        finally:
            signal.set_wakeup_fd(fd)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The wakeup socket only wakes: it is full when hundreds come while something takes long, and none may be lost.
        self._came.append(number)
        if number in STOPS:
            self._reloads.break_off()

    def _turn(self) -> None:
        """Wait until something happens, and do it."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        by_descriptor = {worker.channel.socket.fileno(): worker for worker in self.workers if not worker.deaf}
        for descriptor, worker in by_descriptor.items():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if worker.channel.waiting else 0))
        for descriptor, mask in poll.poll(self._patience()):
            if descriptor == self._wakeup.fileno():
                self._signalled()
                continue
            worker = by_descriptor[descriptor]
            if mask & select.POLLOUT:
                worker.channel.flush()
            if mask & ~select.POLLOUT and worker in self.workers:
                self._hear(worker)
        self._keep_time()
        self._lock.turn()
        if not self.stopping:
            self._reloads.turn()
            self._keep_number()
            self._upgrades.turn()
        self.service.turn()

    def _patience(self) -> float:
        """Return for how many milliseconds nothing has to be done by itself."""
        moments = [ask.deadline for ask in self.questions.open.values()]
        if self.stopping:
            moments.append(self._stop_by)
        else:
            if self._missing():
                moments.append(self._not_before)
            moments.append(self._upgrades.due)
        moments += [self._reloads.due, self.service.due, self._lock.due]
        moments += [worker.leave_by for worker in self.workers]
        now = time.monotonic()
        left = min([*moments, now + 3600]) - now
        return max(0.0, left * 1000 + 1)

    def _keep_time(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        self.questions.expire(now)
        self._reloads.expire(now)
        late = [worker for worker in self.workers if now >= worker.leave_by or (self.stopping and now >= self._stop_by)]
        for worker in late:
            self.log.error("a worker does not end", worker=worker.slot, pid=worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            worker.leave_by = now + LATE_SECONDS
        if late and self.stopping:
            self._stop_by = now + LATE_SECONDS

    def _signalled(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wakeup.recv(4096):
                continue
        while self._came:
            number = self._came.popleft()
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                if self.stopping:
                    continue
                if self.load is not None:
                    self._reloads.want()
                    continue
                self.service.reloading()
                self._reloads.read_certificates()
                self._say("signal", number=number)
            elif number == signal.SIGUSR2:
                self._upgrades.want()
            elif number in STOPS:
                self._stop(number)

    def _stop(self, number: int) -> None:
        """Have all workers drain; when they do so already, have them end at once."""
        if self.stopping:
            self.log.warning("stopping at once", workers=len(self.workers))
        else:
            self.log.info("stopping", signal=signal.Signals(number).name, workers=len(self.workers))
            # From here on connections are refused, instead of waiting in a queue that nobody serves any more.
            self.doors.close("mail")
            self._reloads.stop()
            self._upgrades.stop()
            self.service.stopping()
        self._stop_by = time.monotonic() + (0 if self.stopping else self.config.shutdown.drain) + LATE_SECONDS
        self.stopping = True
        self._say("signal", number=int(number))
        for worker in self.workers:
            worker.state = "ending"
            worker.leave_by = math.inf

    def _say(self, word: str, **facts: object) -> None:
        """Tell all workers something."""
        for worker in self.workers:
            worker.channel.put({"word": word} | facts)

    # ---------------------------------------------------------------- workers

    def _missing(self) -> int:
        serving = sum(worker.serving for worker in self.workers)
        return max(0, min(self.config.workers - serving, len(self._lock.free_slots())))

    def _keep_number(self) -> None:
        """Start workers that are missing."""
        if time.monotonic() < self._not_before:
            return
        try:
            for _ in range(self._missing()):
                self._fork()
        except OSError as error:
            if not self._started:
                raise
            self.log.error("a worker cannot be started", error=error.strerror or str(error), seconds=FORK_SECONDS)
            self._not_before = time.monotonic() + FORK_SECONDS

    def let_go(self) -> None:
        """Have those workers leave that are too many, the highest numbers first."""
        serving = sorted((one for one in self.workers if one.serving), key=lambda one: one.slot)
        for worker in serving[self.config.workers :]:
            self.leave(worker)

    def leave(self, worker: Worker, seconds: float | None = None) -> None:
        """Have a worker accept no more; its sessions go on to their end, or for some ``seconds`` and then drain."""
        worker.state = "leaving"
        within = {} if seconds is None else {"seconds": seconds}
        worker.channel.put({"word": "signal", "number": int(LEAVE)} | within)
        if seconds is not None:
            worker.leave_by = time.monotonic() + seconds + self.config.shutdown.drain + LATE_SECONDS

    def hurry(self, worker: Worker) -> None:
        """Have a worker that leaves drain now."""
        worker.channel.put({"word": "signal", "number": int(signal.SIGTERM)})
        worker.leave_by = time.monotonic() + self.config.shutdown.drain + LATE_SECONDS

    def _fork(self) -> None:
        worker = fork(self, min(self._lock.free_slots()))
        self.workers.append(worker)
        self.log.debug("a worker begins", worker=worker.slot, pid=worker.pid)

    def disown(self) -> None:
        """Let go, in a worker that has just been forked, of what is the supervisor's alone."""
        for worker in self.workers:
            worker.channel.close()
        self._wakeup.close()
        self._waker.close()

    def _reap(self) -> None:
        for worker in list(self.workers):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: Worker, code: int) -> None:
        """Do what is to be done behind a worker that has ended; ``code`` is negative for a signal."""
        if not worker.deaf:
            self._hear(worker)
        self.workers.remove(worker)
        self._forget(worker)
        self._lock.forget(worker.slot)
        asked_to = worker.state in ("leaving", "ending")
        self.metrics.exited(worker.slot, code, stopped=asked_to)
        if asked_to and code == 0:
            self.log.debug("a worker has ended", worker=worker.slot, pid=worker.pid)
            return
        cause: dict[str, Any] = {"signal": _name(-code)} if code < 0 else {"status": code}
        self.log.error("a worker died", worker=worker.slot, pid=worker.pid, **cause, error=worker.failure or None)
        if not self._started and code > 0 and not self._upgrades.failed(worker.failure):
            # It found something that the next one would find too, unlike one that somebody has killed.
            raise MailgateError(worker.failure or "a worker ended before it could serve; the log says why")
        now = time.monotonic()
        delay = self._restarts.died(now, now - worker.began, worker.slot)
        self._not_before = max(self._not_before, now + delay)
        if delay and not self.stopping:
            self.log.error("workers die again and again", seconds=delay)

    def _forget(self, worker: Worker) -> None:
        """Leave nothing behind of a worker that has ended."""
        worker.channel.close()
        self.questions.forget(worker)
        self._reloads.forget(worker)
        self._upgrades.forget(worker)

    # ---------------------------------------------------------------- what workers say

    def _hear(self, worker: Worker) -> None:
        """Take what a worker has said."""
        try:
            found = worker.channel.receive()
        except EOFError:
            # Its end is told by SIGCHLD; until then there is nothing to hear.
            worker.deaf = True
            return
        self.service.heard(worker)
        for message, descriptors in found:
            for one in descriptors:
                os.close(one)
            self._take(worker, message)

    def _take(self, worker: Worker, message: Message) -> None:
        match message:
            case {"word": "ready"}:
                if worker.state == "starting":
                    worker.state = "ready"
                self._started = self._started or all(one.state != "starting" for one in self.workers)
            case {"word": "failed", "error": str() as error}:
                worker.failure = error
            case {"word": "ask", "number": int() as number, "kind": kind, "facts": facts}:
                self.questions.ask(worker, number, kind, facts, self.workers, time.monotonic())
            case {"word": "reply", "ask": int() as number}:
                self.questions.reply(worker, number, {key: message.get(key) for key in ("answer", "error")})
            case {"word": "reload", "number": int() as number}:
                self._reloads.want((worker, number))
            case {"word": "applied", "error": str() as error}:
                self._reloads.applied(worker, error)
            case {"word": "upgrade", "number": int() as number}:
                self._upgrades.want((worker, number))

    # ---------------------------------------------------------------- upgrading

    @property
    def complete(self) -> bool:
        """Whether there are as many workers as there shall be, all of them ready."""
        return not self._missing() and all(worker.state != "starting" for worker in self.workers)

    @property
    def quiet(self) -> bool:
        """Whether no reload is under way or wanted, and the counts of no dead worker are left to be cleared."""
        return self._reloads.quiet and not self._lock.uncleared

    @contextlib.contextmanager
    def holding_signals(self) -> Iterator[bool]:
        """Hold back the signals that the supervisor hears; the value is whether one came before, not yet obeyed."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        try:
            yield bool(select.select([self._wakeup], [], [], 0)[0])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Real-time signals have no names.
        return str(number)

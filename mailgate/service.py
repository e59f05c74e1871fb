"""What systemd hears of the gateway as a service, and that a worker which hangs is found where it asks for that."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from mailgate.workers.systemd import Notifier, monotonic_microseconds

if TYPE_CHECKING:
    from mailgate.supervisor import Supervisor
    from mailgate.workers.worker import Worker

STATUS_SECONDS: Final = 10.0
"""How often ``systemctl status`` hears how many sessions there are."""

_NO_NUMBER: Final = 0
"""The number of a question that nobody but the supervisor asks; those of workers begin at 1."""


class Service:
    """Tells systemd how a supervisor is, one step behind what happens; without systemd it does nothing."""

    def __init__(self, supervisor: Supervisor, environment: Mapping[str, str]) -> None:
        self._supervisor = supervisor
        self._notifier = Notifier(environment)
        self._watchdog = self._notifier.watchdog if self._notifier else None
        self._ready = False
        self._next_status = 0.0
        self._next_watch = 0.0
        self._unanswered: dict[Worker, float] = {}

    @property
    def due(self) -> float:
        """The moment at which :meth:`turn` has something to do by itself."""
        if not self._notifier:
            return math.inf
        return min(self._next_status, self._next_watch if self._watchdog is not None else math.inf)

    def reloading(self) -> None:
        """Tell that a configuration is read; :meth:`turn` tells when that is over."""
        if self._ready:
            self._ready = False
            self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={monotonic_microseconds()}")

    def stopping(self) -> None:
        """Tell that the gateway drains."""
        self._notifier.tell("STOPPING=1", "STATUS=Draining")

    def heard(self, worker: Worker) -> None:
        """Note that a worker has said something."""
        self._unanswered.pop(worker, None)

    def turn(self) -> None:
        """Tell what is new."""
        if not self._notifier:
            return
        supervisor, now = self._supervisor, time.monotonic()
        if not self._ready and supervisor.quiet and supervisor.complete and not supervisor.stopping:
            self._ready = True
            self._next_status = 0.0
            self._notifier.tell("READY=1")
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            if not supervisor.stopping:
                sessions, workers = supervisor.ledger.sessions(), len(supervisor.workers)
                self._notifier.tell(f"STATUS=Sessions: {sessions}, workers: {workers}")
        if self._watchdog is not None and now >= self._next_watch:
            self._next_watch = now + self._watchdog
            self._notifier.tell("WATCHDOG=1")
            self._look_at_workers(now, 2 * self._watchdog)

    def _look_at_workers(self, now: float, patience: float) -> None:
        """Kill workers that have not answered for so long; ask the others whether they live.

        systemd would end the whole gateway, and with it the sessions of those that are well.
        """
        living = [one for one in self._supervisor.workers if one.state in ("ready", "former", "leaving")]
        self._unanswered = {worker: asked for worker, asked in self._unanswered.items() if worker in living}
        for worker in living:
            asked = self._unanswered.setdefault(worker, now)
            if asked == now:
                worker.channel.put({"word": "asked", "ask": _NO_NUMBER, "kind": "alive", "facts": {}})
            elif now - asked >= patience:
                self._supervisor.log.error("a worker hangs, it is killed", worker=worker.slot, pid=worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

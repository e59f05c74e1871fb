"""The lock of the ledger: the supervisor clears dead workers without waiting for it, and kills one that hangs with it.

A worker that stops while it holds the lock (SIGSTOP, a debugger, a page that the disk does not bring) stops all
others at their next connection, and only its death frees the lock.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mailgate.supervisor import Supervisor

LOOK_SECONDS: Final = 1.0
"""How often to look whether somebody holds the lock: with the time below, clients wait 6 seconds at most."""

CLOSER_SECONDS: Final = 0.25
"""How often to look when somebody held it at the last look, or when the counts of a dead worker are to be cleared."""

LOOKS: Final = 20
"""At so many closer looks in a row, in 5 seconds, the same worker must hold the lock to be killed.

A healthy one holds it for microseconds, under load 2 % of the time: to be met by chance even at five looks in a row
takes years. The others allow for a machine that is overloaded or swaps. Looks are counted, not seconds, since the whole
gateway may have been stopped for a while.
"""


class LockWatch:
    """Looks at the lock in the turns of a supervisor's loop; ``uncleared`` are slots that have no worker any more."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.uncleared: set[int] = set()
        self.due = time.monotonic() + LOOK_SECONDS
        """The moment at which :meth:`turn` has something to do by itself."""
        self._holder = 0
        self._looks = 0

    def forget(self, slot: int) -> None:
        """Take a worker that has ended out of all counts, now or as soon as the lock is free."""
        self.uncleared.add(slot)
        self._clear()
        if self.uncleared:
            self.due = min(self.due, time.monotonic() + CLOSER_SECONDS)

    def free_slots(self) -> set[int]:
        """Return the slots that a new worker may have."""
        taken = {worker.slot for worker in self._supervisor.workers} | self.uncleared
        return set(range(self._supervisor.slots)) - taken

    def turn(self) -> None:
        """Look, and kill the worker that has held the lock for too long."""
        now = time.monotonic()
        if now < self.due:
            return
        self._clear()
        holder = self._supervisor.ledger.holder()
        if holder != self._holder:
            self._holder, self._looks = holder, 0
        elif holder:
            self._looks += 1
        if self._looks >= LOOKS:
            self._kill(holder)
        self.due = now + (CLOSER_SECONDS if holder or self.uncleared else LOOK_SECONDS)

    def _clear(self) -> None:
        self.uncleared = {slot for slot in self.uncleared if not self._supervisor.ledger.forget(slot)}

    def _kill(self, pid: int) -> None:
        # One that is stuck in the kernel dies when that lets go of it: until then it is killed, and told of, again.
        self._looks = 0
        for worker in self._supervisor.workers:
            if worker.pid == pid:
                self._supervisor.log.error("a worker hangs with the lock, it is killed", worker=worker.slot, pid=pid)
                os.kill(pid, signal.SIGKILL)

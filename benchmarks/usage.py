"""What a program and everything it has started use, read from /proc."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the program's name, which may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """Return a program's pid and those of all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """Return the user and system time that a program's tree has used, with processes that ended meanwhile.

    A living process is asked by its CPU clock, which counts nanoseconds; what has ended is known in ticks, by
    itself until it was waited for, and then by its parent.
    """
    total = 0.0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            user, system, *waited = (int(field) * TICK for field in _fields(pid)[11:15])
            try:
                own = time.clock_gettime((~pid << 3) | 2)
            except OSError:
                own = user + system
            total += own + sum(waited)
    return total


def memory(root: int) -> int:
    """Return the memory that a tree has for itself, in bytes; what its processes share counts once.

    Pages of files, which are programs and libraries, are left out: they do not grow with sessions, and a program's
    share of them falls when others that map them start, as the mail server does for each session.
    """
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    return total


class Others:
    """What share of the machine's CPU everybody else takes, from the beginning to when it is asked.

    Programs started from here count as one's own once they have ended and were waited for.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = self._foreign()

    def share(self) -> float:
        """Return a number from 0 (the machine was ours) to 1."""
        capacity = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (self._foreign() - self._before) / capacity))

    @staticmethod
    def _foreign() -> float:
        """Return the seconds in which processors were busy, or withheld by the hypervisor, for others."""
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + irq + softirq + steal) * TICK - sum(os.times()[:4])

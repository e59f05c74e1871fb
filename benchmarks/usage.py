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

    A living process is asked by its CPU clock, which counts nanoseconds; what ended and was waited for
    stands in its parent's account, in ticks.
    """
    total = 0.0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            waited = sum(int(field) for field in _fields(pid)[13:15]) * TICK
            total += time.clock_gettime((~pid << 3) | 2) + waited
    return total


def memory(root: int) -> int:
    """Return a tree's proportional set size in bytes: pages shared by n processes count 1/n in each."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total

"""Processes that a test forks, to do at the same time what one process could not."""

from __future__ import annotations

import os
from collections.abc import Callable


def child(work: Callable[[], None]) -> int:
    """Run ``work`` in a process of its own and return its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def child_at(work: Callable[[Callable[[], None]], None]) -> int:
    """Run ``work`` in a process of its own; return its number once it has called what it is given."""
    reads, writes = os.pipe()

    def tell() -> None:
        os.write(writes, b"x")

    pid = child(lambda: work(tell))
    os.close(writes)
    assert os.read(reads, 1) == b"x"
    os.close(reads)
    return pid


def ended(pid: int) -> int:
    """Wait for a process; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

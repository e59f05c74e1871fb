"""``python -m benchmarks.ports``: what one more connection to a mail server costs the kernel, by how many there are.

Each needs a port of its own (``net.ipv4.ip_local_port_range``). The kernel tries every other port first; when the
last of these is taken, it looks through all of them in vain for each new connection.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator

STEP = 1500
SPARE_DESCRIPTORS = 100


def costs(most: int, step: int = STEP) -> Iterator[tuple[int, float]]:
    """Open connections to one address; return after each step how many there are, and the CPU seconds of one."""
    with contextlib.ExitStack() as held:
        listening = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        address = listening.getsockname()
        child = os.fork()
        if not child:
            taken = []
            while True:
                taken.append(listening.accept()[0])
        held.callback(os.waitpid, child, 0)
        held.callback(os.kill, child, signal.SIGKILL)
        for count in range(step, most + 1, step):
            began = time.process_time()
            for _ in range(step):
                sock = held.enter_context(socket.socket())
                sock.connect(address)
            yield count, (time.process_time() - began) / step


def main() -> int:
    """Measure and print; return the exit status."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = 60_000 if hard == resource.RLIM_INFINITY else hard - SPARE_DESCRIPTORS
    try:
        for count, seconds in costs(most):
            print(f"{count:>6,} connections: {seconds * 1e6:6.0f} µs of CPU for one more", flush=True)
    except OSError as error:
        print(f"no more: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

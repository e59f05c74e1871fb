"""One measurement: the client does a job, and proxy and mail server are asked for their CPU around it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import usage
from benchmarks.plan import JOBS, Job, Sizes
from benchmarks.session import SILENCE
from benchmarks.site import ROOT, Way

SETTLE = 0.05
"""Seconds after a job in which programs finish what the client does not wait for, such as log lines."""

IDLE_SECONDS = 180.0
IDLE_WORKERS = 12

Figures = dict[str, float]


class Failed(Exception):
    """The client could not do its job; says which and why."""


def measured(way: Way, protocol: str, name: str, sizes: Sizes, upstream: int) -> Figures:
    """Let the client do a job once and return its figures, by what they are: ``cpu``, ``p50``, ``rate`` and so on.

    ``upstream`` is the mail server's pid. Shares are CPU seconds per second, of one processor.
    """
    job = JOBS[name]
    with client(way, protocol, job, getattr(sizes, job.amount), sizes.seconds, size=sizes.message) as run:
        before = _cpu(way), usage.cpu_seconds(upstream)
        result = run()
        time.sleep(SETTLE)
        after = _cpu(way), usage.cpu_seconds(upstream)
    units = result.get("bytes", result["count"]) / job.unit
    figures: Figures = {
        "upstream_cpu": (after[1] - before[1]) / units,
        "client_cpu": result["client_cpu"] / units,
        "upstream_share": (after[1] - before[1]) / result["elapsed"],
        "client_share": result["client_cpu"] / result["elapsed"],
        "rate": (result["bytes"] / 1e6 if "bytes" in result else result["count"]) / result["elapsed"],
    }
    if way.pids:
        figures |= {"cpu": (after[0] - before[0]) / units, "proxy_share": (after[0] - before[0]) / result["elapsed"]}
    if "p50" in result:
        figures |= {"p50": result["p50"] * 1e6, "p99": result["p99"] * 1e6}
    if "resumed" in result:
        figures["resumed_share"] = result["resumed"] / result["count"]
    return figures


def idle(way: Way, protocol: str, sessions: int) -> Figures:
    """Return the memory of an idle session; ``way`` must be fresh, or it has memory to reuse."""
    # What a program needs once, whatever the number of sessions, must be there before.
    with client(way, protocol, JOBS["login"], 16, IDLE_SECONDS) as run:
        run()
    before = sum(usage.memory(pid) for pid in way.pids)
    job = Job("idles", "sessions", 1, workers=IDLE_WORKERS)
    with client(way, protocol, job, sessions, IDLE_SECONDS) as run:
        count = run()["count"]
        time.sleep(SETTLE)
        after = sum(usage.memory(pid) for pid in way.pids)
    return {"kib": (after - before) / 1024 / count, "sessions": count}


def _cpu(way: Way) -> float:
    return sum(usage.cpu_seconds(pid) for pid in way.pids)


@contextlib.contextmanager
def client(
    way: Way, protocol: str, job: Job, count: int, seconds: float, size: int = 0
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start the load generator, and yield what lets it do its job; it holds its connections to the block's end."""
    told = {
        "kind": job.kind,
        "protocol": protocol,
        "port": way.ports[protocol],
        "count": count,
        "workers": job.workers,
        "seconds": seconds,
        "sessions": job.sessions,
        "request": job.request,
        "size": size,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.client", json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin, process.stdout
    guard = threading.Timer(seconds + SILENCE, os.killpg, (process.pid, signal.SIGKILL))
    guard.start()

    def answer() -> str:
        if line := out.readline():
            return line.decode()
        _, errors = process.communicate()
        lines = errors.decode().splitlines() or ["no word about it"]
        reason = next((line for line in lines if line.startswith("RuntimeError")), lines[-1])
        raise Failed(f"{job.kind}, {protocol}, upstream {way.upstream}, {way.name}: {reason}")

    def run() -> dict[str, Any]:
        into.write(b"go\n")
        into.flush()
        return json.loads(answer())  # type: ignore[no-any-return]

    try:
        answer()
        yield run
        process.communicate()
    finally:
        guard.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

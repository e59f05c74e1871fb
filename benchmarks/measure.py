"""One measurement: the client does a job, and the trees of proxy and mail server are asked for their CPU around it."""

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
from dataclasses import dataclass
from typing import Any

from benchmarks import client, usage
from benchmarks.ways import Way

SETTLE = 0.05
"""Seconds after a job in which programs finish what the client does not wait for, such as log lines."""

MIB = 1024 * 1024


@dataclass(frozen=True)
class Sizes:
    """How much is done for one figure, and for how long at most."""

    rounds: int
    logins: int
    concurrency: int
    commands: int
    message: int
    fetches: int
    appends: int
    sessions: int
    job_seconds: float
    rounds_seconds: float


FULL = Sizes(
    rounds=3,
    logins=600,
    concurrency=8,
    commands=3000,
    message=50_000_000,
    fetches=6,
    appends=4,
    sessions=500,
    job_seconds=4.0,
    rounds_seconds=170.0,
)
QUICK = Sizes(
    rounds=1,
    logins=60,
    concurrency=4,
    commands=200,
    message=5_000_000,
    fetches=4,
    appends=3,
    sessions=50,
    job_seconds=1.5,
    rounds_seconds=30.0,
)

Figures = dict[str, float]


class Bench:
    """Measures ways to one mail server."""

    def __init__(self, sizes: Sizes, users: dict[str, str], backend: int) -> None:
        self.sizes = sizes
        self.users = users
        self.backend = backend

    # ---------------------------------------------------------------- figures

    def round(self, way: Way, mode: str) -> Figures:
        """Return every figure of a way that needs no fresh program."""
        figures: Figures = {}
        for part in (self.logins, self.commands, self.fetch, self.append):
            figures |= part(way, mode)
        return figures

    def logins(self, way: Way, mode: str) -> Figures:
        result = self._run(way, mode, "logins", self.sizes.logins, concurrency=self.sizes.concurrency)
        return {
            "logins_per_second": result["count"] / result["elapsed"],
            **_cpu("login_cpu_ms", result, result["count"] / 1000),
        }

    def commands(self, way: Way, mode: str) -> Figures:
        result = self._run(way, mode, "commands", self.sizes.commands)
        return {
            "noop_median_us": result["median"] * 1e6,
            "noop_p99_us": result["p99"] * 1e6,
            **_cpu("noop_cpu_us", result, result["count"] / 1e6),
        }

    def fetch(self, way: Way, mode: str) -> Figures:
        return _bulk("fetch", self._run(way, mode, "fetch", self.sizes.fetches))

    def append(self, way: Way, mode: str) -> Figures:
        return _bulk("append", self._run(way, mode, "append", self.sizes.appends, size=self.sizes.message))

    def idle(self, way: Way, mode: str) -> Figures:
        """Return the memory of an idle session; ``way`` should be fresh, or it has memory to reuse."""
        if way.pid is None:
            return {}
        # What a program needs once, whatever the number of sessions, must be there before.
        self._run(way, mode, "logins", 2 * self.sizes.concurrency, concurrency=self.sizes.concurrency)
        before = usage.memory(way.pid)
        with self._job(way, mode, "idle", self.sizes.sessions) as run:
            count = run()["count"]
            time.sleep(SETTLE)
            after = usage.memory(way.pid)
        return {"idle_kib": (after - before) / 1024 / count}

    # ---------------------------------------------------------------- the client

    def _run(self, way: Way, mode: str, kind: str, count: int, **more: int) -> dict[str, Any]:
        """Let the client do a job; its result has the CPU seconds that proxy and mail server used."""
        with self._job(way, mode, kind, count, **more) as run:
            before = [0.0 if pid is None else usage.cpu_seconds(pid) for pid in (way.pid, self.backend)]
            result = run()
            time.sleep(SETTLE)
            after = [0.0 if pid is None else usage.cpu_seconds(pid) for pid in (way.pid, self.backend)]
        result["backend_cpu"] = after[1] - before[1]
        if way.pid is not None:
            result["cpu"] = after[0] - before[0]
        return result

    @contextlib.contextmanager
    def _job(self, way: Way, mode: str, kind: str, count: int, **more: int) -> Iterator[Callable[[], dict[str, Any]]]:
        seconds = self.sizes.job_seconds
        job = {
            "kind": kind,
            "port": way.port(mode),
            "tls": mode == "tls",
            "count": count,
            "users": list(self.users.items()),
            "seconds": seconds,
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, client.__file__, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        guard = threading.Timer(seconds + client.SILENCE, os.killpg, (process.pid, signal.SIGKILL))
        guard.start()

        def answer() -> str:
            if line := process.stdout.readline():
                return line.decode()
            _, errors = process.communicate()
            raise RuntimeError(f"{kind} {mode} {way.name}: the client failed\n{errors.decode()}")

        def run() -> dict[str, Any]:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            return json.loads(answer())

        try:
            answer()
            yield run
            process.communicate()
        finally:
            guard.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _cpu(name: str, result: dict[str, Any], unit: float) -> Figures:
    """Return the CPU per unit of the proxy, if there is one, and beside it that of the mail server and the client."""
    figures = {f"backend_{name}": result["backend_cpu"] / unit, f"client_{name}": result["client_cpu"] / unit}
    if "cpu" in result:
        figures[name] = result["cpu"] / unit
    return figures


def _bulk(name: str, result: dict[str, Any]) -> Figures:
    return {
        f"{name}_mb_per_second": result["bytes"] / result["elapsed"] / 1e6,
        **_cpu(f"{name}_cpu_s_per_gb", result, result["bytes"] / 1e9),
    }

"""``python -m benchmarks.scale``: what mailgate needs for thousands of IMAP sessions in IDLE, and what each more costs.

Sessions are opened in steps. At each step all of them wait for a while, all are told of a new message at once and
then at random, and a few clients work beside them. At the end all clients are gone at once and come back. Every
figure of CPU is of mailgate's processes alone; latencies are of the whole machine, clients and mail server included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import usage
from benchmarks.crowd import Crowd
from benchmarks.measure import SETTLE, Figures
from benchmarks.plan import QUICK
from benchmarks.proxies import mailgate
from benchmarks.report import machine
from benchmarks.site import UPSTREAMS, site
from benchmarks.upstream import SPREAD_SECONDS
from benchmarks.usage import Others

STEPS = (1250, 2500, 5000, 9750)
SPARE_DESCRIPTORS = 400

WARM = 64
"""Logins before anything is measured: what a program needs once must be there before."""

ROWS = {
    "kib": "KiB (PSS) per session",
    "kernel_kib": "KiB of the kernel per session",
    "open_rate": "logins/s while they come",
    "open_cpu": "CPU-ms for each that comes",
    "idle_cpu": "CPU-ms per minute while nothing happens",
    "idle_wakeups": "times per second that it wakes then",
    "burst_cpu": "CPU-µs per message told, all at once",
    "burst_seconds": "seconds until the last client has it",
    "burst_p50": "delay ms, all at once, p50",
    "burst_p99": "delay ms, all at once, p99",
    "spread_cpu": "CPU-µs per message told, over 10 s",
    "spread_p50": "delay ms, over 10 s, p50",
    "spread_p99": "delay ms, over 10 s, p99",
    "noop_p50": "NOOP beside them, ms, p50",
    "noop_p99": "NOOP beside them, ms, p99",
    "noop_most": "NOOP beside them, ms, the longest",
    "login_cpu": "CPU-ms of a login beside them",
    "login_p50": "login beside them, ms, p50",
    "login_p99": "login beside them, ms, p99",
}
RETURN_ROWS = {
    "sessions": "sessions",
    "return_seconds": "seconds until the last is back",
    "return_rate": "logins/s",
    "return_cpu": "CPU-ms for each",
    "return_p50": "seconds from connection to IDLE, p50",
    "return_p99": "seconds from connection to IDLE, p99",
    "return_errors": "connections that failed and were tried again",
    "return_cookies": "of these, SYN cookies that the kernel did not take",
    "return_kib": "KiB (PSS) per session, afterwards",
    "left_kib": "KiB (PSS) that stay for each session when all have gone",
    "again_kib": "KiB (PSS) per session when as many have come once more",
}


@dataclass(frozen=True)
class Amounts:
    """How much is done at each step, and for how long."""

    steps: tuple[int, ...] = STEPS
    idle_seconds: float = 30.0
    noops: int = 400
    logins: int = 150
    pause: float = 0.01
    back_within: float = 5.0
    half_open: int = 2000
    handshake_seconds: float = 10.0
    probe_seconds: int = 0


class Subject:
    """mailgate as it is measured: its processes, and the crowd of its clients."""

    def __init__(self, crowd: Crowd, pid: int, upstream: int) -> None:
        self.crowd = crowd
        self.pid = pid
        self.upstream = upstream
        self.sessions = 0
        self.memory = usage.memory(pid)
        self._kernel = kernel_memory()

    def cpu(self) -> float:
        time.sleep(SETTLE)
        return usage.cpu_seconds(self.pid)

    def kib(self) -> float:
        return (usage.memory(self.pid) - self.memory) / 1024

    def step(self, sessions: int, amounts: Amounts) -> Figures:
        """Have so many sessions, and measure what they need and how it is to be one of them."""
        figures: Figures = {"sessions": sessions}
        came = sessions - self.sessions
        began, cpu = time.monotonic(), self.cpu()
        opened = self._opened(came, 0.0)
        figures |= {
            "open_rate": came / (opened["ended"] - began),
            "open_cpu": (self.cpu() - cpu) * 1e3 / came,
            "open_errors": opened["errors"].total(),
        }
        self.sessions = sessions
        figures |= {"kib": self.kib() / sessions, "kernel_kib": (kernel_memory() - self._kernel) / 2048 / sessions}
        figures |= self._idle(amounts.idle_seconds)
        figures |= self._told("burst", signal.SIGUSR1, 60.0)
        figures |= self._told("spread", signal.SIGUSR2, SPREAD_SECONDS + 30.0)
        trips = self.crowd.alone("noops", amounts.noops, amounts.pause)
        figures |= percentiles("noop", trips, 1e3) | {"noop_most": trips[-1] * 1e3}
        cpu = self.cpu()
        trips = self.crowd.alone("logins", amounts.logins, amounts.pause)
        figures |= percentiles("login", trips, 1e3)
        figures["login_cpu"] = (self.cpu() - cpu) * 1e3 / amounts.logins
        return figures

    def _opened(self, count: int, seconds: float) -> dict[str, Any]:
        opened = self.crowd.open(count, seconds)
        if opened["errors"]:
            print(f"errors: {dict(opened['errors'])}", file=sys.stderr)
        return opened

    def _idle(self, seconds: float) -> Figures:
        before = self.cpu(), wakeups(self.pid)
        time.sleep(seconds)
        return {
            "idle_cpu": (usage.cpu_seconds(self.pid) - before[0]) / seconds * 60e3,
            "idle_wakeups": (wakeups(self.pid) - before[1]) / seconds,
        }

    def _told(self, name: str, order: int, seconds: float) -> Figures:
        """Have the mail server tell everyone of a message."""
        self.crowd.begin_listening(seconds)
        time.sleep(SETTLE)
        cpu = self.cpu()
        began = time.monotonic()
        os.kill(self.upstream, order)
        heard = self.crowd.heard(seconds)
        if len(heard["delays"]) != self.sessions:
            raise RuntimeError(f"{len(heard['delays'])} of {self.sessions} sessions were told of a message")
        return {
            f"{name}_seconds": heard["ended"] - began,
            f"{name}_cpu": (self.cpu() - cpu) * 1e6 / self.sessions,
            **percentiles(name, heard["delays"], 1e3),
        }

    def mass_return(self, within: float) -> Figures:
        """Have all clients gone at once, and back at random within the seconds; then gone, and back once more."""
        count = self.crowd.drop()
        began, cpu, cookies = time.monotonic(), self.cpu(), tcp_count("SyncookiesFailed")
        opened = self._opened(count, within)
        figures: Figures = {
            "sessions": count,
            "return_seconds": opened["ended"] - began,
            "return_rate": count / (opened["ended"] - began),
            "return_cpu": (self.cpu() - cpu) * 1e3 / count,
            "return_errors": opened["errors"].total(),
            "return_cookies": tcp_count("SyncookiesFailed") - cookies,
            "return_kib": self.kib() / count,
            **percentiles("return", opened["trips"], 1.0),
        }
        self.crowd.drop()
        settled(lambda: descriptors(self.pid))
        figures["left_kib"] = self.kib() / count
        self._opened(count, 0.0)
        figures["again_kib"] = self.kib() / count
        return figures


def percentiles(name: str, times: Sequence[float], unit: float) -> Figures:
    """Return the median and the 99th percentile of times in order."""
    return {f"{name}_p50": times[len(times) // 2] * unit, f"{name}_p99": times[len(times) * 99 // 100] * unit}


def wakeups(root: int) -> int:
    """Return how often the processes of a tree have waited for something and gone on."""
    total = 0
    for pid in usage.tree(root):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


def descriptors(root: int) -> int:
    """Return how many files the processes of a tree have open."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in usage.tree(root))


def settled(value: Callable[[], int], seconds: float = 60.0) -> None:
    """Wait until a value has stayed the same for a second."""
    until = time.monotonic() + seconds
    before = -1
    while (at := value()) != before and time.monotonic() < until:
        before = at
        time.sleep(1.0)


def kernel_memory() -> int:
    """Return the bytes that this machine's kernel has for its objects and for what sockets hold.

    Sockets of clients and mail server are among it, which is as much again as the gateway's.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            slab = int(line.split()[1]) * 1024
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            pages = int(line.split()[-1])
    return slab + pages * os.sysconf("SC_PAGE_SIZE")


def tcp_count(name: str) -> int:
    """Return one of the counters that the kernel keeps of TCP (``nstat -az TcpExt*``)."""
    names, values = (
        line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt:")
    )
    return int(values[names.index(name)])


def probes(seconds: int) -> list[int]:
    """Return how many TCP keep-alive probes this machine sent in each of so many seconds to come."""
    counts = []
    began, before = time.monotonic(), tcp_count("TCPKeepAlive")
    for second in range(1, seconds + 1):
        time.sleep(max(0.0, began + second - time.monotonic()))
        at = tcp_count("TCPKeepAlive")
        counts.append(at - before)
        before = at
    return counts


def measured(upstream: str, workers: int, amounts: Amounts) -> dict[str, Any]:
    """Measure a fresh mailgate before a fresh mail server; return what was found."""
    others = Others()
    with tempfile.TemporaryDirectory(prefix="mailgate-scale-") as made, site(Path(made), QUICK.message) as where:
        started = mailgate.start(
            Path(made), where, upstream, "commands", "mailgate", workers, amounts.half_open, amounts.handshake_seconds
        )
        with started as way, Crowd(way.ports["imap"]) as crowd:
            crowd.alone("logins", WARM, 0.0)
            subject = Subject(crowd, way.pids[0], where.pid)
            steps = [subject.step(sessions, amounts) for sessions in amounts.steps]
            found: dict[str, Any] = {"upstream": upstream, "workers": workers, "steps": steps}
            found["empty_mib"] = subject.memory / 2**20
            if amounts.probe_seconds:
                subject._told("burst", signal.SIGUSR1, 60.0)
                found["probes"] = probes(amounts.probe_seconds)
            found["return"] = subject.mass_return(amounts.back_within)
    found["others"] = others.share()
    return found


def markdown(found: dict[str, Any]) -> str:
    """Return a run as tables."""
    workers = "one worker" if found["workers"] == 1 else f"{found['workers']} workers"
    lines = [f"### Upstream {found['upstream']}, {workers}", ""]
    lines += ["| sessions | " + " | ".join(f"{step['sessions']:,}" for step in found["steps"]) + " |"]
    lines += ["| --- |" + " ---: |" * len(found["steps"])]
    lines += [
        f"| {title} | " + " | ".join(figure(step[name]) for step in found["steps"]) + " |"
        for name, title in ROWS.items()
    ]
    lines += ["", "| all clients gone at once, and back |  |", "| --- | ---: |"]
    lines += [f"| {title} | {figure(found['return'][name])} |" for name, title in RETURN_ROWS.items()]
    if "probes" in found:
        counts = found["probes"]
        lines += [
            "",
            f"Keep-alive probes per second: {max(counts):,} at most, {sum(counts) / len(counts):.0f} on average.",
        ]
    lines += ["", f"Without a session mailgate has {found['empty_mib']:.0f} MiB (PSS without programs and libraries)."]
    return "\n".join([*lines, "", f"Other programs took {found['others']:.0%} of the machine's CPU.", ""])


def figure(value: float) -> str:
    """Return a number as tables show it."""
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="scale", description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), metavar="NUMBERS", help="how many sessions")
    parser.add_argument("--upstreams", default=",".join(UPSTREAMS), metavar="NAMES", help="plain, tls")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument(
        "--half-open", type=int, default=2000, metavar="N", help="the limit of connections before login"
    )
    parser.add_argument("--handshake", type=float, default=10.0, metavar="SECONDS", help="its limit of time")
    parser.add_argument("--idle", type=float, default=30.0, metavar="SECONDS", help="how long nothing happens")
    parser.add_argument("--noops", type=int, default=400, metavar="N")
    parser.add_argument("--logins", type=int, default=150, metavar="N")
    parser.add_argument("--back", type=float, default=5.0, metavar="SECONDS", help="within which all clients return")
    parser.add_argument("--probes", type=int, default=0, metavar="SECONDS", help="count keep-alive probes for as long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    steps = tuple(map(int, options.steps.split(",")))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and max(steps) > (most := (hard - SPARE_DESCRIPTORS) // 2 * options.workers):
        parser.error(f"the limit of open files ({hard:,}) allows {most:,} sessions")
    amounts = Amounts(
        steps,
        options.idle,
        options.noops,
        options.logins,
        back_within=options.back,
        half_open=options.half_open,
        handshake_seconds=options.handshake,
        probe_seconds=options.probes,
    )
    described = ", ".join(f"{name} {value}" for name, value in machine({}).items())
    runs = []
    for upstream in options.upstreams.split(","):
        runs.append(measured(upstream, options.workers, amounts))
        print(markdown(runs[-1]), flush=True)
    print(described)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": described, "runs": runs}) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

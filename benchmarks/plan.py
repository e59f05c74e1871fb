"""What is measured, how much of it, and what the figures are called."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.site import PROTOCOLS


@dataclass(frozen=True)
class Job:
    """One thing that the load generator does; ``kind`` is its method, ``amount`` the name of a size."""

    kind: str
    amount: str
    unit: float
    """How many of what is counted make one unit of CPU: a login's milliseconds, a command's microseconds, a GB."""
    workers: int
    sessions: int = 1
    request: str = "noop"
    protocols: tuple[str, ...] = PROTOCOLS


JOBS = {
    "login": Job("logins", "logins", 1e3, workers=8),
    "resumed": Job("resumed_logins", "logins", 1e3, workers=8),
    "lone": Job("exchanges", "lone", 1e6, workers=1),
    "busy": Job("exchanges", "commands", 1e6, workers=1, sessions=10),
    "small": Job("exchanges", "smalls", 1e6, workers=1, sessions=10, request="small"),
    "fetch": Job("fetches", "fetches", 1e9, workers=2),
    "append": Job("appends", "appends", 1e9, workers=2, protocols=("imap",)),
}

IDLE = "idle"
"""The memory of idle sessions, which is measured by itself."""

COLUMNS = {
    "login.cpu": "CPU-ms per login, full handshake",
    "resumed.cpu": "CPU-ms per login, resumed",
    "login.rate": "logins/s, full handshake",
    "busy.cpu": "CPU-µs per command, 10 busy sessions",
    "lone.cpu": "CPU-µs per command, 1 session",
    "lone.p50": "latency µs, 1 session, p50",
    "lone.p99": "latency µs, 1 session, p99",
    "busy.p50": "latency µs, 10 busy sessions, p50",
    "busy.p99": "latency µs, 10 busy sessions, p99",
    "small.cpu": "CPU-µs per small FETCH (4 KB)",
    "fetch.cpu": "CPU-s per GB fetched",
    "fetch.rate": "MB/s fetched, 2 sessions",
    "append.cpu": "CPU-s per GB appended",
    "append.rate": "MB/s appended, 2 sessions",
    "idle.kib": "KiB per idle session",
}
"""The figures of the tables, in their order: the job and what of it."""

POP3_NAMES = {"small FETCH": "small RETR", "fetched": "retrieved"}

COSTS = [name for name in COLUMNS if name.endswith((".cpu", ".kib"))] + ["lone.p50"]
"""The figures that are compared as ratios; the CPU-based ones are the proxy's own."""


def title(figure: str, protocol: str) -> str:
    """Return a figure's name as the protocol's people say it."""
    text = COLUMNS[figure]
    if protocol == "pop3":
        for imap, pop3 in POP3_NAMES.items():
            text = text.replace(imap, pop3)
    return text


@dataclass(frozen=True)
class Sizes:
    """How much is done for one figure of one round, and for how long at most."""

    rounds: int
    idle_rounds: int
    protocols: tuple[str, ...]
    every_proxy: bool
    jobs: tuple[str, ...] = (*JOBS, IDLE)
    logins: int = 600
    lone: int = 3000
    commands: int = 10_000
    smalls: int = 6000
    message: int = 50_000_000
    fetches: int = 8
    appends: int = 6
    sessions: int = 2000
    seconds: float = 0.8
    limit: float = 230.0
    """After how many seconds no further round begins."""


DEFAULT = Sizes(rounds=5, idle_rounds=1, protocols=("imap",), every_proxy=False)
FULL = Sizes(rounds=7, idle_rounds=7, protocols=PROTOCOLS, every_proxy=True, limit=3600.0)
QUICK = Sizes(
    rounds=1,
    idle_rounds=1,
    protocols=PROTOCOLS,
    every_proxy=False,
    logins=48,
    lone=150,
    commands=500,
    smalls=200,
    message=2_000_000,
    fetches=4,
    appends=4,
    sessions=50,
    seconds=0.5,
    limit=60.0,
)
LARGE_SESSIONS = 10_000

Raw = dict[str, dict[str, dict[str, dict[str, list[float | None]]]]]
"""Every figure of every round, by protocol, upstream, way and figure."""


@dataclass(frozen=True)
class Run:
    """What a run has found, and where and how."""

    machine: dict[str, str]
    sizes: Sizes
    rounds: Raw
    others: dict[str, float]
    """What share of the machine others took, in each part of the run."""
    failures: list[str]
    """What could not be measured; it is missing in its round."""

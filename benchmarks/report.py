"""The machine and the figures as Markdown."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.plan import COLUMNS, IDLE, JOBS, Run, title
from benchmarks.proxies import PROXIES, Proxy
from benchmarks.ratios import Ratio, Samples, median
from benchmarks.site import find
from benchmarks.targets import Verdict, verdicts

Ways = Mapping[str, Mapping[str, Samples]]

PROTOCOLS = {"imap": "IMAP", "pop3": "POP3"}
UPSTREAMS = {"plain": "upstream plain", "tls": "upstream TLS"}
WHILE = {"rounds": "while this ran", IDLE: "while memory was measured"}
ALMOST = 0.95
"""The share of resumed handshakes below which a proxy's figure of them is not one."""


def machine(proxies: Mapping[str, Proxy]) -> dict[str, str]:
    """Describe where the figures come from, without the names of hosts or folders."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    found = re.match(r"[\d.]+", platform.release())
    described = {
        "CPU": model[1] if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": found[0] if found else platform.release(),
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
    }
    for proxy in proxies.values():
        if proxy.program:
            described[proxy.title.split()[0]] = _version(*proxy.program)
    return described


def _version(program: str, option: str) -> str:
    ran = subprocess.run([find(program), option], capture_output=True, text=True, check=False, timeout=10)
    found = re.search(r"\d+(\.\d+)+", ran.stdout + ran.stderr)
    return found[0] if found else "unknown"


def markdown(run: Run) -> str:
    """Return the whole report."""
    sizes, raw, others = run.sizes, run.rounds, run.others
    first = next(iter(raw.values()))
    rounds = max(len(samples) for ways in first.values() for way in ways.values() for samples in way.values())
    while_that = " and ".join(f"{share:.0%} of the machine's CPU {WHILE[part]}" for part, share in others.items())
    what = (
        f"{rounds} round{'s' * (rounds != 1)}, medians. Each figure: at most {sizes.logins} logins by "
        f"{JOBS['login'].workers} clients, {sizes.commands:,} commands on 10 sessions, {sizes.lone:,} on one, "
        f"{sizes.smalls:,} small messages, {sizes.fetches} times {sizes.message / 1e6:.0f} MB fetched and "
        f"{sizes.appends} times appended on 2 sessions, {sizes.seconds} s each; {sizes.sessions:,} idle sessions. "
        f"Other programs took {while_that}."
    )
    parts = [", ".join(f"{name} {value}" for name, value in run.machine.items()) + ".", what]
    if run.failures:
        parts.append("**Failed:** " + "; ".join(run.failures) + ".")
    for protocol, upstreams in raw.items():
        name = PROTOCOLS[protocol]
        parts.append(f"### Targets, {name}\n\n{_targets(verdicts(upstreams), protocol)}")
        for upstream, ways in upstreams.items():
            parts.append(f"### {name}, {UPSTREAMS[upstream]}\n\n{_figures(ways, protocol)}")
            if missing := _not_resumed(ways):
                parts.append(missing)
    loads = [f"### Who was busy, {UPSTREAMS[upstream]}\n\n{_loads(ways)}" for upstream, ways in first.items()]
    return "\n\n".join(parts + loads)


def _targets(found: Iterable[Verdict], protocol: str) -> str:
    rows = [
        ["mailgate's figure", "upstream", "beside", "ratio (interval)", "target", ""],
        ["---"] * 3 + ["---:"] * 2 + ["---"],
    ]
    for verdict in found:
        target = verdict.target
        if verdict.ratio is not None:
            outcome = str(verdict) if verdict.met else f"**{verdict}**"
            who = PROXIES[target.peer].title
            limit = f"≤ {target.limit:g}"
            rows.append([title(target.figure, protocol), target.upstream, who, interval(verdict.ratio), limit, outcome])
    return _table(rows)


def interval(found: Ratio) -> str:
    """Return a ratio with its interval; a tilde says that there were too few pairs for 95 %."""
    return f"{found.median:.2f} ({'' if found.certain else '~'}{found.low:.2f}–{found.high:.2f})"


def _figures(ways: Ways, protocol: str) -> str:
    rows = [["", *(_name(way) for way in ways)], ["---", *("---:" for _ in ways)]]
    for figure in COLUMNS:
        values = [median(figures.get(figure, ())) for figures in ways.values()]
        if any(value is not None for value in values):
            rows.append([title(figure, protocol), *map(_number, values)])
    return _table(rows)


def _not_resumed(ways: Ways) -> str:
    """Say for whom the resumed logins were none."""
    shares = {way: median(figures.get("resumed.resumed_share", ())) for way, figures in ways.items()}
    poor = [f"{_name(way)} {share:.0%}" for way, share in shares.items() if share is not None and share < ALMOST]
    return f"Handshakes that were really resumed where they should have been: {', '.join(poor)}." if poor else ""


def _loads(ways: Ways) -> str:
    """Return who used how much of one processor: proxy / mail server / client."""
    rows = [
        ["% of a core: proxy / mail server / client", *(_name(way) for way in ways)],
        ["---", *("---:" for _ in ways)],
    ]
    for job in JOBS:
        shares = [
            [median(figures.get(f"{job}.{who}_share", ())) for who in ("proxy", "upstream", "client")]
            for figures in ways.values()
        ]
        if any(share is not None for cell in shares for share in cell):
            rows.append([job, *(" / ".join(map(_percent, cell)) for cell in shares)])
    return _table(rows)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.0f}"


def _name(way: str) -> str:
    return PROXIES[way].title if way in PROXIES else "no proxy"


def _table(rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

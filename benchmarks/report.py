"""The machine and the figures as Markdown."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
from pathlib import Path

from benchmarks.measure import Figures, Sizes
from benchmarks.ways import DIRECT, find

COLUMNS = {
    "logins_per_second": "logins/s",
    "login_cpu_ms": "CPU-ms per login",
    "noop_median_us": "NOOP µs, median",
    "noop_p99_us": "NOOP µs, p99",
    "noop_cpu_us": "CPU-µs per NOOP",
    "fetch_mb_per_second": "FETCH MB/s",
    "fetch_cpu_s_per_gb": "CPU-s per GB fetched",
    "append_mb_per_second": "APPEND MB/s",
    "append_cpu_s_per_gb": "CPU-s per GB appended",
    "idle_kib": "KiB per idle session",
}
"""What the tables show, in their order; the JSON has the mail server's and the client's CPU as well."""

OF_A_PROXY = frozenset(name for name in COLUMNS if "_cpu_" in name or name == "idle_kib")
"""What the direct way does not have."""

NAMES = {DIRECT: "directly", "mailgate": "**mailgate**", "dovecot": "Dovecot proxy", "nginx": "nginx mail"}
MODES = {"tls": "Clients over TLS", "plain": "Clients in clear"}


def machine() -> dict[str, str]:
    """Describe where the figures come from, without the names of hosts or folders."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "CPU": model[1] if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": re.match(r"[\d.]+", platform.release())[0],
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        "Dovecot": _version("dovecot", "--version"),
        "nginx": _version("nginx", "-v"),
    }


def _version(program: str, option: str) -> str:
    ran = subprocess.run([find(program), option], capture_output=True, text=True, check=True, timeout=10)
    found = re.search(r"\d+(\.\d+)+", ran.stdout + ran.stderr)
    return found[0] if found else "unknown"


def markdown(
    described: dict[str, str], sizes: Sizes, figures: dict[str, dict[str, Figures]], rounds: int, others: float
) -> str:
    """Return the whole report: figures by mode, way and name; ``others`` is the share of CPU that was not ours."""
    what = (
        f"{_times(rounds, 'round')}; for each figure at most {sizes.logins} logins by {sizes.concurrency} clients, "
        f"{sizes.commands} NOOP, {sizes.fetches} FETCH and {sizes.appends} APPEND of {sizes.message / 1e6:.0f} MB, "
        f"{sizes.sessions} idle sessions. Meanwhile other programs took {others:.0%} of the machine's CPU."
    )
    parts = [", ".join(f"{name} {value}" for name, value in described.items()) + ".", what]
    for mode, ways in figures.items():
        parts.append(f"### {MODES[mode]}\n\n{_table(ways)}")
    return "\n\n".join(parts)


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s, medians")


def _table(ways: dict[str, Figures]) -> str:
    rows = [["", *(NAMES[name] for name in ways)], ["---", *("---:" for _ in ways)]]
    for column, title in COLUMNS.items():
        rows.append([title, *(_number(figures.get(column)) for figures in ways.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

"""``python -m benchmarks.shares``: where mailgate's CPU goes, by perf: the kernel, OpenSSL, Python, libc.

Each job of the benchmarks runs for some seconds while perf samples all processes of the proxy. Python's share is the
interpreter with its extension modules; libc's (copying and allocating memory) is mostly done for Python.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.measure import client
from benchmarks.plan import JOBS, QUICK
from benchmarks.proxies import PROXIES
from benchmarks.site import UPSTREAMS, Way, site
from benchmarks.usage import tree

SECONDS = 4.0
RATE = 2999
"""Samples per second: not a divisor of the kernel's own ticks, so that the two do not march in step."""

PARTS = {
    "kernel": re.compile(r"\[kernel|\[k\]|\[vdso|\[unknown"),
    "OpenSSL": re.compile(r"libcrypto|libssl"),
    "Python": re.compile(r"python|\.cpython-"),
    "libc": re.compile(r"libc[.-]|ld-linux|libm[.-]|libpthread"),
}
LINE = re.compile(r"^\s*([0-9.]+)%\s+(\S+)\s+(.*)$")


def sampled(way: Way, protocol: str, name: str, folder: Path) -> list[tuple[float, str, str]]:
    """Do a job while perf looks on; return each symbol's share in per cent, its program or library, and its name."""
    job = JOBS[name]
    data = folder / f"{way.name}-{way.upstream}-{name}.perf"
    pids = ",".join(str(one) for pid in way.pids for one in tree(pid))
    with client(way, protocol, job, 10_000_000, SECONDS, size=10_000_000) as run:
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(RATE), "-p", pids, "-o", str(data)]
        watch = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with contextlib.ExitStack() as stack:
            stack.callback(watch.wait)
            stack.callback(watch.send_signal, signal.SIGINT)
            run()
    report = subprocess.run(
        ["perf", "report", "-q", "-i", str(data), "--stdio", "--sort", "dso,sym", "--percent-limit", "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = filter(None, map(LINE.match, report.stdout.splitlines()))
    return [(float(line[1]), line[2], line[3].strip()) for line in lines]


def part_of(library: str) -> str:
    """Return which of the parts a program or library belongs to."""
    return next((part for part, pattern in PARTS.items() if pattern.search(library)), "other")


def main(arguments: list[str]) -> int:
    """Print a table of shares for the jobs asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description=__doc__)
    parser.add_argument("--ways", default="mailgate", metavar="NAMES", help="which proxies")
    parser.add_argument("--jobs", default=",".join(JOBS), metavar="NAMES", help="which figures")
    parser.add_argument("--upstreams", default=",".join(UPSTREAMS), metavar="NAMES", help="plain, tls")
    parser.add_argument("--protocol", default="imap", choices=("imap", "pop3"))
    parser.add_argument("--symbols", type=int, default=0, metavar="N", help="list this many symbols of each, too")
    chosen = parser.parse_args(arguments)
    columns = [*PARTS, "other"]
    print("| % of the CPU | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    with tempfile.TemporaryDirectory(prefix="mailgate-shares-") as made:
        folder = Path(made)
        folder.chmod(0o711)
        with site(folder, QUICK.message * 5) as where:
            for upstream in chosen.upstreams.split(","):
                for name in chosen.ways.split(","):
                    place = folder / f"{name}-{upstream}"
                    place.mkdir()
                    with PROXIES[name].start(place, where, upstream) as way:
                        for job in chosen.jobs.split(","):
                            found = sampled(way, chosen.protocol, job, place)
                            parts: Counter[str] = Counter()
                            for share, library, _ in found:
                                parts[part_of(library)] += share
                            shares = " | ".join(f"{parts[column]:.0f}" for column in columns)
                            print(f"| {name}, upstream {upstream}, {job} | {shares} |", flush=True)
                            for share, library, symbol in found[: chosen.symbols]:
                                print(f"    {share:5.1f} {library} {symbol}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

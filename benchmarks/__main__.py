"""``python -m benchmarks``: measures mailgate beside its peers on this machine and prints tables."""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks import plot, report
from benchmarks.plan import DEFAULT, FULL, LARGE_SESSIONS, QUICK, Run, Sizes
from benchmarks.proxies import PROXIES
from benchmarks.rounds import measure
from benchmarks.site import PROTOCOLS, Missing

SPARE_DESCRIPTORS = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, allow_abbrev=False)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="little of everything: shows that it works, nothing else")
    size.add_argument("--full", action="store_true", help="every proxy, POP3 too, 7 rounds")
    parser.add_argument("--large", action="store_true", help=f"{LARGE_SESSIONS:,} idle sessions")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each figure is taken")
    parser.add_argument("--ways", metavar="NAMES", help=f"only these proxies: {', '.join(PROXIES)}")
    parser.add_argument("--protocols", metavar="NAMES", help="only these of imap and pop3")
    parser.add_argument("--jobs", metavar="NAMES", help=f"only these figures: {', '.join(DEFAULT.jobs)}")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: what an earlier run wrote as JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the ratios there")
    options = parser.parse_args(arguments)
    try:
        found = _shown(options.show) if options.show is not None else _measured(options, parser)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(dataclasses.asdict(found)) + "\n", encoding="utf-8")
    if options.svg is not None:
        options.svg.write_text(plot.svg(next(iter(found.rounds.values()))), encoding="utf-8")
    print(report.markdown(found))
    return 1 if found.failures else 0


def _shown(path: Path) -> Run:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Run(**content | {"sizes": Sizes(**content["sizes"])})


def _measured(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Run:
    sizes = QUICK if options.quick else FULL if options.full else DEFAULT
    if options.rounds is not None:
        if options.rounds < 1:
            parser.error("--rounds must be 1 or more")
        sizes = dataclasses.replace(sizes, rounds=options.rounds, idle_rounds=options.rounds, limit=FULL.limit)
    proxies = {name: proxy for name, proxy in PROXIES.items() if proxy.basic or sizes.every_proxy}
    if options.ways is not None:
        proxies = {name: PROXIES[name] for name in _names(options.ways, PROXIES, parser)}
    if options.protocols is not None:
        sizes = dataclasses.replace(sizes, protocols=tuple(_names(options.protocols, PROTOCOLS, parser)))
    if options.jobs is not None:
        sizes = dataclasses.replace(sizes, jobs=tuple(_names(options.jobs, DEFAULT.jobs, parser)))
    wanted = LARGE_SESSIONS if options.large else sizes.sessions
    sizes = dataclasses.replace(sizes, sessions=min(wanted, _most_sessions()))
    described = report.machine(proxies)
    return Run(described, sizes, *measure(sizes, proxies))


def _names(text: str, known: Collection[str], parser: argparse.ArgumentParser) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}")
    return names


def _most_sessions() -> int:
    """Let the programs started from here have all descriptors they may, and tell how many sessions these allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return LARGE_SESSIONS if hard == resource.RLIM_INFINITY else (hard - SPARE_DESCRIPTORS) // 2


if __name__ == "__main__":
    sys.exit(main())

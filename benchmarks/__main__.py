"""``python -m benchmarks``: measures mailgate beside its peers on this machine and prints tables."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from benchmarks import plot, report, usage
from benchmarks.measure import Failed, Figures, idle, measured
from benchmarks.plan import DEFAULT, FULL, IDLE, JOBS, LARGE_SESSIONS, QUICK, Raw, Run, Sizes
from benchmarks.proxies import PROXIES, Proxy
from benchmarks.site import PROTOCOLS, UPSTREAMS, Missing, Site, Way, site

DIRECT = "direct"
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
        sizes = dataclasses.replace(
            sizes, rounds=options.rounds, idle_rounds=min(options.rounds, sizes.idle_rounds), limit=FULL.limit
        )
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


def measure(sizes: Sizes, proxies: dict[str, Proxy]) -> tuple[Raw, dict[str, float], list[str]]:
    """Return the figures of every round, the share of the machine that others took in each part, and what failed."""
    raw: Raw = {protocol: {upstream: {} for upstream in UPSTREAMS} for protocol in sizes.protocols}
    others = {}
    failures: list[str] = []
    parts = {"rounds": _rounds, IDLE: _idle}
    if IDLE not in sizes.jobs:
        del parts[IDLE]
    if not set(sizes.jobs) - {IDLE}:
        del parts["rounds"]
    for name, part in parts.items():
        watch = usage.Others()
        with tempfile.TemporaryDirectory(prefix="mailgate-bench-") as made:
            folder = Path(made)
            # Servers drop their rights, and must still reach what lies below.
            folder.chmod(0o711)
            with site(folder, sizes.message) as where:
                part(sizes, proxies, where, raw, failures)
        others[name] = watch.share()
    return raw, others, failures


def _rounds(sizes: Sizes, proxies: dict[str, Proxy], where: Site, raw: Raw, failures: list[str]) -> None:
    """Measure everything but memory, the ways in turn for each figure, as often as wanted and as the time allows."""
    with contextlib.ExitStack() as stack:
        ways: dict[str, list[Way]] = {}
        for upstream in UPSTREAMS:
            ways[upstream] = [
                stack.enter_context(_started(proxies, name, where, upstream))
                for name in proxies
                if upstream in proxies[name].upstreams
            ]
            ways[upstream].append(Way(DIRECT, upstream, where.ports["tls"], ()))
        began = time.monotonic()
        for number in range(sizes.rounds):
            if time.monotonic() - began > sizes.limit * number / (number + 1) and number:
                _say("no time for further rounds")
                break
            for protocol, upstream, job in _figures(sizes):
                _say(f"round {number + 1}, {protocol}, upstream {upstream}, {job}")
                # Every other round goes backwards, so that nobody always comes after the same one.
                for way in ways[upstream][:: -1 if number % 2 else 1]:
                    with _noted(failures):
                        figures = measured(way, protocol, job, sizes, where.pid)
                        _note(raw[protocol][upstream], way.name, job, figures, number)


@contextlib.contextmanager
def _noted(failures: list[str]) -> Iterator[None]:
    """Note that something failed, and go on: one figure of one round is not worth a whole run."""
    try:
        yield
    except Failed as failed:
        _say(f"failed: {failed}")
        failures.append(str(failed))


def _figures(sizes: Sizes) -> Iterator[tuple[str, str, str]]:
    for protocol in sizes.protocols:
        for upstream in UPSTREAMS:
            for name, job in JOBS.items():
                if protocol in job.protocols and name in sizes.jobs:
                    yield protocol, upstream, name


def _idle(sizes: Sizes, proxies: dict[str, Proxy], where: Site, raw: Raw, failures: list[str]) -> None:
    """Measure idle sessions, each time in a program that has done nothing else."""
    protocol = sizes.protocols[0]
    for number in range(sizes.idle_rounds):
        for upstream in UPSTREAMS:
            for name, proxy in proxies.items():
                if upstream in proxy.upstreams:
                    _say(f"idle sessions, round {number + 1}, upstream {upstream}, {name}")
                    with _noted(failures), _started(proxies, name, where, upstream, f"idle-{number}") as way:
                        figures = idle(way, protocol, min(sizes.sessions, proxy.most_idle))
                        _note(raw[protocol][upstream], name, IDLE, figures, number)


@contextlib.contextmanager
def _started(proxies: dict[str, Proxy], name: str, where: Site, upstream: str, kind: str = "way") -> Iterator[Way]:
    folder = where.folder / f"{kind}-{name}-{upstream}"
    folder.mkdir()
    with proxies[name].start(folder, where, upstream) as way:
        yield way


def _note(ways: dict[str, dict[str, list[float | None]]], way: str, job: str, figures: Figures, number: int) -> None:
    """Put one measurement's figures in the place of its round."""
    for what, value in figures.items():
        samples = ways.setdefault(way, {}).setdefault(f"{job}.{what}", [])
        samples += [None] * (number - len(samples))
        # More digits than four would only be noise in the file.
        samples.append(float(f"{value:.4g}"))


def _most_sessions() -> int:
    """Let the programs started from here have all descriptors they may, and tell how many sessions these allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return (hard - SPARE_DESCRIPTORS) // 2


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

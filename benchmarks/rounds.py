"""A run: the proxies are started, and everything is measured of all ways in turn."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import usage
from benchmarks.measure import Failed, Figures, idle, measured
from benchmarks.plan import IDLE, JOBS, Raw, Sizes
from benchmarks.proxies import Proxy
from benchmarks.site import UPSTREAMS, Site, Way, site

DIRECT = "direct"


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
            if number and (time.monotonic() - began) * (number + 1) / number > sizes.limit:
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

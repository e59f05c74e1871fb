"""``python -m benchmarks``: measures mailgate beside its peers on this machine and prints tables."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, usage
from benchmarks.client import Session, message
from benchmarks.measure import FULL, QUICK, Bench, Figures, Sizes
from benchmarks.ways import (
    DIRECT,
    KEEP_PROCESSES,
    PROXIES,
    STORE_AS_SENT,
    Missing,
    Pair,
    Way,
    backend,
    issue_pair,
)
from tests.support.servers import Dovecot

USERS = {f"user{number}@example.org": f"word{number}" for number in range(8)}
MODES = ("tls", "plain")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it works, nothing else")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each figure is taken (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds there")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    if options.rounds is not None:
        if options.rounds < 1:
            parser.error("--rounds must be 1 or more")
        sizes = dataclasses.replace(sizes, rounds=options.rounds)
    try:
        described = report.machine()
        others = usage.Others()
        raw = measure(sizes)
        foreign = others.share()
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    figures = {mode: {way: medians(rounds) for way, rounds in ways.items()} for mode, ways in raw.items()}
    if options.json is not None:
        content = {
            "machine": described,
            "sizes": dataclasses.asdict(sizes),
            "others": foreign,
            "figures": figures,
            "rounds": raw,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    done = len(raw[MODES[0]][DIRECT])
    print(report.markdown(described, sizes, figures, done, foreign))
    return 0


def medians(rounds: list[Figures]) -> Figures:
    """Return each figure's median over the rounds that have it."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: statistics.median(figures[name] for figures in rounds if name in figures) for name in names}


def measure(sizes: Sizes) -> dict[str, dict[str, list[Figures]]]:
    """Return the figures of every round, by mode and way."""
    _raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="mailgate-bench-") as name:
        folder = Path(name)
        # Servers drop their rights, and must still reach what lies below.
        folder.chmod(0o711)
        pair = issue_pair(folder)
        memory = _memory(sizes, pair, folder)
        raw = _rounds(sizes, pair, folder)
    for (mode, way), figures in memory.items():
        raw[mode][way][0] |= figures
    return raw


def _memory(sizes: Sizes, pair: Pair, folder: Path) -> dict[tuple[str, str], Figures]:
    """Measure idle sessions, each time in a program that has done nothing else.

    The mail server is one of its own: the hundreds of processes that it starts here would be woken by each
    later login if it kept them.
    """
    found: dict[tuple[str, str], Figures] = {}
    with backend(folder / "idle-backend", pair, USERS, STORE_AS_SENT) as server:
        bench = Bench(sizes, USERS, server.program.pid)
        for mode in MODES:
            for name, start in PROXIES.items():
                _say(f"idle sessions, {mode}, {name}")
                with start(folder / f"idle-{mode}-{name}", pair, server.imap) as way:
                    found[mode, name] = bench.idle(way, mode)
    return found


def _rounds(sizes: Sizes, pair: Pair, folder: Path) -> dict[str, dict[str, list[Figures]]]:
    """Measure everything else, the ways in turn, as often as wanted and as the time allows."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(backend(folder / "backend", pair, USERS, KEEP_PROCESSES))
        _store_message(server, sizes.message)
        bench = Bench(sizes, USERS, server.program.pid)
        ways = [Way(DIRECT, server.imaps, server.imap, None)]
        for name, start in PROXIES.items():
            ways.append(stack.enter_context(start(folder / name, pair, server.imap)))
        raw: dict[str, dict[str, list[Figures]]] = {mode: {way.name: [] for way in ways} for mode in MODES}
        for number in range(sizes.rounds):
            if number and (time.monotonic() - began) * (number + 1) / number > sizes.rounds_seconds:
                _say("no time for further rounds")
                break
            for mode in MODES:
                for way in ways:
                    _say(f"round {number + 1}, {mode}, {way.name}")
                    raw[mode][way.name].append(bench.round(way, mode))
    return raw


def _store_message(server: Dovecot, size: int) -> None:
    session = Session(server.imap, None)
    session.login(*next(iter(USERS.items())))
    session.append("INBOX", message(size))
    session.command(b"LOGOUT")
    session.close()


def _raise_file_limit() -> None:
    """Let the programs started from here hold all idle sessions."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

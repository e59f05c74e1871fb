"""How a run goes: who is measured when, and what a failure leaves."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import rounds
from benchmarks.measure import Failed, Figures
from benchmarks.plan import QUICK, Sizes
from benchmarks.proxies import Proxy
from benchmarks.site import UPSTREAMS, Site, Way

SIZES = dataclasses.replace(QUICK, rounds=3, idle_rounds=2, protocols=("imap",), jobs=("busy", "idle"), sessions=7)


@contextlib.contextmanager
def nowhere(folder: Path, size: int) -> Iterator[Site]:
    nothing = folder / "nothing"
    yield Site(folder, nothing, nothing, nothing, nothing, {one: {"imap": 1, "pop3": 2} for one in UPSTREAMS}, 1)


def proxy(name: str, **more: object) -> Proxy:
    @contextlib.contextmanager
    def start(folder: Path, site: Site, upstream: str) -> Iterator[Way]:
        yield Way(name, upstream, {"imap": 3}, (1,))

    return Proxy(name, start, **more)  # type: ignore[arg-type]


PROXIES = {"one": proxy("one"), "other": proxy("other", upstreams=("plain",), most_idle=5)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Let nothing be started or measured; return what would have been."""
    found: list[tuple[object, ...]] = []

    def measured(way: Way, protocol: str, name: str, sizes: Sizes, upstream: int) -> Figures:
        found.append((way.upstream, name, way.name))
        if len(found) == 2:
            raise Failed("busy: told so")
        return {"cpu": 12.3456}

    def idle(way: Way, protocol: str, sessions: int) -> Figures:
        found.append((way.upstream, "idle", way.name, sessions))
        return {"kib": 1.0}

    monkeypatch.setattr(rounds, "site", nowhere)
    monkeypatch.setattr(rounds, "measured", measured)
    monkeypatch.setattr(rounds, "idle", idle)
    return found


def test_every_other_round_goes_backwards_and_memory_is_measured_in_fresh_programs(
    asked: list[tuple[object, ...]],
) -> None:
    raw, others, failures = rounds.measure(SIZES, PROXIES)
    plain = [("plain", "busy", name) for name in ("one", "other", "direct")]
    tls = [("tls", "busy", name) for name in ("one", "direct")]
    idle = [("plain", "idle", "one", 7), ("plain", "idle", "other", 5), ("tls", "idle", "one", 7)]
    assert asked == plain + tls + plain[::-1] + tls[::-1] + plain + tls + idle * 2
    assert failures == ["busy: told so"]
    assert others.keys() == {"rounds", "idle"}
    assert raw["imap"]["tls"]["one"] == {"busy.cpu": [12.35, 12.35, 12.35], "idle.kib": [1.0, 1.0]}
    assert raw["imap"]["plain"]["other"]["busy.cpu"] == [None, 12.35, 12.35]


@pytest.mark.parametrize(("jobs", "parts"), [(("busy",), {"rounds"}), (("idle",), {"idle"})])
def test_only_what_is_asked_for_is_measured(
    asked: list[tuple[object, ...]], jobs: tuple[str, ...], parts: set[str]
) -> None:
    _, others, _ = rounds.measure(dataclasses.replace(SIZES, jobs=jobs), PROXIES)
    assert others.keys() == parts
    assert {one[1] for one in asked} == set(jobs)


def test_no_round_begins_that_could_not_end_in_time(
    asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 100))
    monkeypatch.setattr(rounds.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(rounds.usage, "Others", lambda: type("Others", (), {"share": lambda self: 0.0})())
    raw, _, _ = rounds.measure(dataclasses.replace(SIZES, rounds=9, limit=450.0, jobs=("busy",)), PROXIES)
    # A round takes 100 seconds here: the fifth would end after 500.
    assert len(raw["imap"]["tls"]["one"]["busy.cpu"]) == 4

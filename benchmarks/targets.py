"""What mailgate is to cost beside its peers, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.proxies import MAILGATE
from benchmarks.ratios import Ratio, Samples, ratio


@dataclass(frozen=True)
class Target:
    """The most that a figure's ratio to a peer's may be."""

    figure: str
    upstream: str
    peer: str
    limit: float


TARGETS = [
    Target("login.cpu", "plain", "dovecot", 0.85),
    Target("login.cpu", "plain", "nginx", 1.0),
    Target("login.cpu", "tls", "dovecot", 0.9),
    Target("busy.cpu", "plain", "dovecot", 0.75),
    Target("busy.cpu", "plain", "haproxy", 1.4),
    Target("busy.cpu", "tls", "dovecot", 0.6),
    Target("busy.cpu", "tls", "haproxy", 1.2),
    Target("small.cpu", "plain", "dovecot", 0.5),
    Target("small.cpu", "plain", "nginx", 0.7),
    Target("small.cpu", "tls", "dovecot", 0.5),
    Target("fetch.cpu", "plain", "nginx", 0.6),
    Target("fetch.cpu", "plain", "haproxy", 1.1),
    Target("fetch.cpu", "tls", "dovecot", 0.2),
    Target("fetch.cpu", "tls", "haproxy", 1.2),
    Target("idle.kib", "plain", "nginx", 0.8),
    Target("idle.kib", "tls", "dovecot", 0.3),
    Target("idle.kib", "tls", "haproxy", 1.0),
    Target("lone.p50", "plain", "haproxy", 1.4),
    Target("lone.p50", "tls", "haproxy", 1.4),
]


@dataclass(frozen=True)
class Verdict:
    """A target and what was found, if both were measured."""

    target: Target
    ratio: Ratio | None

    @property
    def met(self) -> bool:
        return self.ratio is not None and self.ratio.median <= self.target.limit

    def __str__(self) -> str:
        if self.ratio is None:
            return "not measured"
        if self.met:
            return "met"
        return f"missed by {self.ratio.median / self.target.limit - 1:.0%}"


def verdicts(raw: Mapping[str, Mapping[str, Mapping[str, Samples]]]) -> list[Verdict]:
    """Judge one protocol's samples, by upstream, way and figure."""
    found = []
    for target in TARGETS:
        ways = raw.get(target.upstream, {})
        ours = ways.get(MAILGATE, {}).get(target.figure, ())
        theirs = ways.get(target.peer, {}).get(target.figure, ())
        found.append(Verdict(target, ratio(ours, theirs)))
    return found

"""The table of targets: what is met, what is missed and by how much, and what was not measured."""

from __future__ import annotations

import pytest

from benchmarks.plan import COLUMNS
from benchmarks.proxies import PROXIES
from benchmarks.targets import TARGETS, verdicts


@pytest.mark.parametrize(
    ("ours", "outcome", "met"),
    [(0.84, "met", True), (0.85, "met", True), (0.935, "missed by 10%", False), (1.7, "missed by 100%", False)],
)
def test_a_target_is_met_up_to_its_limit(ours: float, outcome: str, met: bool) -> None:
    raw = {"plain": {"mailgate": {"login.cpu": [ours]}, "dovecot": {"login.cpu": [1.0]}}}
    found = verdicts(raw)[0]
    assert (found.target.peer, found.target.limit) == ("dovecot", 0.85)
    assert (str(found), found.met) == (outcome, met)


def test_what_was_not_measured_is_not_met() -> None:
    found = verdicts({})
    assert len(found) == len(TARGETS)
    assert {str(one) for one in found} == {"not measured"}
    assert not any(one.met for one in found)


def test_every_target_names_a_figure_and_a_peer_that_can_do_it() -> None:
    wrong = [
        one
        for one in TARGETS
        if one.figure not in COLUMNS or one.peer not in PROXIES or one.upstream not in PROXIES[one.peer].upstreams
    ]
    assert wrong == []

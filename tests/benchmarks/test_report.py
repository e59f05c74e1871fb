"""A run as Markdown and as a picture, from made-up figures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import plot, report
from benchmarks.plan import QUICK, Run, title
from benchmarks.ratios import Ratio

WAYS = {
    "mailgate": {"login.cpu": [2.0, 1.0, 3.0], "idle.kib": [21.54], "resumed.resumed_share": [1.0]},
    "dovecot": {"login.cpu": [4.0, 4.0, 4.0], "idle.kib": [1234.5], "resumed.resumed_share": [0.5]},
    "direct": {"login.rate": [700.0, 800.0, 900.0], "login.upstream_share": [0.25], "login.client_share": [1.5]},
}
RUN = Run(
    machine={"CPU": "Abacus", "cores": "2"},
    sizes=QUICK,
    rounds={"imap": {"plain": WAYS, "tls": {}}},
    others={"rounds": 0.25, "idle": 0.5},
    failures=["idles, imap, upstream tls, nginx: RuntimeError: refused"],
)


def test_the_report_has_medians_ratios_and_what_others_took() -> None:
    text = report.markdown(RUN)
    assert text.startswith("CPU Abacus, cores 2.\n\n3 rounds, medians.")
    assert "Other programs took 25% of the machine's CPU while this ran and 50% of " in text
    assert "| CPU-ms per login, full handshake | plain | Dovecot proxy | 0.50 (~0.25–0.75) | ≤ 0.85 | met |" in text
    assert "|  | **mailgate** | Dovecot proxy | no proxy |" in text
    assert "| CPU-ms per login, full handshake | 2.00 | 4.00 | – |" in text
    assert "| KiB per idle session | 21.5 | 1,234 | – |" in text
    assert "resumed where they should have been: Dovecot proxy 50%." in text
    assert "| login | – / – / – | – / – / – | – / 25 / 150 |" in text
    assert "**Failed:** idles, imap, upstream tls, nginx: RuntimeError: refused." in text
    assert "CPU-µs per command" not in text
    assert "| lone |" not in text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Ratio(0.5, 0.25, 1.0, 7, certain=True), "0.50 (0.25–1.00)"),
        (Ratio(0.5, 0.25, 1.0, 3, certain=False), "0.50 (~0.25–1.00)"),
    ],
)
def test_a_range_is_not_told_as_an_interval(found: Ratio, text: str) -> None:
    assert report.interval(found) == text


def test_figures_have_the_protocols_own_words() -> None:
    assert title("small.cpu", "imap") == "CPU-µs per small FETCH (4 KB)"
    assert title("small.cpu", "pop3") == "CPU-µs per small RETR (4 KB)"
    assert title("fetch.rate", "pop3") == "MB/s retrieved, 2 sessions"


def test_the_picture_has_a_mark_per_ratio_and_a_line_per_target() -> None:
    picture = ElementTree.fromstring(plot.svg(RUN.rounds["imap"]))
    name = "{http://www.w3.org/2000/svg}"
    marks = [one for one in picture.iter(f"{name}circle") if float(one.get("cx", 0)) >= plot.LABELS]
    assert len(marks) == 2
    one = plot.LABELS + plot._across(1)
    assert all(float(mark.get("cx", 0)) < one for mark in marks)
    targets = [line for line in picture.iter(f"{name}line") if line.get("stroke") == "#000000"]
    # One is in the legend, the others are the targets beside Dovecot with a plain upstream and with TLS.
    assert len(targets) == 1 + 3 + 5


@pytest.mark.parametrize(("value", "place"), [(0.001, 0), (0.05, 0), (10, plot.WIDTH), (99, plot.WIDTH)])
def test_what_is_off_the_scale_lies_on_its_edge(value: float, place: float) -> None:
    assert plot._across(value) == pytest.approx(place)

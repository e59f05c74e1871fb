"""``./scripts/bench --quick`` measures everything it promises."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import medians
from tests.conftest import needed

ROOT = Path(__file__).parents[2]
MODES = ["tls", "plain"]
PROXIES = ["mailgate", "dovecot", "nginx"]
SEEN_BY_THE_CLIENT = [
    "logins_per_second",
    "noop_median_us",
    "noop_p99_us",
    "fetch_mb_per_second",
    "append_mb_per_second",
]
USED_BY_A_PROXY = ["login_cpu_ms", "noop_cpu_us", "fetch_cpu_s_per_gb", "append_cpu_s_per_gb", "idle_kib"]


@pytest.mark.real
@pytest.mark.full
def test_a_quick_run_has_every_figure(tmp_path: Path) -> None:
    needed("dovecot")
    needed("nginx")
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", str(tmp_path / "figures.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "figures.json").read_text())

    assert 0 <= content["others"] <= 1
    assert list(content["figures"]) == MODES
    for mode in MODES:
        figures = content["figures"][mode]
        assert list(figures) == ["direct", *PROXIES]
        wanted = [("direct", name) for name in SEEN_BY_THE_CLIENT]
        wanted += [(way, name) for way in PROXIES for name in SEEN_BY_THE_CLIENT + USED_BY_A_PROXY]
        wrong = [one for one in wanted if not 0 < figures[one[0]].get(one[1], math.nan) < math.inf]
        assert wrong == [], (mode, figures)
        assert figures["direct"].keys().isdisjoint(USED_BY_A_PROXY)

    for heading in ("### Clients over TLS", "### Clients in clear"):
        assert heading in ran.stdout
    for name, value in content["machine"].items():
        assert f"{name} {value}" in ran.stdout


def test_medians_are_taken_over_the_rounds_that_have_a_figure() -> None:
    rounds = [{"login_cpu_ms": 3.0, "idle_kib": 20.0}, {"login_cpu_ms": 1.0}, {"login_cpu_ms": 2.0}]
    assert medians(rounds) == {"login_cpu_ms": 2.0, "idle_kib": 20.0}

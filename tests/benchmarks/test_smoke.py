"""``./scripts/bench --quick`` measures everything it promises, and shows it again from its file."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.client import merged
from benchmarks.ratios import median
from tests.conftest import needed

ROOT = Path(__file__).parents[2]
PROXIES = {"plain": ["mailgate", "dovecot", "nginx"], "tls": ["mailgate", "dovecot"]}
OF_EVERY_WAY = [
    "login.rate",
    "resumed.rate",
    "lone.p50",
    "lone.p99",
    "busy.p50",
    "busy.p99",
    "small.rate",
    "fetch.rate",
    "login.upstream_cpu",
    "login.client_cpu",
]
OF_A_PROXY = ["login.cpu", "resumed.cpu", "lone.cpu", "busy.cpu", "small.cpu", "fetch.cpu"]
OF_IMAP = ["append.cpu", "idle.kib"]


@pytest.mark.real
@pytest.mark.full
def test_a_quick_run_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed("dovecot")
    needed("nginx")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--ways", "mailgate,dovecot,nginx"]
    command += ["--json", str(tmp_path / "run.json"), "--svg", str(tmp_path / "run.svg")]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "run.json").read_text())

    assert content["others"].keys() == {"rounds", "idle"}
    assert all(0 <= share <= 1 for share in content["others"].values())
    for protocol in ("imap", "pop3"):
        for upstream, proxies in PROXIES.items():
            ways = content["rounds"][protocol][upstream]
            assert set(ways) == {"direct", *proxies}
            wanted = [(way, name) for way in ways for name in OF_EVERY_WAY]
            wanted += [(way, name) for way in proxies for name in OF_A_PROXY + OF_IMAP * (protocol == "imap")]
            wrong = [
                (way, name) for way, name in wanted if not 0 < (median(ways[way].get(name, ())) or math.nan) < math.inf
            ]
            assert wrong == [], (protocol, upstream)
            assert ways["direct"].keys().isdisjoint(OF_A_PROXY)
    for name, value in content["machine"].items():
        assert f"{name} {value}" in ran.stdout
    assert (tmp_path / "run.svg").read_text().startswith("<svg ")

    assert main(["--show", str(tmp_path / "run.json")]) == 0
    assert capsys.readouterr().out == ran.stdout


@pytest.mark.parametrize(
    "arguments", [["--rounds", "0"], ["--ways", "mailgate,sendmail"], ["--protocols", "smtp"], ["--quick", "--full"]]
)
def test_a_wrong_option_measures_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_one_result_comes_of_all_processes() -> None:
    results = [
        {"count": 3, "client_cpu": 0.5, "trips": [0.3, 0.1, 0.2]},
        {"count": 2, "client_cpu": 0.25, "trips": [0.5, 0.4]},
    ]
    assert merged(results) == {"count": 5, "client_cpu": 0.75, "p50": 0.3, "p99": 0.5}
    assert merged([{"count": 2, "bytes": 10}, {"count": 1, "bytes": 5}]) == {"count": 3, "bytes": 15}

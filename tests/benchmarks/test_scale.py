"""``python -m benchmarks.scale``: how it counts, and that it measures all it promises."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import ports, scale
from benchmarks.crowd import _merged
from benchmarks.scale import RETURN_ROWS, ROWS, figure, main, markdown, percentiles

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_a_small_run_has_every_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--steps", "20,40", "--idle", "0.5", "--noops", "20"]
    command += ["--logins", "5", "--back", "0.5", "--probes", "1", "--json", str(tmp_path / "run.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    runs = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert [run["upstream"] for run in runs] == ["plain", "tls"]
    for run in runs:
        assert [step["sessions"] for step in run["steps"]] == [20, 40]
        assert all(math.isfinite(step[name]) for step in run["steps"] for name in ROWS)
        assert all(step["burst_p50"] > 0 and step["open_cpu"] > 0 for step in run["steps"])
        assert all(step["open_errors"] == 0 for step in run["steps"])
        assert run["return"]["sessions"] == 40
        assert run["return"]["return_errors"] == 0
        assert all(math.isfinite(run["return"][name]) for name in RETURN_ROWS)
        assert len(run["probes"]) == 1
        assert markdown(run) in ran.stdout


def test_more_sessions_than_files_are_not_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1000, 1000))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main(["--steps", "301"])
    assert ended.value.code == 2
    assert "the limit of open files (1,000) allows 300 sessions" in capsys.readouterr().err


def test_the_kernel_tells_of_descriptors_memory_and_waiting() -> None:
    before = scale.descriptors(os.getpid()), scale.wakeups(os.getpid())
    reading, writing = os.pipe()
    assert scale.descriptors(os.getpid()) == before[0] + 2
    os.close(reading)
    os.close(writing)
    assert scale.wakeups(os.getpid()) >= before[1]
    assert scale.kernel_memory() > 1_000_000
    assert all(count >= 0 for count in scale.probes(0))


def test_each_step_of_connections_is_measured() -> None:
    assert [count for count, seconds in ports.costs(40, 20) if seconds > 0] == [20, 40]


def test_answers_of_a_crowd_become_one() -> None:
    answers = [
        {"sessions": 3, "trips": [0.3, 0.1], "errors": Counter(a=1), "ended": 7.0},
        {"sessions": 2, "trips": [0.2], "errors": Counter(a=1, b=2), "ended": 9.0},
    ]
    assert _merged(answers) == {"sessions": 5, "trips": [0.1, 0.2, 0.3], "errors": Counter(a=2, b=2), "ended": 9.0}


def test_percentiles_and_figures() -> None:
    times = [number / 1000 for number in range(200)]
    assert percentiles("noop", times, 1e3) == {"noop_p50": 100.0, "noop_p99": 198.0}
    assert [figure(value) for value in (0.123, 12.34, 0.0, 1234.5, 40.0)] == ["0.12", "12.3", "0", "1,234", "40"]

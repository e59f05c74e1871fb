"""``python -m benchmarks.translate``: that it measures what it promises, and how far its distance is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from benchmarks.distance import passed_on
from benchmarks.ratios import median
from benchmarks.translate import JOBS, Amounts, main, markdown
from tests.conftest import needed

ROOT = Path(__file__).parents[2]


@pytest.mark.real
@pytest.mark.full
def test_a_small_run_has_every_figure(tmp_path: Path) -> None:
    needed("dovecot")
    command = [sys.executable, "-m", "benchmarks.translate", "--rounds", "1", "--messages", "200", "--megabytes", "2"]
    command += ["--large", "2", "--small", "5", "--ways", "dovecot,proxy", "--json", str(tmp_path / "run.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["failures"] == []
    for job in JOBS:
        for figure in ("dovecot.seconds", "dovecot.server_cpu", "proxy.seconds", "proxy.gateway_cpu"):
            assert (median(run["raw"][job][figure]) or 0) > 0, (job, figure)
    # Every message costs the far way at least one round trip.
    assert (median(run["raw"]["jumping"]["proxy.seconds"]) or 0) >= 0.02


def test_the_table_has_medians_and_ratios_of_pairs() -> None:
    figures: dict[str, list[float | None]] = {
        "dovecot.seconds": [1.0, 2.0, 3.0],
        "dovecot.server_cpu": [1.0, 1.0, 1.0],
        "proxy.seconds": [2.0, 2.0, 2.0],
        "proxy.gateway_cpu": [2.0, 2.0, 2.0],
        "proxy.server_cpu": [1.0, 1.0, 1.0],
        "translated.seconds": [4.0, 4.0, None],
        "translated.gateway_cpu": [3.0, 3.0, None],
        "translated.server_cpu": [1.0, 1.0, None],
        "dovecot.gateway_cpu": [0.0, 0.0, 0.0],
    }
    lines = markdown({"retr": figures}, Amounts()).splitlines()
    assert lines[4:8] == [
        "| MB/s | 500 | 500 | 250 | 0.38 (0.25–0.50) | 0.50 (0.50–0.50) |",
        "| CPU-s of mailgate per GB | – | 2 | 3 | – | 1.50 (1.50–1.50) |",
        "| CPU-s of Dovecot per GB | 1 | 1 | 1 | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) |",
        "| CPU-s of both per GB | 1 | 3 | 4 | 4.00 (4.00–4.00) | 1.33 (1.33–1.33) |",
    ]


@pytest.mark.parametrize("arguments", [["--jobs", "sleep"], ["--ways", "cyrus"], ["--rounds", "0"], ["--small", "0"]])
def test_a_wrong_option_measures_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


async def test_what_is_passed_on_comes_late_and_the_next_piece_does_not_wait_for_it(autojump_clock: MockClock) -> None:
    near, source = memory_stream_pair()
    sink, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passed_on, source, sink, 1.0)
        began = trio.current_time()
        await near.send_all(b"one")
        await trio.sleep(0.25)
        await near.send_all(b"two")
        await near.send_eof()
        came = [(trio.current_time() - began, data) async for data in far]
    assert came == [(pytest.approx(1.0), b"one"), (pytest.approx(1.25), b"two")]


async def test_when_either_side_is_gone_the_other_is_closed(autojump_clock: MockClock) -> None:
    near, source = memory_stream_pair()
    sink, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passed_on, source, sink, 1.0)
        await far.aclose()
        await near.send_all(b"one")
        await trio.sleep(2)
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"two")

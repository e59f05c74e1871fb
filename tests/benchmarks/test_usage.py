"""CPU and memory of a program's tree, against programs that use a known amount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import usage

BURN = "import time\nwhile time.process_time() < 0.3: pass"
LAST = "\nprint(flush=True)\ninput()"
ENDED = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}]); print(flush=True); sys.stdin.read()"
LIVING = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN + LAST!r}])"
TICK_OF_ROUNDING = 0.02


def test_cpu_of_a_child_that_has_ended_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        assert usage.tree(program.pid) == [program.pid]
        assert 0.3 - TICK_OF_ROUNDING < usage.cpu_seconds(program.pid) < 2


def test_cpu_and_memory_of_a_living_child_count() -> None:
    with subprocess.Popen([sys.executable, "-c", LIVING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdout.readline()
        family = usage.tree(program.pid)
        assert family[0] == program.pid
        assert len(family) == 2
        assert 0.3 < usage.cpu_seconds(program.pid) < 2
        assert usage.memory(program.pid) > usage.memory(family[1]) > 1_000_000
        program.stdin.write(b"\n")
        program.stdin.flush()


def test_own_programs_are_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def proc_stat(_: Path) -> str:
        return f"cpu  {ticks} 20 30 99999 5 1 2 3 0 0\ncpu0 1 2 3"

    ticks = 100
    own = [10.0, 5.0, 2.0, 1.0, 0.0]
    now = [1000.0]
    monkeypatch.setattr(Path, "read_text", proc_stat)
    monkeypatch.setattr(usage.os, "times", lambda: tuple(own))
    monkeypatch.setattr(usage.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(usage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(usage, "TICK", 0.01)
    others = usage.Others()

    now[0] += 10
    ticks += 1000
    own[0] += 1
    own[2] += 4
    assert others.share() == pytest.approx((10 - 5) / 20)
    ticks -= 1100
    assert others.share() == 0

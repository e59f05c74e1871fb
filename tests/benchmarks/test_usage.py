"""CPU and memory of a program's tree, against programs that use a known amount."""

from __future__ import annotations

import subprocess
import sys

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

"""What the kernel tells about processes, compared with what prometheus_client reads there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client.process_collector import ProcessCollector

from mailgate.observe.processes import usage


def test_it_is_what_the_library_reads() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        used = usage(child.pid)
        collector = ProcessCollector(pid=lambda: child.pid, registry=None)
        theirs = {family.name: family.samples[0].value for family in collector.collect()}
        child.communicate(b"\n")
    assert used is not None
    assert used.cpu == pytest.approx(theirs["process_cpu_seconds"], abs=1)
    assert used.started == pytest.approx(theirs["process_start_time_seconds"])
    assert used.resident == pytest.approx(theirs["process_resident_memory_bytes"], rel=0.9)
    assert used.virtual == pytest.approx(theirs["process_virtual_memory_bytes"], rel=0.9)
    assert used.most_files == theirs["process_max_fds"]


def test_open_files_are_counted_where_the_kernel_does() -> None:
    before = usage(os.getpid())
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        after = usage(os.getpid())
    finally:
        os.close(descriptor)
    assert before is not None
    assert after is not None
    if before.open_files is None:
        pytest.skip("this kernel does not count them")
    assert after.open_files == before.open_files + 1


def test_a_process_that_is_gone_has_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert usage(child.pid) is None

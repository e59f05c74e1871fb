"""A worker that is stopped while it holds the lock under which all workers count."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.conftest import Gateway, soon
from tests.real.test_workers_limits import House
from tests.support.servers import Dovecot, Program, free_ports

pytestmark = pytest.mark.real

HANGING = """
import os, signal, sys
from mailgate.cli import main
from mailgate.ledger import Ledger

take = Ledger.__enter__

def take_and_hang(ledger):
    take(ledger)
    try:
        os.unlink("hang")
    except FileNotFoundError:
        return ledger
    os.kill(os.getpid(), signal.SIGSTOP)

Ledger.__enter__ = take_and_hang
sys.exit(main(sys.argv[1:]))
"""
"""mailgate, of which the next worker to take the lock stops with it when there is a file named ``hang``."""


@pytest.fixture
def program(server: Dovecot, tmp_path: Path) -> Iterator[tuple[Program, int, int]]:
    mail, metrics = free_ports(2)
    (tmp_path / "mailgate.toml").write_text(f"""
workers = 2
[shutdown]
drain = 1
[metrics]
bind = "127.0.0.1:{metrics}"
[[listener]]
name = "imap"
protocol = "imap"
bind = "127.0.0.1:{mail}"
tls = "off"
allow_plaintext_auth = true
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:{server.imap}"]
tls = "off"
""")
    (tmp_path / "hanging.py").write_text(HANGING)
    program = Program([sys.executable, "hanging.py", "run", "mailgate.toml"], tmp_path, "mailgate")
    try:
        program.wait_for([mail, metrics])
        yield program, mail, metrics
    finally:
        if program.process.poll() is None:
            for pid in program.workers():
                os.kill(pid, signal.SIGCONT)
        program.stop()


def test_logins_go_on_after_seconds_and_the_gateway_can_be_stopped(
    program: tuple[Program, int, int], user: tuple[str, str], authority: Path, tmp_path: Path
) -> None:
    running, mail, metrics = program
    house = House(Gateway(running, tmp_path, authority, {}, metrics), mail, user)
    soon(lambda: house.gateway.metric("mailgate_workers") == 2)
    house.works().close()
    stopped, other = hang(running, mail)
    began = time.monotonic()
    house.works().close()
    assert 3 < time.monotonic() - began < 8
    soon(lambda: house.gateway.metric("mailgate_workers") == 2)
    assert house.gateway.metric("mailgate_worker_exits_total", reason="SIGKILL") == 1
    assert "a worker hangs with the lock, it is killed" in running.output()
    # The supervisor has to clear one that has died, and to stop, while nobody can have the lock.
    stopped, other = hang(running, mail)
    os.kill(other, signal.SIGKILL)
    soon(lambda: other not in running.workers())
    assert stopped in running.workers()
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    assert time.monotonic() - began < 9
    assert "Traceback" not in running.output()


def hang(program: Program, port: int) -> tuple[int, int]:
    """Have one of two workers stop with the lock; return its pid and that of the other."""
    mark = Path(program.log).with_name("hang")
    mark.touch()
    # Whoever takes this connection stops, and loses it when it is killed.
    with socket.create_connection(("127.0.0.1", port)):
        soon(lambda: not mark.exists())
        pids = program.workers()
        soon(lambda: any(state(pid) == "T" for pid in pids))
    pids.sort(key=lambda pid: state(pid) != "T")
    stopped, other = pids
    return stopped, other


def state(pid: int) -> str:
    """Return the letter by which the kernel tells whether a process runs, sleeps or is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

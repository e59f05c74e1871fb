"""A gateway that serves POP3 clients from an IMAP server, and that a test may kill: several doors, a store, a log."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.real.conftest import Gateway
from tests.support import secrets
from tests.support.pop3_client import Pop3
from tests.support.servers import Program, free_ports

PATIENCE = 30.0


class House(Gateway):
    """A gateway with a door (a listener with a route) for each of some policies, all before the same server."""

    def __init__(
        self, folder: Path, authority: Path, upstream: int, doors: Mapping[str, str], workers: int = 1, more: str = ""
    ) -> None:
        *mail, metrics = free_ports(len(doors) + 1)
        self.doors = dict(zip(doors, mail, strict=True))
        self.written = ""
        self._config = folder / "mailgate.toml"
        self.text = f"""\
workers = {workers}
[tls]
certificate = "{authority}"
key = "{authority.with_name("key.pem")}"
[metrics]
bind = "127.0.0.1:{metrics}"
[admin]
socket = "{folder}/admin.sock"
[trace]
directory = "{folder}/traces"
[log]
level = "debug"
[limits]
failure_delay = "50ms"
sessions_per_address = 1000
half_open_per_address = 500
[pop3.store]
path = "{folder}/pop3.sqlite"
[pool.store]
protocol = "imap"
servers = ["127.0.0.1:{upstream}"]
tls = "off"
{more}
"""
        for name, port in self.doors.items():
            self.text += f'[[listener]]\nname = "{name}"\nprotocol = "pop3"\nbind = ["127.0.0.1:{port}"]\n'
            self.text += 'tls = "off"\nallow_plaintext_auth = true\n'
            policy = doors[name]
            self.text += f'[[route]]\nmatch.listener = ["{name}"]\npool = "store"\npop3 = {{ {policy} }}\n'
        self._workers = workers
        self._code: dict[str, str] = {}
        super().__init__(None, folder, authority, {}, metrics)  # type: ignore[arg-type]
        self.start()

    def start(self, code: Path | None = None) -> None:
        """Start it, anew with what an earlier one left in its folder."""
        self._config.write_text(self.text)
        if code is not None:
            self._code = {"PYTHONPATH": str(code)}
        command = [sys.executable, "-m", "mailgate", "run", str(self._config)]
        self.program = Program(command, self.folder, "mailgate", self._code)
        self.program.wait_for([*self.doors.values(), self.metrics_port])
        self.until(self._begun)

    def _begun(self) -> bool:
        """Whether all workers serve; who asks in the first moment may not be answered."""
        with contextlib.suppress(OSError):
            return self.metric("mailgate_workers") == self._workers
        return False

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Stop it, and keep what it has said."""
        status = self.program.stop(sig)
        self.written += self.program.output()
        return status

    def reconfigure(self, old: str, new: str) -> None:
        """Change its configuration, and have it put into force."""
        self.text = self.text.replace(old, new)
        self._config.write_text(self.text)
        answer = self.administer("POST", "/v1/reload")
        assert answer["changed"], answer

    def kill(self) -> None:
        """Kill supervisor and workers at once, and wait until nobody of them is left."""
        pids = [self.program.pid, *self.program.workers()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.stop()
        self.until(lambda: not any(lives(pid) for pid in pids))

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.program.output()
            time.sleep(0.02)

    def connect(self, door: str) -> Pop3:
        return Pop3(self.doors[door])

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind since the last start."""
        return [line for line in self.program.records() if line["event"] == event]

    def serving(self, client: socket.socket) -> int:
        """Return the pid of the worker that has a client's connection."""
        return holder(client, self.program.workers())

    def everything_written(self) -> bytes:
        """Return all that the gateway has written: log, traces, metrics, store."""
        traces = b"".join(path.read_bytes() for path in (self.folder / "traces").glob("*"))
        stores = b"".join(path.read_bytes() for path in self.folder.glob("pop3.sqlite*"))
        return (self.written + self.program.output()).encode() + traces + stores + self.http("/metrics").encode()


@contextlib.contextmanager
def housed(
    folder: Path,
    authority: Path,
    upstream: int,
    doors: Mapping[str, str],
    known: Mapping[str, str],
    workers: int = 1,
    more: str = "",
) -> Iterator[House]:
    """Run a gateway until the block ends; none of the ``known`` passwords may be in anything that it has written."""
    house = House(folder, authority, upstream, doors, workers, more)
    try:
        yield house
        written = house.everything_written()
    finally:
        status = house.stop()
    assert status == 0, house.program.output()
    written += house.written.encode()
    assert secrets.leaks(written, {*known.values(), *house.secrets}) == []
    assert b"Traceback" not in written


def lives(pid: int) -> bool:
    """Whether a process runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def holder(sock: socket.socket, among: Sequence[int] | None = None) -> int:
    """Return the process that has the other end of a connection on this machine; of ``among``, or of all."""
    ours, theirs = sock.getsockname()[1], sock.getpeername()[1]
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if (int(words[1][-4:], 16), int(words[2][-4:], 16)) == (theirs, ours):
            inode = words[9]
    assert inode is not None
    folders = ["[0-9]*"] if among is None else map(str, among)
    for folder in folders:
        for link in Path("/proc").glob(f"{folder}/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(link) == f"socket:[{inode}]":
                    return int(link.parts[2])
    raise AssertionError("nobody has the other end")

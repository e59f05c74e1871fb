"""A load of logins, commands and downloads runs through reloads, upgrades and killed workers.

Nobody sees an error but the sessions of a killed worker, which are known exactly: a worker is stopped first, then it is
looked up which connections it holds, and then it is killed.
"""

from __future__ import annotations

import imaplib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.real.test_reload import MESSAGE
from tests.real.test_upgrade import Installed, gateway
from tests.real.test_workers import WORKERS, User
from tests.support.servers import Dovecot

pytestmark = pytest.mark.real

RELOADS, UPGRADES, KILLS = (20, 5, 5) if FULL else (4, 1, 1)
PATIENCE = 20.0
TOLD = "The server is shutting down"


@dataclass
class Load:
    """Clients that do not stop before they are told to, and what became of their connections, by local port."""

    house: Installed
    stop: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[int, str]] = field(default_factory=list)

    def session(self, user: User, work: Callable[[imaplib.IMAP4_SSL], None]) -> None:
        """Log in, work, log out; note what went wrong."""
        port = 0
        try:
            client = imaplib.IMAP4_SSL(
                "localhost", self.house.ports["imaps"], ssl_context=self.house.gateway.context, timeout=PATIENCE
            )
            port = client.sock.getsockname()[1]
            try:
                assert client.login(*user)[0] == "OK"
                work(client)
                assert client.logout()[0] == "BYE"
            finally:
                with suppress(OSError):
                    client.shutdown()
        except Exception as error:
            if TOLD in str(error):
                self.done["told to go"] += 1
            else:
                self.errors.append((port, repr(error)))

    def logins(self, client: imaplib.IMAP4_SSL) -> None:
        self.done["login"] += 1

    def commands(self, client: imaplib.IMAP4_SSL) -> None:
        for _ in range(50):
            assert client.noop()[0] == "OK"
            self.done["command"] += 1

    def downloads(self, client: imaplib.IMAP4_SSL) -> None:
        assert client.select()[0] == "OK"
        for _ in range(3):
            status, found = client.fetch("1", "(BODY.PEEK[])")
            assert status == "OK"
            assert isinstance(found[0], tuple)
            assert found[0][1] == MESSAGE
            self.done["download"] += 1

    def stay(self, client: imaplib.IMAP4_SSL) -> None:
        """Stay for as long as one is let."""
        while not self.stop.wait(0.05):
            assert client.noop()[0] == "OK"
            self.done["command of a long session"] += 1

    def run(self, user: User, work: Callable[[imaplib.IMAP4_SSL], None]) -> None:
        while not self.stop.is_set():
            self.session(user, work)


def connections_of(pid: int, port: int) -> set[int]:
    """Return the far ports of the connections to ``port`` that a process holds: none when it has ended."""
    inodes = set()
    with suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            # A connection may end while they are looked at.
            with suppress(FileNotFoundError):
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}").removeprefix("socket:[").removesuffix("]"))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        near, far = (int(one.partition(":")[2], 16) for one in fields[1:3])
        if near == port and fields[9] in inodes:
            found.add(far)
    return found


def kill_a_worker(house: Installed) -> set[int]:
    """Kill the worker that has most to do; return the ports of the clients whose connections it held."""
    port = house.ports["imaps"]
    pid = max(house.program.workers(), key=lambda pid: len(connections_of(pid, port)))
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)
    held = connections_of(pid, port)
    os.kill(pid, signal.SIGKILL)
    return held


def test_only_the_sessions_of_killed_workers_see_an_error(
    server: Dovecot, authority: Path, user: User, other: User, tmp_path: Path
) -> None:
    with gateway(server, authority, tmp_path) as house:
        path = tmp_path / "mailgate.toml"
        first = house.login(user)
        assert first.append("INBOX", None, None, MESSAGE)[0] == "OK"
        assert first.logout()[0] == "BYE"
        load = Load(house)
        plan = [(user, load.logins), (other, load.logins), (other, load.commands), (user, load.downloads)]
        plan += [(user, load.stay), (other, load.stay)]
        threads = [threading.Thread(target=load.run, args=one) for one in plan]
        for thread in threads:
            thread.start()
        lost: set[int] = set()
        try:
            for number in range(RELOADS):
                path.write_text(house.text.replace(f"workers = {WORKERS}", f"workers = {WORKERS + number % 2}"))
                house.gateway.administer("POST", "/v1/reload")
                if number % (RELOADS // UPGRADES) == 0:
                    house.install_version(f"1.{number + 1}")
                    answer = house.upgrade()
                    assert (answer.returncode, answer.stderr) == (0, ""), house.program.output()
                if number % (RELOADS // KILLS) == 2:
                    lost |= kill_a_worker(house)
                time.sleep(0.3)
        finally:
            load.stop.set()
            for thread in threads:
                thread.join()
        assert [error for port, error in load.errors if port not in lost] == []
        assert len(load.errors) <= len(lost)
        assert house.metric("mailgate_reloads_total", result="ok") == RELOADS
        assert house.metric("mailgate_upgrades_total", result="ok") == UPGRADES
        assert house.metric("mailgate_worker_exits_total", reason="SIGKILL") == KILLS
        assert min(load.done[name] for name in ("login", "command", "download")) >= RELOADS, load.done

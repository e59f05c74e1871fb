"""A gateway as systemd starts it: with its sockets, told of through NOTIFY_SOCKET."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.real.conftest import Gateway
from tests.real.test_upgrade import Installed
from tests.real.test_workers import WORKERS, User, configuration
from tests.support.servers import Dovecot, Program, free_ports

pytestmark = pytest.mark.real

PATIENCE = 60.0
START = """
import fcntl, os, sys
count = int(sys.argv[1])
# Out of the way first, since they may lie where others are to go.
sockets = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 200) for one in sys.argv[2 : 2 + count]]
for place, descriptor in enumerate(sockets):
    os.dup2(descriptor, 3 + place)
    os.close(descriptor)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count)}
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count :]])
"""
"""What systemd does between fork and exec."""


class Systemd:
    """What is there before a service and stays behind it: its listening sockets, and who hears of it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.ear = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.ear.bind(str(folder / "notify"))
        self.ear.settimeout(PATIENCE)

    @contextmanager
    def service(self, sockets: dict[str, socket.socket]) -> Iterator[Program]:
        descriptors = [sock.fileno() for sock in sockets.values()]
        words = [str(len(descriptors)), *map(str, descriptors), "-m", "mailgate", "run", "mailgate.toml"]
        variables = {"NOTIFY_SOCKET": str(self.folder / "notify"), "LISTEN_FDNAMES": ":".join(sockets)}
        command = [sys.executable, "-c", START, *words]
        program = Program(command, self.folder, "mailgate", variables, descriptors)
        try:
            yield program
        finally:
            program.stop()

    def hears(self, wanted: str) -> str:
        """Return the first message with a text, once it has come."""
        while wanted not in (message := self.ear.recv(4096).decode()):
            pass
        return message


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with ExitStack() as stack:
        yield Systemd(tmp_path, stack)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    with ExitStack() as stack:
        made = {
            name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in ("imaps", "plain", "metrics")
        }
        admin = made["admin"] = stack.enter_context(socket.socket(socket.AF_UNIX))
        admin.bind(str(tmp_path / "admin.sock"))
        admin.listen()
        yield made


def test_a_service_with_systemds_sockets(
    server: Dovecot,
    authority: Path,
    user: User,
    tmp_path: Path,
    systemd: Systemd,
    sockets: dict[str, socket.socket],
) -> None:
    ports = {name: sock.getsockname()[1] for name, sock in sockets.items() if name != "admin"}
    text = configuration(server, authority, tmp_path, ports, WORKERS)
    (tmp_path / "mailgate.toml").write_text(text)
    with systemd.service(sockets) as program:
        gateway = Gateway(program, tmp_path, authority, {("imap", "implicit", "off"): ports["imaps"]}, ports["metrics"])
        house = Installed(program, tmp_path, ports, text, gateway)
        # Clients that come before it is there wait in systemd's queue.
        client = house.idle(user)
        systemd.hears("READY=1")
        # The first word may come before the workers have counted what waited for them.
        systemd.hears(f"STATUS=Sessions: 1, workers: {WORKERS}")
        assert len(house.sessions()) == 1
        (tmp_path / "mailgate.toml").write_text(text.replace("drain = 5", "drain = 6"))
        program.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in systemd.hears("RELOADING=1")
        systemd.hears("READY=1")
        # They are the upgraded gateway's, too, and its pid is the one that systemd knows.
        assert house.upgrade().returncode == 0
        systemd.hears("READY=1")
        assert house.wake(client).startswith(b"i OK")
        house.login(user)
        program.process.send_signal(signal.SIGTERM)
        systemd.hears("STOPPING=1")
        assert program.process.wait(PATIENCE) == 0
        for one in house.clients:
            one.shutdown()
    assert "Traceback" not in program.output()
    # The sockets stay systemd's: who comes now waits for the next start.
    assert (tmp_path / "admin.sock").exists()
    waiting = socket.create_connection(("127.0.0.1", ports["plain"]), PATIENCE)
    with waiting, systemd.service(sockets) as again:
        waiting.settimeout(PATIENCE)
        assert waiting.recv(100).startswith(b"* OK ")
        systemd.hears("READY=1")
        assert len(Gateway(again, tmp_path, authority, {}, ports["metrics"]).administer("GET", "/v1/sessions")) == 2


def test_a_socket_that_nothing_asks_for_is_named(
    server: Dovecot, authority: Path, tmp_path: Path, systemd: Systemd
) -> None:
    ports = dict(zip(("imaps", "plain", "metrics"), free_ports(3), strict=True))
    (tmp_path / "mailgate.toml").write_text(configuration(server, authority, tmp_path, ports, WORKERS))
    with socket.create_server(("127.0.0.1", 0)) as other, systemd.service({"imaps": other}) as program:
        port = other.getsockname()[1]
        assert program.process.wait(PATIENCE) == 1
    assert f"systemd listens on 127.0.0.1:{port} (imaps), which no bind of the configuration" in program.output()

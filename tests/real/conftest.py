"""One Dovecot and one gateway for all tests with real clients, and a search for their passwords at the end."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mailgate.net import certificate
from tests.conftest import needed
from tests.support import secrets
from tests.support.servers import Dovecot, Program, dovecot, free_ports, mailgate

CLIENT_LEGS = {"implicit": "implicit", "starttls": "starttls", "plain": "off"}
USERS = 400
UPSTREAM_LEGS = ("off", "implicit", "starttls")


def soon(true: Callable[[], bool]) -> None:
    """Wait until something is true, for some time at most."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Gateway:
    """A running gateway: its ports by protocol, the client's leg and the upstream's leg."""

    program: Program
    folder: Path
    authority: Path
    ports: dict[tuple[str, str, str], int]
    metrics_port: int
    secrets: list[str] = field(default_factory=list)

    def port(self, protocol: str, client: str, upstream: str = "off") -> int:
        return self.ports[protocol, client, upstream]

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def http(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=10) as answer:
            return answer.read().decode("utf-8")

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's series that have these labels."""
        total = 0.0
        for line in self.http("/metrics").splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and all(f'{key}="{wanted}"' in rest for key, wanted in labels.items()):
                total += float(value)
        return total

    def sessions(self) -> list[dict[str, object]]:
        """Return the log's lines of ended sessions."""
        return [line for line in self.program.records() if line["event"] == "session"]

    def everything_written(self) -> bytes:
        """Return all that the gateway has written: log, traces, metrics."""
        traces = b"".join(path.read_bytes() for path in (self.folder / "traces").glob("*"))
        return self.program.output().encode() + traces + self.http("/metrics").encode()

    def administer(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
        """Ask the administration over its Unix socket."""
        data = json.dumps(body or {}).encode()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.folder / "admin.sock"))
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
            sock.sendall(head.encode() + data)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        payload = answer.partition(b"\r\n\r\n")[2]
        return json.loads(payload) if payload else {}


def listeners(ports: dict[tuple[str, str, str], int]) -> str:
    text = ""
    for (protocol, client, upstream), port in ports.items():
        name = f"{protocol}-{client}-{upstream}"
        text += f'[[listener]]\nname = "{name}"\nprotocol = "{protocol}"\nbind = ["127.0.0.1:{port}"]\n'
        text += f'tls = "{CLIENT_LEGS[client]}"\n'
        text += f'[[route]]\nmatch.listener = ["{name}"]\npool = "{protocol}-{upstream}"\n'
    return text


def pools(server: Dovecot, authority: Path) -> str:
    text = ""
    for protocol, plain, tls in (("imap", server.imap, server.imaps), ("pop3", server.pop3, server.pop3s)):
        for mode in UPSTREAM_LEGS:
            text += f'[pool.{protocol}-{mode}]\nprotocol = "{protocol}"\n'
            text += f'servers = ["localhost:{tls if mode == "implicit" else plain}"]\n'
            text += f'tls = {{ mode = "{mode}", ca = "{authority}" }}\n' if mode != "off" else 'tls = "off"\n'
    return text


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    pair = certificate.self_signed(["localhost", "127.0.0.1"], days=60)
    certificate.write(folder / "certificate.pem", folder / "key.pem", *pair)
    return folder / "certificate.pem"


@pytest.fixture(scope="session")
def server(authority: Path) -> Iterator[Dovecot]:
    with (
        tempfile.TemporaryDirectory(prefix="mailgate-dovecot-") as folder,
        dovecot(needed("dovecot"), Path(folder), authority, authority.with_name("key.pem")) as running,
    ):
        # Dovecot looks at the file of users once in a second, so all of them are there from the start.
        for number in range(USERS):
            running.add_user(f"user{number}", secrets.canary())
        yield running


@pytest.fixture(scope="session")
def gateway(server: Dovecot, authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("mailgate")
    doors = [*itertools.product(("imap", "pop3"), CLIENT_LEGS, UPSTREAM_LEGS)]
    *mail, metrics = free_ports(len(doors) + 1)
    ports = dict(zip(doors, mail, strict=True))
    config = f"""
hostname = "gate.example.org"
[tls]
certificate = "{authority}"
key = "{authority.with_name("key.pem")}"
[metrics]
bind = "127.0.0.1:{metrics}"
[admin]
socket = "{folder}/admin.sock"
[trace]
directory = "{folder}/traces"
[limits]
failure_delay = "50ms"
sessions_per_address = 1000
half_open_per_address = 500
{listeners(ports)}
{pools(server, authority)}
"""
    with mailgate(folder, config, [*mail, metrics]) as program:
        running = Gateway(program, folder, authority, ports, metrics)
        yield running
        written = running.everything_written()
    written += program.output().encode()
    assert secrets.leaks(written, {*server.users.values(), *running.secrets}) == []
    assert b"Traceback" not in written


_numbers = itertools.count()


@pytest.fixture
def user(server: Dovecot) -> tuple[str, str]:
    """A new user with an empty mailbox, and the password."""
    name = f"user{next(_numbers)}"
    return name, server.users[name]


@pytest.fixture
def other(server: Dovecot) -> tuple[str, str]:
    """A second new user, and the password."""
    name = f"user{next(_numbers)}"
    return name, server.users[name]

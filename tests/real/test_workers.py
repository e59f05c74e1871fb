"""A supervisor and its workers: what they share, and what becomes of the others when one of them dies."""

from __future__ import annotations

import contextlib
import imaplib
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import Gateway
from tests.support.servers import Dovecot, Program, free_ports, mailgate

pytestmark = pytest.mark.real

WORKERS = 2
CONNECTIONS = 20
PATIENCE = 10.0
User = tuple[str, str]


def until(condition: Callable[[], bool], program: Program) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, program.output()
        time.sleep(0.01)


@dataclass
class House:
    """A gateway of several workers with its configuration's file."""

    program: Program
    folder: Path
    ports: dict[str, int]
    text: str
    gateway: Gateway
    clients: list[imaplib.IMAP4] = field(default_factory=list)

    def login(self, user: User) -> imaplib.IMAP4_SSL:
        port, context = self.ports["imaps"], self.gateway.context
        client = imaplib.IMAP4_SSL("localhost", port, ssl_context=context, timeout=PATIENCE)
        self.clients.append(client)
        assert client.login(*user)[0] == "OK"
        return client

    def login_in_clear(self, user: User) -> str:
        """Log in and out as a client that leaks nothing when it fails; return the answer to its login."""
        address = "127.0.0.1", self.ports["plain"]
        with socket.create_connection(address, PATIENCE) as sock, sock.makefile("rb") as lines:
            lines.readline()
            sock.sendall(f"a LOGIN {user[0]} {user[1]}\r\n".encode())
            return lines.readline().decode()

    def log(self, event: str, *, debug: bool = False) -> list[dict[str, Any]]:
        return [
            line for line in self.program.records() if line["event"] == event and (line["level"] == "debug") == debug
        ]

    def pid(self, worker: int) -> int:
        """Return the pid of the worker that had a number first."""
        return next(line["pid"] for line in self.log("a worker begins", debug=True) if line["worker"] == worker)

    def sessions(self) -> list[dict[str, Any]]:
        answer: Any = self.gateway.administer("GET", "/v1/sessions")
        assert answer["missing"] == []
        return list(answer["sessions"])

    def one_each(self, user: User) -> dict[int, tuple[imaplib.IMAP4, dict[str, Any]]]:
        """Return a session of each worker: its client and what the administration says of it."""
        for _ in range(CONNECTIONS):
            self.login(user)
            found = {session["worker"]: session for session in self.sessions()}
            if len(found) == WORKERS:
                break
        assert len(found) == WORKERS, found
        by_port = {client.sock.getsockname()[1]: client for client in self.clients}
        return {worker: (by_port[session["port"]], session) for worker, session in found.items()}

    def refuses(self, port: str) -> bool:
        """Whether nobody listens on a port."""
        with contextlib.closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[port])) != 0

    def noop(self, client: imaplib.IMAP4) -> bool:
        try:
            return client.noop()[0] == "OK"
        except (OSError, imaplib.IMAP4.error):
            return False


def configuration(server: Dovecot, authority: Path, folder: Path, ports: dict[str, int], workers: int) -> str:
    return f"""
workers = {workers}
[tls]
certificate = "{authority}"
key = "{authority.with_name("key.pem")}"
[metrics]
bind = "127.0.0.1:{ports["metrics"]}"
[admin]
socket = "{folder}/admin.sock"
[trace]
directory = "{folder}/traces"
[log]
level = "debug"
[shutdown]
drain = 5
[[listener]]
name = "imaps"
protocol = "imap"
bind = "127.0.0.1:{ports["imaps"]}"
tls = "implicit"
[[listener]]
name = "plain"
protocol = "imap"
bind = "127.0.0.1:{ports["plain"]}"
tls = "off"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:{server.imap}"]
tls = "off"
"""


@pytest.fixture
def house(server: Dovecot, authority: Path, tmp_path: Path) -> Iterator[House]:
    ports = dict(zip(("imaps", "plain", "extra", "metrics"), free_ports(4), strict=True))
    ports_by_place = {("imap", "implicit", "off"): ports["imaps"]}
    text = configuration(server, authority, tmp_path, ports, WORKERS)
    with mailgate(tmp_path, text, [ports["imaps"], ports["plain"], ports["metrics"]]) as program:
        gateway = Gateway(program, tmp_path, authority, ports_by_place, ports["metrics"])
        made = House(program, tmp_path, ports, text, gateway)
        until(lambda: len(made.log("starting", debug=True)) == WORKERS, program)
        try:
            yield made
        finally:
            for client in made.clients:
                with contextlib.suppress(OSError):
                    client.shutdown()
    assert "Traceback" not in program.output()


def test_both_workers_serve(house: House, user: User) -> None:
    for _ in range(CONNECTIONS):
        assert house.login(user).logout()[0] == "BYE"
    until(lambda: len([line for line in house.log("session") if line["user"]]) == CONNECTIONS, house.program)
    served = Counter(line["worker"] for line in house.log("session") if line["user"])
    assert set(served) == {0, 1}


def test_a_killed_worker_is_replaced_and_harms_only_its_own_sessions(house: House, user: User, other: User) -> None:
    pids = house.program.workers()
    clients = house.one_each(user)
    errors: list[str] = []
    done = threading.Event()

    def newcomers() -> None:
        while not done.is_set():
            try:
                said = house.login_in_clear(other)
            except OSError as error:
                said = repr(error)
            if not said.startswith("a OK"):
                errors.append(said)

    thread = threading.Thread(target=newcomers)
    victim = house.pid(0)
    thread.start()
    try:
        time.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(set(house.program.workers()) - set(pids)) == 1, house.program)
        time.sleep(0.3)
    finally:
        done.set()
        thread.join()
    assert not house.noop(clients[0][0])
    assert house.noop(clients[1][0])
    # What the killed one had in hand is lost with it, and nothing else.
    assert len(errors) <= 1, errors
    (line,) = house.log("a worker died")
    assert line.items() >= {"worker": 0, "pid": victim, "signal": "SIGKILL", "level": "error"}.items()
    assert {session["worker"] for session in house.sessions()} <= {0, 1}
    assert house.noop(house.login(user))


def test_a_ticket_of_one_worker_is_taken_by_all(house: House) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    session: ssl.SSLSession | None = None
    resumed = 0
    for _ in range(51):
        with (
            socket.create_connection(("127.0.0.1", house.ports["imaps"]), PATIENCE) as plain,
            context.wrap_socket(plain, session=session, server_hostname="localhost") as sock,
        ):
            sock.recv(100)
            session, resumed = session or sock.session, resumed + bool(sock.session_reused)
    assert resumed >= 45
    until(lambda: len(house.log("session")) >= 51, house.program)
    assert {line["worker"] for line in house.log("session")} == {0, 1}


def test_a_reload_is_put_into_force_by_all_and_told_once(house: House, user: User) -> None:
    clients = house.one_each(user)
    extra = f'[[listener]]\nname = "extra"\nprotocol = "imap"\nbind = "127.0.0.1:{house.ports["extra"]}"\ntls = "off"\n'
    path = house.folder / "mailgate.toml"
    path.write_text(house.text + extra)
    changed = house.gateway.administer("POST", "/v1/reload")
    assert changed == {"changed": ["listener extra: added"], "warnings": []}
    for _ in range(CONNECTIONS):
        with imaplib.IMAP4("127.0.0.1", house.ports["extra"], timeout=PATIENCE) as client:
            client.login(*user)
    until(
        lambda: len([one for one in house.log("session") if one["listener"] == "extra"]) == CONNECTIONS, house.program
    )
    assert {line["worker"] for line in house.log("session") if line["listener"] == "extra"} == {0, 1}
    path.write_text(house.text + extra + "[limits]\nsessions = 0\n")
    answer: Any = house.gateway.administer("POST", "/v1/reload")
    assert [problem["path"] for problem in answer["problems"]] == ["limits.sessions"]
    house.program.process.send_signal(signal.SIGHUP)
    until(lambda: len(house.log("reload refused, the old configuration stays in force")) == 2, house.program)
    path.write_text(house.text)
    house.program.process.send_signal(signal.SIGHUP)
    until(lambda: len(house.log("configuration reloaded")) == 2, house.program)
    assert [line["changed"] for line in house.log("configuration reloaded")] == [
        ["listener extra: added"],
        ["listener extra: removed"],
    ]
    assert [line["bind"] for line in house.log("listening no more")] == [[f"127.0.0.1:{house.ports['extra']}"]]

    until(lambda: house.refuses("extra"), house.program)
    assert all(house.noop(client) for client, _ in clients.values())
    assert len(house.program.workers()) == WORKERS


def test_workers_come_and_go_with_a_reload_and_no_session_with_them(house: House, user: User) -> None:
    clients = house.one_each(user)
    path = house.folder / "mailgate.toml"
    path.write_text(house.text.replace("workers = 2", "workers = 1"))
    assert house.gateway.administer("POST", "/v1/reload")["changed"] == ["workers: 1 instead of 2"]
    assert all(house.noop(client) for client, _ in clients.values())
    assert {session["worker"] for session in house.sessions()} == {0, 1}
    for _ in range(5):
        house.login(user)
    assert Counter(session["worker"] for session in house.sessions())[1] <= len(house.clients) - 5
    for client in house.clients:
        client.logout()
    until(lambda: len(house.program.workers()) == 1, house.program)
    path.write_text(house.text)
    house.gateway.administer("POST", "/v1/reload")
    until(lambda: len(house.program.workers()) == 2, house.program)
    assert house.log("a worker died") == []


def test_any_worker_ends_a_session_of_any_other(house: House, user: User) -> None:
    clients = house.one_each(user)
    for worker, (client, session) in clients.items():
        assert session.items() >= {"worker": worker, "user": user[0], "state": "relay", "pool": "main"}.items()
        answer = house.gateway.administer("POST", f"/v1/sessions/{session['id']}/kick")
        assert answer == {"kicked": 1, "missing": []}
        assert client.readline() == b"* BYE Disconnected by the administrator.\r\n"
        assert client.readline() == b""
    until(lambda: len([one for one in house.log("session") if one["reason"] == "kicked"]) == 2, house.program)
    waiting = socket.create_connection(("127.0.0.1", house.ports["plain"]), PATIENCE)
    with waiting, waiting.makefile("rb") as lines:
        lines.readline()
        (session,) = (one for one in house.sessions() if one["state"] == "login")
        house.gateway.administer("POST", f"/v1/sessions/{session['id']}/kick")
        assert lines.readline() == b"* BYE Disconnected by the administrator.\r\n"
    house.login(user)
    house.login(user)
    left = len(house.sessions())
    assert house.gateway.administer("POST", "/v1/kick", {"user": user[0].upper()})["kicked"] == left
    until(lambda: house.sessions() == [], house.program)
    assert house.gateway.administer("POST", "/v1/sessions/ab12/kick") == {"error": "there is no such session"}
    assert {line["audit"] for line in house.log("sessions kicked")} == {True}


def test_a_trace_has_the_sessions_of_all_workers(house: House, user: User) -> None:
    facts = house.gateway.administer("POST", "/v1/trace", {"user": user[0]})
    assert len(house.log("trace started")) == 1
    os.kill(house.pid(1), signal.SIGKILL)
    until(lambda: len(house.log("starting", debug=True)) == WORKERS + 1, house.program)
    time.sleep(0.3)
    sessions = {session["id"] for _, session in house.one_each(user).values()}
    text = Path(str(facts["file"])).read_text()
    assert all(one in text for one in sessions)
    assert user[1] not in text
    for _ in range(4):
        # Whichever worker answers, it knows of the trace.
        assert [one["id"] for one in house.gateway.administer("GET", "/v1/trace")["traces"]] == [facts["id"]]  # type: ignore[attr-defined]
    assert house.gateway.administer("DELETE", f"/v1/trace/{facts['id']}") == {}
    assert [house.gateway.administer("GET", "/v1/trace") for _ in range(4)] == [{"traces": []}] * 4
    assert len(house.log("trace stopped")) == 1


def test_sigterm_drains_all_workers(house: House, user: User) -> None:
    clients = house.one_each(user)
    house.program.process.send_signal(signal.SIGTERM)
    for client, _ in clients.values():
        assert client.readline() == b"* BYE [UNAVAILABLE] The server is shutting down.\r\n"
    assert house.program.process.wait(PATIENCE) == 0
    assert len(house.log("stopping")) == len(house.log("stopped")) == 1
    assert {line["worker"] for line in house.log("session") if line["reason"] == "shutting_down"} == {0, 1}


def test_workers_end_when_their_supervisor_is_killed(
    server: Dovecot, authority: Path, user: User, tmp_path: Path
) -> None:
    ports = dict(zip(("imaps", "plain", "extra", "metrics"), free_ports(4), strict=True))
    text = configuration(server, authority, tmp_path, ports, WORKERS)
    (tmp_path / "mailgate.toml").write_text(text)
    program = Program([sys.executable, "-m", "mailgate", "run", str(tmp_path / "mailgate.toml")], tmp_path, "mailgate")
    try:
        program.wait_for([ports["imaps"]])
        house = House(program, tmp_path, ports, text, Gateway(program, tmp_path, authority, {}, ports["metrics"]))
        until(lambda: len(program.workers()) == WORKERS, program)
        pids = program.workers()
        client, busy = house.login(user), house.login(user)
        # Nobody ends this command, so its session lasts as long as the drain.
        busy.send(b"a1 APPEND inbox {10}\r\n")
        assert busy.readline().startswith(b"+")
        program.process.kill()
        assert client.readline() == b"* BYE [UNAVAILABLE] The server is shutting down.\r\n"
        client.shutdown()
        until(lambda: all(house.refuses(port) for port in ("imaps", "plain", "metrics")), program)
        assert any(running(pid) for pid in pids)
        busy.send(b"0123456789\r\n")
        assert busy.readline().startswith(b"a1 OK")
        assert busy.readline().startswith(b"* BYE")
        busy.shutdown()
        until(lambda: not any(running(pid) for pid in pids), program)
    finally:
        program.stop()
    assert len(house.log("the supervisor is gone, this worker ends too")) == WORKERS


def running(pid: int) -> bool:
    """Whether a process runs; whoever has adopted a dead one may not have asked for its status yet."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False

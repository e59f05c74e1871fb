"""A load of real clients runs through reloads, good and bad ones, and nobody sees an error."""

from __future__ import annotations

import imaplib
import poplib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.real.conftest import Gateway
from tests.support import secrets
from tests.support.servers import Dovecot, free_ports, mailgate

pytestmark = pytest.mark.real

RELOADS = 200 if FULL else 20
SECONDS_BETWEEN = 0.05
MESSAGE = b"Subject: reload\r\n\r\n" + b"0123456789abcdef\r\n" * 4096
REFUSED = "reload refused, the old configuration stays in force"


@dataclass
class House:
    """A gateway, its ports, and what its clients do until they are told to stop."""

    gateway: Gateway
    stop: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def port(self, protocol: str) -> int:
        return self.gateway.port(protocol, "implicit")

    def imap(self, user: tuple[str, str]) -> imaplib.IMAP4_SSL:
        client = imaplib.IMAP4_SSL("localhost", self.port("imap"), ssl_context=self.gateway.context, timeout=20)
        assert client.login(*user)[0] == "OK"
        return client

    def imap_logins(self, user: tuple[str, str]) -> None:
        client = self.imap(user)
        assert client.append("INBOX", None, None, MESSAGE)[0] == "OK"
        assert client.select()[0] == "OK"
        status, found = client.fetch("*", "(BODY.PEEK[])")
        assert status == "OK"
        assert isinstance(found[0], tuple)
        assert found[0][1] == MESSAGE
        assert client.logout()[0] == "BYE"

    def pop3_logins(self, user: tuple[str, str]) -> None:
        client = poplib.POP3_SSL("localhost", self.port("pop3"), context=self.gateway.context, timeout=20)
        client.user(user[0])
        client.pass_(user[1])
        assert client.retr(1)[1] == MESSAGE.splitlines()
        client.quit()

    def greetings(self, user: tuple[str, str]) -> None:
        """Do what a load balancer does every moment: connect, look and go."""
        with socket.create_connection(("127.0.0.1", self.gateway.port("imap", "plain")), 20) as sock:
            assert sock.recv(1000).startswith(b"* OK ")

    def run(self, name: str, work: Callable[[tuple[str, str]], None], user: tuple[str, str]) -> None:
        while not self.stop.is_set():
            try:
                work(user)
            except Exception as error:
                self.errors.append(f"{name}: {error!r}")
            else:
                self.done[name] += 1

    def long_session(self, user: tuple[str, str]) -> None:
        """Stay logged in from before the first reload to behind the last."""
        client = self.imap(user)
        try:
            assert client.select()[0] == "OK"
            while not self.stop.wait(0.01):
                assert client.noop()[0] == "OK"
                self.done["command of a long session"] += 1
            assert client.logout()[0] == "BYE"
        except Exception as error:
            self.errors.append(f"long session: {error!r}")

    def reloads(self, result: str) -> int:
        return int(self.gateway.metric("mailgate_reloads_total", result=result))


def configuration(server: Dovecot, authority: Path, gateway: dict[str, int], folder: Path, number: int) -> str:
    """Return one of several configurations, all of which serve the same clients at the same addresses."""
    extra = number % 3 == 0
    text = f"""
workers = {1 + number // 2 % 2}
[tls]
certificate = "{authority}"
key = "{authority.with_name("key.pem")}"
profile = "{("intermediate", "modern")[number % 2]}"
[metrics]
bind = "127.0.0.1:{gateway["metrics"]}"
[admin]
socket = "{folder}/admin.sock"
[limits]
sessions_per_address = {1000 + number}
half_open_per_address = 500
[log]
level = "{("debug", "info")[number % 2]}"
"""
    doors = {"imap": ("imap", "implicit"), "pop3": ("pop3", "implicit"), "plain": ("imap", "off")}
    if extra:
        doors["extra"] = ("imap", "off")
    for name, (protocol, tls) in doors.items():
        text += f'[[listener]]\nname = "{name}-{number % 4}"\nprotocol = "{protocol}"\n'
        text += f'bind = "127.0.0.1:{gateway[name]}"\ntls = "{tls}"\n'
    for protocol, port in (("imap", server.imap), ("pop3", server.pop3)):
        text += f'[pool.{protocol}-{number // 2 % 2}]\nprotocol = "{protocol}"\nservers = ["127.0.0.1:{port}"]\n'
        text += f'tls = "off"\nlogin_timeout = "{20 + number % 5}s"\n'
        text += f'[[route]]\nmatch.protocol = "{protocol}"\npool = "{protocol}-{number // 2 % 2}"\n'
    return text


BAD = (
    "this is no TOML",
    'hostname = "no host"\n',
    "{good}\n[limit]\nsessions = 1\n",
    '{good}\n[[listener]]\nname = "taken"\nprotocol = "imap"\nbind = "127.0.0.1:{taken}"\ntls = "off"\n',
    '{good}\n[[listener]]\nname = "wide"\nprotocol = "imap"\nbind = "0.0.0.0:{imap}"\ntls = "implicit"\n',
)


def test_clients_notice_no_reload(
    server: Dovecot, authority: Path, user: tuple[str, str], other: tuple[str, str], tmp_path: Path
) -> None:
    ports = dict(zip(("imap", "pop3", "plain", "extra", "metrics"), free_ports(5), strict=True))
    places = {
        ("imap", "implicit", "off"): ports["imap"],
        ("pop3", "implicit", "off"): ports["pop3"],
        ("imap", "plain", "off"): ports["plain"],
    }
    first = configuration(server, authority, ports, tmp_path, 0)
    path = tmp_path / "mailgate.toml"
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        mailgate(tmp_path, first, [ports["imap"], ports["pop3"], ports["metrics"]]) as program,
    ):
        house = House(Gateway(program, tmp_path, authority, places, ports["metrics"]))
        client = house.imap(other)
        assert client.append("INBOX", None, None, MESSAGE)[0] == "OK"
        client.logout()
        threads = [
            threading.Thread(target=house.run, args=(name, work, whose))
            for name, work, whose in (
                ("imap", house.imap_logins, user),
                ("imap", house.imap_logins, user),
                ("pop3", house.pop3_logins, other),
                ("greeting", house.greetings, other),
            )
        ]
        threads += [threading.Thread(target=house.long_session, args=(whose,)) for whose in (user, other)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, RELOADS + 1):
                good = configuration(server, authority, ports, tmp_path, number)
                if number % 2:
                    bad = BAD[number // 2 % len(BAD)]
                    path.write_text(bad.format(good=good, taken=taken.getsockname()[1], imap=ports["imap"]))
                else:
                    path.write_text(good)
                if number % 4 < 2:
                    program.process.send_signal(signal.SIGHUP)
                else:
                    answer = house.gateway.administer("POST", "/v1/reload")
                    assert ("problems" in answer) == bool(number % 2), answer
                deadline = time.monotonic() + 10
                while house.reloads("refused") < (number + 1) // 2 or house.reloads("ok") < number // 2:
                    assert time.monotonic() < deadline, program.output()
                    time.sleep(0.02)
                time.sleep(SECONDS_BETWEEN)
        finally:
            house.stop.set()
            for thread in threads:
                thread.join()
        assert house.errors == []
        assert min(house.done[name] for name in ("imap", "pop3", "greeting")) >= RELOADS // 4, house.done
        assert (house.reloads("ok"), house.reloads("refused")) == (RELOADS // 2, RELOADS // 2)
        sessions = house.gateway.sessions()
        assert {line["reason"] for line in sessions if line["user"] is not None} == {"logged_out"}
        said = [line["problem"] for line in program.records() if line["event"] == REFUSED]
        assert {problem.partition(" ")[0] for problem in said} >= {"line", "hostname", "limit:", "listener[3].bind[0]"}

        def by_hand() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "mailgate", "reload", "-c", str(path)]
            return subprocess.run(command, capture_output=True, text=True, timeout=30)

        path.write_text(first + "[shutdown]\ndrain = 3\n")
        asked = by_hand()
        assert (asked.returncode, asked.stderr) == (0, "")
        assert "  [shutdown]: changed drain\n" in asked.stdout
        path.write_text(first + "[shutdown]\ndrain = 0\n")
        asked = by_hand()
        assert (asked.returncode, asked.stdout) == (78, "")
        assert "  shutdown.drain = 0: must be at least 1s\n" in asked.stderr
    output = program.output()
    assert "Traceback" not in output
    assert secrets.leaks(output.encode(), {*server.users.values()}) == []


def test_pop3_reaches_quit_while_the_gateway_stops(
    server: Dovecot, authority: Path, user: tuple[str, str], other: tuple[str, str], tmp_path: Path
) -> None:
    ports = dict(zip(("imap", "pop3", "plain", "extra", "metrics"), free_ports(5), strict=True))
    places = {("imap", "implicit", "off"): ports["imap"], ("pop3", "implicit", "off"): ports["pop3"]}
    config = configuration(server, authority, ports, tmp_path, 0)
    with mailgate(tmp_path, config, [ports["imap"], ports["pop3"]]) as program:
        house = House(Gateway(program, tmp_path, authority, places, ports["metrics"]))
        writer = house.imap(user)
        assert writer.append("INBOX", None, None, MESSAGE)[0] == "OK"
        reader = poplib.POP3_SSL("localhost", ports["pop3"], context=house.gateway.context, timeout=20)
        reader.user(user[0])
        reader.pass_(user[1])
        assert reader.dele(1).startswith(b"+OK")
        program.process.send_signal(signal.SIGTERM)
        # The farewell came behind the answer to APPEND, without a command that asked for it.
        assert writer.readline() == b"* BYE [UNAVAILABLE] The server is shutting down.\r\n"
        assert writer.readline() == b""
        writer.shutdown()
        assert reader.noop().startswith(b"+OK")
        assert reader.quit().startswith(b"+OK")
        assert program.process.wait(10) == 0
        ends = {line["protocol"]: line["reason"] for line in house.gateway.sessions()}
        assert ends == {"imap": "shutting_down", "pop3": "logged_out"}
    with imaplib.IMAP4("127.0.0.1", server.imap) as client:
        client.login(*user)
        assert client.select()[1] == [b"0"]

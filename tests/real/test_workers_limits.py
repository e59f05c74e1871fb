"""Limits over several worker processes, and how connections are shared out, with a real server."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.real.conftest import Gateway, soon
from tests.support.servers import Dovecot, free_ports, mailgate

pytestmark = pytest.mark.real


class House:
    """A gateway with two workers, without TLS to its clients."""

    def __init__(self, gateway: Gateway, port: int, user: tuple[str, str]) -> None:
        self.gateway = gateway
        self.port = port
        self.login = f"a LOGIN {user[0]} {user[1]}\r\n".encode()

    def greeted(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        assert self.hears(client).startswith(b"* OK")
        return client

    def hears(self, client: socket.socket) -> bytes:
        """Return the next line, or nothing at the end."""
        line = b""
        while not line.endswith(b"\n") and (byte := client.recv(1)):
            line += byte
        return line

    def works(self) -> socket.socket:
        client = self.greeted()
        client.sendall(self.login)
        assert self.hears(client).startswith(b"a OK")
        return client

    def lives(self, client: socket.socket) -> bool:
        """Whether a client is answered; it is closed if not."""
        try:
            client.sendall(b"b NOOP\r\n")
            answered = self.hears(client).startswith(b"b OK")
        except OSError:
            answered = False
        if not answered:
            client.close()
        return answered

    def by_worker(self, name: str) -> list[float]:
        return [self.gateway.metric(f"mailgate_worker_{name}", worker=str(slot)) for slot in range(2)]


@pytest.fixture
def house(
    request: pytest.FixtureRequest, server: Dovecot, user: tuple[str, str], authority: Path, tmp_path: Path
) -> Iterator[House]:
    mail, metrics = free_ports(2)
    config = f"""
workers = 2
[metrics]
bind = "127.0.0.1:{metrics}"
[limits]
{request.param}
[[listener]]
name = "imap"
protocol = "imap"
bind = ["127.0.0.1:{mail}"]
tls = "off"
allow_plaintext_auth = true
[[route]]
pool = "main"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:{server.imap}"]
tls = "off"
"""
    with mailgate(tmp_path, config, [mail, metrics]) as program:
        gateway = Gateway(program, tmp_path, authority, {}, metrics)
        soon(lambda: gateway.metric("mailgate_workers") == 2)
        # The second worker may still be on its way from its fork to its first connection.
        time.sleep(0.5)
        yield House(gateway, mail, user)


@pytest.mark.parametrize("house", ["sessions_per_address = 10"], indirect=True)
def test_an_address_has_no_more_sessions_than_with_one_worker(house: House) -> None:
    clients = [house.works() for _ in range(10)]
    assert all(4 <= number <= 6 for number in house.by_worker("sessions")), "few long ones are shared out"
    with socket.create_connection(("127.0.0.1", house.port), timeout=20) as late:
        assert house.hears(late).startswith(b"* BYE [LIMIT]")
    victim = house.gateway.program.workers()[0]
    os.kill(victim, signal.SIGKILL)
    soon(lambda: house.gateway.metric("mailgate_worker_exits_total", reason="SIGKILL") == 1)
    soon(lambda: house.gateway.metric("mailgate_workers") == 2)
    left = [client for client in clients if house.lives(client)]
    assert 4 <= len(left) <= 6
    left += [house.works() for _ in range(10 - len(left))]
    with socket.create_connection(("127.0.0.1", house.port), timeout=20) as late:
        assert house.hears(late).startswith(b"* BYE [LIMIT]")
    for client in left:
        client.close()


@pytest.mark.parametrize("house", ["half_open_per_address = 4"], indirect=True)
def test_half_open_connections_give_way_over_all_workers(house: House) -> None:
    clients = [house.greeted() for _ in range(12)]
    soon(lambda: house.gateway.metric("mailgate_limits_struck_total", rule="half_open_per_address", action="shed") == 8)
    soon(lambda: house.gateway.metric("mailgate_sessions_open") == 4)
    house.works().close()
    for client in clients:
        client.close()


@pytest.mark.parametrize("house", [""], indirect=True)
def test_a_thousand_logins_are_shared_out(house: House) -> None:
    def come_and_go() -> None:
        for _ in range(125):
            with house.works() as client:
                client.sendall(b"z LOGOUT\r\n")
                assert house.hears(client).startswith(b"* BYE")

    with ThreadPoolExecutor(8) as clients:
        for one in [clients.submit(come_and_go) for _ in range(8)]:
            one.result()
    logins = house.by_worker("logins_total")
    assert sum(logins) == 1000
    assert all(400 <= number <= 600 for number in logins)

"""Processes that accept from one socket: who gets how many."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import trio

from mailgate.config import Endpoint
from mailgate.ledger import Ledger, Seat
from mailgate.model import Peer
from mailgate.net.listener import open_socket, serve
from mailgate.policy.gate import Gate, GateSettings
from mailgate.stream import SocketStream
from tests.support.children import child, ended


def accept(sock: socket.socket, ledger: Ledger, slot: int, ready: int) -> None:
    """Say the own number to each client and hold it until it goes, to the end of the process."""
    seat = Seat(ledger, slot, lambda: None)
    gate = Gate(GateSettings(sessions_per_address=10_000, half_open=10_000, half_open_per_address=10_000), counts=seat)

    async def handle(stream: SocketStream, peer: Peer) -> None:
        name = str(id(stream))
        gate.admit(name, peer.address, 0.0)
        try:
            await stream.send_all(b"%d" % slot)
            await stream.receive(memoryview(bytearray(1)))
        finally:
            gate.left(name)

    async def main() -> None:
        seat.serving(True)
        os.write(ready, b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [sock], handle, nursery, lambda reason: None, seat)

    trio.run(main)


@pytest.fixture
def door() -> Iterator[tuple[tuple[str, int], list[int], Ledger]]:
    """Two processes that accept from one socket: where, and who they are."""
    sock = open_socket(Endpoint("127.0.0.1", 0))
    ledger = Ledger.create(2, 2000)
    heard, ready = os.pipe()
    pids = [child(lambda slot=slot: accept(sock, ledger, slot, ready)) for slot in range(2)]  # type: ignore[misc]
    for _ in pids:
        assert os.read(heard, 1) == b"x"
    try:
        yield sock.getsockname(), pids, ledger
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
            ended(pid)
        os.close(heard)
        os.close(ready)
        sock.close()
        ledger.close()


def whose(client: socket.socket) -> int:
    client.settimeout(20)
    return int(client.recv(1))


Door = tuple[tuple[str, int], list[int], Ledger]


def test_quick_connections_are_shared_out(door: Door) -> None:
    address, _, _ = door
    took = Counter[int]()

    def come_and_go() -> None:
        for _ in range(125):
            with socket.create_connection(address) as client:
                took[whose(client)] += 1

    clients = [threading.Thread(target=come_and_go) for _ in range(8)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert took.total() == 1000
    assert 400 <= took[0] <= 600


@pytest.mark.parametrize("at_once", [True, False])
def test_few_long_connections_are_shared_out(door: Door, at_once: bool) -> None:
    address, _, _ = door
    clients: list[socket.socket] = []
    took = Counter[int]()
    for _ in range(10):
        clients.append(socket.create_connection(address))
        if not at_once:
            took[whose(clients[-1])] += 1
    if at_once:
        took.update(map(whose, clients))
    for client in clients:
        client.close()
    assert 4 <= took[0] <= 6


def test_nobody_waits_long_for_a_worker_that_is_stuck(door: Door) -> None:
    address, (stuck, _), _ = door
    os.kill(stuck, signal.SIGSTOP)
    clients = [socket.create_connection(address) for _ in range(50)]
    assert {whose(client) for client in clients} == {1}
    for client in clients:
        client.close()

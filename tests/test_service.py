"""What systemd is told, and which workers are killed for it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailgate import service as module
from mailgate.ledger import Seat
from mailgate.service import Service
from tests.support.gateway import logging_as_before  # noqa: F401
from tests.support.servers import free_ports
from tests.support.supervisor import House, said, text


class Told(House):
    """A supervisor of whose service the test hears what systemd would, at moments that it chooses."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path)
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ear.bind(str(path.with_name("notify")))
        self.ear.setblocking(False)
        self.variables = {"NOTIFY_SOCKET": self.ear.getsockname()}
        self.service = self.supervisor.service = Service(self.supervisor, self.variables)

    def told(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.ear.recv(1000).decode())
            except BlockingIOError:
                return found

    def watched(self, seconds: float) -> Service:
        variables = self.variables | {"WATCHDOG_USEC": str(int(seconds * 1e6))}
        self.service = self.supervisor.service = Service(self.supervisor, variables)
        return self.service


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    path = tmp_path / "mailgate.toml"
    path.write_text(text(*free_ports(1), more="workers = 2\n"))
    made = Told(path, monkeypatch)
    yield made
    made.supervisor.workers.clear()
    made.supervisor._close()
    made.ear.close()
    for end in made.ends:
        end.close()


def test_it_is_ready_when_all_workers_are(house: Told) -> None:
    house.worker(0)
    late, _ = house.worker(1, "starting")
    house.service.turn()
    assert house.told() == ["STATUS=Sessions: 0, workers: 2"]
    late.state = "ready"
    house.service.turn()
    assert house.told() == ["READY=1", "STATUS=Sessions: 0, workers: 2"]
    house.service.turn()
    assert house.told() == []


def test_the_status_counts_all_sessions_now_and_then(house: Told) -> None:
    for slot in range(2):
        house.worker(slot)
        seat = Seat(house.supervisor.ledger, slot, lambda: None)
        with seat:
            seat.enter("a", "192.0.2.1")
    house.service.turn()
    assert house.told()[-1] == "STATUS=Sessions: 2, workers: 2"
    assert house.service.due == house.now + module.STATUS_SECONDS
    house.now += module.STATUS_SECONDS
    house.service.turn()
    assert house.told() == ["STATUS=Sessions: 2, workers: 2"]


@pytest.mark.parametrize("good", [True, False])
def test_a_reload_is_told_from_its_begin_to_its_end(house: Told, good: bool) -> None:
    ends = [house.worker(slot)[1] for slot in range(2)]
    house.service.turn()
    house.told()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    if not good:
        house.path.write_text("[[")
    house.supervisor._reloads.reload([])
    (begun,) = house.told()
    assert begun.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(begun.rpartition("=")[2]) >= before
    house.service.turn()
    if good:
        # Its workers have not followed yet.
        assert house.told() == []
        for worker, end in zip(list(house.supervisor.workers), ends, strict=True):
            end.put({"word": "applied", "error": ""})
            house.supervisor._hear(worker)
        house.service.turn()
    assert house.told()[0] == "READY=1"


def test_a_stop_is_told_once_and_no_status_behind_it(house: Told) -> None:
    house.worker(0)
    house.service.turn()
    house.told()
    house.supervisor._stop(signal.SIGTERM)
    house.now += module.STATUS_SECONDS
    house.service.turn()
    house.supervisor._stop(signal.SIGTERM)
    house.service.turn()
    assert house.told() == ["STOPPING=1\nSTATUS=Draining"]


def test_without_systemd_nobody_is_told(house: Told) -> None:
    service = Service(house.supervisor, {"WATCHDOG_USEC": "1000000"})
    service.turn()
    assert service.due == float("inf")


def test_a_worker_that_hangs_is_killed_and_no_other(house: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    service = house.watched(4.0)
    (well, to_well), (stuck, to_stuck) = house.worker(0), house.worker(1)
    house.worker(2, "starting")
    asked = {"word": "asked", "ask": 0, "kind": "alive", "facts": {}}
    for turn in range(3):
        service.turn()
        assert "WATCHDOG=1" in house.told()
        assert said(to_well) == [asked]
        assert said(to_stuck) == ([asked] if turn == 0 else [])
        assert killed == ([(stuck.pid, signal.SIGKILL)] if turn == 2 else [])
        to_well.put({"word": "reply", "ask": 0, "answer": {}, "error": ""})
        house.supervisor._hear(well)
        assert service.due == house.now + 2.0
        house.now += 2.0
    assert house.logged("a worker hangs, it is killed")[0]["worker"] == 1
    house.supervisor._ended(stuck, -9)
    killed.clear()
    service.turn()
    assert killed == []

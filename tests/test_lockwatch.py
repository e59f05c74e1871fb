"""A worker that hangs with the lock of the ledger, and dead ones whose counts cannot be cleared at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailgate.ledger.table import SESSIONS
from mailgate.lockwatch import LOOKS
from tests.support.children import child_at, ended
from tests.support.gateway import logging_as_before  # noqa: F401
from tests.support.supervisor import House, playing


class Scene:
    """A supervisor of which one worker is a process that holds the lock; the clock is the test's."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.house = house
        self.supervisor = house.supervisor
        self.watch = house.supervisor._lock
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.worker, _ = house.worker(0)
        house.worker(1)
        self.worker.pid = self.holds()

    def holds(self) -> int:
        """Have a process take the lock for good; return its pid."""

        def hold(tell: Callable[[], None]) -> None:
            with self.supervisor.ledger:
                tell()
                signal.pause()

        return child_at(hold)

    def look(self) -> None:
        self.now = self.watch.due
        self.watch.turn()

    @property
    def killed(self) -> bool:
        return bool(self.house.logged("a worker hangs with the lock, it is killed"))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with playing(tmp_path, monkeypatch) as house:
        scene = Scene(house, monkeypatch)
        yield scene
        if not scene.killed:
            os.kill(scene.worker.pid, signal.SIGKILL)
            ended(scene.worker.pid)


def test_who_holds_the_lock_at_all_looks_is_killed_within_six_seconds(scene: Scene) -> None:
    began = scene.now
    while not scene.killed:
        scene.look()
    assert 5 <= scene.now - began <= 6
    (line,) = scene.house.logged("a worker hangs with the lock, it is killed")
    assert line.items() >= {"worker": 0, "pid": scene.worker.pid, "level": "error"}.items()
    assert ended(scene.worker.pid) == -signal.SIGKILL
    scene.look()
    scene.look()
    assert scene.watch.due == scene.now + 1


def test_who_lets_go_of_it_in_between_is_left_alone(scene: Scene) -> None:
    ledger = scene.supervisor.ledger
    for _ in range(3):
        for _ in range(LOOKS):
            scene.look()
        os.kill(scene.worker.pid, signal.SIGKILL)
        ended(scene.worker.pid)
        assert ledger.holder() == 0
        scene.worker.pid = scene.holds()
    assert not scene.killed


def test_a_gateway_that_was_stopped_as_a_whole_kills_nobody(scene: Scene) -> None:
    scene.look()
    scene.now += 3600
    scene.watch.turn()
    assert not scene.killed


def test_a_holder_that_is_no_worker_is_not_killed(scene: Scene) -> None:
    scene.supervisor.workers.remove(scene.worker)
    for _ in range(3 * LOOKS):
        scene.look()
    assert not scene.killed
    os.kill(scene.worker.pid, 0)


def test_a_dead_worker_is_cleared_when_the_lock_is_free_and_its_slot_stays_empty_so_long(scene: Scene) -> None:
    supervisor = scene.supervisor
    other = supervisor.workers[1]
    at = SESSIONS * supervisor.slots + other.slot
    supervisor.ledger.totals[at] = 7
    supervisor._ended(other, -9)
    assert supervisor.ledger.totals[at] == 7
    assert scene.watch.free_slots() == set(range(2, supervisor.slots))
    assert not supervisor.quiet, "an upgrade would leave the counts behind"
    assert supervisor._patience() <= 251
    os.kill(scene.worker.pid, signal.SIGKILL)
    ended(scene.worker.pid)
    scene.look()
    assert supervisor.ledger.totals[at] == 0
    assert scene.watch.free_slots() == set(range(1, supervisor.slots))
    assert supervisor.quiet
    scene.worker.pid = scene.holds()

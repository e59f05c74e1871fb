"""How the supervisor reloads, with workers that are only the other ends of their channels."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailgate.config import Config
from mailgate.workers.packets import Channel
from mailgate.workers.worker import Worker
from tests.support.gateway import logging_as_before  # noqa: F401
from tests.support.servers import free_ports
from tests.support.supervisor import House, playing, said, text


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with playing(tmp_path, monkeypatch) as made:
        yield made


def applied(house: House, worker: Worker, end: Channel, error: str = "") -> None:
    end.put({"word": "applied", "error": error})
    house.supervisor._hear(worker)


def test_a_reload_is_answered_when_all_have_put_it_into_force(house: House) -> None:
    (one, to_one), (two, to_two) = house.worker(0), house.worker(1)
    (port,) = free_ports(1)
    house.path.write_text(text(port, more="workers = 2\n"))
    to_one.put({"word": "reload", "number": 3})
    house.supervisor._hear(one)
    house.supervisor._reloads.turn()
    for end in (to_one, to_two):
        ((order, descriptors), *_) = end.receive()
        assert (order["word"], order["doors"]) == ("apply", [["mail", f"127.0.0.1:{port}"]])
        for one_of_them in descriptors:
            os.close(one_of_them)
        assert len(descriptors) == 1
    assert len(house.logged("configuration reloaded")) == 1
    applied(house, one, to_one)
    assert said(to_one) == []
    applied(house, two, to_two)
    (answer,) = said(to_one)
    assert answer["word"] == "done"
    assert f"listener at{port}: added" in answer["changed"]


def test_who_cannot_put_it_into_force_is_replaced_and_keeps_its_sessions(house: House) -> None:
    (one, to_one), (two, to_two) = house.worker(0), house.worker(1)
    house.path.write_text(house.path.read_text() + '[log]\nlevel = "debug"\n')
    house.supervisor._reloads.reload([(one, 3)])
    assert [message["word"] for message in said(to_one)] == ["apply"]
    assert [message["word"] for message in said(to_two)] == ["apply"]
    applied(house, one, to_one)
    applied(house, two, to_two, "no memory")
    assert said(to_two) == [{"word": "signal", "number": signal.SIGQUIT}]
    assert two.state == "leaving"
    assert [message["word"] for message in said(to_one)] == ["done"]
    assert house.logged("a worker is replaced: it cannot reload")[0]["error"] == "no memory"
    house.supervisor._keep_number()
    assert [worker.state for worker in house.supervisor.workers] == ["ready", "leaving", "starting"]


def test_a_bad_configuration_changes_nothing(house: House) -> None:
    one, to_one = house.worker(0)
    before = house.supervisor.config
    house.path.write_text(house.path.read_text() + "[limits]\nsessions = 0\n")
    house.supervisor._reloads.reload([(one, 3)])
    answer = said(to_one)[-1]
    assert answer["problems"] == [["limits.sessions", "0", "must be at least 1"]]
    assert house.supervisor.config is before
    house.path.write_text(house.path.read_text().replace("sessions = 0", "").replace("workers = 2", "workers = 64"))
    house.supervisor._reloads.reload([(one, 4)])
    assert said(to_one)[-1]["problems"] == [["workers", "64", "more than 16 need a restart"]]


def test_workers_that_are_too_many_leave_and_are_not_told_to_reload(house: House) -> None:
    (one, to_one), (two, to_two) = house.worker(0), house.worker(1)
    house.path.write_text(house.path.read_text().replace("workers = 2", "workers = 1"))
    house.supervisor._reloads.reload([])
    assert said(to_one)[0]["word"] == "apply"
    assert [message["word"] for message in said(to_two)] == ["signal"]
    assert (one.state, two.state) == ("ready", "leaving")


def test_one_that_dies_meanwhile_does_not_hold_up_the_answer(house: House) -> None:
    (one, to_one), (two, to_two) = house.worker(0), house.worker(1)
    house.supervisor._reloads.reload([(one, 3)])
    applied(house, one, to_one)
    to_two.close()
    house.supervisor._ended(two, -9)
    assert said(to_one)[-1]["word"] == "done"


def test_nobody_reloads_while_the_gateway_stops(house: House) -> None:
    one, to_one = house.worker(0)
    to_one.put({"word": "reload", "number": 3})
    house.supervisor._hear(one)
    house.supervisor._stop(signal.SIGTERM)
    to_one.put({"word": "reload", "number": 4})
    house.supervisor._hear(one)
    refused = [message for message in said(to_one) if message["word"] == "done"]
    assert [(message["number"], message["error"]) for message in refused] == [
        (3, "the gateway is shutting down"),
        (4, "the gateway is shutting down"),
    ]


def test_a_stop_breaks_off_a_configuration_that_takes_long(house: House) -> None:
    one, to_one = house.worker(0)

    def slow() -> Config:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError

    house.supervisor.load = slow
    with house.supervisor._hearing():
        house.supervisor._reloads.reload([(one, 3)])
        assert said(to_one)[-1]["error"] == "the gateway is shutting down"
        house.supervisor._signalled()
    assert house.supervisor.stopping
    assert one.state == "ending"


def test_reloads_that_are_asked_for_meanwhile_are_done_as_one(house: House) -> None:
    (one, to_one), (two, _) = house.worker(0), house.worker(1)
    with house.supervisor._hearing():
        for _ in range(200):
            signal.raise_signal(signal.SIGHUP)
        to_one.put({"word": "reload", "number": 3})
        to_one.put({"word": "reload", "number": 4})
        house.supervisor._hear(one)
        house.supervisor._turn()
        house.supervisor._reloads.applied(one, "")
        house.supervisor._reloads.applied(two, "")
        house.supervisor._keep_time()
    assert [(answer["number"], answer["changed"]) for answer in said(to_one) if answer["word"] == "done"] == [
        (3, []),
        (4, []),
    ]
    assert len(house.logged("configuration reloaded")) == 1
    assert house.supervisor.quiet

"""What the supervisor decides, with workers that are only the other ends of their channels."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailgate import config as configuration
from mailgate.config import Config
from mailgate.errors import MailgateError
from mailgate.heritage import Heritage, Logger
from mailgate.observe import log
from mailgate.supervisor import Supervisor
from mailgate.workers.questions import ASK_SECONDS
from mailgate.workers.restarts import AT_ONCE
from tests.support.gateway import logging_as_before  # noqa: F401
from tests.support.servers import free_ports
from tests.support.supervisor import House, playing, said, text


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with playing(tmp_path, monkeypatch) as made:
        yield made


# ---------------------------------------------------------------- questions


def test_a_question_goes_to_all_that_serve_and_their_answers_to_the_asker(house: House) -> None:
    (one, to_one), (two, to_two), (_, to_three) = house.worker(0), house.worker(1), house.worker(2, "starting")
    to_one.put({"word": "ask", "number": 5, "kind": "sessions", "facts": {}})
    house.supervisor._hear(one)
    (asked,) = said(to_one)
    assert asked == {"word": "asked", "ask": asked["ask"], "kind": "sessions", "facts": {}}
    assert (said(to_two), said(to_three)) == ([asked], [])
    to_two.put({"word": "reply", "ask": asked["ask"], "answer": {"sessions": [2]}, "error": ""})
    house.supervisor._hear(two)
    reply = {"word": "reply", "number": 5, "worker": 1, "answer": {"sessions": [2]}, "error": ""}
    assert said(to_one) == [reply]
    # A second answer, or one to a question that nobody asked, counts for nothing.
    for number in (asked["ask"], asked["ask"] + 1):
        to_two.put({"word": "reply", "ask": number, "answer": {}, "error": ""})
    house.supervisor._hear(two)
    assert said(to_one) == []
    to_one.put({"word": "reply", "ask": asked["ask"], "answer": {"sessions": [1]}, "error": ""})
    house.supervisor._hear(one)
    assert said(to_one) == [
        reply | {"worker": 0, "answer": {"sessions": [1]}},
        {"word": "answered", "number": 5},
    ]
    assert house.supervisor.questions.open == {}


def test_who_dies_or_is_late_is_left_out_and_told_of(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (one, to_one), (two, to_two), (_, to_three) = house.worker(0), house.worker(1), house.worker(2)
    to_one.put({"word": "ask", "number": 5, "kind": "sessions", "facts": {}})
    house.supervisor._hear(one)
    to_one.put({"word": "reply", "ask": said(to_one)[0]["ask"], "answer": {}, "error": ""})
    house.supervisor._hear(one)
    to_two.close()
    house.supervisor._ended(two, -9)
    assert [(reply["worker"], reply["error"]) for reply in said(to_one)] == [(0, ""), (1, "died")]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + ASK_SECONDS + 1)
    house.supervisor._keep_time()
    late = {"word": "reply", "number": 5, "worker": 2, "error": f"no answer within {ASK_SECONDS:g} s"}
    assert said(to_one) == [late, {"word": "answered", "number": 5}]
    to_three.put({"word": "reply", "ask": 1, "answer": {}, "error": ""})
    house.supervisor._hear(house.supervisor.workers[-1])
    assert said(to_one) == []


def test_an_asker_that_dies_is_answered_no_more(house: House) -> None:
    (one, to_one), (two, to_two) = house.worker(0), house.worker(1)
    to_one.put({"word": "ask", "number": 5, "kind": "sessions", "facts": {}})
    house.supervisor._hear(one)
    house.supervisor._ended(one, -9)
    to_two.put({"word": "reply", "ask": said(to_two)[0]["ask"], "answer": {}, "error": ""})
    house.supervisor._hear(two)
    assert house.supervisor.questions.open == {}


def test_a_worker_that_says_no_more_is_not_waited_for(house: House) -> None:
    (one, to_one), (two, to_two) = house.worker(0), house.worker(1)
    to_two.close()
    house.supervisor._hear(two)
    assert two.deaf
    to_one.put({"word": "ask", "number": 5, "kind": "sessions", "facts": {}})
    house.supervisor._hear(one)
    to_one.put({"word": "reply", "ask": said(to_one)[0]["ask"], "answer": {}, "error": ""})
    house.supervisor._hear(one)
    assert said(to_one)[-1] == {"word": "answered", "number": 5}


# ---------------------------------------------------------------- deaths


def test_a_dead_worker_is_replaced_and_the_log_says_how_it_died(house: House) -> None:
    one, _ = house.worker(0)
    house.worker(1)
    house.supervisor._ended(one, -11)
    (line,) = house.logged("a worker died")
    assert line.items() >= {"worker": 0, "pid": one.pid, "signal": "SIGSEGV", "level": "error"}.items()
    house.supervisor._keep_number()
    assert [worker.state for worker in house.supervisor.workers] == ["ready", "starting"]


def test_workers_that_die_again_and_again_are_replaced_slowly(house: House) -> None:
    for _ in range(AT_ONCE + 1):
        worker, _ = house.worker(0)
        worker.began = time.monotonic()
        house.supervisor._ended(worker, 1)
    assert len(house.logged("a worker died")) == AT_ONCE + 1
    assert len(house.logged("workers die again and again")) == 1
    house.supervisor._keep_number()
    assert house.supervisor.workers == []
    assert 0 < house.supervisor._patience() <= 501


def test_a_worker_that_was_asked_to_end_has_not_died(house: House) -> None:
    one, _ = house.worker(0, "leaving")
    house.supervisor._ended(one, 0)
    assert house.logged("a worker died") == []


def test_a_worker_that_cannot_begin_ends_the_start_with_its_sentence(house: House) -> None:
    house.supervisor._started = False
    one, to_one = house.worker(0, "starting")
    to_one.put({"word": "failed", "error": "cannot be used"})
    to_one.close()
    with pytest.raises(MailgateError, match=r"^cannot be used$"):
        house.supervisor._ended(one, 1)


def test_a_worker_that_is_killed_while_it_begins_is_replaced(house: House) -> None:
    house.supervisor._started = False
    one, _ = house.worker(0, "starting")
    house.supervisor._ended(one, -9)
    house.supervisor._keep_number()
    assert [worker.state for worker in house.supervisor.workers] == ["starting", "starting"]


def test_a_system_that_has_no_process_left_is_asked_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.worker(0)

    def fail() -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(house.supervisor, "_fork", fail)
    house.supervisor._keep_number()
    house.supervisor._keep_number()
    assert len(house.logged("a worker cannot be started")) == 1
    assert 0 < house.supervisor._patience() <= 1001


# ---------------------------------------------------------------- the end


def test_no_signal_is_lost_behind_hundreds_of_others(house: House) -> None:
    with house.supervisor._hearing():
        for _ in range(1000):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        house.supervisor._signalled()
    assert house.supervisor.stopping


def test_a_second_signal_is_handed_on_too(house: House) -> None:
    one, to_one = house.worker(0)
    house.supervisor._stop(signal.SIGTERM)
    house.supervisor._stop(signal.SIGINT)
    assert [message["number"] for message in said(to_one)] == [signal.SIGTERM, signal.SIGINT]
    assert [len(house.logged(event)) for event in ("stopping", "stopping at once")] == [1, 1]
    house.supervisor._ended(one, 0)
    assert house.logged("a worker died") == []


def test_a_worker_that_does_not_end_is_killed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = house.worker(0)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *both: killed.append(both))
    house.supervisor._stop(signal.SIGTERM)
    house.supervisor._keep_time()
    assert killed == []
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + house.supervisor.config.shutdown.drain + 11)
    house.supervisor._keep_time()
    assert killed == [(one.pid, signal.SIGKILL)]


def running(work: Callable[[Config, Logger, Heritage], None], path: Path, output: io.StringIO | None) -> Supervisor:
    config = configuration.load(path, {})
    return Supervisor(config, log.configure("json", "info", output), None, lambda _: log.configure(None, "info"), work)


def test_a_worker_that_fails_at_its_start_fails_the_gateway(tmp_path: Path) -> None:
    path, output = tmp_path / "mailgate.toml", io.StringIO()
    path.write_text(text(*free_ports(1), more="workers = 1\n"))

    def work(config: Config, logger: Logger, heritage: Heritage) -> None:
        raise MailgateError(f"worker {heritage.slot} cannot begin")

    with pytest.raises(MailgateError, match=r"^worker 0 cannot begin$"):
        running(work, path, output).run()


def test_an_error_of_our_own_in_a_worker_is_shown_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mailgate.toml"
    path.write_text(text(*free_ports(1), more="workers = 1\n"))

    def work(config: Config, logger: Logger, heritage: Heritage) -> None:
        raise ZeroDivisionError("oops")

    with pytest.raises(MailgateError, match="the log says why"):
        running(work, path, None).run()
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "of mailgate's own" in line)
    assert "ZeroDivisionError: oops" in json.loads(line)["exception"]

"""What the supervisor decides of an upgrade, with workers that are only the other ends of their channels."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mailgate
from mailgate import config as configuration
from mailgate import upgrade as module
from mailgate.config import Config
from mailgate.doors import Plan
from mailgate.errors import ConfigError, MailgateError
from mailgate.heritage import LEAVE, Logger
from mailgate.ledger import Ledger
from mailgate.observe import log
from mailgate.observe.cells import SharedCells
from mailgate.supervisor import Supervisor
from mailgate.upgrade import Upgrades, handover, rehearse, shared
from mailgate.workers.handover import VARIABLE, Handover, received
from mailgate.workers.packets import Channel
from tests.support.gateway import logging_as_before  # noqa: F401
from tests.support.locker import locker
from tests.support.servers import free_ports
from tests.support.supervisor import House, said, text

DONE = 7
"""The number under which workers of these tests wait for an upgrade."""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upgrading]:
    path = tmp_path / "mailgate.toml"
    path.write_text(text(*free_ports(1), more="workers = 2\n"))
    made = Upgrading(path, monkeypatch)
    yield made
    made.supervisor.stopping = True
    made.upgrades.stop()
    made.supervisor.workers.clear()
    made.supervisor._close()
    for end in made.ends:
        end.close()


class Upgrading(House):
    """A supervisor that is to execute new code, which is a line of Python, and does not end by it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path)
        self.monkeypatch = monkeypatch
        self.executed: list[Handover] = []
        self.fails: OSError | None = None
        self.upgrades = self.supervisor._upgrades = Upgrades(self.supervisor, None, self.execute)
        self.code('print(\'{"trial": "2.0"}\')')

    def execute(self, arguments: list[str], descriptors: list[int], environment: dict[str, str]) -> None:
        if self.fails is not None:
            raise self.fails
        handed = received(environment)
        assert handed is not None
        assert descriptors == [int(environment[VARIABLE]), *handed.descriptors]
        self.executed.append(handed)

    def code(self, line: str) -> None:
        self.monkeypatch.setattr(module, "command", lambda: [sys.executable, "-c", line])

    def turns(self, until: str = "") -> None:
        """Let the supervisor go on until its log has a line."""
        deadline = time.monotonic() + 20
        while not (self.logged(until) if until else self.executed):
            assert time.monotonic() < deadline, self.output.getvalue()
            self.upgrades.turn()
            time.sleep(0.005)

    def refusal(self) -> str:
        self.turns("upgrade refused, everything goes on as it was")
        assert self.executed == []
        assert self.upgrades.due == math.inf
        return str(self.logged("upgrade refused, everything goes on as it was")[-1]["error"])


def count(house: House, result: str) -> float:
    rows = house.supervisor.cells.read()[house.supervisor.slots].rows
    return sum(row.values[0] for row in rows if row.family == "upgrades" and row.labels == (result,))


# ---------------------------------------------------------------- the earlier code


def test_the_new_code_is_tried_and_executed_with_everything(house: Upgrading) -> None:
    worker, end = house.worker(0)
    leaving, _ = house.worker(1, "leaving")
    leaving.leave_by = 12345.0
    end.put({"word": "upgrade", "number": DONE})
    house.supervisor._hear(worker)
    house.turns()
    (handed,) = house.executed
    assert (handed.trial, handed.version, handed.slots) == (False, mailgate.__version__, house.supervisor.slots)
    assert handed.wanted == ((worker.pid, DONE),)
    assert [(one.slot, one.pid, one.state, one.leave_by) for one in handed.workers] == [
        (0, worker.pid, "ready", None),
        (1, leaving.pid, "leaving", 12345.0),
    ]
    (door,) = house.supervisor.doors.open
    assert [(one.kind, one.endpoint) for one in handed.sockets] == [("mail", str(door.place.endpoint))]
    assert house.logged("upgrading")[0].items() >= {"version": "2.0", "before": mailgate.__version__}.items()
    # Who waits is answered by the new code.
    assert said(end) == []


def test_the_trial_sees_what_will_be_handed_over(house: Upgrading) -> None:
    house.worker(0)
    house.code(
        f"import os; from mailgate.workers.handover import received; handed = received(os.environ); "
        f"[os.fstat(one) for one in handed.descriptors]; "
        f"print('{{\"trial\": \"', handed.trial, len(handed.workers), '\"}}') or {DONE}"
    )
    house.upgrades.want()
    house.turns()
    assert house.logged("upgrading")[0]["version"].split() == ["True", "1"]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit('no module\\nnamed x')", "no module; named x"),
        ("raise SystemExit(3)", "the new code ended with status 3"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("print('hello')", "no mailgate that can take over"),
        ("print('[1]')", "no mailgate that can take over"),
    ],
)
def test_new_code_that_fails_its_trial_is_refused(house: Upgrading, code: str, why: str) -> None:
    worker, end = house.worker(0)
    house.code(code)
    house.upgrades.want((worker, DONE))
    house.upgrades.want((worker, DONE + 1))
    error = house.refusal()
    assert why in error
    assert said(end) == [{"word": "done", "number": number, "error": error} for number in (DONE, DONE + 1)]
    assert count(house, "refused") == 1


def test_new_code_that_is_not_there_is_refused(house: Upgrading) -> None:
    house.monkeypatch.setattr(module, "command", lambda: ["/nonexistent/mailgate"])
    house.upgrades.want()
    assert house.refusal() == "the new code cannot be started: No such file or directory"


def test_new_code_that_hangs_is_refused(house: Upgrading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.2)
    house.code("import time; time.sleep(100)")
    house.upgrades.want()
    assert house.refusal() == "the new code was not done with its trial within 0.2 s"


def test_without_a_file_there_is_nothing_to_begin_with(house: Upgrading) -> None:
    house.supervisor.load = None
    house.upgrades.want()
    assert house.refusal() == "the gateway was started without a configuration file"


def test_an_execution_that_fails_changes_nothing(house: Upgrading) -> None:
    house.fails = OSError(7, "Argument list too long")
    house.upgrades.want()
    assert house.refusal() == "the new code cannot be executed: Argument list too long"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGUSR2} == set()


def test_it_waits_for_workers_that_start_and_for_reloads(house: Upgrading, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, _ = house.worker(0, "starting")
    house.upgrades.want()
    house.turns("the new code is tried")
    deadline = time.monotonic() + 20
    while house.upgrades.due > time.monotonic() + 1 and time.monotonic() < deadline:
        house.upgrades.turn()
    house.upgrades.turn()
    assert house.executed == []
    worker.state = "ready"
    house.supervisor._reloads.want()
    house.upgrades.turn()
    assert house.executed == []
    house.supervisor._reloads.stop()
    house.upgrades.turn()
    assert len(house.executed) == 1


def test_workers_that_never_start_refuse_it(house: Upgrading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", -100.0)
    house.worker(0, "starting")
    house.upgrades.want()
    assert house.refusal() == "workers are still starting"


def test_questions_end_before_it(house: Upgrading) -> None:
    (asker, to_asker), _ = house.worker(0), house.worker(1)
    to_asker.put({"word": "ask", "number": 5, "kind": "sessions", "facts": {}})
    house.supervisor._hear(asker)
    said(to_asker)
    house.upgrades.want()
    house.turns()
    assert [(one["word"], one.get("error")) for one in said(to_asker)] == [
        ("reply", "the gateway is being upgraded"),
        ("reply", "the gateway is being upgraded"),
        ("answered", None),
    ]
    assert house.executed[0].questions == 1


def test_the_oldest_workers_make_room_where_there_are_too_many(house: Upgrading) -> None:
    house.worker(0)
    ends = [house.worker(slot, "leaving") for slot in range(1, house.supervisor.slots)]
    for number, (worker, _) in enumerate(ends):
        worker.leave_by = time.monotonic() + 1000 - number
    house.upgrades.want()
    house.turns("a worker makes room for an upgrade")
    for _ in range(3):
        house.upgrades.turn()
    assert house.executed == []
    term = {"word": "signal", "number": int(signal.SIGTERM)}
    assert [said(end) for _, end in ends[-3:]] == [[], [term], [term]]
    del house.supervisor.workers[-2:]
    house.turns()


def test_a_signal_that_came_before_is_obeyed_first(house: Upgrading) -> None:
    house.upgrades.want()
    house.supervisor._waker.send(bytes([signal.SIGTERM]))
    house.supervisor._on_signal(signal.SIGTERM, None)
    house.turns("the new code is tried")
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        house.upgrades.turn()
    assert house.executed == []
    house.supervisor._signalled()
    assert house.supervisor.stopping
    assert house.refusal() == "the gateway is shutting down"


def test_who_asks_while_the_gateway_stops_is_told(house: Upgrading) -> None:
    worker, end = house.worker(0)
    house.supervisor.stopping = True
    house.upgrades.want((worker, DONE))
    assert said(end) == [{"word": "done", "number": DONE, "error": "the gateway is shutting down"}]


def test_one_that_has_died_is_answered_no_more(house: Upgrading) -> None:
    worker, _ = house.worker(0)
    house.upgrades.want((worker, DONE))
    house.supervisor._ended(worker, -9)
    house.turns()
    assert house.executed[0].wanted == ()


# ---------------------------------------------------------------- the new code


class Taking(House):
    """A supervisor that takes over from a house."""

    def __init__(self, before: Upgrading, wanted: list[int]) -> None:
        handed = handover(
            before.supervisor,
            trial=False,
            wanted=[(worker, number) for worker, number in zip(before.supervisor.workers, wanted, strict=False)],
        )
        # As after an execution: descriptors of its own, of the same files.
        self.handed = Handover.model_validate_json(copied(handed).model_dump_json())
        self.path = before.path
        self.output = before.output
        self.ends = []
        self.supervisor = Supervisor(
            self.load(), self.relog(), self.load, lambda _: self.relog(), lambda *_: None, self.handed
        )
        self.supervisor._open()
        self.supervisor.made.plan = Plan()

    def complete(self) -> None:
        for slot in range(10, 12):
            self.worker(slot, "ready")


def copied(handed: Handover) -> Handover:
    return handed.model_copy(
        update={
            "cells": os.dup(handed.cells),
            "ledger": tuple(map(os.dup, handed.ledger)),
            "maildrops": tuple(map(os.dup, handed.maildrops)),
            "sockets": tuple(one.model_copy(update={"descriptor": os.dup(one.descriptor)}) for one in handed.sockets),
            "workers": tuple(one.model_copy(update={"channel": os.dup(one.channel)}) for one in handed.workers),
        }
    )


@pytest.fixture
def taking(house: Upgrading, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taking]:
    house.worker(0)
    house.worker(1, "leaving")[0].leave_by = 99.0
    made = Taking(house, [DONE])
    memory = made.handed.write()
    monkeypatch.setenv(VARIABLE, str(memory))
    made.supervisor._take_over()
    yield made
    for worker in made.supervisor.workers:
        worker.channel.close()
    made.supervisor.workers.clear()
    made.supervisor._close()
    for end in made.ends:
        end.close()


def ends(house: Upgrading) -> list[Channel]:
    return house.ends[1::2]


def test_earlier_workers_serve_until_there_are_others(house: Upgrading, taking: Taking) -> None:
    supervisor = taking.supervisor
    assert VARIABLE not in os.environ
    assert [(one.slot, one.state, one.leave_by) for one in supervisor.workers] == [
        (0, "former", math.inf),
        (1, "leaving", 99.0),
    ]
    assert supervisor._missing() == 2
    supervisor._upgrades.turn()
    assert [said(end) for end in ends(house)] == [[], []]
    taking.complete()
    supervisor._upgrades.turn()
    told = {"version": mailgate.__version__, "before": mailgate.__version__, "leaving": 1}
    leave = {"word": "signal", "number": int(LEAVE), "seconds": 3600.0}
    assert [said(end) for end in ends(house)] == [[{"word": "done", "number": DONE} | told, leave], []]
    assert supervisor.workers[0].state == "leaving"
    assert 3600 < supervisor.workers[0].leave_by - time.monotonic() < 3700
    assert taking.logged("upgraded")[0].items() >= told.items()
    assert count(taking, "ok") == 1
    supervisor._upgrades.turn()
    assert len(taking.logged("upgraded")) == 1


def test_workers_that_do_not_start_are_told_of_once_and_leave_the_others_alone(
    house: Upgrading, taking: Taking
) -> None:
    supervisor = taking.supervisor
    supervisor._started = False
    for _ in range(2):
        new, _ = taking.worker(5, "starting")
        new.failure = "no memory"
        supervisor._ended(new, 1)
    error = "the new workers do not start, the earlier ones go on serving: no memory"
    assert said(ends(house)[0]) == [{"word": "done", "number": DONE, "error": error}]
    assert count(taking, "failed") == 1
    assert supervisor.workers[0].state == "former"
    # Without any that serves, to fail is all that is left.
    supervisor.workers.pop(0).channel.close()
    new, _ = taking.worker(5, "starting")
    with pytest.raises(MailgateError, match="ended before it could serve"):
        supervisor._ended(new, 1)


def test_a_stop_while_the_new_workers_start_is_told(house: Upgrading, taking: Taking) -> None:
    taking.supervisor._stop(signal.SIGTERM)
    words = [(one["word"], one.get("error")) for one in said(ends(house)[0])]
    assert words == [("done", "the gateway is shutting down"), ("signal", None)]


def test_one_that_does_not_leave_in_time_is_killed(taking: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    leaving = taking.supervisor.workers[1]
    taking.supervisor._keep_time()
    taking.supervisor._keep_time()
    assert killed == [(leaving.pid, signal.SIGKILL)]
    assert len(taking.logged("a worker does not end")) == 1


# ---------------------------------------------------------------- what is counted, and the trial


def test_counts_are_an_earlier_programs_where_they_are_laid_out_alike(house: Upgrading) -> None:
    handed = copied(handover(house.supervisor, trial=False))
    cells, ledger, register = shared(handed.slots, 10, handed)
    assert os.fstat(cells.descriptor).st_ino == os.fstat(handed.cells).st_ino
    assert os.fstat(ledger.descriptors[0]).st_ino == os.fstat(handed.ledger[0]).st_ino
    assert os.fstat(register.descriptors[1]).st_ino == os.fstat(handed.maildrops[1]).st_ino
    trial, *_ = shared(handed.slots, 10, handed.model_copy(update={"trial": True}))
    assert os.fstat(trial.descriptor).st_ino != os.fstat(handed.cells).st_ino
    # What an earlier program that knew nothing of maildrops has handed over has none.
    new_cells, new_ledger, new_register = shared(handed.slots + 1, 10, handed.model_copy(update={"maildrops": ()}))
    assert new_register.place(b"joe") != register.place(b"joe")
    assert isinstance(new_cells, SharedCells)
    assert isinstance(new_ledger, Ledger)
    assert (new_cells.workers, new_ledger.slots) == (handed.slots + 1, handed.slots + 1)
    for one in (ledger, new_ledger):
        one.close()
    for descriptor in handed.descriptors:
        os.close(descriptor)


def test_maildrops_of_former_workers_stay_locked(house: Upgrading, taking: Taking) -> None:
    before, after = house.supervisor.register, taking.supervisor.register
    with locker(before) as former:
        assert former.lock(before.place(b"joe"))
        assert not after.lock(after.place(b"joe"))
        before.note(b"joe", 100.0)
        assert after.remaining(b"joe", 110.0, 60.0) == 50.0
    assert after.lock(after.place(b"joe")), "it ended with its session"


@pytest.fixture
def trial(house: Upgrading) -> Iterator[Supervisor]:
    handed = copied(handover(house.supervisor, trial=True))

    def relog() -> Logger:
        return log.configure("json", "debug", house.output)

    def made(config: Config) -> Supervisor:
        return Supervisor(config, relog(), house.load, lambda _: relog(), lambda *_: None, handed)

    yield made  # type: ignore[misc]
    for descriptor in handed.descriptors:
        os.close(descriptor)


def test_a_rehearsal_opens_everything_and_lets_go_of_it(
    house: Upgrading, trial: type[Supervisor], capsys: pytest.CaptureFixture[str]
) -> None:
    (more,) = free_ports(1)
    port = house.supervisor.doors.open[0].socket.getsockname()[1]
    config = configuration.parse(text(port, more), base=house.path.parent, environ={})
    assert rehearse(trial(config)) == 0  # type: ignore[call-arg,arg-type]
    assert capsys.readouterr().out == f'{{"trial": "{mailgate.__version__}"}}\n'
    socket.create_server(("127.0.0.1", more)).close()
    socket.create_connection(("127.0.0.1", port)).close()


def test_a_rehearsal_finds_what_cannot_be_had(house: Upgrading, trial: type[Supervisor]) -> None:
    port = house.supervisor.doors.open[0].socket.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = configuration.parse(text(port, taken.getsockname()[1]), base=house.path.parent, environ={})
        with pytest.raises(MailgateError, match="something else listens there already"):
            rehearse(trial(config))  # type: ignore[call-arg,arg-type]
    config = configuration.parse(text(port, more="workers = 17\n"), base=house.path.parent, environ={})
    with pytest.raises(ConfigError, match="workers"):
        rehearse(trial(config))  # type: ignore[call-arg,arg-type]

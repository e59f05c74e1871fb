"""The administration of two workers that know each other through a bus in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from mailgate.administration import Administration
from mailgate.config import Admin
from mailgate.model import Peer, Protocol, Session, State
from mailgate.observe.trace import Tracer
from mailgate.policy import answers
from mailgate.reception import Reception
from mailgate.session.relay import Watch
from mailgate.workers.bus import AloneBus, Handler, Reply
from tests.support.gateway import (  # noqa: F401
    NOBODY,
    SIGNED_IN,
    Running,
    logging_as_before,
    one,
    running,
    unprobed,
    until,
)
from tests.support.upstream import serving


def reraised(error: Exception) -> None:
    raise error


class SharedBus:
    """The buses of some workers: each has its own handlers and asks all others."""

    def __init__(self, others: list[AloneBus]) -> None:
        self._own = AloneBus(reraised)
        self._all = others
        self._all.append(self._own)

    def answer(self, kind: str, handler: Handler) -> None:
        self._own.answer(kind, handler)

    async def ask_all(self, kind: str, **facts: object) -> list[Reply]:
        found = []
        for slot, bus in enumerate(self._all):
            (reply,) = await bus.ask_all(kind, **facts)
            found.append(Reply(slot, reply.answer, reply.error))
        return found


class Worker:
    def __init__(self, bus: SharedBus, slot: int, folder: Path) -> None:
        self.audited: list[str] = []
        self.reception = Reception(lambda event: None, {})
        self.tracer = Tracer(folder, lambda: 100.0, lambda action, facts: self.audited.append(action))
        self.administration = Administration(
            bus,
            slot,
            self.reception,
            Watch(),
            self.tracer,
            lambda action, facts: self.audited.append(action),
            self.nothing,
            self.nothing,
        )

    async def nothing(self) -> dict[str, object]:
        raise NotImplementedError

    def session(self, name: str, user: bytes | None = None) -> trio.CancelScope:
        """Open a session that has not logged in yet; return what it runs in."""
        now = trio.current_time()
        session = Session(name, Protocol.IMAP, "imap", Peer("192.0.2.1", 4711), now - 5, State.LOGIN, user=user)
        self.reception.sessions[name] = session
        self.reception.scopes[name] = trio.CancelScope()
        return self.reception.scopes[name]


@pytest.fixture
def workers(tmp_path: Path) -> list[Worker]:
    buses: list[AloneBus] = []
    made = [Worker(SharedBus(buses), slot, tmp_path / "traces") for slot in range(2)]
    yield made  # type: ignore[misc]
    for worker in made:
        worker.tracer.close()


async def test_the_sessions_of_all_workers_are_listed_the_oldest_first(workers: list[Worker]) -> None:
    workers[0].session("a1")
    workers[1].session("b1", b"joe\xff")
    workers[0].reception.sessions["a1"].started -= 60
    found: Any = await workers[1].administration.sessions()
    assert [(session["id"], session["worker"], session["user"]) for session in found["sessions"]] == [
        ("a1", 0, None),
        ("b1", 1, "joe\\xff"),
    ]
    assert found["sessions"][0].items() >= {"state": "login", "address": "192.0.2.1", "bytes_in": 0}.items()
    assert 65 <= found["sessions"][0]["seconds"] < 70
    assert found["missing"] == []


async def test_a_session_of_another_worker_is_ended_and_the_log_says_by_whom(workers: list[Worker]) -> None:
    ours, theirs = workers[0].session("a1", b"joe"), workers[1].session("b1", b"Joe")
    assert await workers[0].administration.kick(session="b1") == {"kicked": 1, "missing": []}
    assert (ours.cancel_called, theirs.cancel_called) == (False, True)
    assert await workers[0].administration.kick(session="absent") == {"kicked": 0, "missing": []}
    assert await workers[1].administration.kick(user="JOE") == {"kicked": 2, "missing": []}
    assert ours.cancel_called
    assert (workers[0].audited, workers[1].audited) == (["sessions kicked"], ["sessions kicked"])


async def test_who_does_not_answer_is_told_of(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    workers[0].session("a1")
    asked = SharedBus.ask_all

    async def deaf(self: SharedBus, kind: str, **facts: object) -> list[Reply]:
        replies = await asked(self, kind, **facts)
        return [replies[0], Reply(1, error="died")]

    monkeypatch.setattr(SharedBus, "ask_all", deaf)
    missing = [{"worker": 1, "error": "died"}]
    assert await workers[0].administration.kick(session="a1") == {"kicked": 1, "missing": missing}
    assert (await workers[0].administration.sessions())["missing"] == missing


async def test_a_trace_runs_in_all_workers_and_its_end_is_told_once(workers: list[Worker]) -> None:
    first, second = workers
    facts = await first.administration.start_trace(user="joe", address=None, seconds=60, bodies=False)
    assert await second.administration.traces() == [facts]
    assert await second.administration.stop_trace(str(facts["id"]))
    assert [await worker.administration.traces() for worker in workers] == [[], []]
    assert sorted(first.audited + second.audited) == ["trace started", "trace stopped"]
    assert not await first.administration.stop_trace(str(facts["id"]))


async def test_a_trace_that_ended_here_is_stopped_where_it_runs(workers: list[Worker]) -> None:
    first, second = workers
    facts = await first.administration.start_trace(user=None, address="192.0.2.1", seconds=60, bodies=True)
    first.tracer.stop(str(facts["id"]), "No space left on device")
    assert await first.administration.stop_trace(str(facts["id"]))
    assert await second.administration.traces() == []


async def test_a_worker_that_begins_later_takes_part(workers: list[Worker]) -> None:
    first, second = workers
    facts = await first.administration.start_trace(user="joe", address=None, seconds=60, bodies=False)
    second.tracer.close()
    assert await second.administration.traces() == []
    await second.administration.catch_up()
    assert await second.administration.traces() == [facts]


# ---------------------------------------------------------------- in a gateway


@asynccontextmanager
async def administered(gateway: Running, path: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def test_sessions_are_ended_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    async with (
        serving(SIGNED_IN) as server,
        running(one(server), admin=Admin(socket=path)) as gateway,
        administered(gateway, path) as admin,
    ):
        logged_in, waiting = await gateway.connect(), await gateway.connect()
        await logged_in.logs_in()
        await waiting.hears()
        found = {one["state"]: one for one in (await admin.get("/v1/sessions")).json()["sessions"]}
        assert found["relay"].items() >= {"user": "joe", "pool": "main", "server": server.address, "worker": 0}.items()
        for state, client in (("relay", logged_in), ("login", waiting)):
            answer = await admin.post(f"/v1/sessions/{found[state]['id']}/kick")
            assert answer.json() == {"kicked": 1, "missing": []}
            assert await client.hears() == "* BYE Disconnected by the administrator."
            assert await client.hears() == ""
        await until(lambda: len(gateway.logged("session")) == 2)
        assert {line["reason"] for line in gateway.logged("session")} == {answers.KICKED.reason}
        assert gateway.logged("sessions kicked")[0]["audit"] is True
        assert (await admin.get("/v1/sessions")).json()["sessions"] == []
        assert (await admin.post("/v1/sessions/ab12/kick")).status_code == 404


async def test_a_pop3_session_is_ended_before_its_login(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    config = one(NOBODY, protocol="pop3")
    async with running(config, admin=Admin(socket=path)) as gateway, administered(gateway, path) as admin:
        client = await gateway.connect()
        await client.hears()
        (session,) = (await admin.get("/v1/sessions")).json()["sessions"]
        await admin.post(f"/v1/sessions/{session['id']}/kick")
        assert await client.hears() == "-ERR Disconnected by the administrator."

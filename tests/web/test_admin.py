"""The administration of traces over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from mailgate.errors import ConfigError, ConfigProblem, MailgateError
from mailgate.observe.trace import Tracer
from mailgate.web.admin import BODY_LIMIT, admin_app


class World:
    def __init__(self, folder: Path) -> None:
        self.audited: list[str] = []
        self.tracer = Tracer(folder, lambda: 100.0, lambda action, facts: self.audited.append(action))
        self.app = admin_app(self)
        self.reloaded: dict[str, object] | MailgateError = {}
        self.upgraded: dict[str, object] | MailgateError = {}
        self.missing: list[object] = []
        self.kicked: list[tuple[str | None, str | None]] = []

    async def start_trace(self, **asked: Any) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return self.tracer.start(**asked, by="admin socket")

    async def stop_trace(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return self.tracer.stop(name, "admin socket")

    async def traces(self) -> list[dict[str, object]]:
        await trio.lowlevel.checkpoint()
        return self.tracer.list()

    async def sessions(self) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {"sessions": [{"id": "a1", "user": "joe"}], "missing": self.missing}

    async def kick(self, *, session: str | None = None, user: str | None = None) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        self.kicked.append((session, user))
        return {"kicked": int(session == "a1" or user == "joe"), "missing": self.missing}

    async def reload(self) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        if isinstance(self.reloaded, MailgateError):
            raise self.reloaded
        return self.reloaded

    async def upgrade(self) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        if isinstance(self.upgraded, MailgateError):
            raise self.upgraded
        return self.upgraded

    async def ask(self, method: str, path: str = "/v1/trace", body: Any = None, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            if body is not None:
                more["content"] = body if isinstance(body, bytes) else json.dumps(body)
            return await client.request(method, path, **more)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "traces")
    yield made  # type: ignore[misc]
    made.tracer.close()


async def test_a_trace_from_start_to_stop(world: World) -> None:
    answer = await world.ask("POST", body={"user": "joe", "seconds": 60})
    assert answer.status_code == 201
    facts = answer.json()
    assert facts.items() >= {"user": "joe", "address": None, "remaining": 60, "bodies": False}.items()
    assert facts["by"] == "admin socket"
    assert (await world.ask("GET")).json() == {"traces": [facts]}
    answer = await world.ask("DELETE", f"/v1/trace/{facts['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await world.ask("GET")).json() == {"traces": []}
    assert world.audited == ["trace started", "trace stopped"]


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({"user": "joe"}, {"remaining": 600, "bodies": False}),
        (
            {"address": "192.0.2.1", "bodies": True, "seconds": 1.5},
            {"address": "192.0.2.1", "user": None, "bodies": True},
        ),
        ({"user": "jörg", "unknown": 1}, {"user": "jörg"}),
    ],
)
async def test_what_may_be_left_out(body: Any, facts: dict[str, Any], world: World) -> None:
    answer = await world.ask("POST", body=body)
    assert answer.status_code == 201
    assert answer.json().items() >= facts.items()


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "the request holds no JSON"),
        (b"{", 400, "the request holds no JSON"),
        (b"\xff", 400, "the request holds no JSON"),
        (b"[" * 10_000, 400, "the request holds no JSON"),
        ([], 400, "the request is no JSON object"),
        ("joe", 400, "the request is no JSON object"),
        ({"user": 5}, 400, "user is a text without control characters"),
        ({"address": ["x"]}, 400, "address is a text without control characters"),
        ({"user": "a\nb"}, 400, "user is a text without control characters"),
        ({"user": "\ud800"}, 400, "user is a text without control characters"),
        ({"user": "joe", "seconds": "60"}, 400, "seconds is a number, bodies true or false"),
        ({"user": "joe", "seconds": True}, 400, "seconds is a number, bodies true or false"),
        ({"user": "joe", "bodies": 1}, 400, "seconds is a number, bodies true or false"),
        ({"user": "joe", "seconds": 0}, 409, "a trace runs from 1 to 86400 seconds"),
        ({"user": "joe", "seconds": float("nan")}, 409, "a trace runs from 1 to 86400 seconds"),
        ({"user": "joe", "seconds": 10**400}, 409, "a trace runs from 1 to 86400 seconds"),
        ({}, 409, "name a user or an address"),
    ],
)
async def test_requests_that_are_refused(body: Any, status: int, error: str, world: World) -> None:
    answer = await world.ask("POST", body=body)
    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert world.audited == []


async def test_a_request_without_end_is_not_read(world: World) -> None:
    asked, sent = 0, []

    async def receive() -> dict[str, object]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b" " * 1024, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/trace", "headers": [], "query_string": b""}
    await world.app(scope, receive, send)  # type: ignore[arg-type]
    assert asked == BODY_LIMIT // 1024 + 1
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"]) == {"error": "the request is too large"}


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("DELETE", "/v1/trace/unknown", 404, "there is no such trace"),
        ("DELETE", "/v1/trace", 405, "Method Not Allowed"),
        ("PUT", "/v1/trace", 405, "Method Not Allowed"),
        ("GET", "/", 404, "Not Found"),
        ("GET", "/metrics", 404, "Not Found"),
    ],
)
async def test_what_is_not_there(method: str, path: str, status: int, error: str, world: World) -> None:
    answer = await world.ask(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": error})


async def test_an_error_of_the_gateway_s_own_tells_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("inner detail")

    monkeypatch.setattr(world.tracer, "start", fail)
    answer = await world.ask("POST", body={"user": "joe"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error"}


@pytest.mark.parametrize(
    ("outcome", "status", "answer"),
    [
        ({"changed": ["hostname: changed"]}, 200, {"changed": ["hostname: changed"]}),
        (MailgateError("the gateway is shutting down"), 409, {"error": "the gateway is shutting down"}),
        (
            ConfigError([ConfigProblem("a.b", "1", "is wrong"), ConfigProblem("c", "", "is missing")]),
            422,
            {
                "error": "the configuration cannot be used",
                "problems": [
                    {"path": "a.b", "value": "1", "message": "is wrong"},
                    {"path": "c", "value": "", "message": "is missing"},
                ],
            },
        ),
    ],
)
async def test_a_reload_and_its_outcome(
    world: World, outcome: dict[str, object] | MailgateError, status: int, answer: dict[str, object]
) -> None:
    world.reloaded = outcome
    told = await world.ask("POST", "/v1/reload")
    assert (told.status_code, told.json()) == (status, answer)
    assert (await world.ask("GET", "/v1/reload")).status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "missing", "status", "kicked"),
    [
        ("/v1/sessions/a1/kick", None, [], 200, ("a1", None)),
        ("/v1/sessions/b2/kick", None, [], 404, ("b2", None)),
        ("/v1/sessions/b2/kick", None, [{"worker": 1, "error": "died"}], 200, ("b2", None)),
        ("/v1/kick", {"user": "joe"}, [], 200, (None, "joe")),
        ("/v1/kick", {"user": "eve"}, [], 200, (None, "eve")),
        ("/v1/kick", {"user": ""}, [], 400, None),
        ("/v1/kick", {"user": 5}, [], 400, None),
        ("/v1/kick", {}, [], 400, None),
    ],
)
async def test_sessions_are_listed_and_ended(
    path: str, body: Any, missing: list[object], status: int, kicked: object, world: World
) -> None:
    world.missing = missing
    assert (await world.ask("GET", "/v1/sessions")).json()["sessions"] == [{"id": "a1", "user": "joe"}]
    answer = await world.ask("POST", path, body)
    assert answer.status_code == status
    assert world.kicked == ([kicked] if kicked else [])
    if status == 200:
        assert answer.json()["missing"] == missing


@pytest.mark.parametrize(
    ("outcome", "status", "answer"),
    [
        ({"version": "2.0", "before": "1.0"}, 200, {"version": "2.0", "before": "1.0"}),
        (MailgateError("SyntaxError: invalid syntax"), 409, {"error": "SyntaxError: invalid syntax"}),
    ],
)
async def test_an_upgrade_and_its_outcome(
    outcome: dict[str, object] | MailgateError, status: int, answer: object, world: World
) -> None:
    world.upgraded = outcome
    told = await world.ask("POST", "/v1/upgrade")
    assert (told.status_code, told.json()) == (status, answer)

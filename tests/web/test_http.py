"""Metrics and health over HTTP, as a scraper and an orchestrator see them."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from mailgate.config import Endpoint
from mailgate.net.listener import open_socket
from mailgate.observe.metrics import Metrics
from mailgate.web.http import HEAD_LIMIT, metrics_app, serve_http


class World:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self.metrics = Metrics({}, dict)
        self.app = metrics_app(self.metrics.scrape, lambda: self.problems)

    async def ask(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, headers=headers)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", "\n"),
        (
            "application/openmetrics-text;version=1.0.0",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# EOF\n",
        ),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8", "\n"),
    ],
)
async def test_metrics_in_the_format_that_was_asked_for(accept: str, content_type: str, end: str, world: World) -> None:
    answer = await world.ask("/metrics", accept=accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(content_type)
    assert answer.text.endswith(end)
    assert 'mailgate_build_info{version="' in answer.text


async def test_health_says_that_the_process_runs(world: World) -> None:
    world.problems = ["pool main: no server can be reached"]
    answer = await world.ask("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


async def test_readiness_says_what_is_missing(world: World) -> None:
    answer = await world.ask("/readyz")
    assert (answer.status_code, answer.text) == (200, "ready\n")
    world.problems = ["pool main: no server can be reached", "pool old: no server can be reached"]
    answer = await world.ask("/readyz")
    assert (answer.status_code, answer.text) == (
        503,
        "pool main: no server can be reached\npool old: no server can be reached\n",
    )


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/", "GET", 404), ("/v1/trace", "GET", 404), ("/metrics", "POST", 405), ("/metrics", "HEAD", 200)],
)
async def test_there_is_nothing_else(path: str, method: str, status: int, world: World) -> None:
    assert (await world.ask(path, method)).status_code == status


async def test_whoever_asks_elsewhere_is_told_where(world: World) -> None:
    assert (await world.ask("/", "GET")).text == "There are /metrics, /healthz and /readyz.\n"


# ---------------------------------------------------------------- over sockets


async def test_served_over_tcp_and_closed_in_good_order(world: World, caplog: pytest.LogCaptureFixture) -> None:
    sock = open_socket(Endpoint("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with caplog.at_level(logging.WARNING), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, world.app, sock)
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"{url}/readyz")
                assert (answer.status_code, answer.text) == (200, "ready\n")
                assert "server" not in answer.headers
                assert (await client.get(f"{url}/metrics")).status_code == 200
                # The client's connection is still open when the server ends.
                nursery.cancel_scope.cancel()
    assert sock.fileno() == -1
    assert caplog.records == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


async def test_served_over_a_unix_socket(world: World, tmp_path: Path) -> None:
    sock = open_socket(Endpoint("", 0, tmp_path / "admin"), private=True)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, world.app, sock)
            transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "admin"))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                assert (await client.get("/healthz")).text == "ok\n"
            nursery.cancel_scope.cancel()


async def test_headers_without_end_are_refused(world: World) -> None:
    sock = open_socket(Endpoint("127.0.0.1", 0))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, world.app, sock)
            stream = await trio.open_tcp_stream(*sock.getsockname())
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (HEAD_LIMIT + 10))
            answer = await stream.receive_some()
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
            await stream.aclose()
            nursery.cancel_scope.cancel()


async def test_an_error_in_the_application_is_logged_and_the_next_request_served(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ZeroDivisionError("oops")]

    def scrape(accept: str) -> tuple[Iterator[bytes], str]:
        if failures:
            raise failures.pop()
        return iter((b"fi", b"ne\n")), "text/plain"

    sock = open_socket(Endpoint("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/metrics"
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, metrics_app(scrape, list), sock)
            async with httpx.AsyncClient() as client:
                assert (await client.get(url)).status_code == 500
                assert (await client.get(url)).text == "fine\n"
            nursery.cancel_scope.cancel()
    assert [record.name for record in caplog.records] == ["mailgate.http"]

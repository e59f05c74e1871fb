"""``mailgate trace`` against a real HTTP server on a Unix socket."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main

CONFIG = """
[[listener]]
name = "imap"
protocol = "imap"
bind = "127.0.0.1:143"
tls = "off"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:1143"]
tls = "off"
"""


class Gateway(socketserver.ThreadingUnixStreamServer):
    """Answers each request with ``answer`` and remembers what it was asked."""

    daemon_threads = False
    asked: list[tuple[str, str, Any]]
    answer: tuple[int, bytes]


class Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        assert isinstance(self.server, Gateway)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, json.loads(body) if body else None))
        status, content = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(str(tmp_path / "admin.sock"), Handler) as server:
        server.asked, server.answer = [], (200, b"{}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def trace(gateway: Gateway, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["trace", *arguments, "--socket", str(gateway.server_address)])


def test_start_sends_whom_and_how_long(gateway: Gateway) -> None:
    gateway.answer = (201, json.dumps({"id": "ab12", "user": "alice", "remaining": 90.2}).encode())
    result = trace(gateway, "start", "--user", "alice", "--for", "1m30s")
    assert (result.exit_code, result.stdout) == (0, "ab12  user alice, 90 s left\n")
    assert gateway.asked == [("POST", "/v1/trace", {"user": "alice", "seconds": 90.0, "bodies": False})]
    trace(gateway, "start", "--address", "192.0.2.1", "--for", "60", "--bodies")
    assert gateway.asked[1][2] == {"address": "192.0.2.1", "seconds": 60.0, "bodies": True}


def test_list_shows_each_trace_without_obeying_its_name(gateway: Gateway) -> None:
    traces = [{"id": "1", "user": "a\x1b[2J"}, {"id": "2", "address": "192.0.2.1", "file": "/t/2"}]
    gateway.answer = (200, json.dumps({"traces": traces}).encode())
    assert trace(gateway, "list").stdout == "1  user a\\x1b[2J\n2  address 192.0.2.1, /t/2\n"
    gateway.answer = (200, b'{"traces": []}')
    assert trace(gateway, "list").stdout == "No trace is running.\n"
    assert [asked[:2] for asked in gateway.asked] == [("GET", "/v1/trace")] * 2


def test_stop_names_the_trace(gateway: Gateway) -> None:
    gateway.answer = (204, b"")
    assert trace(gateway, "stop", "ab12").stdout == "Stopped ab12.\n"
    assert gateway.asked == [("DELETE", "/v1/trace/ab12", None)]
    assert trace(gateway, "stop", "../x").exit_code == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, b'{"error": "there is no such trace"}'), "the gateway refuses: there is no such trace"),
        ((500, b"{}"), "the gateway refuses: Internal Server Error"),
        ((200, b"<html>"), "what answers on the socket is not mailgate (status 200)"),
        ((200, b"[1]"), "what answers on the socket is not mailgate (status 200)"),
    ],
)
def test_answers_that_are_no_success(gateway: Gateway, answer: tuple[int, bytes], message: str) -> None:
    gateway.answer = answer
    result = trace(gateway, "list")
    assert (result.exit_code, result.stderr) == (1, f"mailgate: {message}\n")


def test_nobody_answers(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["trace", "list", "--socket", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "(No such file or directory): is the gateway running" in result.stderr
    assert CliRunner().invoke(main, ["trace", "list", "--socket", f"/{'x' * 200}"]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start"], "Give either --user or --address."),
        (["start", "--user", "a", "--address", "b"], "Give either --user or --address."),
        (["start", "--user", "a", "--for", "soon"], "a duration is"),
    ],
)
def test_a_wrong_command_line(gateway: Gateway, arguments: list[str], message: str) -> None:
    result = trace(gateway, *arguments)
    assert (result.exit_code, gateway.asked) == (2, [])
    assert message in " ".join(result.stderr.split())


def test_the_socket_is_the_configurations(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "mailgate.toml"
    path.write_text(CONFIG)
    result = CliRunner().invoke(main, ["trace", "list", "-c", str(path)])
    assert result.exit_code == 1
    assert "no [admin]" in result.stderr
    path.write_text(CONFIG + '[admin]\nsocket = "admin.sock"')
    assert CliRunner().invoke(main, ["trace", "list", "-c", str(path)]).stdout == "No trace is running.\n"

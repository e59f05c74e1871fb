"""``mailgate reload`` against a real HTTP server on a Unix socket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main
from tests.cli.test_trace import CONFIG, Gateway, gateway  # noqa: F401


def reload(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["reload", *(str(argument) for argument in arguments)])


def answering(gateway: Gateway, status: int, **content: object) -> str:  # noqa: F811
    gateway.answer = (status, json.dumps(content).encode())
    return str(gateway.server_address)


def test_what_has_changed_is_told(gateway: Gateway) -> None:  # noqa: F811
    place = answering(gateway, 200, changed=["listener a: added", "x\x1b[2J"], warnings=["beware"])
    result = reload("--socket", place)
    assert (result.exit_code, result.stderr) == (0, "warning: beware\n")
    assert result.stdout == "The new configuration is in force:\n  listener a: added\n  x\\x1b[2J\n"
    assert gateway.asked == [("POST", "/v1/reload", None)]
    answering(gateway, 200, changed=[], warnings=[])
    assert reload("--socket", place).stdout == "Nothing has changed.\n"


def test_a_bad_file_is_told_whole_and_exits_78(gateway: Gateway) -> None:  # noqa: F811
    problems = [
        {"path": "limits.line", "value": "1", "message": "must be at least 8 KiB"},
        {"path": "x", "value": "", "message": "\x1b"},
        "nonsense",
    ]
    result = reload("--socket", answering(gateway, 422, error="no", problems=problems))
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines() == [
        "The old configuration stays in force.",
        "The configuration has 2 problems:",
        "  limits.line = 1: must be at least 8 KiB",
        "  x: \\x1b",
    ]


def test_a_gateway_that_cannot(gateway: Gateway) -> None:  # noqa: F811
    result = reload("--socket", answering(gateway, 409, error="the gateway is shutting down"))
    assert (result.exit_code, result.stderr) == (1, "mailgate: the gateway refuses: the gateway is shutting down\n")


@pytest.mark.parametrize("bad", ["", "\nwhat = 1", '\n[limits]\nsessions = "many"'])
def test_the_socket_is_found_even_in_a_file_that_is_wrong(gateway: Gateway, tmp_path: Path, bad: str) -> None:  # noqa: F811
    path = tmp_path / "mailgate.toml"
    path.write_text(CONFIG + '[admin]\nsocket = "admin.sock"\n' + bad)
    answering(gateway, 200, changed=[])
    assert reload("-c", path).stdout == "Nothing has changed.\n"


@pytest.mark.parametrize(
    ("source", "status", "told"),
    [
        (CONFIG, 1, "no [admin] with a socket; name one with --socket"),
        ("what = 1", 78, "unknown key"),
        ("[admin]\nsocket = 1", 78, "admin.socket = 1"),
        ("admin = 1", 78, "admin = 1"),
        ("[[", 78, "not valid TOML"),
        (None, 78, "cannot be read: No such file or directory"),
    ],
)
def test_a_socket_that_is_not_found(source: str | None, status: int, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mailgate.toml"
    if source is not None:
        path.write_text(source)
    result = reload("-c", path)
    assert result.exit_code == status
    assert told in result.stderr

"""The commands that list and end sessions, against a socket that answers as a gateway does."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main
from tests.cli.test_trace import Gateway, gateway  # noqa: F401

SESSION = {
    "id": "a1",
    "worker": 1,
    "protocol": "imap",
    "listener": "imaps",
    "address": "192.0.2.1",
    "user": "joe\x1b[2J",
    "pool": None,
    "server": None,
    "state": "relay",
    "seconds": 3725.5,
    "bytes_in": 10,
    "bytes_out": 32,
}


def run(gateway: Gateway, *arguments: str) -> Result:  # noqa: F811
    return CliRunner().invoke(main, [*arguments, "--socket", str(gateway.server_address)])


def test_sessions_are_listed_without_obeying_what_clients_chose(gateway: Gateway) -> None:  # noqa: F811
    gateway.answer = (200, json.dumps({"sessions": [SESSION], "missing": []}).encode())
    head, line = run(gateway, "sessions").stdout.splitlines()
    assert head.split() == "id worker protocol state listener address user pool server time bytes".split()
    assert line.split() == "a1 1 imap relay imaps 192.0.2.1 joe\\x1b[2J - - 1:02:05 42".split()
    assert run(gateway, "sessions", "--user", "other").stdout == "There is no session.\n"
    assert json.loads(run(gateway, "sessions", "--json", "--user", "JOE\x1b[2J").stdout) == [SESSION]
    assert {asked[:2] for asked in gateway.asked} == {("GET", "/v1/sessions")}


def test_a_worker_that_did_not_answer_is_told_of(gateway: Gateway) -> None:  # noqa: F811
    missing = [{"worker": 1, "error": "died"}]
    gateway.answer = (200, json.dumps({"sessions": [SESSION], "missing": missing}).encode())
    result = run(gateway, "sessions")
    assert result.exit_code == 0
    assert result.stderr == "warning: worker 1 did not answer: died\n"


@pytest.mark.parametrize(
    ("arguments", "kicked", "asked", "told"),
    [
        (["a1"], 1, ("POST", "/v1/sessions/a1/kick", None), "Ended 1 session.\n"),
        (["--user", "joe"], 2, ("POST", "/v1/kick", {"user": "joe"}), "Ended 2 sessions.\n"),
        (["--user", "joe"], 0, ("POST", "/v1/kick", {"user": "joe"}), "Ended 0 sessions.\n"),
    ],
)
def test_kick(gateway: Gateway, arguments: list[str], kicked: int, asked: object, told: str) -> None:  # noqa: F811
    gateway.answer = (200, json.dumps({"kicked": kicked, "missing": []}).encode())
    result = run(gateway, "kick", *arguments)
    assert (result.exit_code, result.stdout) == (0 if kicked else 1, told)
    assert gateway.asked == [asked]


def test_a_session_that_is_not_there(gateway: Gateway) -> None:  # noqa: F811
    gateway.answer = (404, b'{"error": "there is no such session"}')
    result = run(gateway, "kick", "a1")
    assert (result.exit_code, result.stderr) == (1, "mailgate: the gateway refuses: there is no such session\n")


@pytest.mark.parametrize("arguments", [[], ["a1", "--user", "joe"], ["../x"]])
def test_a_wrong_command_line(gateway: Gateway, arguments: list[str]) -> None:  # noqa: F811
    assert run(gateway, "kick", *arguments).exit_code == 2
    assert gateway.asked == []

"""What one program hands to the next: everything arrives, and what cannot be understood is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.workers import handover
from mailgate.workers.handover import (
    VARIABLE,
    HandedPacket,
    HandedSocket,
    HandedWorker,
    Handover,
    HandoverError,
    begun_again,
    command,
    execute,
    received,
    taken,
)

numbers = st.integers(0, 2**31)
moments = st.floats(0, 1e9)
workers = st.builds(
    HandedWorker,
    slot=numbers,
    pid=numbers,
    state=st.sampled_from(["ready", "leaving"]),
    began=moments,
    leave_by=st.none() | moments,
    channel=numbers,
    unsent=st.lists(st.builds(HandedPacket, data=st.binary(), descriptors=st.tuples(numbers)), max_size=3).map(tuple),
    incoming=st.binary(),
    incoming_descriptors=st.tuples(numbers),
)
handovers = st.builds(
    Handover,
    version=st.text(),
    trial=st.booleans(),
    slots=numbers,
    questions=numbers,
    sockets=st.lists(
        st.builds(HandedSocket, kind=st.sampled_from(["mail", "admin"]), endpoint=st.text(), descriptor=numbers)
    ).map(tuple),
    workers=st.lists(workers, max_size=3).map(tuple),
    ledger=st.lists(numbers).map(tuple),
    cells=numbers,
    wanted=st.lists(st.tuples(numbers, numbers)).map(tuple),
)


def nothing(**changes: object) -> Handover:
    facts = {"version": "1", "trial": False, "slots": 4, "questions": 0, "sockets": (), "workers": (), "ledger": ()}
    return Handover.model_validate(facts | {"cells": 0} | changes)


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


@given(handovers)
def test_what_is_written_is_received(handed: Handover) -> None:
    memory = handed.write()
    try:
        assert not os.get_inheritable(memory)
        environment = {VARIABLE: str(memory)}
        assert received(environment) == handed
        # It is there for another look.
        assert received(environment) == handed
    finally:
        os.close(memory)


def test_every_descriptor_is_named() -> None:
    worker = HandedWorker(
        slot=0,
        pid=1,
        state="ready",
        began=0,
        leave_by=None,
        channel=10,
        unsent=(HandedPacket(data=b"", descriptors=(11, 12)),),
        incoming_descriptors=(13,),
    )
    door = HandedSocket(kind="mail", endpoint="127.0.0.1:1", descriptor=14)
    handed = nothing(workers=(worker,), sockets=(door,), ledger=(15, 16), cells=17)
    assert sorted(handed.descriptors) == [10, 11, 12, 13, 14, 15, 16, 17]


def test_nothing_is_received_where_nothing_was_handed() -> None:
    assert received({}) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b'{"format": 1, "version": 5}'])
def test_what_is_no_handover_is_refused(memory: int, content: bytes) -> None:
    os.write(memory, content)
    with pytest.raises(HandoverError, match="cannot be read"):
        received({VARIABLE: str(memory)})


@pytest.mark.parametrize("value", ["", "x", "-1", "1000000"])
def test_what_is_no_descriptor_is_refused(value: str) -> None:
    with pytest.raises(HandoverError, match="cannot be read"):
        received({VARIABLE: value})


def test_another_format_is_refused() -> None:
    memory = nothing(format=2, version="7.0").write()
    try:
        with pytest.raises(HandoverError, match="hands over in format 2, but this one knows 1 only"):
            received({VARIABLE: str(memory)})
    finally:
        os.close(memory)


def test_what_was_taken_is_closed_on_exec() -> None:
    descriptor = os.dup(0)
    os.set_inheritable(descriptor, True)
    handed = nothing(cells=descriptor)
    memory = handed.write()
    environment = {VARIABLE: str(memory), "HOME": "/"}
    taken(environment, handed)
    assert environment == {"HOME": "/"}
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)


def test_descriptors_are_closed_on_exec_again_where_that_fails(memory: int) -> None:
    with pytest.raises(FileNotFoundError):
        execute(["/nonexistent/mailgate"], [memory], {})
    assert not os.get_inheritable(memory)


@pytest.mark.parametrize(
    ("first", "mode", "original", "expected"),
    [
        # A script of pip's: its first line says which interpreter, perhaps another than now.
        ("#!/opt/venv/bin/python", 0o755, ["/old/python", "SCRIPT", "run", "x"], ["SCRIPT", "run", "x"]),
        ("#!/usr/bin/python3 -I", 0o755, ["python3", "-I", "SCRIPT", "run"], ["SCRIPT", "run"]),
        # Options that the script would not have again, and scripts that cannot be executed.
        ("#!/usr/bin/python3", 0o755, ["python3", "-W", "error", "SCRIPT"], ["PYTHON", "-W", "error", "SCRIPT"]),
        ("#!/usr/bin/python3", 0o644, ["python3", "SCRIPT", "run"], ["PYTHON", "SCRIPT", "run"]),
        ("import sys", 0o755, ["python3", "SCRIPT"], ["PYTHON", "SCRIPT"]),
        # A module, of which argv names the file.
        ("import sys", 0o644, ["python", "-m", "mailgate", "run"], ["PYTHON", "-m", "mailgate", "run"]),
    ],
)
def test_the_command_is_found_again(
    first: str, mode: int, original: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "mailgate"
    script.write_text(first + "\n")
    script.chmod(mode)

    def filled(words: list[str]) -> list[str]:
        return [{"SCRIPT": str(script), "PYTHON": sys.executable}.get(word, word) for word in words]

    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(sys, "orig_argv", filled(original))
    assert command() == filled(expected)


# ---------------------------------------------------------------- new code that cannot begin


class Executed(BaseException):
    """This program would be gone."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    found: list[list[str]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert VARIABLE in environment
        found.append(arguments)
        raise Executed

    monkeypatch.setattr(os, "execve", execve)
    return found


def test_new_code_that_cannot_begin_tries_again(executed: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    memory = nothing().write()
    monkeypatch.setenv(VARIABLE, str(memory))
    said: list[str] = []
    slept: list[float] = []
    with pytest.raises(Executed), begun_again(said.append, slept.append):
        raise ValueError("no such thing")
    os.close(memory)
    assert executed == [command()]
    assert slept == [handover.AGAIN_SECONDS]
    assert said == ["the new code cannot begin, the earlier workers go on serving; trying again: no such thing"]


@pytest.mark.parametrize("trial", [True, None])
def test_a_trial_and_a_first_start_fail_at_once(
    trial: bool | None, executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = nothing(trial=True).write()
    if trial:
        monkeypatch.setenv(VARIABLE, str(memory))
    with pytest.raises(ValueError, match="no such thing"), begun_again(pytest.fail, pytest.fail):  # type: ignore[arg-type]
        raise ValueError("no such thing")
    os.close(memory)
    assert executed == []

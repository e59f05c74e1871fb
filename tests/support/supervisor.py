"""A supervisor whose workers are only the other ends of their channels."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailgate import config as configuration
from mailgate.config import Config
from mailgate.doors import Plan
from mailgate.heritage import Logger
from mailgate.observe import log
from mailgate.supervisor import Supervisor
from mailgate.workers.packets import Channel, Message, channels
from mailgate.workers.worker import Worker
from tests.support.servers import free_ports


def text(*listeners: int, more: str = "") -> str:
    head = more + '[pool.main]\nprotocol = "imap"\nservers = ["127.0.0.1:1"]\ntls = "off"\n'
    return head + "".join(
        f'[[listener]]\nname = "at{port}"\nprotocol = "imap"\nbind = "127.0.0.1:{port}"\ntls = "off"\n'
        for port in listeners
    )


class House:
    """A supervisor whose workers are played by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = io.StringIO()
        self.supervisor = Supervisor(
            self.load(), self.relog(), self.load, lambda settings: self.relog(), lambda *_: None
        )
        self.supervisor._open()
        self.supervisor.made.plan = Plan()
        self.supervisor._started = True
        self.ends: list[Channel] = []

    def load(self) -> Config:
        return configuration.load(self.path, {})

    def relog(self) -> Logger:
        return log.configure("json", "debug", self.output)

    def worker(self, slot: int, state: str = "ready") -> tuple[Worker, Channel]:
        ours, theirs = channels()
        worker = Worker(slot, 1_000_000 + slot, ours, time.monotonic() - 100, state)
        self.supervisor.workers.append(worker)
        self.ends += [ours, theirs]
        return worker, theirs

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.output.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


@contextlib.contextmanager
def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """Have a supervisor of two workers that forks none."""
    path = tmp_path / "mailgate.toml"
    path.write_text(text(*free_ports(1), more="workers = 2\n"))
    made = House(path)
    monkeypatch.setattr(made.supervisor, "_fork", lambda: made.worker(len(made.supervisor.workers), "starting"))
    yield made
    made.supervisor.workers.clear()
    made.supervisor._close()
    for end in made.ends:
        end.close()


def said(channel: Channel) -> list[Message]:
    with contextlib.suppress(EOFError):
        return [message for message, _ in channel.receive()]
    return []

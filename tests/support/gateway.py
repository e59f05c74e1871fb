"""A whole gateway in this process, and mail clients for it.

A test module imports the fixtures below by name, so that they apply to its tests.
"""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio

from mailgate.app import Gateway, Load
from mailgate.config import Config, Pool
from mailgate.observe import log
from mailgate.upstream.pool import Upstreams
from tests.support.upstream import a_config, a_pool

HELLO = "S: * OK [CAPABILITY IMAP4rev1 IDLE] ready\n"
LOGIN = 'C: L1 LOGIN "joe" "secret"\n'
IN = "S: L1 OK [CAPABILITY IMAP4rev1 IDLE] in\n"
SIGNED_IN = HELLO + LOGIN + IN
NOBODY = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def probed() -> None:
    """Ask for a gateway that asks its servers by itself."""


@pytest.fixture(autouse=True)
def unprobed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Keep the gateway from asking servers by itself, so that a script is a login's from its first line."""
    if "probed" not in request.fixturenames:

        async def never(self: Upstreams, tell: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(Upstreams, "probe", never)


class Client:
    """A mail client."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.unread = b""

    async def says(self, line: str) -> None:
        await self.stream.send_all(line.encode() + b"\r\n")

    async def hears(self) -> str:
        """Return the next line, an empty text at the end."""
        while b"\r\n" not in self.unread:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                assert self.unread == b""
                return ""
            self.unread += data
        line, _, self.unread = self.unread.partition(b"\r\n")
        return line.decode()

    async def asks(self, line: str) -> str:
        """Say a line and return the next one that comes."""
        await self.says(line)
        return await self.hears()

    async def logs_in(self) -> str:
        await self.hears()
        return await self.asks("a1 LOGIN joe secret")

    async def goes(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Running:
    """A gateway that runs."""

    def __init__(
        self, gateway: Gateway, sockets: list[socket.socket], output: io.StringIO, scope: trio.CancelScope
    ) -> None:
        self.gateway = gateway
        self.scope = scope
        self.ports = [sock.getsockname()[1] for sock in sockets]
        self._output = output
        self.stopped = trio.Event()
        self.streams: list[trio.SocketStream] = []

    async def connect(self, port: int | None = None) -> Client:
        stream = await trio.open_tcp_stream("127.0.0.1", port or self.ports[0])
        self.streams.append(stream)
        return Client(stream)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind."""
        lines = [json.loads(line) for line in self._output.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    async def log(self, event: str) -> dict[str, Any]:
        """Return the first line of one kind, once there is one."""
        await until(lambda: bool(self.logged(event)))
        return self.logged(event)[0]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.gateway.metrics.registry.get_sample_value(f"mailgate_{name}", labels)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds, which must not take long."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)


@asynccontextmanager
async def running(config: Config, load: Load | None = None, **changes: Any) -> AsyncIterator[Running]:
    """Run a gateway until the block ends or until it stops by itself."""
    output = io.StringIO()
    gateway = Gateway(
        config.model_copy(update=changes),
        log.configure("json", "info", output),
        load,
        lambda settings: log.configure("json", settings.level, output),
    )
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            found: Running | None = None
            scope = trio.CancelScope()

            async def run(task_status: trio.TaskStatus[list[socket.socket]]) -> None:
                with scope:
                    await gateway.run(task_status)
                assert found is not None
                found.stopped.set()

            found = Running(gateway, await nursery.start(run), output, scope)
            try:
                yield found
            finally:
                for stream in found.streams:
                    stream.socket.close()
            nursery.cancel_scope.cancel()
    assert not gateway.sessions
    assert gateway.current.gate.sessions == 0


def one(server: Any, **settings: Any) -> Config:
    pool: Pool = a_pool(server, **settings)
    return a_config(main=pool)

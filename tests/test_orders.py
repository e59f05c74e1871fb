"""What a worker does on its supervisor's word; the test is the supervisor."""

from __future__ import annotations

import base64
import io
import json
import pickle
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from mailgate.app import Gateway
from mailgate.config import Config, Endpoint
from mailgate.doors import Doors
from mailgate.errors import ConfigError, MailgateError
from mailgate.heritage import LEAVE, Ear, Heritage
from mailgate.ledger import Ledger, Register
from mailgate.observe import log
from mailgate.observe.cells import SharedCells
from mailgate.upstream.pool import Upstreams
from mailgate.workers.packets import Channel, Message, channels
from tests.support.gateway import NOBODY, Client, logging_as_before, one, unprobed, until  # noqa: F401
from tests.support.locker import locker
from tests.support.servers import free_ports


class Ordered:
    """A worker that runs, and its supervisor's end of the channel."""

    def __init__(self, gateway: Gateway, channel: Channel, output: io.StringIO) -> None:
        self.gateway = gateway
        self.channel = channel
        self.ended = trio.Event()
        self._output = output
        self._found: list[Message] = []

    async def run(self) -> None:
        await self.gateway.run()
        self.ended.set()

    async def hears(self, word: str) -> Message:
        """Return the next message of one kind, and drop what comes before it."""
        while True:
            while not self._found:
                await trio.lowlevel.wait_readable(self.channel.socket)
                self._found += [message for message, _ in self.channel.receive()]
            message = self._found.pop(0)
            if message["word"] == word:
                return message

    def applies(self, config: Config, *sockets: socket.socket) -> None:
        order = {
            "word": "apply",
            "config": base64.b64encode(pickle.dumps(config)).decode("ascii"),
            "doors": [["mail", f"127.0.0.1:{sock.getsockname()[1]}"] for sock in sockets],
        }
        self.channel.put(order, [sock.fileno() for sock in sockets])

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._output.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


def bound(config: Config, *ports: int) -> Config:
    """Return a configuration whose only listener is at these ports."""
    (listener,) = config.listener
    bind = tuple(Endpoint("127.0.0.1", port) for port in ports)
    return config.model_copy(update={"listener": (listener.model_copy(update={"bind": bind}),)})


@asynccontextmanager
async def working(config: Config) -> AsyncIterator[Ordered]:
    """Run a worker until the block ends or until it ends by itself."""
    output, ear, cells, ledger = io.StringIO(), Ear(), SharedCells(2), Ledger.create(2, 100)
    ours, theirs = channels()
    doors = Doors().plan(config).opened
    heritage = Heritage(0, doors, None, Upstreams(config, ear), ear, theirs, cells, ledger, Register.create())
    gateway = Gateway(config, log.configure("json", "info", output), heritage=heritage)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            worker = Ordered(gateway, ours, output)
            nursery.start_soon(worker.run)
            await worker.hears("ready")
            yield worker
            nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()
    ledger.close()


async def greeting(port: int) -> str:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await Client(stream).hears()


async def test_a_signal_is_obeyed() -> None:
    (port,) = free_ports(1)
    async with working(bound(one(NOBODY), port)) as worker:
        worker.channel.put({"word": "signal", "number": int(signal.SIGTERM)})
        await worker.ended.wait()


async def test_one_that_leaves_accepts_no_more_and_ends_with_its_last_session() -> None:
    (port,) = free_ports(1)
    async with working(bound(one(NOBODY), port)) as worker:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        client = Client(stream)
        await client.hears()
        worker.channel.put({"word": "signal", "number": int(LEAVE)})
        (door,) = worker.gateway.doors.open
        await until(lambda: door.socket.fileno() < 0)
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", port)
        assert await client.asks("a NOOP") == "a OK NOOP completed"
        assert not worker.ended.is_set()
        await stream.aclose()
        await worker.ended.wait()


async def test_a_session_gives_its_maildrop_up_when_another_worker_asks() -> None:
    (port,) = free_ports(1)
    async with working(bound(one(NOBODY), port)) as worker:
        told = trio.Event()
        maildrops = worker.gateway._lasting.maildrops
        register = maildrops._register
        held = await maildrops.take([b"joe"], conflict="wait", wait=0.0, give_way=told.set)
        for ask, place in enumerate((register.place(b"ann"), register.place(b"joe"))):
            assert not told.is_set()
            worker.channel.put({"word": "asked", "ask": ask, "kind": "give_way", "facts": {"place": place}})
            assert await worker.hears("reply") == {"word": "reply", "ask": ask, "answer": {}, "error": ""}
        assert told.is_set()
        held.release()


async def test_one_that_wants_a_maildrop_of_another_worker_asks_all() -> None:
    (port,) = free_ports(1)
    async with working(bound(one(NOBODY), port)) as worker:
        maildrops = worker.gateway._lasting.maildrops
        register = maildrops._register
        place = register.place(b"joe")
        # Every worker asks what is traced when it begins.
        assert (await worker.hears("ask"))["kind"] == "traces"
        with locker(register) as other:
            assert other.lock(place)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(maildrops.take, [b"joe"], conflict="takeover", wait=10.0, give_way=told_nothing)
                )
                asked = await worker.hears("ask")
                assert (asked["kind"], asked["facts"]) == ("give_way", {"place": place})
                other.unlock(place)
                worker.channel.put({"word": "answered", "number": asked["number"]})
        with locker(register) as other:
            assert not other.lock(place)


def told_nothing() -> None:
    raise AssertionError("nobody wants it")


async def test_a_configuration_is_put_into_force_with_the_sockets_that_come_with_it() -> None:
    port, new = free_ports(2)
    before = one(NOBODY)
    async with working(bound(before, port)) as worker:
        with socket.create_server(("127.0.0.1", new)) as sock:
            worker.applies(bound(before, port, new), sock)
            assert (await worker.hears("applied"))["error"] == ""
        assert (await greeting(new)).startswith("* OK")
        assert (await greeting(port)).startswith("* OK")


async def test_one_that_cannot_follow_says_so_and_serves_as_before() -> None:
    port, new, other = free_ports(3)
    before = bound(one(NOBODY), port)
    async with working(before) as worker:
        with socket.create_server(("127.0.0.1", other)) as sock:
            worker.applies(bound(before, port, new), sock)
            assert f"127.0.0.1:{new} was not handed over" in (await worker.hears("applied"))["error"]
        assert worker.gateway.config is before
        assert (await greeting(port)).startswith("* OK")
        # What was handed over for nothing is closed again.
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", other)


async def test_it_ends_when_its_supervisor_is_gone() -> None:
    (port,) = free_ports(1)
    async with working(bound(one(NOBODY), port)) as worker:
        worker.channel.close()
        await worker.ended.wait()
        assert len(worker.logged("the supervisor is gone, this worker ends too")) == 1


async def asked(worker: Ordered, what: Callable[[], Awaitable[dict[str, object]]], word: str, **answer: object) -> Any:
    """Have a worker ask its supervisor for something, and answer; return what the worker makes of that."""
    found: list[object] = []

    async def ask() -> None:
        try:
            found.append(await what())
        except MailgateError as error:
            found.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        number = (await worker.hears(word))["number"]
        worker.channel.put({"word": "done", "number": number} | answer)
    return found[0]


async def test_the_supervisor_answers_who_wants_a_reload_or_an_upgrade() -> None:
    (port,) = free_ports(1)
    async with working(bound(one(NOBODY), port)) as worker:
        reload, upgrade = worker.gateway.reload, worker.gateway.upgrade
        done = {"changed": ["listener new: added"], "warnings": []}
        assert await asked(worker, reload, "reload", **done) == done
        wrong = await asked(worker, reload, "reload", problems=[["limits.sessions", "0", "must be at least 1"]])
        assert isinstance(wrong, ConfigError)
        assert [one.path for one in wrong.problems] == ["limits.sessions"]
        assert str(await asked(worker, reload, "reload", error="shutting down")) == "shutting down"
        facts = {"version": "2.0", "before": "1.0", "leaving": 2}
        assert await asked(worker, upgrade, "upgrade", **facts) == facts
        assert str(await asked(worker, upgrade, "upgrade", error="no room")) == "no room"

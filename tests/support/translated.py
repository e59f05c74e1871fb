"""POP3 clients of one machine whose logins lead to the model of an IMAP server, by what composes a translation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
import trio.testing

from mailgate.config import Config, parse
from mailgate.errors import UpstreamFailed
from mailgate.ledger import LoginDelays, MaildropLocks, Register
from mailgate.model import Failure, Login, Route, Session
from mailgate.session.dialogue import SignedIn
from mailgate.translating import Stores, Translating
from mailgate.workers.bus import AloneBus
from tests.session.conftest import (
    UPSTREAM,
    FakeSignedIn,
    World,
    on_stage,
)
from tests.support.dialogue import Stage, Wire, shown
from tests.support.mailbox import Store, serve

CONFIG = """
    [[listener]]
    name = "test"
    protocol = "pop3"
    bind = ["127.0.0.1:1"]
    tls = "off"
    [pool.main]
    protocol = "imap"
    servers = ["127.0.0.1:2"]
    tls = "off"
    [[route]]
    name = "default"
    pool = "main"
    [pop3]
"""


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(one)}" for name, one in value.items()) + " }"
    return str(value).lower() if isinstance(value, bool | int) else repr(value)


def configured(**pop3: Any) -> Config:
    lines = [f"{name} = {toml(value)}" for name, value in pop3.items()]
    return parse(CONFIG + "\n".join(lines), base=Path("/x"), environ={})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """What the sessions of one machine share: locks, delays, the server and its mailboxes."""

    def __init__(self, *, capabilities: str = "UIDPLUS MOVE SPECIAL-USE", **pop3: Any) -> None:
        register = Register.create()
        self.locks = MaildropLocks(register, AloneBus(lambda error: None))
        self.clock = Clock()
        self.delays = LoginDelays(register, self.clock)
        self.config = configured(**pop3)
        self.store = Store(capabilities)
        for number in (1, 2, 3):
            self.store.inbox.add(f"mail {number}")
        self.stores = Stores()
        self.wires: list[Wire] = []

    def world(self) -> Translated:
        return Translated(self)


async def served(store: Store, stream: trio.abc.Stream) -> None:
    """Be the IMAP server of one connection, which its client may drop at any time."""
    with suppress(trio.BrokenResourceError):
        await serve(store, stream)


class Translated(World):
    """A client of the machine, whose login leads to the model of an IMAP server."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(Stage(), known=[UPSTREAM])
        self.machine = machine
        self.nursery: trio.Nursery
        self.dial_fails: list[Failure] = []
        self.translating = Translating(
            machine.config,
            self.stage.emit,
            self.buffer,
            machine.locks,
            machine.delays,
            machine.stores.get(machine.config.pop3.store),
        )

    async def dial(self) -> SignedIn:
        await trio.lowlevel.checkpoint()
        if self.dial_fails:
            raise UpstreamFailed(self.dial_fails.pop(0), "login/banner", "as the test wants it")
        near, far = trio.testing.memory_stream_pair()
        wire = Wire(near)
        self.machine.wires.append(wire)
        self.nursery.start_soon(served, self.machine.store, far)
        return FakeSignedIn(wire, capabilities=self.machine.store.capabilities | {"IMAP4REV1"})

    async def open(self, route: Route, login: Login, session: Session) -> Any:
        self.logins.append(login)
        rewritten = self.translating.rewritten(login)
        plain, folder = rewritten or (login, None)
        policy = self.translating.policy(route, login.protocol)
        assert policy is not None
        return await self.translating.open(policy, plain, session, self.dial, folder)

    @property
    def told(self) -> str:
        return " ".join(shown(event) for event in self.stage.events)


@asynccontextmanager
async def client(machine: Machine, **options: Any) -> AsyncIterator[Translated]:
    """Serve a client of a machine; behind the body everything must be closed and let go."""
    world = machine.world()
    async with trio.open_nursery() as world.nursery:
        async with on_stage("pop3", world, allow_plaintext_auth=True, **options):
            yield world
        await trio.testing.wait_all_tasks_blocked()
        assert [wire.closed for wire in machine.wires] == [True] * len(machine.wires)
        world.nursery.cancel_scope.cancel()
    assert len(machine.locks) == 0


@asynccontextmanager
async def client_beside(machine: Machine) -> AsyncIterator[Translated]:
    """Serve one more client of a machine while another is there."""
    world = machine.world()
    async with trio.open_nursery() as world.nursery:
        async with on_stage("pop3", world, allow_plaintext_auth=True):
            yield world
        world.nursery.cancel_scope.cancel()


LOGIN = """
    S: +OK <*>
    C: USER joe
    S: +OK <*>
    C: PASS secret
"""
IN = f"{LOGIN}\nS: +OK Logged in"

"""QUIT on real mail servers: what it leaves in the store, also when the connection or the server dies in the middle."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from _pytest.mark.structures import ParameterSet

from mailgate.config.pop3 import Pop3Policy
from mailgate.stream import SocketStream
from mailgate.translate.deletion import NO_FLAG, Deletion, Way, plan
from mailgate.translate.imap_client import ImapClient, Selected
from mailgate.translate.update import Outcome, update
from tests.support.pop3_house import holder
from tests.support.stores import Store

pytestmark = pytest.mark.real

TRASH = {"courier": "INBOX.Trash"}
OTHERS = (3, 6)
MARKED = (1, 2, 4)
RETRIEVED = (2, 5)
COUNT = 7
MOST = 18
"""Bursts of commands of one QUIT, with room."""

Meddle = Callable[[int], bool]
"""Called with the number of a burst of commands before it is sent. True: the connection is cut instead."""


@dataclass(frozen=True)
class Opened:
    name: bytes
    selected: Selected


@dataclass
class Marks:
    deleted: list[int]
    retrieved: list[int]

    def marked(self) -> dict[int, list[int]]:
        return {0: self.deleted}

    def seen(self) -> dict[int, list[int]]:
        return {0: self.retrieved}


@dataclass(frozen=True)
class Case:
    """A policy, and what the server is taken not to have."""

    delete: str
    way: Way
    lacks: frozenset[str] = frozenset()
    without_uidplus: str = "refuse"

    def on(self, store: Store) -> Way:
        """Return how it goes on a server: Courier has no MOVE."""
        return Way.EXPUNGE if self.way is Way.MOVE and store.name == "courier" else self.way

    def __str__(self) -> str:
        return "-".join([self.delete, self.way, *sorted(self.lacks)])


NO_MOVE = frozenset({"MOVE", "IMAP4REV2"})
NEITHER = NO_MOVE | {"UIDPLUS"}
CASES = [
    Case("expunge", Way.EXPUNGE),
    Case("trash", Way.MOVE),
    Case("trash", Way.EXPUNGE, NO_MOVE),
    Case("trash", Way.SHUFFLE, NEITHER, "shuffle"),
    Case("expunge", Way.SHUFFLE, NEITHER, "shuffle"),
    Case("expunge", Way.FLAG, NEITHER, "flag"),
    Case("flag", Way.FLAG),
    Case("keyword", Way.KEYWORD),
    Case("never", Way.NOTHING),
]


def sweep(*usual: str) -> list[ParameterSet]:
    """Return all cases that delete; but for the usual ones they are long, since each command takes a mailbox."""
    return [
        pytest.param(case, marks=() if str(case).startswith(usual) else pytest.mark.full)
        for case in CASES
        if case.way is not Way.NOTHING
    ]


class Meddled(SocketStream):
    """A connection on which something happens before what is sent."""

    __slots__ = ("meddle", "sent")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.sent = 0
        self.meddle: Meddle | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.meddle is not None:
            self.sent += 1
            if self.meddle(self.sent):
                self.abort()
                return
        await super().send_all(data)


class World:
    """A user's mailbox on a real server: some mail, of which another client deleted some."""

    def __init__(self, store: Store, case: Case) -> None:
        if case.way is Way.KEYWORD and store.name == "pymap":
            pytest.skip("pymap keeps no keywords: the test below asks what happens then")
        self.store = store
        self.case = case
        self.user = store.new_user()
        self.trash = TRASH.get(store.name, "Trash")
        for number in range(1, COUNT + 1):
            store.deliver(self.user, b"Subject: %d\r\n\r\nmail %d\r\n" % (number, number))
        self.bodies = {mail.uid: mail.data for mail in store.contents(self.user)}
        self.uids = list(self.bodies)
        store.set_flags(self.user, self.of(OTHERS), "\\Deleted")
        self.streams: list[Meddled] = []
        self.policy = Pop3Policy(
            delete=case.delete, trash=self.trash, without_uidplus=case.without_uidplus, quit_timeout=20
        )

    def of(self, numbers: tuple[int, ...]) -> list[int]:
        return [self.uids[number - 1] for number in numbers]

    async def connect(self) -> ImapClient:
        """Sign in, as far as this needs no more than a password."""
        stream = Meddled(socket.create_connection(("127.0.0.1", self.store.imap)))
        self.streams.append(stream)
        client = ImapClient(stream, bytearray(65536), frozenset())
        await client.command(b"LOGIN %b %b" % (self.user.encode(), self.store.users[self.user].encode()))
        await client.command(b"CAPABILITY")
        client.capabilities -= self.case.lacks
        return client

    async def quit(self, meddle: Meddle | None = None) -> Outcome:
        try:
            client = await self.connect()
            opened = Opened(b"INBOX", await client.select(b"INBOX"))
            (found,) = await plan(client, [opened], self.policy)
            assert isinstance(found, Deletion), found
            assert found.way is self.case.on(self.store)
            self.streams[0].meddle = meddle
            marks = Marks(self.of(MARKED), self.of(RETRIEVED))
            return await update(client, marks, [opened], self.policy, self.connect)
        finally:
            for stream in self.streams:
                await stream.aclose()

    def check(self, outcome: Outcome) -> None:
        """Compare the store with what was asked and reported."""
        kept = {mail.uid: mail for mail in self.store.contents(self.user)}
        assert outcome.ok, outcome
        assert outcome.removed == (0 if self.case.way is Way.NOTHING else len(MARKED))
        unmarked = set(self.uids) - set(self.of(MARKED))
        assert unmarked <= kept.keys()
        assert all(kept[uid].data == self.bodies[uid] for uid in unmarked)
        deleted = {uid for uid, mail in kept.items() if "\\Deleted" in mail.flags}
        hidden = {uid for uid, mail in kept.items() if "$POP3Deleted" in mail.flags}
        seen = {uid for uid, mail in kept.items() if "\\Seen" in mail.flags}
        if self.case.way in (Way.FLAG, Way.KEYWORD, Way.NOTHING):
            assert kept.keys() == set(self.uids)
            assert hidden == (set(self.of(MARKED)) if self.case.way is Way.KEYWORD else set())
            assert deleted == set(self.of(OTHERS)) | (set(self.of(MARKED)) if self.case.way is Way.FLAG else set())
            assert seen == set(self.of(RETRIEVED))
        else:
            assert kept.keys() == unmarked
            assert deleted == set(self.of(OTHERS))
            assert seen == set(self.of(RETRIEVED)) - set(self.of(MARKED))
        if self.case.delete == "trash":
            trash = {mail.data: mail for mail in self.store.contents(self.user, self.trash)}
            assert trash.keys() == {self.bodies[uid] for uid in self.of(MARKED)}
            assert "\\Seen" in trash[self.bodies[self.of(RETRIEVED)[0]]].flags


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_policy_does_what_it_says(store: Store, case: Case) -> None:
    world = World(store, case)
    # The other client is still there, and has the mailbox open.
    with store.client(world.user) as other:
        outcome = await world.quit()
        world.check(outcome)
        other.noop()
    world.check(outcome)


async def test_a_server_that_keeps_no_keywords_hides_no_message(store: Store, user: str) -> None:
    if store.name != "pymap":
        pytest.skip("keeps keywords, and has the tests above")
    world = World(store, Case("flag", Way.FLAG))
    client = await world.connect()
    opened = Opened(b"INBOX", await client.select(b"INBOX"))
    assert await plan(client, [opened], Pop3Policy(delete="keyword")) == (NO_FLAG,)
    await client.logout()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_message_that_another_client_expunged_is_no_failure(store: Store, case: Case) -> None:
    world = World(store, case)
    gone = world.of(MARKED)[0]

    def expunge(number: int) -> bool:
        if number == 1:
            store.expunge(world.user, [gone])
        return False

    outcome = await world.quit(expunge)
    assert outcome.ok, outcome
    left = {mail.uid for mail in store.contents(world.user)}
    assert set(world.uids) - set(world.of(MARKED)) <= left
    assert gone not in left


@pytest.mark.parametrize("case", sweep("expunge-expunge", "trash-expunge", "expunge-shuffle"), ids=str)
async def test_a_connection_that_is_cut_before_any_command(store: Store, case: Case) -> None:
    for number in range(1, MOST):
        world = World(store, case)
        world.check(await world.quit(lambda now, number=number: now == number))  # type: ignore[misc]
        if world.streams[0].sent < number:
            return
    raise AssertionError("more commands than there can be")


@pytest.mark.parametrize("case", sweep("expunge-expunge"), ids=str)
async def test_a_server_that_is_killed_before_any_command(store: Store, case: Case) -> None:
    if store.name == "pymap":
        pytest.skip("one process serves all, and holds the mail in its memory")
    for number in range(1, MOST):
        world = World(store, case)

        def kill(now: int, number: int = number, world: World = world) -> bool:
            if now == number:
                os.kill(holder(world.streams[0].socket), signal.SIGKILL)
            return False

        world.check(await world.quit(kill))
        if world.streams[0].sent < number:
            return
    raise AssertionError("more commands than there can be")

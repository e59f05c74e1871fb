"""QUIT that is broken off: whoever is killed at whichever step, no message is lost that was not marked.

A forwarder between gateway and server holds on before the n-th burst of commands that QUIT sends, and there the worker,
the gateway, the server's process, the connection or the client goes, or the gateway is told to stop. Then the store
is compared with what the client was told, and the next session has to find it in order and be able to finish.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.support.forwarder import Forwarder, forwarding
from tests.support.pop3_client import Ended, Pop3
from tests.support.pop3_house import PATIENCE, House, holder, housed, lives
from tests.support.stores import Message, Store, said

pytestmark = pytest.mark.real

TRASH = {"courier": "INBOX.Trash"}
COUNT = 7
OTHERS = (3, 6)
"""What another client has deleted: no POP3 client sees these."""
MARKED = (1, 2, 4)
RETRIEVED = (2, 5)
MOST = 14
"""Bursts of commands of one QUIT, with room."""

POLICIES = ("expunge", "trash", "flag", "keyword")
LOST = ("worker", "gateway")
"""With these nobody is left who could answer the client or go on."""
FAULTS = (*LOST, "server", "connection", "client", "stop")


@dataclass(frozen=True)
class Fault:
    """What goes; ``delivered`` says whether the server still gets the burst that the gateway has sent last."""

    who: str
    workers: int = 1
    delivered: bool = False

    def __str__(self) -> str:
        return "-".join([self.who, str(self.workers), *["delivered"] * self.delivered])


FAULTS_TRIED = [
    *(Fault(who, workers, delivered) for who in LOST for workers in (1, 2) for delivered in (False, True)),
    *(Fault(who) for who in FAULTS if who not in LOST),
]
USUAL = {("worker-1", "expunge"), ("worker-2-delivered", "trash"), ("gateway-1-delivered", "expunge")}
USUAL |= {("server-1", "trash"), ("connection-1", "keyword"), ("client-1", "expunge"), ("stop-1", "expunge")}
USUAL |= {("worker-1-delivered", "flag")}


@pytest.fixture
def house(
    few: None, store: Store, authority: Path, tmp_path: Path, fault: Fault, forwarder: Forwarder
) -> Iterator[House]:
    trash = TRASH.get(store.name, "Trash")
    doors = {name: f'delete = "{name}", trash = "{trash}", lock = "refuse"' for name in POLICIES}
    with housed(tmp_path, authority, forwarder.port, doors, store.users, fault.workers) as running:
        yield running


@pytest.fixture
def forwarder(store: Store) -> Iterator[Forwarder]:
    with forwarding(store.imap) as between:
        yield between


class Scene:
    """A mailbox with a client that quits, and what happens at one of the steps."""

    def __init__(self, store: Store, house: House, forwarder: Forwarder, policy: str) -> None:
        self.store, self.house, self.forwarder, self.policy = store, house, forwarder, policy
        self.user = store.new_user()
        self.trash = TRASH.get(store.name, "Trash")
        for number in range(1, COUNT + 1):
            store.deliver(self.user, b"Subject: %d\r\n\r\nmail %d\r\n" % (number, number))
        uids = [mail.uid for mail in store.contents(self.user)]
        store.set_flags(self.user, [uids[number - 1] for number in OTHERS], "\\Deleted")
        self.before = {mail.uid: mail for mail in store.contents(self.user)}
        self.marked = {uids[number - 1] for number in MARKED}
        self.retrieved = {uids[number - 1] for number in RETRIEVED}
        self.seen = 0
        self.acted = threading.Event()
        self.left = threading.Event()
        self.client = self.login()
        self.uidls = by_uid(self.client)
        numbers = {uid: number for number, uid in enumerate(sorted(self.uidls), 1)}
        for uid in sorted(self.retrieved):
            assert self.client.fetch(b"RETR %d" % numbers[uid]) == self.before[uid].data
        for uid in sorted(self.marked):
            self.client.good(b"DELE %d" % numbers[uid])

    def login(self) -> Pop3:
        client = self.house.connect(self.policy)
        return client.login(self.user, self.store.users[self.user])

    def quit(self, fault: Fault, step: int) -> str | None:
        """Say QUIT, with the fault before the burst of that number; return the beginning of the answer, if one came."""
        worker = self.house.serving(self.client.sock)
        far = self.forwarder.far
        updates = len(self.house.said("maildrop updated"))

        def listen(data: bytes) -> bytes:
            self.seen += 1
            if self.seen != step:
                if b"LOGOUT" in data:
                    self.left.set()
                return data
            if fault.who == "worker":
                os.kill(worker, signal.SIGKILL)
                self.house.until(lambda: not lives(worker))
            elif fault.who == "gateway":
                self.house.kill()
            elif fault.who == "server":
                os.kill(holder(far), signal.SIGKILL)
            elif fault.who == "connection":
                self.forwarder.cut()
            elif fault.who == "client":
                self.client.vanish()
            else:
                self.house.program.process.send_signal(signal.SIGTERM)
                # The signal is to be there before QUIT is done.
                self.house.until(lambda: "stopping" in self.house.program.output())
            self.acted.set()
            return data if fault.delivered or fault.who not in LOST else b""

        self.forwarder.listen = listen
        self.client.send(b"QUIT")
        answer = None
        if fault.who == "client":
            self.house.until(lambda: self.acted.is_set() or len(self.house.said("maildrop updated")) > updates)
            self.house.until(lambda: len(self.house.said("maildrop updated")) > updates)
        else:
            try:
                answer = self.client.status().decode()
            except Ended:
                assert self.client.unread == b""
                # The connection ends before all that was killed has.
                assert self.acted.wait(PATIENCE)
        if answer is not None:
            # The answer comes before the server's farewell, which is a step as well.
            self.house.until(lambda: self.acted.is_set() or self.left.is_set())
        if fault.who == "gateway" and self.acted.is_set():
            self.house.start()
        if fault.who == "stop" and self.acted.is_set():
            assert self.house.program.process.wait(20) == 0
            self.house.stop()
            self.house.start()
        self.client.sock.close()
        self.forwarder.listen = bytes
        return answer

    # ---------------------------------------------------------------- what is left

    def contents(self) -> dict[int, Message]:
        """Return the inbox, once nothing changes in it: a server may still be at what a dead gateway has asked."""
        left = self.store.contents(self.user)
        while True:
            time.sleep(0.05)
            earlier, left = left, self.store.contents(self.user)
            if left == earlier:
                return {mail.uid: mail for mail in left}

    def hides(self, mail: Message) -> bool:
        return "\\Deleted" in mail.flags or (self.policy == "keyword" and "$POP3Deleted" in mail.flags)

    def deleted(self, left: dict[int, Message]) -> set[int]:
        """Return which of the marked messages are deleted, as the policy means it."""
        if self.policy in ("flag", "keyword"):
            return {uid for uid in self.marked if self.hides(left[uid])}
        return self.marked - left.keys()

    def check(self, left: dict[int, Message]) -> None:
        """Compare what holds however QUIT ended: all that was not marked is as it was, and none is lost on its way."""
        for uid in self.before.keys() - self.marked:
            assert left[uid].data == self.before[uid].data
            assert left[uid].flags - {"\\Seen"} == self.before[uid].flags - {"\\Seen"}
            assert uid in self.retrieved or left[uid].flags == self.before[uid].flags
        assert left.keys() <= self.before.keys()
        if self.policy in ("flag", "keyword"):
            assert left.keys() == self.before.keys()
        if self.policy == "trash":
            kept = {mail.data for mail in left.values()} | self.in_trash()
            assert kept >= {mail.data for mail in self.before.values()}

    def in_trash(self) -> set[bytes]:
        with self.store.client(self.user, None) as imap:
            if said(imap.list('""', self.trash)) == [None]:
                return set()
        return {mail.data for mail in self.store.contents(self.user, self.trash)}

    def next_session(self, left: dict[int, Message]) -> None:
        """Have the client come again, at once: it finds what is there under the names that it knows, and finishes."""
        client = self.login()
        uidls = by_uid(client)
        assert uidls == {uid: self.uidls[uid] for uid, mail in left.items() if not self.hides(mail)}
        self.retrieved |= uidls.keys()
        for number, uid in enumerate(sorted(uidls), 1):
            assert client.fetch(b"RETR %d" % number) == self.before[uid].data
            if uid in self.marked:
                client.good(b"DELE %d" % number)
        assert client.quit().startswith(b"+OK")
        last = self.contents()
        self.check(last)
        # What a gateway that died had marked and not removed stays so, and no POP3 client sees it.
        assert all(uid not in last or self.hides(last[uid]) for uid in self.marked)
        again = self.login()
        assert by_uid(again) == {uid: self.uidls[uid] for uid in uidls.keys() - self.marked}
        assert again.quit().startswith(b"+OK")


def by_uid(client: Pop3) -> dict[int, bytes]:
    """Return the unique-ids of a maildrop by the UIDs that are in them."""
    return {int(uidl[:8], 16): uidl for uidl in client.uidls().values()}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", FAULTS_TRIED, ids=str)
def test_whoever_goes_at_whichever_step_of_quit(
    store: Store, house: House, forwarder: Forwarder, fault: Fault, policy: str
) -> None:
    for step in range(1, MOST):
        scene = Scene(store, house, forwarder, policy)
        counted = house.metric("mailgate_maildrop_updates_total", policy=policy)
        answer = scene.quit(fault, step)
        left = scene.contents()
        scene.check(left)
        assert answer is None or answer.startswith(("+OK", "-ERR [SYS/TEMP]"))
        if answer is not None and answer.startswith("+OK"):
            assert scene.deleted(left) == scene.marked
        if answer is not None or fault.who == "client":
            # A gateway that was started anew counts from zero.
            if fault.who not in ("gateway", "stop") or not scene.acted.is_set():
                assert house.metric("mailgate_maildrop_updates_total", policy=policy) == counted + 1
                kept = house.said("maildrop updated")[-1]["kept"]
                assert kept == (len(MARKED) if answer and answer.startswith("-ERR") else 0)
            # Of these every one can be made up for: whoever is asked again can answer.
            assert scene.deleted(left) == scene.marked
        assert answer is not None or fault.who in (*LOST, "client")
        scene.next_session(left)
        if not scene.acted.is_set():
            return
    raise AssertionError("more bursts of commands than there can be")


@pytest.fixture(autouse=True)
def few(store: Store, request: pytest.FixtureRequest) -> None:
    """Run all of it only when everything runs; a mailbox and often a gateway are made for each step."""
    named = request.node.callspec.params
    if not FULL and (store.name != "dovecot" or (str(named["fault"]), named["policy"]) not in USUAL):
        pytest.skip("long: runs with ./scripts/test --full")
    if store.name == "pymap" and named["policy"] == "keyword":
        pytest.skip("pymap keeps no keywords")
    if store.name == "pymap" and named["fault"].who == "server":
        pytest.skip("one process serves all, and holds the mail in its memory")

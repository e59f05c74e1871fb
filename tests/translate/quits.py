"""QUITs to be tried: policies on kinds of servers, a client's marks, and what must hold of the store afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing

from mailgate.config.pop3 import Pop3Policy
from mailgate.errors import UpstreamFailed
from mailgate.model import Failure
from mailgate.stream import TrioStream
from mailgate.translate.deletion import Way
from mailgate.translate.imap_client import ImapClient, Selected
from mailgate.translate.update import SOME_KEPT, Outcome, update
from tests.support.mailbox import ModelClient, Store, serve

MAILS = 9
MARKED = (1, 2, 5)
RETRIEVED = (1, 2, 4)


@dataclass
class Marks:
    """What a client marked in which folder."""

    deleted: dict[int, Sequence[int]] = field(default_factory=lambda: {0: MARKED})
    retrieved: dict[int, Sequence[int]] = field(default_factory=lambda: {0: RETRIEVED})

    def marked(self) -> dict[int, Sequence[int]]:
        return self.deleted

    def seen(self) -> dict[int, Sequence[int]]:
        return self.retrieved


@dataclass(frozen=True)
class Opened:
    name: bytes
    selected: Selected


@dataclass(frozen=True)
class Case:
    """A policy on a kind of server, and how messages go then."""

    capabilities: str
    policy: dict[str, Any]
    way: Way
    trash: bytes = b""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.capabilities or 'nothing'}, {self.policy}"


BOTH = "UIDPLUS MOVE SPECIAL-USE"
CASES = [
    Case(BOTH, {"delete": "expunge"}, Way.EXPUNGE),
    Case("IMAP4REV2", {"delete": "expunge"}, Way.EXPUNGE),
    Case("UIDPLUS", {"delete": "expunge"}, Way.EXPUNGE),
    Case("MOVE", {"delete": "expunge"}, Way.MOVE, b"Trash"),
    Case("", {"delete": "expunge", "without_uidplus": "flag"}, Way.FLAG),
    Case("", {"delete": "expunge", "without_uidplus": "shuffle"}, Way.SHUFFLE),
    Case(BOTH, {"delete": "trash"}, Way.MOVE, b"Trash"),
    Case(BOTH, {"delete": "trash", "trash": "Gelöscht"}, Way.MOVE, b"Gel&APY-scht"),
    Case("UIDPLUS", {"delete": "trash"}, Way.EXPUNGE, b"Trash"),
    Case("", {"delete": "trash", "without_uidplus": "shuffle"}, Way.SHUFFLE, b"Trash"),
    Case("", {"delete": "trash", "without_uidplus": "flag"}, Way.FLAG, b"Trash"),
    Case(BOTH, {"delete": "flag"}, Way.FLAG),
    Case(BOTH, {"delete": "keyword"}, Way.KEYWORD),
    Case(BOTH, {"delete": "never"}, Way.NOTHING),
    Case(f"{BOTH} X-GM-EXT-1", {"delete": "expunge"}, Way.MOVE, b"Trash"),
]
DELETING = [case for case in CASES if case.way is not Way.NOTHING]


def a_store(case: Case) -> Store:
    store = Store(case.capabilities)
    store.fill(MAILS)
    return store


Client = ModelClient | ImapClient


class World:
    """A store, the session's connection to it, and one more if it is asked for."""

    face = "model"
    """Whether the verbs are those of the model, or those of the real client, which speaks IMAP with it (``wire``)."""

    def __init__(
        self, store: Store, case: Case, marks: Marks | None = None, names: Sequence[bytes] = (b"INBOX",)
    ) -> None:
        self.store = store
        self.case = case
        self.marks = marks or Marks()
        self.opened = [Opened(name, store.folders[name].selected()) for name in names]
        self.names = names
        # What happens to the mailbox between login and QUIT.
        self.meanwhile: Callable[[], object] = lambda: None
        self.lost = False
        self.cancelled = False
        self.refuses = False
        self.before = {
            name: {uid: (mail.content, set(mail.flags)) for uid, mail in store.folders[name].mails.items()}
            for name in names
        }

    def connect(self) -> Client:
        if self.face == "model":
            return self.store.client()
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(serve, self.store, theirs)
        return ImapClient(TrioStream(ours), bytearray(4096), self.store.capabilities)

    async def reconnect(self) -> Client:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise UpstreamFailed(Failure.CONNECT, "connect/none", "no")
        return self.connect()

    async def quit(self, **more: Any) -> Outcome:
        policy = Pop3Policy(**self.case.policy, **more)
        async with trio.open_nursery() as self.nursery:
            self.client = await self.session()
            with trio.CancelScope() as scope:
                if self.cancelled:
                    scope.cancel()
                outcome = await update(self.client, self.marks, self.opened, policy, self.reconnect)
            self.nursery.cancel_scope.cancel()
        return outcome

    async def session(self) -> Client:
        """Return the connection of a session that has all behind it but QUIT."""
        client = self.connect()
        faults, self.store.faults = self.store.faults, {}
        between, self.store.between = self.store.between, {}
        await client.select(self.names[-1])
        self.store.faults, self.store.between = faults, between
        self.store.said.clear()
        self.meanwhile()
        if self.lost:
            client.abort()
        return client

    # ------------------------------------------------------------ what must hold

    def undone(self) -> set[int]:
        """Return which of the marked messages of the inbox are still as they were."""
        mails = self.store.inbox.mails
        mark = {Way.FLAG: "\\Deleted", Way.KEYWORD: "$POP3Deleted"}.get(self.case.way)
        return {
            uid
            for uid in self.marks.deleted.get(0, ())
            if uid in mails and (mark is None or mark not in mails[uid].flags)
        }

    def check(self, outcome: Outcome) -> None:
        """Compare the store with what was promised."""
        marked = set(self.marks.deleted.get(0, ()))
        undone = self.undone()
        assert outcome.removed + outcome.kept == (len(marked) if self.case.way is not Way.NOTHING else 0)
        if self.case.way is not Way.NOTHING:
            assert outcome.kept - outcome.unknown <= len(undone) <= outcome.kept
        assert outcome.refusal == (SOME_KEPT if outcome.kept else None)
        mails = self.store.inbox.mails
        for uid, (content, flags) in self.before[b"INBOX"].items():
            if uid not in marked:
                assert uid in mails, f"{content} was not marked, and is lost"
                # The shuffle has to take the mark from others, and cannot always give it back.
                gone = flags - mails[uid].flags
                assert gone <= ({"\\Deleted"} if self.case.way is Way.SHUFFLE else set())
                assert not gone or "lost \\Deleted" in outcome.detail
                assert mails[uid].flags - flags <= {"\\Seen"}
            elif self.case.trash and uid not in mails:
                assert content in self.store.folders[self.case.trash].contents(), f"{content} is in the trash no more"
        ours = {self.before[b"INBOX"][uid][0] for uid in marked}
        assert {content for _, content in self.store.removed} <= ours

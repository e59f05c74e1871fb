"""A POP3 session on a stage: C and S are its client, U and G the IMAP server; it begins in the TRANSACTION state.

The mailboxes are open already, so the first command that the server hears has the tag ``m1``. A connection that is
dialled in the place of a lost one is the script's ``login: joe COMMAND``; its tags begin anew.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from mailgate.config.pop3 import Pop3Policy
from mailgate.errors import UpstreamFailed
from mailgate.events import CommandFinished, Trace
from mailgate.model import End, Failure, Peer, Protocol, Session, State
from mailgate.policy.gate import Gate, GateSettings
from mailgate.session.relay import Watch
from mailgate.translate.backend import Backend
from mailgate.translate.imap_client import ImapClient, Selected
from mailgate.translate.maildrop import FolderView, Maildrop
from mailgate.translate.memory import FolderMemory
from mailgate.translate.opening import Opened, OpenFolder
from mailgate.translate.pop3_session import Pop3Session
from mailgate.translate.uidl import Stored
from tests.support.dialogue import Stage
from tests.support.memories import Kept

CAPABILITIES = frozenset({"IMAP4REV1", "UIDPLUS", "MOVE"})
SIZES = (30, 40, 50)
CAPA = ("TOP", "UIDL", "IMPLEMENTATION mailgate")


@dataclass
class HeldDouble:
    """The lock of a maildrop, and what became of it."""

    kept: bool = False
    released: int = 0

    def keep(self) -> None:
        self.kept = True

    def release(self) -> None:
        self.released += 1


def a_mailbox(**facts: Any) -> Selected:
    """What SELECT said when the maildrop was opened."""
    flags = frozenset({"\\SEEN", "\\DELETED", "\\*"})
    return Selected(**({"uidvalidity": 7, "exists": 3, "uidnext": 100, "highestmodseq": None,
                        "uids_sticky": True, "flags_kept": flags, "read_only": False} | facts))  # fmt: skip


class World:
    """What a test may change before its session begins, and see behind it."""

    def __init__(self, sizes: Sequence[int] = SIZES, folders: Sequence[bytes] = (b"INBOX",), **policy: Any) -> None:
        self.stage = Stage()
        self.policy = Pop3Policy(**({"mark_seen": "never"} | policy))
        self.session = Session("s1", Protocol.POP3, "pop3", Peer("192.0.2.1", 4711), 0.0, State.RELAY, user=b"joe")
        self.held = HeldDouble()
        self.memories = Kept()
        self.watch = Watch()
        self.trace: Trace | None = None
        self.buffer = bytearray(65_536)
        self.early = b""
        self.utf8 = False
        self.idle = 600.0
        self.dial_fails: list[Failure] = []
        self.end: End | None = None
        self.ended = trio.Event()
        views, opened = [], []
        for place, name in enumerate(folders):
            uids = array("I", [10 + number + 10 * place for number in range(1, len(sizes) + 1)])
            views.append(FolderView(uids, array("Q", sizes), Stored.of([b"u%d" % uid for uid in uids])))
            opened.append(OpenFolder(name, a_mailbox(), FolderMemory(7), (), uids))
        self.drop = Maildrop.of(views)
        self.opened = Opened(self.drop, tuple(opened))

    def connect(self) -> ImapClient:
        near = self.stage.open_upstream(b"joe", "COMMAND")
        return ImapClient(near, self.buffer, CAPABILITIES)

    async def dial(self) -> ImapClient:
        await trio.lowlevel.checkpoint()
        if self.dial_fails:
            raise UpstreamFailed(self.dial_fails.pop(0), "login/banner", "as the test wants it")
        return self.connect()

    def begin(self) -> Pop3Session:
        client = self.connect()
        self.stage.login_seen = trio.Event()
        client.selected = self.opened.folders[-1].selected
        client.exists = 3
        self.backend = Backend(client, self.opened.folders, self.dial, read_only=self.policy.read_only)
        self.served = Pop3Session(
            self.session, self.backend, self.opened, self.memories, self.policy, self.stage.emit, self.buffer, CAPA,
            utf8=self.utf8, held=self.held,
        )  # fmt: skip
        return self.served

    async def serve(self) -> None:
        """Serve the client as ``session.run`` does."""
        served = self.begin()
        decide = Gate(GateSettings()).deciders[Protocol.POP3]
        stage = self.stage
        self.watch.add(served)
        try:
            self.end = await served.serve(
                stage.near_client, self.early, idle=self.idle, decide=decide, trace=self.trace
            )
        finally:
            self.watch.remove(served)
            try:
                await served.aclose()
            finally:
                self.ended.set()
                await stage.near_client.aclose()

    @property
    def finished(self) -> list[str]:
        """The commands and what became of them."""
        return [f"{one.verb} {one.result}" for one in self.stage.events if isinstance(one, CommandFinished)]


@asynccontextmanager
async def on_stage(world: World | None = None) -> AsyncIterator[World]:
    """Serve the world's client; behind the body it says no more, and the session must have closed everything."""
    world = world or World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.serve)
        await trio.testing.wait_all_tasks_blocked()
        yield world
        await world.stage.client.say_no_more()
        await world.ended.wait()
        await world.stage.finish()
        assert world.held.released
        assert (world.session.bytes_in, world.session.bytes_out) == (
            sum(one.received for one in world.stage.relayed),
            sum(one.sent for one in world.stage.relayed),
        )
        nursery.cancel_scope.cancel()


async def played(script: str, world: World | None = None) -> World:
    """Play a script in a session of its own; return what there is to see behind it."""
    async with on_stage(world) as world:
        await world.stage.play(script)
    return world


QUIT = """
    C: QUIT
    S: +OK Bye
    G: {tag} LOGOUT
    U: * BYE
"""


def leaving(tag: str = "m1") -> str:
    return QUIT.format(tag=tag)


def whole(body: str, uid: int, tag: str, *, section: str = "", done: str = "OK done") -> str:
    """The server's side of a body that is sent whole; in ``body`` ``~`` is CRLF, ``^`` a bare LF and ``@`` NUL."""
    size = len(body) + body.count("~")
    text = body.replace("~", "\\r\\n").replace("^", "\\n").replace("@", "\\0")
    return f"""
    G: {tag} UID FETCH {uid} (UID BODY.PEEK[{section}])
    U: * 1 FETCH (UID {uid} BODY[{section}] {{{size}}}\\r\\n{text})
    U: {tag} {done}
    """


SELECTED = """
    G: m1 SELECT "INBOX"
    U: * 3 EXISTS\\r\\n* OK [UIDVALIDITY {uidvalidity}] x\\r\\nm1 OK
"""

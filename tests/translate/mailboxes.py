"""An IMAP server of mailboxes in memory: others may change them between two commands, and it may refuse.

It knows what an opening asks: UIDNEXT, HIGHESTMODSEQ, EMAILID, headers. What QUIT does to mailboxes is tried with the
model of ``tests.support.mailbox``, which knows flags, other folders and connections that end.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date

import trio
import trio.testing

from mailgate.stream import TrioStream
from mailgate.translate.imap_client import ImapClient


@dataclass(eq=False)
class Message:
    uid: int
    number: int
    flags: set[str] = field(default_factory=set)
    day: date = date(2026, 11, 1)
    identity: int = 0
    told: int | None = None

    @property
    def body(self) -> bytes:
        return b"Message-ID: <%d@example.org>\nSubject: %d\n\n" % (self.identity, self.identity) + b"x\n" * self.number


@dataclass
class Mailbox:
    """``uidnext`` and ``modseq`` as a server counts them; ``tells_*`` say whether it speaks of them."""

    uidvalidity: int = 7
    uidnext: int = 1
    modseq: int = 1
    messages: list[Message] = field(default_factory=list)
    tells_uidnext: bool = True
    tells_modseq: bool = True
    sticky: bool = True
    number: int = 0

    def append(self, *flags: str, identity: int | None = None, day: date | None = None, gap: int = 0) -> Message:
        self.number += 1
        self.modseq += 1
        self.uidnext += gap
        message = Message(self.uidnext, self.number, set(flags), identity=self.number if identity is None else identity)
        message.day = day or message.day
        self.messages.append(message)
        self.uidnext += 1
        return message

    def expunge(self, *messages: Message) -> None:
        for message in messages:
            self.messages.remove(message)

    def flag(self, message: Message, *flags: str) -> None:
        self.modseq += 1
        message.flags ^= set(flags)

    def renumber(self, uidvalidity: int) -> None:
        """Give new UIDs to all."""
        self.uidvalidity = uidvalidity
        for uid, message in enumerate(self.messages, 1):
            message.uid = uid
        self.uidnext = len(self.messages) + 1


@dataclass
class Server:
    folders: dict[bytes, Mailbox] = field(default_factory=lambda: {b"INBOX": Mailbox()})
    capabilities: frozenset[str] = frozenset({"IMAP4REV1", "OBJECTID"})
    refuse: dict[str, str] = field(default_factory=dict)
    """By the beginning of a command: what it is answered; "" closes the connection."""
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    """By the beginning of a command: what somebody else does just before it, once."""
    heard: list[str] = field(default_factory=list)

    @property
    def inbox(self) -> Mailbox:
        return self.folders[b"INBOX"]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ImapClient]:
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Session(self, far).run)
            yield ImapClient(TrioStream(near), bytearray(65_536), self.capabilities)
            nursery.cancel_scope.cancel()


class _Session:
    def __init__(self, server: Server, stream: trio.abc.Stream) -> None:
        self.server = server
        self.stream = stream
        self.folder: Mailbox = server.inbox
        self.view: list[Message] = []

    async def run(self) -> None:
        buffer = b""
        while data := await self.stream.receive_some():
            buffer += data
            while b"\r\n" in buffer:
                line, _, buffer = buffer.partition(b"\r\n")
                tag, _, command = line.decode().partition(" ")
                self.server.heard.append(command)
                for start in [start for start in self.server.before if command.startswith(start)]:
                    self.server.before.pop(start)()
                answer = next((a for start, a in self.server.refuse.items() if command.startswith(start)), None)
                if answer == "":
                    await self.stream.aclose()
                    return
                out = [] if answer is not None else self.answer(command)
                done = answer or "OK done"
                await self.stream.send_all(b"".join(out) + f"{tag} {done}\r\n".encode())

    def synchronise(self) -> list[bytes]:
        out = []
        for message in [one for one in self.view if one not in self.folder.messages]:
            out.append(b"* %d EXPUNGE\r\n" % (self.view.index(message) + 1))
            self.view.remove(message)
        new = [one for one in self.folder.messages if one not in self.view]
        if new:
            self.view += new
            out.append(b"* %d EXISTS\r\n" % len(self.view))
        return out

    def answer(self, command: str) -> list[bytes]:
        verb, _, rest = command.partition(" ")
        if verb in ("SELECT", "EXAMINE"):
            folder = self.folder = self.server.folders[rest.strip('"').encode()]
            self.view = [*folder.messages]
            out = [f"* {len(self.view)} EXISTS", f"* OK [UIDVALIDITY {folder.uidvalidity}] x"]
            out += [f"* OK [UIDNEXT {folder.uidnext}] x"] * folder.tells_uidnext
            out += [f"* OK [HIGHESTMODSEQ {folder.modseq}] x"] * folder.tells_modseq
            out += ["* NO [UIDNOTSTICKY] x"] * (not folder.sticky)
            return [line.encode() + b"\r\n" for line in out]
        if verb == "UID":
            verb, _, rest = rest.partition(" ")
            out = self.synchronise()
            if verb == "SEARCH":
                found = " ".join(str(one.uid) for one in self.view if self.matches(one, rest))
                return [*out, f"* SEARCH {found}".rstrip().encode() + b"\r\n"]
            wanted, _, items = rest.partition(" ")
            uids = [one.uid for one in self.view]
            chosen = [one for one in self.view if self.inside(one.uid, wanted, max(uids, default=0))]
            return out + [self.row(one, items) for one in chosen]
        if verb == "FETCH":
            wanted, _, items = rest.partition(" ")
            rows = enumerate(self.view, 1)
            return [self.row(one, items) for n, one in rows if self.inside(n, wanted, len(self.view))]
        return self.synchronise()

    @staticmethod
    def inside(number: int, wanted: str, highest: int) -> bool:
        for one in wanted.split(","):
            first, _, last = one.partition(":")
            edges = [highest if edge == "*" else int(edge) for edge in (first, last or first)]
            if min(edges) <= number <= max(edges):
                return True
        return False

    def matches(self, message: Message, criteria: str) -> bool:
        word, _, rest = criteria.partition(" ")
        match word:
            case "OR":
                one, _, other = rest.partition(" ")
                return self.matches(message, one) or self.matches(message, other)
            case "DELETED":
                return "\\Deleted" in message.flags
            case "KEYWORD":
                return rest in message.flags
            case "UID":
                return self.inside(message.uid, rest, 0)
            case "SINCE":
                day, month, year = rest.split("-")
                months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
                return message.day >= date(int(year), months.index(month) + 1, int(day))
            case _:
                return True

    def row(self, message: Message, items: str) -> bytes:
        sequence = self.view.index(message) + 1
        parts = [f"UID {message.uid}"]
        if "FLAGS" in items:
            size = len(message.body.replace(b"\n", b"\r\n")) if message.told is None else message.told
            parts += [f"FLAGS ({' '.join(sorted(message.flags))})", f"RFC822.SIZE {size}"]
        if "EMAILID" in items:
            parts.append(f"EMAILID (M{message.identity})")
        if "X-GM-MSGID" in items:
            parts.append(f"X-GM-MSGID {message.identity + (1 << 60)}")
        text = f"* {sequence} FETCH ({' '.join(parts)}".encode()
        for item in re.findall(r"BODY\.PEEK\[(.*?)\]", items):
            body = message.body.partition(b"\n\n")[0] + b"\r\n\r\n" if item == "HEADER" else message.body
            text += b" BODY[%b] {%d}\r\n%b" % (item.encode(), len(body), body)
        return text + b")\r\n"

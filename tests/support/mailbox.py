"""A mail store in memory with faults, and a client of it: what the UPDATE state is tried with, step by step.

The store knows who removed a message, so that a test can ask whether the gateway ever removed one that was not
its own. Other clients act between two commands, and connections end before, in the middle of and after one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import trio

from mailgate.translate.imap_client import MailboxChanged, Refused, Selected, UpstreamLost

Fault = Literal["before", "half", "torn", "after", "no", "hang"]
"""When a command goes wrong: the connection ends before it does anything, when half of it is done, between the two
parts of it (a MOVE that copied), or before its answer; it is refused; it never ends."""

ALL_FLAGS = frozenset({"\\SEEN", "\\DELETED", "\\FLAGGED", "\\ANSWERED", "\\DRAFT", "\\*"})


@dataclass
class Mail:
    """A message; ``content`` is what makes it this one, also as a copy in another folder."""

    content: str
    flags: set[str] = field(default_factory=set)

    @property
    def body(self) -> bytes:
        """What FETCH shows of it."""
        return f"Subject: {self.content}\r\n\r\n{self.content}\r\n".encode()


@dataclass
class Folder:
    """A mailbox: its messages by UID."""

    uidvalidity: int = 7
    uidnext: int = 1
    mails: dict[int, Mail] = field(default_factory=dict)
    flags_kept: frozenset[str] = ALL_FLAGS
    read_only: bool = False
    sticky: bool = True

    def add(self, content: str, *flags: str) -> int:
        """Append a message and return its UID."""
        uid = self.uidnext
        self.uidnext += 1
        self.mails[uid] = Mail(content, set(flags))
        return uid

    def selected(self) -> Selected:
        """Return what SELECT says of it."""
        return Selected(
            uidvalidity=self.uidvalidity,
            exists=len(self.mails),
            uidnext=self.uidnext,
            highestmodseq=None,
            uids_sticky=self.sticky,
            flags_kept=self.flags_kept,
            read_only=self.read_only,
        )

    def deleted(self) -> set[int]:
        r"""Return the UIDs with \Deleted."""
        return {uid for uid, mail in self.mails.items() if "\\Deleted" in mail.flags}

    def contents(self) -> list[str]:
        """Return what is in it, in order."""
        return [mail.content for _, mail in sorted(self.mails.items())]


class Store:
    """Mailboxes, what the server can, and what goes wrong at the n-th command, counted over all connections from 1."""

    def __init__(self, capabilities: str = "UIDPLUS MOVE SPECIAL-USE", *, trash: bytes | None = b"Trash") -> None:
        self.capabilities = frozenset(capabilities.split())
        self.folders = {b"INBOX": Folder()}
        self.special: dict[str, bytes] = {}
        if trash is not None:
            self.folders[trash] = Folder(uidvalidity=99)
            self.special["\\Trash"] = trash
        self.faults: dict[int, Fault] = {}
        self.said: list[str] = []
        # What other clients do before the n-th command.
        self.between: dict[int, Callable[[], None]] = {}
        # Folder and content of each message that the gateway has removed, and of those with \Deleted by others then.
        self.removed: list[tuple[bytes, str]] = []
        self.vanished_refuses = False
        self.connections = 0

    @property
    def inbox(self) -> Folder:
        """The folder that most tests need."""
        return self.folders[b"INBOX"]

    def fill(self, count: int) -> None:
        """Put messages into the inbox; every third one was deleted by another client."""
        for number in range(1, count + 1):
            self.inbox.add(f"mail {number}", *(["\\Deleted"] if number % 3 == 0 else []))

    def client(self) -> ModelClient:
        """Return a new connection."""
        self.connections += 1
        return ModelClient(self)


class ModelClient:
    """The verbs of an ImapClient on a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.alive = True
        self.selected: Selected | None = None
        self._name: bytes | None = None
        self.utf8 = False
        self.seconds = 60.0

    @property
    def capabilities(self) -> frozenset[str]:
        """What the server can."""
        return self._store.capabilities

    @property
    def folders(self) -> dict[bytes, Folder]:
        """All mailboxes."""
        return self._store.folders

    @property
    def folder(self) -> Folder:
        """The mailbox that is selected."""
        assert self._name is not None, "a command that needs a mailbox, and none is selected"
        return self._store.folders[self._name]

    async def _say(self, command: str, effect: Callable[[float], None] = lambda share: None) -> None:
        """Count a command, let others act, and do its effect as far as its fault lets it: 0.5 is torn."""
        store = self._store
        if not self.alive:
            raise UpstreamLost("the connection is lost")
        await trio.lowlevel.checkpoint()
        store.said.append(command)
        number = len(store.said)
        store.between.get(number, lambda: None)()
        fault = store.faults.get(number)
        if fault == "no":
            raise Refused("NO", "LIMIT", "not now")
        if fault is None:
            return effect(1.0)
        if fault in ("half", "torn", "after"):
            # A refusal that never came is no more than a connection that ended.
            with suppress(Refused):
                effect({"half": 0.5, "torn": -1.0, "after": 1.0}[fault])
        if fault == "hang":
            with trio.move_on_after(self.seconds):
                await trio.sleep_forever()
        self.alive = False
        raise UpstreamLost("the connection is lost")

    def _there(self, uids: Iterable[int], share: float) -> list[int]:
        found = [uid for uid in uids if uid in self.folder.mails]
        return found[: int(len(found) * share)] if share > 0 else []

    def _check(self, uids: Sequence[int]) -> None:
        if self._store.vanished_refuses and any(uid not in self.folder.mails for uid in uids):
            raise Refused("NO", "", "some of the messages no longer exist")

    def _remove(self, uid: int) -> None:
        mail = self.folder.mails.pop(uid)
        assert self._name is not None
        self._store.removed.append((self._name, mail.content))

    async def select(self, folder: bytes, *, read_only: bool = False) -> Selected:
        """See ImapClient."""
        await self._say("SELECT")
        self.selected = self._name = None
        if folder not in self._store.folders:
            raise Refused("NO", "NONEXISTENT", "no such mailbox")
        return self.enter(folder)

    async def noop(self) -> None:
        """See ImapClient."""
        await self._say("NOOP")
        assert self.selected is not None
        if self.selected.uidvalidity != self.folder.uidvalidity:
            raise MailboxChanged("UIDVALIDITY changed")

    def enter(self, folder: bytes) -> Selected:
        """Have a folder selected without a command, as when the maildrop was opened."""
        self._name = folder
        self.selected = self.folder.selected()
        return self.selected

    async def search(self, criteria: bytes) -> Sequence[int]:
        """See ImapClient; what is understood is a set of UIDs, a word about flags, or both."""
        assert len(criteria) < 970, "a line longer than RFC 2683 §3.2.1.5 allows"
        named = re.match(rb"UID ([0-9:,]+) ?", criteria)
        wanted = set(uid_set(named[1])) if named else None
        word, _, keyword = criteria[named.end() if named else 0 :].decode().partition(" ")
        await self._say(f"UID SEARCH {word}".strip())
        fits = {
            "": lambda flags: True,
            "DELETED": lambda flags: "\\Deleted" in flags,
            "UNDELETED": lambda flags: "\\Deleted" not in flags,
            "UNKEYWORD": lambda flags: keyword not in flags,
        }[word]
        return sorted(
            uid for uid, mail in self.folder.mails.items() if (wanted is None or uid in wanted) and fits(mail.flags)
        )

    async def store(self, uids: Iterable[int], flags: bytes, *, add: bool = True, silent: bool = True) -> None:
        """See ImapClient."""
        listed = list(uids)
        assert listed, "a command without messages"
        named = flags.decode().split()

        def effect(share: float) -> None:
            self._check(listed)
            for uid in self._there(listed, share):
                for flag in named:
                    if flag.upper() in self.folder.flags_kept or not flag.startswith("\\"):
                        (set.add if add else set.discard)(self.folder.mails[uid].flags, flag)

        await self._say(f"UID STORE {'+' if add else '-'}{named[0]}", effect)

    async def expunge_uids(self, uids: Iterable[int]) -> None:
        """See ImapClient."""
        listed = list(uids)
        assert listed, "a command without messages"
        assert self.capabilities & {"UIDPLUS", "IMAP4REV2"}, "UID EXPUNGE needs UIDPLUS"

        def effect(share: float) -> None:
            for uid in self._there([uid for uid in listed if uid in self.folder.deleted()], share):
                self._remove(uid)

        await self._say("UID EXPUNGE", effect)

    async def expunge(self) -> None:
        """See ImapClient."""

        def effect(share: float) -> None:
            for uid in self._there(sorted(self.folder.deleted()), share):
                self._remove(uid)

        await self._say("EXPUNGE", effect)

    async def move(self, uids: Iterable[int], folder: bytes) -> None:
        """See ImapClient."""
        listed = list(uids)
        assert self.capabilities & {"MOVE", "IMAP4REV2"}, "there is no MOVE"

        def effect(share: float) -> None:
            self._copy(listed, folder, abs(share))
            for uid in self._there(listed, share):
                self._remove(uid)

        await self._say("UID MOVE", effect)

    async def copy(self, uids: Iterable[int], folder: bytes) -> None:
        """See ImapClient."""
        listed = list(uids)
        await self._say("UID COPY", lambda share: self._copy(listed, folder, max(share, 0.0)))

    def _copy(self, uids: Sequence[int], folder: bytes, share: float) -> None:
        if folder not in self._store.folders:
            raise Refused("NO", "TRYCREATE", "no such mailbox")
        for uid in self._there(uids, share):
            mail = self.folder.mails[uid]
            self._store.folders[folder].add(mail.content, *mail.flags)

    async def create(self, folder: bytes) -> None:
        """See ImapClient."""

        def effect(share: float) -> None:
            self._store.folders.setdefault(folder, Folder(uidvalidity=100))

        await self._say("CREATE", effect)

    async def special_use(self, use: str) -> bytes | None:
        """See ImapClient."""
        await self._say("LIST")
        return self._store.special.get(use)

    def abort(self) -> None:
        """See ImapClient."""
        self.alive = False

    async def fetch(self, uids: Iterable[int] | None, items: bytes) -> list[bytes]:
        """Return what FETCH tells of these messages, of all where it is None."""
        await self._say("UID FETCH")
        rows = []
        for number, (uid, mail) in enumerate(sorted(self.folder.mails.items()), 1):
            if uids is not None and uid not in uids:
                continue
            row = b"%d FETCH (UID %d" % (number, uid)
            if b"RFC822.SIZE" in items:
                row += b" FLAGS (%b) RFC822.SIZE %d" % (" ".join(sorted(mail.flags)).encode(), len(mail.body))
            if b"BODY" in items:
                row += b" BODY[] {%d}\r\n%b" % (len(mail.body), mail.body)
            rows.append(row + b")")
        return rows


_COMMAND = re.compile(rb"(\S+) ((?:UID )?[A-Z]+)(?: (.*))?")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"|(\S+)')


def uid_set(listed: bytes) -> list[int]:
    """Return the UIDs of a set, in its order."""
    uids: list[int] = []
    for part in listed.decode().split(","):
        first, _, last = part.partition(":")
        uids += range(int(first), int(last or first) + 1)
    return uids


def _names(words: bytes) -> list[bytes]:
    return [quoted or plain for quoted, plain in _QUOTED.findall(words)]


async def serve(store: Store, stream: trio.abc.Stream) -> None:
    """Speak IMAP on a stream, as much of it as deletes messages; returns when either side has closed."""
    client = store.client()
    client.seconds = math.inf
    pending = b""
    async with stream:
        while True:
            while (end := pending.find(b"\r\n")) < 0:
                data = await stream.receive_some()
                if not data:
                    return
                pending += data
            line, pending = pending[:end], pending[end + 2 :]
            assert end <= 1000, "a line longer than RFC 2683 §3.2.1.5 allows"
            found = _COMMAND.fullmatch(line)
            assert found is not None, line
            tag, verb, words = found[1], found[2].decode(), found[3] or b""
            try:
                untagged, code = await _answer(client, verb, words)
            except UpstreamLost:
                return
            except MailboxChanged:
                untagged, code = [b"OK [UIDVALIDITY %d] renumbered" % client.folder.uidvalidity], b""
            except Refused as refused:
                shown = f"[{refused.code}] " if refused.code else ""
                await stream.send_all(b"%b NO %b%b\r\n" % (tag, shown.encode(), refused.text.encode()))
                continue
            answer = b"".join(b"* %b\r\n" % one for one in untagged)
            await stream.send_all(answer + b"%b OK %bdone\r\n" % (tag, code))


async def _answer(client: ModelClient, verb: str, words: bytes) -> tuple[list[bytes], bytes]:
    """Do a command; return what goes before its tagged response, without stars, and that one's code."""
    match verb:
        case "SELECT" | "EXAMINE":
            selected = await client.select(_names(words)[0])
            flags = " ".join(sorted(selected.flags_kept)).encode()
            told = [
                b"%d EXISTS" % selected.exists,
                b"OK [UIDVALIDITY %d] x" % selected.uidvalidity,
                b"OK [PERMANENTFLAGS (%b)] x" % flags,
                *([] if selected.uids_sticky else [b"NO [UIDNOTSTICKY] x"]),
            ]
            return told, b"[READ-ONLY] " if selected.read_only else b"[READ-WRITE] "
        case "NOOP":
            await client.noop()
        case "CREATE":
            await client.create(_names(words)[0])
        case "LIST":
            trash = await client.special_use("\\Trash")
            named = [(name, b"\\Trash" if name == trash else b"\\HasNoChildren") for name in client.folders]
            return [b'LIST (%b) "/" "%b"' % (attribute, name) for name, attribute in named], b""
        case "EXPUNGE":
            await client.expunge()
        case "FETCH" | "UID FETCH":
            listed, items = words.split(b" ", 1)
            return await client.fetch(None if b"*" in listed else uid_set(listed), items), b""
        case "CAPABILITY" | "LOGIN" | "AUTHENTICATE":
            listed = b" ".join(name.encode() for name in sorted(client.capabilities | {"IMAP4REV1", "AUTH=PLAIN"}))
            if verb == "CAPABILITY":
                return [b"CAPABILITY " + listed], b""
            return [], b"[CAPABILITY %b] " % listed
        case "ENABLE":
            return [b"ENABLED " + words], b""
        case "LOGOUT":
            return [b"BYE"], b""
        case "UID EXPUNGE":
            await client.expunge_uids(uid_set(words))
        case "UID SEARCH":
            found = await client.search(words)
            return [" ".join(["SEARCH", *map(str, found)]).encode()], b""
        case "UID STORE":
            listed, action, flags = words.split(b" ", 2)
            await client.store(uid_set(listed), flags.strip(b"()"), add=action.startswith(b"+"))
        case "UID MOVE" | "UID COPY":
            listed, folder = words.split(b" ", 1)
            put = client.move if verb == "UID MOVE" else client.copy
            await put(uid_set(listed), _names(folder)[0])
        case _:
            raise Refused("BAD", "", f"what is {verb}?")
    return [], b""

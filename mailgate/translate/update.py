r"""The UPDATE state: what QUIT does to the mailboxes (RFC 1939 §6).

Exactly what was marked is deleted, nothing else ever: by UIDs, and only where UIDVALIDITY says that they still
mean the same messages. Every step can be repeated, so that it does not matter at which one a connection ends:
what is still there is asked, and the rest done over a second connection. What is not known to be deleted in the
end is reported as kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from mailgate.config.pop3 import Pop3Policy
from mailgate.errors import MailgateError
from mailgate.model import Refusal
from mailgate.translate.deletion import Deletion, OpenFolder, Way, plan
from mailgate.translate.imap_client import ImapClient, MailboxChanged, Refused
from mailgate.wire.imap_sets import COMMAND_LINE, uid_sets

SOME_KEPT: Final = Refusal("some_kept", "some deleted messages not removed", "", "SYS/TEMP")
"""QUIT's answer where something is left, in RFC 1939's words."""

COPIED_AT_ONCE: Final = 64
"""Messages that one COPY copies: all or none of them (RFC 9051 §6.4.7), in one line whatever their UIDs are."""

SET_ROOM: Final = 850
"""Octets for a set of UIDs in a UID SEARCH; beside it the line has a tag, a keyword of 64 octets, and words."""

SILENCE: Final = 3
"""Which part of QUIT's time a server may be silent, so that enough is left for a second connection."""

LOOKS: Final = 4
r"""How often \Deleted is taken from other messages; who sets it that often, or a server that keeps it, has won."""

_REMOVES: Final = frozenset({Way.EXPUNGE, Way.SHUFFLE, Way.MOVE})


class Marks(Protocol):
    """What of a maildrop the UPDATE state needs: UIDs by the folder's place, ascending."""

    def marked(self) -> Mapping[int, Sequence[int]]:
        """Return what the client deleted."""
        ...

    def seen(self) -> Mapping[int, Sequence[int]]:
        """Return what the client retrieved."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    r"""What became of the messages that were marked.

    ``removed`` are gone, or hidden where the policy only hides. ``kept`` are all others, the fate of ``unknown``
    of which is not known: a command was under way and its answer did not come. ``unseen`` were retrieved and could
    not be marked \Seen, which is no failure. ``asked`` says whether there was anything to do. ``detail`` says why, for
    the log: no client's words, and no upstream's but its response codes.
    """

    removed: int = 0
    kept: int = 0
    unknown: int = 0
    unseen: int = 0
    asked: bool = False
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether all is done that was marked."""
        return not self.kept

    @property
    def refusal(self) -> Refusal | None:
        """QUIT's answer, ``None`` for +OK."""
        return SOME_KEPT if self.kept else None


async def update(
    client: ImapClient,
    maildrop: Marks,
    folders: Sequence[OpenFolder],
    settings: Pop3Policy,
    reconnect: Callable[[], Awaitable[ImapClient]],
    deletions: Sequence[Deletion | Refusal] | None = None,
) -> Outcome:
    """Delete what was marked; return what became of it, after ``settings.quit_timeout`` at the latest.

    Nobody else can cancel this: a client that goes after QUIT has still said it. ``reconnect`` is called at most
    once, where the connection is lost, and raises a ``MailgateError`` if there is no other; the one that it returns is
    the caller's to close, like ``client``. When the time was over neither is of use (``alive`` is false). ``deletions``
    are what ``plan`` returned earlier in this session.
    """
    work = _Update(client, maildrop, folders, settings, reconnect, deletions)
    if work.asked:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + settings.quit_timeout) as scope:
            await work.run()
        if scope.cancelled_caught:
            work.client.abort()
            work.note(f"the time of {settings.quit_timeout:g} s was over")
    return work.outcome()


class _Folder:
    """What is to be done in one mailbox, and how far it is."""

    def __init__(self, opened: OpenFolder, marked: Sequence[int], seen: Sequence[int]) -> None:
        self.name = opened.name
        self.uidvalidity = opened.selected.uidvalidity
        # Where not, UIDs mean something else as soon as the mailbox is selected anew, whatever UIDVALIDITY says.
        self.sticky = opened.selected.uids_sticky
        self.marked = frozenset(marked)
        # What was marked and is not known to be done, and whether a command was sent that may have done it.
        self.left: Sequence[int] = marked
        self.tried = False
        # Where the mark is not kept it is not tried: what opened the maildrop knows that already.
        settable = "\\SEEN" in opened.selected.flags_kept and not opened.selected.read_only
        self.unseen = set(seen) if settable else set()
        # Whether \Deleted was set, and must be taken back from what is not removed.
        self.flagged = False
        # What is in the trash already, so that a second connection does not copy it again.
        self.copied: set[int] = set()
        # Messages that carried \Deleted before: they have to get it back.
        self.others: set[int] = set()
        self.settled = False

    @property
    def asked(self) -> bool:
        return bool(self.left or self.unseen)


class _Lost(Exception):
    """The connection is of no use, and there is no other."""


class _Update:
    """One QUIT."""

    def __init__(
        self,
        client: ImapClient,
        maildrop: Marks,
        folders: Sequence[OpenFolder],
        settings: Pop3Policy,
        reconnect: Callable[[], Awaitable[ImapClient]],
        deletions: Sequence[Deletion | Refusal] | None,
    ) -> None:
        self.client = client
        self._opened = folders
        self._settings = settings
        self._reconnect: Callable[[], Awaitable[ImapClient]] | None = reconnect
        self._deletions = deletions
        self._notes: list[str] = []
        marked = maildrop.marked() if settings.delete != "never" else {}
        seen = maildrop.seen() if settings.mark_seen == "retr" and not settings.read_only else {}
        self._folders = [
            _Folder(opened, marked.get(index, ()), seen.get(index, ())) for index, opened in enumerate(folders)
        ]
        self.asked = any(folder.asked for folder in self._folders)

    def note(self, what: str) -> None:
        """Remember for the log why something is not done."""
        if what not in self._notes:
            self._notes.append(what)

    def outcome(self) -> Outcome:
        """Return what is known by now."""
        kept = sum(len(folder.left) for folder in self._folders)
        asked = sum(len(folder.marked) for folder in self._folders)
        robbed = sum(len(folder.others) for folder in self._folders)
        if robbed:
            self.note(f"{robbed} other messages may have lost \\Deleted")
        return Outcome(
            removed=asked - kept,
            kept=kept,
            unknown=sum(len(folder.left) for folder in self._folders if folder.tried and not folder.settled),
            unseen=sum(len(folder.unseen) for folder in self._folders),
            asked=self.asked,
            detail="; ".join(self._notes),
        )

    async def run(self) -> None:
        """Do all folders, one after another; notes tell what went wrong."""
        with suppress(_Lost):
            self._hurry()
            for index, folder in enumerate(self._folders):
                if folder.asked:
                    await self._steadily(index, folder)

    def _hurry(self) -> None:
        self.client.seconds = min(self.client.seconds, self._settings.quit_timeout / SILENCE)

    async def _steadily(self, index: int, folder: _Folder) -> None:
        """Do one folder, and go on with it over a second connection where the first is lost."""
        if not self.client.alive:
            await self._replace()
        while True:
            try:
                return await self._in_folder(index, folder)
            except MailboxChanged:
                # These UIDs mean other messages now, or none: nothing may be done to them.
                folder.others.clear()
                return self.note("the mailbox is not the same any more")
            except Refused as refused:
                return self.note(_said(refused))
            except MailgateError as lost:
                self.client.abort()
                self.note(_kind(lost))
                await self._replace()

    async def _replace(self) -> None:
        reconnect, self._reconnect = self._reconnect, None
        if reconnect is None:
            raise _Lost
        try:
            self.client = await reconnect()
        except MailgateError as failed:
            self.note(f"no second connection: {_kind(failed)}")
            raise _Lost from failed
        self._hurry()
        # Another server of the pool may be another make.
        self._deletions = None

    async def _in_folder(self, index: int, folder: _Folder) -> None:
        if self._deletions is None:
            self._deletions = await plan(self.client, self._opened, self._settings)
        deletion = self._deletions[index]
        read_only = await self._enter(folder)
        known = True
        if folder.tried:
            folder.left = await self._existing(folder.left)
        if folder.left:
            if isinstance(deletion, Refusal):
                self.note(deletion.reason)
            elif read_only:
                self.note("the mailbox is read-only now")
            else:
                known = await self._delete(folder, deletion)
        elif folder.others:
            await self._restore(folder)
        folder.settled = known
        folder.unseen.difference_update(self._gone(folder, deletion))
        await self._mark_seen(folder, folder.unseen)

    async def _enter(self, folder: _Folder) -> bool:
        """Make sure that the folder is selected and the same as when the maildrop was opened; whether it is read-only.

        It is not selected anew without need: that is slow for some servers' large mailboxes, and where UIDs are not
        kept (UIDNOTSTICKY) it would change them.
        """
        # Where there are several nothing says which of them is selected, and UIDVALIDITY may be the same.
        now = self.client.selected if len(self._folders) == 1 else None
        if now is None:
            now = await self.client.select(folder.name)
            if not folder.sticky:
                raise MailboxChanged("UIDs are not kept")
        else:
            await self.client.noop()
        if now.uidvalidity != folder.uidvalidity:
            raise MailboxChanged("UIDVALIDITY changed")
        return now.read_only

    async def _existing(self, uids: Sequence[int], criteria: bytes = b"") -> Sequence[int]:
        """Return which of these there are, in one command: of too many for a line their range is asked for."""
        if not uids:
            return ()
        named = next(uid_sets(uids, COMMAND_LINE))
        if len(named) > SET_ROOM:
            named = b"%d:%d" % (uids[0], uids[-1])
        found = set(await self.client.search(b"UID %b%b" % (named, b" " + criteria if criteria else b"")))
        return [uid for uid in uids if uid in found]

    @staticmethod
    def _gone(folder: _Folder, deletion: Deletion | Refusal) -> Collection[int]:
        """Return what is not in the folder any more by our doing."""
        if isinstance(deletion, Refusal) or deletion.way not in _REMOVES:
            return ()
        return folder.marked.difference(folder.left)

    # ---------------------------------------------------------------- ways

    async def _delete(self, folder: _Folder, deletion: Deletion) -> bool:
        """Delete what is left in the folder, and find out what is left then; return whether that is known."""
        known = False
        if deletion.trash:
            # In the trash it is to be seen too, and there it cannot be marked any more.
            await self._mark_seen(folder, folder.unseen.intersection(folder.left))
        try:
            if deletion.trash:
                await self._to_trash(folder, deletion)
            if deletion.way is not Way.MOVE:
                await self._in_place(folder, deletion.way)
        except Refused as refused:
            self.note(_said(refused))
        try:
            folder.left = await self._existing(folder.left, self._undone(deletion.way))
            known = True
        except Refused as refused:
            self.note(_said(refused))
        if folder.left:
            self.note("the server kept messages")
            if folder.flagged and deletion.way in _REMOVES and not self._settings.show_deleted:
                # With the mark the next session would not show them, and its client could not try again.
                await self._forgivingly(self.client.store(folder.left, b"\\Deleted", add=False))
        return known

    def _undone(self, way: Way) -> bytes:
        """Return what UID SEARCH finds of messages that this way has not been gone with."""
        if way is Way.FLAG:
            return b"UNDELETED"
        return b"UNKEYWORD " + self._keyword() if way is Way.KEYWORD else b""

    def _keyword(self) -> bytes:
        return self._settings.keyword.encode("ascii")

    async def _to_trash(self, folder: _Folder, deletion: Deletion) -> None:
        """Move to the trash, or copy there what is not known to be copied; raises Refused."""
        if deletion.way is Way.MOVE:
            folder.tried = True
            await self._insist(folder, lambda uids: self._filling(deletion.trash, self.client.move, uids))
            return
        missing = [uid for uid in folder.left if uid not in folder.copied]
        for start in range(0, len(missing), COPIED_AT_ONCE):
            some = missing[start : start + COPIED_AT_ONCE]
            await self._filling(deletion.trash, self.client.copy, some)
            folder.copied.update(some)

    async def _filling(
        self, trash: bytes, put: Callable[[Iterable[int], bytes], Awaitable[None]], uids: Sequence[int]
    ) -> None:
        """Move or copy to the trash, which is made where the server says that it is missing."""
        try:
            await put(uids, trash)
        except Refused as refused:
            if refused.code.upper() != "TRYCREATE":
                raise
            await self.client.create(trash)
            await put(uids, trash)

    async def _in_place(self, folder: _Folder, way: Way) -> None:
        """Mark what is left and remove it where the way is one that does; raises Refused."""
        folder.tried = True
        if way is Way.KEYWORD:
            await self._insist(folder, lambda uids: self.client.store(uids, self._keyword()))
            return
        await self._flag(folder)
        if not folder.left:
            return
        if way is Way.EXPUNGE:
            await self._insist(folder, self.client.expunge_uids)
        elif way is Way.SHUFFLE:
            await self._shuffle(folder)

    async def _flag(self, folder: _Folder) -> None:
        folder.flagged = True
        await self._insist(folder, lambda uids: self.client.store(uids, b"\\Deleted"))

    async def _shuffle(self, folder: _Folder) -> None:
        r"""Take \Deleted from all others, expunge, and give it back (RFC 4315 §2.1); raises Refused.

        Between the last look and EXPUNGE, one round trip, another client's \Deleted may come in: that is expunged too.
        """
        try:
            for _ in range(LOOKS):
                others = set(await self.client.search(b"DELETED")) - folder.marked
                if not others:
                    await self.client.expunge()
                    break
                folder.others |= others
                await self.client.store(sorted(others), b"\\Deleted", add=False)
            else:
                self.note("other messages keep \\Deleted")
        except Refused:
            await self._restore(folder)
            raise
        await self._restore(folder)

    async def _restore(self, folder: _Folder) -> None:
        if folder.others and await self._forgivingly(self.client.store(sorted(folder.others), b"\\Deleted")):
            folder.others.clear()

    # ---------------------------------------------------------------- answers

    async def _insist(self, folder: _Folder, verb: Callable[[Sequence[int]], Awaitable[None]]) -> None:
        """Do something to all that is left; a server may refuse that for one that vanished, so then to what exists."""
        try:
            await verb(folder.left)
        except Refused:
            existing = await self._existing(folder.left)
            if len(existing) == len(folder.left):
                raise
            folder.left = existing
            if existing:
                await verb(existing)

    async def _mark_seen(self, folder: _Folder, uids: Collection[int]) -> None:
        r"""Mark messages \Seen where the server lets it."""
        if uids and await self._forgivingly(self.client.store(sorted(uids), b"\\Seen")):
            folder.unseen.difference_update(set(uids))

    async def _forgivingly(self, doing: Awaitable[None]) -> bool:
        """Wait for what may be refused without harm; return whether it was done."""
        try:
            await doing
        except Refused as refused:
            self.note(_said(refused))
            return False
        return True


def _said(refused: Refused) -> str:
    return f"refused [{refused.code}]" if refused.code else "refused"


def _kind(error: MailgateError) -> str:
    return type(error).__name__

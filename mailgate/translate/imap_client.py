"""An IMAP server as a POP3 session uses it: one mailbox, few commands, messages in pieces (RFC 9051, RFC 2683).

The connection is signed in. Messages are named by UIDs alone: sequence numbers in responses mean nothing here, since
other clients expunge and servers err. How a connection ends, and when it is of no more use, ``imap_connection`` says.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable
from typing import Final

from mailgate.translate.imap_bodies import ImapBodies
from mailgate.translate.imap_connection import (
    MESSAGES,
    SET_ROOM,
    ClientError,
    MailboxChanged,
    Malformed,
    Opening,
    Refused,
    Selected,
    UpstreamLost,
    Vanished,
    integer,
)
from mailgate.wire import mailbox_name
from mailgate.wire.imap import encode_arguments
from mailgate.wire.imap_fetch import Event, Found
from mailgate.wire.imap_list import Listed, listed
from mailgate.wire.imap_overview import SPARE_ROWS, Overview, OverviewRows
from mailgate.wire.imap_response import Response
from mailgate.wire.imap_sets import COMMAND_LINE, checked_flags, uid_sets

__all__ = [
    "ClientError",
    "ImapClient",
    "MailboxChanged",
    "Malformed",
    "Overview",
    "Refused",
    "Selected",
    "UpstreamLost",
    "Vanished",
]

BATCH: Final = 10_000
"""Messages in one FETCH of the overview. A server answers such a command within seconds, whatever its disk."""

UID_LIMIT: Final = (1 << 32) - 1
"""The highest UID and UIDVALIDITY (RFC 9051 §9, nz-number)."""

MODSEQ_LIMIT: Final = (1 << 63) - 1
"""The highest modification sequence (RFC 7162 §7)."""

_FETCHED: Final = ("UID", "FLAGS", "RFC822.SIZE")
_WANTED: Final = {
    "emailid": "EMAILID",
    "gm_msgid": "X-GM-MSGID",
    "headers": "BODY.PEEK[HEADER]",
}
_CONTROL = re.compile(rb"[\r\n\0]")


class ImapClient(ImapBodies):
    """A signed-in connection; see the module's text."""

    # ---------------------------------------------------------------- the mailbox

    def _mailbox(self, folder: bytes | str) -> tuple[bytes, ...]:
        """Return a mailbox's name as pieces of a command. Raises ValueError for what is no name."""
        if isinstance(folder, bytes) and self.utf8:
            folder = mailbox_name.to_text(folder)
        if isinstance(folder, str):
            # What is encoded hides its control characters.
            mailbox_name.checked(folder.encode("utf-8"))
            folder = mailbox_name.to_wire(folder, utf8=self.utf8)
        return encode_arguments((mailbox_name.checked(folder),), "sync")

    async def select(self, folder: bytes | str, *, read_only: bool = False) -> Selected:
        """Open a mailbox, with EXAMINE if ``read_only``. Raises Refused, ValueError for a name that can be none.

        ``folder`` as bytes is the name in modified UTF-7, as a string how people spell it.
        """
        verb = b"EXAMINE" if read_only and "no-examine" not in self.quirks else b"SELECT"
        first, *others = self._mailbox(folder)
        await self.settle()
        opening = self.opening = Opening()
        self.selected = None
        try:
            done = await self.command(verb + first, *others)
        finally:
            self.opening = None
        if opening.exists is None:
            self.alive = False
            raise Malformed("the server does not tell how many messages there are")
        codes = opening.codes
        kept = codes.get("PERMANENTFLAGS", opening.flags + rb" \*").decode("latin-1").upper()
        uidvalidity = integer(codes.get("UIDVALIDITY", b"")) or 0
        if uidvalidity > UID_LIMIT:
            self.alive = False
            raise Malformed("UIDVALIDITY over 32 bits")
        self.expunged = 0
        self.selected = Selected(
            uidvalidity,
            opening.exists,
            _at_most(UID_LIMIT, codes.get("UIDNEXT", b"")),
            _at_most(MODSEQ_LIMIT, codes.get("HIGHESTMODSEQ", b"")),
            uidvalidity > 0 and "UIDNOTSTICKY" not in codes,
            frozenset(kept.replace("(", " ").replace(")", " ").split()),
            read_only or done.code == "READ-ONLY",
        )
        return self.selected

    # ---------------------------------------------------------------- the messages there are

    async def overview(
        self,
        first_uid: int = 1,
        want: frozenset[str] = frozenset(),
        *,
        keyword: bytes = b"",
        digest: Callable[[bytes], bytes] = bytes,
    ) -> Overview:
        """Return what the server tells of the messages from ``first_uid`` on: one round trip, however many there are.

        ``want``: ``emailid`` or ``gm_msgid``, ``headers``. ``keyword`` is the flag that ``hidden`` shows, ``digest``
        makes of each header what is kept of it. Messages whose FETCH response does not come are asked for once more,
        after a NOOP (RFC 2683 §3.4.4); those that stay away are gone. Raises Refused.
        """
        rows = OverviewRows(
            first_uid=first_uid,
            keyword=keyword,
            ids=bool(want & {"emailid", "gm_msgid"}),
            headers="headers" in want,
            digest=digest,
            expected=self.exists,
        )
        if not self.exists:
            return rows.result()
        items = _items(want)
        expunged, expected = self.expunged, self.exists
        everything = b"UID FETCH %d:* (%b)" % (first_uid, items)
        if first_uid > 1 or expected <= BATCH:
            await self.commands([everything], rows=rows)
        else:
            try:
                await self.commands(_batches(expected, items), rows=rows)
            except Refused:
                # Numbers that are gone by then are refused by some servers. UIDs are not.
                await self.commands([everything], rows=rows)
        rows.tidy()
        wanted = set(rows.incomplete())
        if first_uid == 1 and len(rows) < expected - (self.expunged - expunged):
            await self.noop()
            wanted.update(rows.missing(await self.search(b"ALL")))
        if wanted:
            sets = uid_sets(wanted, COMMAND_LINE - SET_ROOM - len(items))
            await self.commands((b"UID FETCH %b (%b)" % (uids, items) for uids in sets), rows=rows)
        return rows.result()

    async def search(self, criteria: bytes) -> array[int]:
        """Return the UIDs of the messages that match, ascending. Raises Refused, ValueError for too long a line."""
        if _CONTROL.search(criteria):
            raise ValueError("a line's end in a search")
        found: set[int] = set()
        # As many as rows may come in an overview.
        most = min(MESSAGES, 2 * self.exists + SPARE_ROWS)

        def take(event: Event) -> None:
            if isinstance(event, Found):
                found.update(event.numbers)
                if len(found) > most:
                    self.alive = False
                    raise Malformed("far more messages found than there are")

        await self.command(b"UID SEARCH " + criteria, take=take)
        return array("I", sorted(found))

    # ---------------------------------------------------------------- other mailboxes

    async def special_use(self, use: str) -> bytes | None:
        r"""Return the name of the first mailbox with an attribute such as ``\Trash`` (RFC 6154). Raises Refused."""
        command = b'LIST "" "*"'
        if self.capabilities.issuperset({"SPECIAL-USE", "LIST-EXTENDED"}) or "IMAP4REV2" in self.capabilities:
            command = b'LIST (SPECIAL-USE) "" "*"'
        elif "XLIST" in self.capabilities and "SPECIAL-USE" not in self.capabilities:
            command = b'XLIST "" "*"'
        return await self._listed(lambda one: use.upper() in one.attributes and bool(one.name), command)

    async def knows(self, folder: bytes) -> bool:
        """Return whether the server lists a mailbox, or will not tell. Raises ValueError for what is no name."""
        first, *others = self._mailbox(folder)
        try:
            # In a pattern % and * stand for others too.
            found = await self._listed(lambda one: self._in_utf7(one.name) == folder, b'LIST ""' + first, *others)
        except Refused:
            return True
        return found is not None

    async def _listed(self, wanted: Callable[[Listed], bool], *pieces: bytes) -> bytes | None:
        """Return the name of the first mailbox of a LIST that is wanted and can be selected. Raises Refused."""
        found: bytes | None = None

        def take(event: Event) -> None:
            nonlocal found
            mailbox = listed(event) if isinstance(event, Response) else None
            if found is None and mailbox is not None and mailbox.selectable and wanted(mailbox):
                found = self._in_utf7(mailbox.name)

        await self.command(*pieces, take=take)
        return found

    def _in_utf7(self, name: bytes) -> bytes:
        """Return a name that the server told in the form that every other call takes."""
        return mailbox_name.to_wire(name.decode("utf-8", "backslashreplace")) if self.utf8 else name

    async def create(self, folder: bytes | str) -> None:
        """Make a mailbox. Raises Refused, ValueError."""
        first, *others = self._mailbox(folder)
        await self.command(b"CREATE" + first, *others)

    # ---------------------------------------------------------------- changes

    async def store(self, uids: Iterable[int], flags: bytes, *, add: bool = True, silent: bool = True) -> None:
        r"""Set or clear flags, such as ``\Deleted``, of messages; those that are gone are no error. Raises Refused."""
        action = b"%bFLAGS%b (%b)" % (b"+" if add else b"-", b".SILENT" if silent else b"", checked_flags(flags))
        sets = uid_sets(uids, COMMAND_LINE - SET_ROOM - len(action))
        await self.commands(b"UID STORE %b %b" % (one, action) for one in sets)

    async def expunge_uids(self, uids: Iterable[int]) -> None:
        r"""Remove these messages where they have ``\Deleted``; the server must have UIDPLUS (RFC 4315 §2.1)."""
        await self.commands(b"UID EXPUNGE " + one for one in uid_sets(uids, COMMAND_LINE - SET_ROOM))

    async def expunge(self) -> None:
        r"""Remove every message that has ``\Deleted``, whoever set it."""
        await self.command(b"EXPUNGE")

    async def move(self, uids: Iterable[int], folder: bytes | str) -> None:
        """Move messages to another mailbox; the server must have MOVE (RFC 6851). Raises Refused, ValueError."""
        await self._transfer(b"UID MOVE", uids, folder)

    async def copy(self, uids: Iterable[int], folder: bytes | str) -> None:
        """Copy messages to another mailbox. Raises Refused, ValueError."""
        await self._transfer(b"UID COPY", uids, folder)

    async def _transfer(self, verb: bytes, uids: Iterable[int], folder: bytes | str) -> None:
        first, *others = self._mailbox(folder)
        room = COMMAND_LINE - SET_ROOM - len(first)
        if room < SET_ROOM:
            raise ValueError("the mailbox's name is too long")
        commands = (b"%b %b%b" % (verb, one, first) for one in uid_sets(uids, room))
        if not others:
            await self.commands(commands)
            return
        for command in commands:
            await self.command(command, *others)


def _at_most(limit: int, data: bytes) -> int | None:
    """Return a number that a server may have told; one that cannot be tells nothing."""
    number = integer(data)
    return number if number is not None and number <= limit else None


def _items(want: frozenset[str]) -> bytes:
    if not want <= _WANTED.keys() or {"emailid", "gm_msgid"} <= want:
        raise ValueError("not what can be wanted")
    items = [*_FETCHED, *(item for name, item in _WANTED.items() if name in want)]
    return " ".join(items).encode("ascii")


def _batches(count: int, items: bytes) -> Iterable[bytes]:
    """Return commands that fetch all of ``count`` messages and what came behind them.

    Here sequence numbers only say how much is asked for at a time. They stand still meanwhile: nothing is expunged
    while a server answers FETCH (RFC 9051 §7.5.1).
    """
    for first in range(1, count + 1, BATCH):
        last = first + BATCH - 1
        yield b"FETCH %d:%b (%b)" % (first, b"*" if last >= count else b"%d" % last, items)

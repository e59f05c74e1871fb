"""What is remembered of one user's folder, so that a client never sees a message change its UIDL.

*Spans* say which template made the UIDLs of which UIDs; they are fixed when a client sees a message for
the first time, so that another template in the configuration is for later messages only. *Exceptions*
name the UIDLs that no template makes again from a UID: imported ones, those made of headers or of
EMAILID, and duplicates with their number. A *snapshot* of UIDs and sizes makes the next opening quick.

All of it is held in arrays and long byte strings: 100,000 messages are some hundred kilobytes.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Final

from mailgate.translate.columns import (
    Exceptions,
    Measured,
    Reader,
    among,
    counted,
    damaged,
    numbers,
    packed,
    rising,
    unpacked,
)
from mailgate.translate.uidl import Rendered, Template, TemplateError, Uidls, folder_id, is_valid, numbered

GONE_KEPT: Final = 1000
"""Exceptions of vanished messages that are kept at least, so that their UIDLs are not given to others soon."""

RETIRED_KEPT: Final = 64
"""Spans that are kept of earlier UIDVALIDITYs, for the same reason."""

UID_LIMIT: Final = 0xFFFFFFFF
"""The highest UID (RFC 9051 §2.3.1.1)."""

PIECES: Final = 16
"""Exceptions within a span up to which it comes back in pieces together with its UIDVALIDITY."""

ORPHANS_KEPT: Final = 200_000
"""Exceptions that are kept of earlier UIDVALIDITYs: more than a large mailbox has messages."""

FEW: Final = 100
"""Up to so many UIDLs are looked for in the long string itself; for more of them a set is made, some 100 bytes each."""


@lru_cache(maxsize=256)
def _template(text: str) -> Template:
    return Template.of_bound(text)


@dataclass(frozen=True, slots=True)
class Span:
    """Messages from ``first`` to ``last`` whose UIDLs the bound template ``text`` makes.

    A retired one has in ``uidvalidity`` under which its UIDs would mean the same messages again, 0 where none.
    """

    first: int
    last: int
    text: str
    uidvalidity: int = 0

    def uidl(self, uid: int) -> bytes:
        """Return the UIDL of one of its messages."""
        return _template(self.text).of_uid(uid)

    def uid_of(self, uidl: bytes) -> int | None:
        """Return which of its messages, there or vanished, has this UIDL, None where none has."""
        uid = _template(self.text).uid_of(uidl)
        return uid if uid is not None and self.first <= uid <= self.last else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a folder held when it was opened last: everything in it, shown or not.

    ``sizes`` are the server's (RFC822.SIZE), one for each of ``uids``. ``hidden`` has the UIDs that the
    search ``hidden_by`` found, such as DELETED; it is empty where nothing is hidden. ``uidnext`` is above
    all of ``uids`` and never above the server's. ``highestmodseq`` is 0 where the server tells none.
    """

    uidnext: int
    highestmodseq: int
    uids: array[int]
    sizes: array[int]
    hidden: array[int]
    hidden_by: bytes = b""

    def without(self, uids: Iterable[int]) -> Snapshot:
        """Return it without messages that are gone; flags are looked at again next time."""
        gone = set(uids)
        pairs = [(uid, size) for uid, size in zip(self.uids, self.sizes, strict=True) if uid not in gone]
        return replace(
            self,
            highestmodseq=0,
            uids=array("I", [uid for uid, _ in pairs]),
            sizes=array("Q", [size for _, size in pairs]),
            hidden=array("I", [uid for uid in self.hidden if uid not in gone]),
        )


@dataclass(slots=True)
class FolderMemory:
    """What is remembered of one folder; changed in place by the session that opened it.

    ``window`` is the lowest UID that was ever shown, 0 where none was: from it on all messages are shown.
    ``retired`` and ``orphans`` are spans and exceptions of earlier UIDVALIDITYs: their UIDs mean
    nothing as long as these do not come back, and their UIDLs are not given to other messages. ``measured`` has
    exact sizes by UID, in POP3's sense.
    """

    uidvalidity: int
    spans: list[Span] = field(default_factory=list)
    exceptions: Exceptions = field(default_factory=lambda: Exceptions.of({}))
    window: int = 0
    snapshot: Snapshot | None = None
    measured: Measured = field(default_factory=lambda: Measured.of({}))
    retired: list[Span] = field(default_factory=list)
    orphans: Exceptions = field(default_factory=lambda: Exceptions.of({}))

    def uidl(self, uid: int) -> bytes | None:
        """Return the UIDL that a message was shown with, None where it was not."""
        found = self.exceptions.get(uid)
        if found is None and (span := self._span(uid)) is not None:
            return span.uidl(uid)
        return found

    def _span(self, uid: int) -> Span | None:
        index = bisect_right(self.spans, uid, key=lambda span: span.first) - 1
        return self.spans[index] if index >= 0 and uid <= self.spans[index].last else None

    def unnamed(self, uids: Sequence[int]) -> list[int]:
        """Return those of ascending UIDs that have no UIDL yet."""
        found: list[int] = []
        start = 0
        for span in self.spans:
            end = bisect_left(uids, span.first, start)
            found.extend(uids[start:end])
            start = bisect_right(uids, span.last, end)
        found.extend(uids[start:])
        if not found or not self.exceptions:
            return found
        named = self.exceptions.uids
        named_after = set(named[bisect_left(named, found[0]) :])
        return [uid for uid in found if uid not in named_after]

    def taken(self, wanted: int) -> Callable[[bytes], bool]:
        """Return whether a UIDL is remembered, as a function that will be asked some ``wanted`` times."""
        named = self._named(wanted)
        return lambda uidl: named(uidl) or self._rendered(uidl)

    def _named(self, wanted: int) -> Callable[[bytes], bool]:
        tables = [table for table in (self.exceptions, self.orphans) if table]
        if wanted > FEW and tables:
            return set(chain.from_iterable(table.names() for table in tables)).__contains__
        return lambda uidl: any(table.holds(uidl) for table in tables)

    def _rendered(self, uidl: bytes) -> bool:
        return any(span.uid_of(uidl) for span in chain(self.spans, self.retired))

    def freeze(self, uids: Sequence[int], template: Template) -> None:
        """Give messages without a UIDL that of a bound template; ``uids`` ascend and are :meth:`unnamed`.

        A UIDL that another message has, or had, gets a number and becomes an exception.
        """
        if not uids:
            return
        # Within one template UIDLs differ because UIDs do.
        alone = not self.retired and all(span.text == template.text for span in self.spans)
        if not alone or self.exceptions or self.orphans:
            taken = self.taken(len(uids))
            clashing = [uid for uid in uids if taken(template.of_uid(uid))]
            self.name({uid: (template.of_uid(uid), _by_uid(self.uidvalidity, uid)) for uid in clashing})
        start = 0
        for end in [*(bisect_left(uids, span.first) for span in self.spans), len(uids)]:
            if start < end:
                self._cover(uids[start], uids[end - 1], template.text)
            start = end

    def _cover(self, first: int, last: int, text: str, *, gap: int = UID_LIMIT) -> None:
        """Add a span that overlaps none, or make that of the same template longer, over a gap of so many UIDs."""
        index = bisect_right(self.spans, first, key=lambda span: span.first)
        if index and self.spans[index - 1].text == text and first - self.spans[index - 1].last <= gap + 1:
            self.spans[index - 1] = replace(self.spans[index - 1], last=last)
        elif index < len(self.spans) and self.spans[index].text == text and self.spans[index].first - last <= gap + 1:
            self.spans[index] = replace(self.spans[index], first=first)
        else:
            self.spans.insert(index, Span(first, last, text))

    def name(self, entries: Mapping[int, tuple[bytes, bytes]], *, exact: bool = False) -> None:
        """Remember UIDLs of messages one by one: UID → (UIDL, key); what they were called before is overwritten.

        Of two messages here with one UIDL that with the higher UID gets a number. So does one whose
        UIDL another message has or had; ``exact``, for imports, gives the number to the other. Raises
        ValueError where one is no UIDL or a UID is none.
        """
        if not entries:
            return
        for uid, (uidl, _) in entries.items():
            if not 0 < uid <= 0xFFFFFFFF:
                raise ValueError(f"{uid} is no UID")
            if not is_valid(uidl):
                raise ValueError(f"the UIDL of UID {uid} is not 1 to 70 characters of 0x21 to 0x7E")
        if any(self.exceptions.get(uid) is not None for uid in entries):
            others = self.exceptions.entries()
            self.exceptions = Exceptions.of({uid: others[uid] for uid in others.keys() - entries.keys()})
        of_another = self._named(len(entries))
        given: set[bytes] = set()
        named: dict[int, tuple[bytes, bytes]] = {}
        pushed: dict[int, tuple[bytes, bytes]] = {}
        for uid in sorted(entries):
            uidl, key = entries[uid]
            if uidl in given or of_another(uidl) or (self.uidl(uid) != uidl and self._rendered(uidl)):
                if exact and uidl not in given:
                    pushed |= self._holders(uidl, entries.keys())
                else:
                    uidl = numbered(uidl, lambda name: name in given or of_another(name) or self._rendered(name))
            given.add(uidl)
            named[uid] = (uidl, key)
        self.exceptions = self.exceptions.plus(named)
        self.name(pushed)

    def _holders(self, uidl: bytes, but: Set[int]) -> dict[int, tuple[bytes, bytes]]:
        """Return the other messages of this UIDVALIDITY that have a UIDL, with their entries."""
        found = {uid: (uidl, b"") for span in self.spans if (uid := span.uid_of(uidl)) and self.uidl(uid) == uidl}
        found |= {uid: entry for uid, entry in self.exceptions.entries().items() if entry[0] == uidl}
        return {uid: found[uid] for uid in found.keys() - but}

    def uidls(self, uids: Sequence[int]) -> Uidls:
        """Return the UIDLs of ascending UIDs, all of which have one, as compactly as they can be had."""
        uids = uids if isinstance(uids, array) else array("I", uids)
        named = self.exceptions.uids
        low, high = (uids[0], uids[-1]) if uids else (0, 0)
        start, end = bisect_left(named, low), bisect_right(named, high)
        if end > start and uids == named[start:end]:
            return self.exceptions.uidls.part(start, end)
        spans = [span for span in self.spans if span.first <= high and span.last >= low]
        if len(spans) == 1 and start == end:
            return Rendered(_template(spans[0].text), uids, self.uidvalidity)
        return _Mixed(uids, spans, self.exceptions)

    @property
    def last(self) -> int:
        """The highest UID that is known to have been given, 0 for none."""
        named = self.exceptions.uids[-1] if self.exceptions else 0
        return max(named, self.spans[-1].last if self.spans else 0)

    def shown(self, lowest: int) -> None:
        """Note that messages from this UID on are shown."""
        self.window = min(lowest, self.window or lowest)

    def gone(self, present: Sequence[int]) -> None:
        """Forget what is of messages that are in the folder no more: sizes, and most of very many exceptions.

        ``present`` are the UIDs of all that is in the folder.
        """
        if len(self.measured.uids) > len(present) or any(not among(present, uid) for uid in self.measured.uids):
            pairs = zip(self.measured.uids, self.measured.sizes, strict=True)
            self.measured = Measured.of({uid: size for uid, size in pairs if among(present, uid)})
        if len(self.exceptions) > 2 * (len(present) + GONE_KEPT):
            entries = self.exceptions.entries()
            for uid in [uid for uid in entries if not among(present, uid)][:-GONE_KEPT]:
                del entries[uid]
            self.exceptions = Exceptions.of(entries)

    def renewed(self, uidvalidity: int) -> FolderMemory:
        """Return what stays when UIDVALIDITY has changed: no UID of it, but UIDLs that are taken and keys.

        One that comes back, as after some days on a replica, has the UIDLs again that were made of its UIDs.
        """
        lost = [*self.orphans.entries().values(), *self.exceptions.entries().values()]
        own = _by_uid(uidvalidity)
        found = {struct.unpack("<I", entry[1][len(own) :])[0]: entry for entry in lost if entry[1].startswith(own)}
        lost = [entry for entry in lost if not entry[1].startswith(own)]
        orphans = Exceptions.of(dict(enumerate(lost[-ORPHANS_KEPT:], 1)))
        retired = [span for span in self.retired if span.uidvalidity != uidvalidity]
        retired = list(dict.fromkeys(chain(retired, self._retiring())))
        memory = FolderMemory(uidvalidity, retired=retired[-RETIRED_KEPT:], orphans=orphans)
        memory.exceptions = Exceptions.of(found)
        back = [span for span in self.retired if uidvalidity and span.uidvalidity == uidvalidity]
        for span in sorted(back, key=lambda span: (span.first, -span.last)):
            if not memory.spans or span.first > memory.spans[-1].last:
                memory.spans.append(replace(span, uidvalidity=0))
        if memory.spans:
            memory.window = memory.spans[0].first
        return memory

    def _retiring(self) -> Iterator[Span]:
        """Give the spans as retired ones, which come back without what exceptions name: its span never showed that."""
        for span in self.spans:
            named = self.exceptions.uids
            named = named[bisect_left(named, span.first) : bisect_right(named, span.last)]
            if named:
                yield span
            if len(named) > PIECES:
                continue
            first = span.first
            for uid in [*named, span.last + 1]:
                if first < uid:
                    yield replace(span, first=first, last=uid - 1, uidvalidity=self.uidvalidity)
                first = uid + 1

    def carry(self, keys: Mapping[bytes, Sequence[int]]) -> None:
        """Give messages that were found again the UIDLs that they had: key → UIDs, ascending.

        Copies of one message have one key; they are taken in the order that they had.
        """
        entries = self.orphans.entries()
        found: dict[bytes, list[int]] = {}
        for index, (_, key) in entries.items():
            if key in keys:
                found.setdefault(key, []).append(index)
        known = self.exceptions.entries()
        for key, indexes in found.items():
            for index, uid in zip(indexes, keys[key], strict=False):
                if all(span.uid_of(entries[index][0]) in (None, uid) for span in self.spans):
                    known[uid] = entries.pop(index)
        self.exceptions = Exceptions.of(known)
        self.orphans = Exceptions.of(entries)

    def rewound(self, uidnext: int) -> None:
        """Note that the server will give UIDs again that it gave before, as after its restore from a backup.

        What was shown from ``uidnext`` on were other messages.
        """
        if all(span.last < uidnext for span in self.spans) and not any(uid >= uidnext for uid in self.exceptions.uids):
            return
        kept: list[Span] = []
        for span in self.spans:
            if span.last >= uidnext:
                # Without its UIDVALIDITY: that is the same, and these UIDs mean other messages.
                self.retired.append(replace(span, first=max(span.first, uidnext)))
            if span.first < uidnext:
                kept.append(replace(span, last=min(span.last, uidnext - 1)))
        self.spans = kept
        self.retired = self.retired[-RETIRED_KEPT:]
        entries = self.exceptions.entries()
        lost = [entries.pop(uid) for uid in list(entries) if uid >= uidnext]
        self.exceptions = Exceptions.of(entries)
        self.orphans = Exceptions.of(dict(enumerate(chain(self.orphans.entries().values(), lost), 1)))
        self.snapshot = None
        self.measured = Measured.of({uid: size for uid, size in self.measured.entries().items() if uid < uidnext})

    def merged(self, stored: FolderMemory) -> FolderMemory:
        """Return what is to be remembered where another session saved ``stored`` while this one went on.

        Nothing that either showed is lost; where both name one message, ``stored`` does. Of two
        UIDVALIDITYs the larger one is the later one (RFC 9051 §2.3.1.1).
        """
        if stored.uidvalidity != self.uidvalidity:
            later, earlier = sorted((self, stored), key=lambda memory: memory.uidvalidity, reverse=True)
            old = earlier.renewed(later.uidvalidity)
            names = {entry[0] for entry in later.orphans.entries().values()} | set(later.exceptions.names())
            orphans = [
                *later.orphans.entries().values(),
                *(entry for entry in old.orphans.entries().values() if entry[0] not in names),
            ]
            return replace(
                later,
                retired=list(dict.fromkeys([*earlier.retired, *old.retired, *later.retired]))[-RETIRED_KEPT:],
                orphans=Exceptions.of(dict(enumerate(orphans, 1))),
            )
        both = replace(
            stored, spans=list(stored.spans), measured=Measured.of(self.measured.entries() | stored.measured.entries())
        )
        both.retired = list(dict.fromkeys([*self.retired, *stored.retired]))[-RETIRED_KEPT:]
        held = set(stored.orphans.names())
        lost = [entry for entry in self.orphans.entries().values() if entry[0] not in held]
        if lost:
            both.orphans = Exceptions.of(dict(enumerate(chain(stored.orphans.entries().values(), lost), 1)))
        for span in self.spans:
            both._fill(span)
        # What is an exception here over a span of both, as an import makes it, is newer than that span. Where only
        # the other one has a span, two sessions saw the message for the first time, and the other one was sooner.
        known = set(stored.exceptions.uids)
        known |= {uid for uid in self.exceptions.uids if stored._span(uid) and not self._span(uid)}
        both.name({uid: entry for uid, entry in self.exceptions.entries().items() if uid not in known})
        if self.window:
            both.shown(self.window)
        if self.snapshot and (stored.snapshot is None or self.snapshot.uidnext >= stored.snapshot.uidnext):
            both.snapshot = self.snapshot
        return both

    def _fill(self, span: Span) -> None:
        """Cover what a span covers and none here does."""
        first = span.first
        for other in [*self.spans]:
            if other.last < first or first > span.last:
                continue
            if first < other.first:
                self._cover(first, min(span.last, other.first - 1), span.text, gap=0)
            first = other.last + 1
        if first <= span.last:
            self._cover(first, span.last, span.text, gap=0)

    def encode(self) -> tuple[bytes, bytes]:
        """Return it as bytes: what changes with many sessions, and the exceptions, large and seldom changed."""
        head = [struct.pack("<II", self.uidvalidity, self.window)]
        for spans in (self.spans, self.retired):
            head.append(struct.pack("<I", len(spans)))
            for span in spans:
                head += [struct.pack("<III", span.first, span.last, span.uidvalidity), counted(span.text.encode())]
        head += [rising(self.measured.uids), numbers(self.measured.sizes)]
        if self.snapshot is None:
            head.append(b"\0")
        else:
            shot = self.snapshot
            head += [b"\1", struct.pack("<IQ", shot.uidnext, shot.highestmodseq), counted(shot.hidden_by)]
            head += [rising(shot.uids), numbers(shot.sizes), rising(shot.hidden)]
        rest: list[bytes] = []
        for table in (self.exceptions, self.orphans):
            rest.append(rising(table.uids))
            for column in (table.uidls, table.keys):
                rest += [rising(column.offsets), counted(column.blob)]
        return packed(head), packed(rest)

    @classmethod
    def decode(cls, head: bytes, rest: bytes) -> FolderMemory:
        """Return what :meth:`encode` was given; raise ValueError for anything else."""
        try:
            return cls._decoded(Reader(unpacked(head)), Reader(unpacked(rest)))
        except (struct.error, OverflowError, IndexError, TemplateError) as error:
            raise damaged(error) from error

    @classmethod
    def _decoded(cls, head: Reader, rest: Reader) -> FolderMemory:
        uidvalidity, window = head.of("<II")
        memory = cls(uidvalidity, window=window)
        for spans in (memory.spans, memory.retired):
            for _ in range(*head.of("<I")):
                first, last, retired_from = head.of("<III")
                spans.append(Span(first, last, _bound(head.text()), retired_from))
        edges = [edge for span in memory.spans for edge in (span.first, span.last)]
        if edges != sorted(edges):
            raise damaged("spans overlap")
        memory.measured = Measured(head.numbers("I", rising=True), head.numbers("Q"))
        if len(memory.measured.uids) != len(memory.measured.sizes):
            raise damaged("its sizes do not add up")
        if head.of("<B")[0]:
            uidnext, highestmodseq = head.of("<IQ")
            hidden_by = head.text()
            uids, sizes = head.numbers("I", rising=True), head.numbers("Q")
            hidden = head.numbers("I", rising=True)
            if len(uids) != len(sizes) or (uids and uids[-1] >= uidnext):
                raise damaged("its snapshot does not add up")
            memory.snapshot = Snapshot(uidnext, highestmodseq, uids, sizes, hidden, hidden_by)
        memory.exceptions = rest.table()
        memory.orphans = rest.table()
        head.end()
        rest.end()
        return memory


class _Mixed:
    """UIDLs of which some are exceptions and the rest are rendered by spans."""

    __slots__ = ("_exceptions", "_named", "_of_uid", "_spans", "_uids")

    def __init__(self, uids: array[int], spans: Sequence[Span], exceptions: Exceptions) -> None:
        self._uids = uids
        self._spans = spans
        self._exceptions = exceptions
        self._named = len(exceptions) > 0
        self._of_uid = _template(spans[0].text).of_uid if len(spans) == 1 else None

    def __len__(self) -> int:
        return len(self._uids)

    def __getitem__(self, index: int) -> bytes:
        uid = self._uids[index]
        if self._named and (found := self._exceptions.get(uid)) is not None:
            return found
        if self._of_uid is not None:
            return self._of_uid(uid)
        span = self._spans[bisect_right(self._spans, uid, key=lambda span: span.first) - 1]
        return span.uidl(uid)

    def among(self, indexes: Sequence[int]) -> list[bytes]:
        """See :class:`~mailgate.translate.uidl.Uidls`."""
        return list(map(self.__getitem__, indexes))


def _by_uid(uidvalidity: int, uid: int | None = None) -> bytes:
    """Return the key of a message that its UID alone finds again, or what such keys of a UIDVALIDITY begin with."""
    return b"U" + struct.pack("<I", uidvalidity) + (b"" if uid is None else struct.pack("<I", uid))


def bound_template(template: Template, uidvalidity: int, folder: bytes, prefix: bytes = b"") -> Template:
    """Return a template of UIDs for one folder; the prefix is left out where the template names folders itself."""
    return template.bound(uidvalidity, b"" if template.names_folder else prefix, folder_id(folder))


def _bound(text: bytes) -> str:
    name = text.decode("ascii")
    _template(name)
    return name

"""What FETCH tells of all messages of a mailbox, in arrays: 13 bytes a message, one expression for a burst of lines.

Servers answer a FETCH of flags and sizes with lines of one shape, each with the same items in the same order. The
order is learnt from a line, and from then on a compiled expression takes all lines of that shape at once. Whatever
differs goes through ``imap_fetch`` and comes here as a parsed response. Rows are merged by UID: numbers in FETCH
responses mean nothing.
"""

from __future__ import annotations

import functools
import operator
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mailgate.errors import RemoteProtocolError
from mailgate.wire.framing import LineBuffer
from mailgate.wire.imap_fetch import Fetched, Value, body_section

SPARE_ROWS: Final = 100_000
"""Rows beyond two for each message that a server may send of its own accord before it is taken for mad."""

FLAG_SETS: Final = 4096
"""Different lists of flags that are remembered at a time. A mailbox has a few dozen."""

RUN: Final = 1_000
"""Lines that are taken at once: the expression's stack grows with each of them."""

FLAGS_KEPT: Final = 1024
"""The longest list of flags that is remembered: a server may have as many and as long keywords as it likes."""

ID_LIMIT: Final = 255
"""Octets of an EMAILID (RFC 8474 §4); a longer one is none."""

_NO_SIZE: Final = (1 << 64) - 1
_DELETED: Final = 1
_HIDDEN: Final = 2
_NO_FLAGS: Final = 128
_ITEMS: Final = {
    b"UID": (rb"UID ", rb"[0-9]{1,10}", rb""),
    b"FLAGS": (rb"FLAGS \(", rb"[^()\r\n]*", rb"\)"),
    # mail.ru writes numbers with a fraction.
    b"RFC822.SIZE": (rb"RFC822\.SIZE ", rb"[0-9]{1,19}", rb"(?:\.[0-9]{0,3})?"),
    b"EMAILID": (rb"EMAILID \(", rb'[^()"{ \r\n]{0,255}', rb"\)"),
    b"X-GM-MSGID": (rb"X-GM-MSGID ", rb"[0-9]{1,20}", rb""),
    b"MODSEQ": (rb"MODSEQ \([0-9]{1,20}\)", rb"", rb""),
}
"""Items that lines of the ordinary shape have: what stands before the value, the value, what stands behind it."""

_HEAD: Final = rb"\* [0-9]{1,10} FETCH \("
_END: Final = rb"\)\r?\n"
_BEGINS = re.compile(_HEAD)
_ENDS = re.compile(_END)
_ITEM = re.compile(b"(%b)" % b"|".join(rb"(?:%b%b%b(?=[ )]))" % parts for parts in _ITEMS.values()))
_NEEDED: Final = frozenset({b"UID", b"FLAGS", b"RFC822.SIZE"})
_LONGEST: Final = 2048


@dataclass(frozen=True, slots=True)
class _Shape:
    """Lines with the same items in the same order: one line's expression, a run's, and in which group each item is."""

    line: re.Pattern[bytes]
    run: re.Pattern[bytes]
    groups: dict[bytes, int]


@functools.lru_cache(maxsize=64)
def _shape(names: tuple[bytes, ...]) -> _Shape:
    parts = [_ITEMS[name] for name in names]
    line = b" ".join(b"%b(%b)%b" % one for one in parts)
    run = b" ".join(b"%b%b%b" % one for one in parts)
    return _Shape(
        re.compile(_HEAD + line + _END),
        re.compile(b"(?:%b){0,%d}" % (_HEAD + run + _END, RUN)),
        {name: number for number, name in enumerate(names)},
    )


def _shape_of(line: bytes) -> _Shape | None:
    """Return the shape of the line that ``line`` begins with; None if it is no ordinary one."""
    begin = _BEGINS.match(line)
    if begin is None:
        return None
    at = begin.end()
    names = []
    while (item := _ITEM.match(line, at)) is not None:
        names.append(item[1].partition(b" ")[0])
        at = item.end()
        if line[at : at + 1] == b" ":
            at += 1
    if _ENDS.match(line, at) is None or not set(names) >= _NEEDED or len(set(names)) < len(names):
        return None
    return _shape(tuple(names))


class _Marks(dict[bytes, int]):
    """What lists of flags mean; a list that was not seen before is looked at."""

    def __init__(self, keyword: bytes) -> None:
        super().__init__()
        self._meanings = {rb"\DELETED": _DELETED}
        if keyword:
            self._meanings[keyword.upper()] = _HIDDEN

    def __missing__(self, flags: bytes) -> int:
        if len(self) >= FLAG_SETS:
            self.clear()
        marks = 0
        for flag in flags.upper().split():
            marks |= self._meanings.get(flag, 0)
        if len(flags) <= FLAGS_KEPT:
            self[flags] = marks
        return marks


@dataclass(frozen=True, slots=True)
class Overview:
    """All messages of a mailbox, ascending by UID.

    ``sizes`` in octets as the server tells them. ``deleted`` and ``hidden`` (the keyword asked for) are 1 where the
    flag is set. ``ids`` and ``headers`` are None unless asked for; a message without one has an empty one.
    """

    uids: array[int]
    sizes: array[int]
    deleted: bytes
    hidden: bytes
    ids: list[bytes] | None = None
    headers: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.uids)


class OverviewRows:
    """Collects FETCH responses into an :class:`Overview`.

    ``first_uid``: messages with lower UIDs do not matter. ``ids`` and ``headers`` say which columns are wanted; of each
    header what ``digest`` makes of it is kept. ``expected``: how many messages there are; with many more rows than
    that RemoteProtocolError is raised, as for UIDs over 32 bits.
    """

    def __init__(
        self,
        *,
        first_uid: int = 1,
        keyword: bytes = b"",
        ids: bool = False,
        headers: bool = False,
        digest: Callable[[bytes], bytes] = bytes,
        expected: int = 0,
    ) -> None:
        self._first = max(1, first_uid)
        self._uids = array("I")
        self._sizes = array("Q")
        self._marks = bytearray()
        self._ids: list[bytes] | None = [] if ids else None
        self._headers: list[bytes] | None = [] if headers else None
        self._digest = digest
        self._meanings = _Marks(keyword)
        self._most = 2 * expected + SPARE_ROWS
        self._last_shape: _Shape | None = None

    def __len__(self) -> int:
        return len(self._uids)

    def take(self, buffer: LineBuffer) -> bool:
        """Take all lines of the ordinary shape that ``buffer`` begins with; return whether there was any."""
        if self._headers is not None:
            # Headers are literals, which no expression takes.
            return False
        shape = self._last_shape
        end = buffer.match(shape.run) if shape is not None else 0
        if not end:
            shape = _shape_of(buffer.peek(_LONGEST))
            if shape is None:
                return False
            self._last_shape = shape
            end = buffer.match(shape.run)
        if shape is None or not end:
            return False
        self._add_lines(shape, buffer.take(end))
        return True

    def _add_lines(self, shape: _Shape, lines: bytes) -> None:
        columns = tuple(zip(*shape.line.findall(lines), strict=True))
        groups = shape.groups
        try:
            self._uids.extend(map(int, columns[groups[b"UID"]]))
            self._sizes.extend(map(int, columns[groups[b"RFC822.SIZE"]]))
        except OverflowError:
            raise RemoteProtocolError("a UID over 32 bits") from None
        self._marks.extend(map(self._meanings.__getitem__, columns[groups[b"FLAGS"]]))
        count = len(columns[0])
        if self._ids is not None:
            group = groups.get(b"EMAILID", groups.get(b"X-GM-MSGID"))
            self._ids.extend([b""] * count if group is None else columns[group])
        self._check_count()

    def add(self, fetched: Fetched) -> None:
        """Take a FETCH response of any shape; one without a UID tells nothing of any message."""
        if not fetched.uid:
            return
        items = fetched.items
        size = items.get(b"RFC822.SIZE")
        flags = items.get(b"FLAGS")
        try:
            self._uids.append(fetched.uid)
            self._sizes.append(_number(size))
        except OverflowError:
            raise RemoteProtocolError("a UID or size over its bits") from None
        known = isinstance(flags, tuple)
        self._marks.append(self._meanings[_words(flags)] if known else _NO_FLAGS)
        if self._ids is not None:
            identity = _words(items.get(b"EMAILID", items.get(b"X-GM-MSGID")))
            self._ids.append(identity if len(identity) <= ID_LIMIT else b"")
        if self._headers is not None:
            values = (value for name, value in items.items() if body_section(name) is not None)
            header = next(values, None)
            self._headers.append(self._digest(header) if isinstance(header, bytes) else b"")
        self._check_count()

    def _check_count(self) -> None:
        if len(self._uids) > self._most:
            raise RemoteProtocolError("far more FETCH responses than messages")

    # ---------------------------------------------------------------- in the end

    def tidy(self) -> None:
        """Bring the rows in order, one for each UID; what came later counts."""
        uids = self._uids
        if all(map(operator.lt, uids, islice(uids, 1, None))) and (not uids or uids[0] >= self._first):
            return
        order = sorted((row for row in range(len(uids)) if uids[row] >= self._first), key=uids.__getitem__)
        kept: list[int] = []
        for row in order:
            if kept and uids[kept[-1]] == uids[row]:
                self._merge(kept[-1], row)
            else:
                kept.append(row)
        self._keep(kept)

    def _merge(self, into: int, row: int) -> None:
        """Let what a row knows count in an earlier one of the same message."""
        if self._sizes[row] != _NO_SIZE:
            self._sizes[into] = self._sizes[row]
        if self._marks[row] != _NO_FLAGS:
            self._marks[into] = self._marks[row]
        for column in (self._ids, self._headers):
            if column is not None and column[row]:
                column[into] = column[row]

    def _keep(self, rows: list[int]) -> None:
        self._uids = array("I", map(self._uids.__getitem__, rows))
        self._sizes = array("Q", map(self._sizes.__getitem__, rows))
        self._marks = bytearray(map(self._marks.__getitem__, rows))
        if self._ids is not None:
            self._ids = [self._ids[row] for row in rows]
        if self._headers is not None:
            self._headers = [self._headers[row] for row in rows]

    def incomplete(self) -> array[int]:
        """Return the UIDs of messages of which the size or the flags are not known; the rows must be tidy."""
        if _NO_SIZE not in self._sizes and _NO_FLAGS not in self._marks:
            return array("I")
        rows = zip(self._uids, self._sizes, self._marks, strict=True)
        return array("I", (uid for uid, size, marks in rows if size == _NO_SIZE or marks == _NO_FLAGS))

    def missing(self, uids: array[int]) -> array[int]:
        """Return which of ``uids``, ascending, have no row; the rows must be tidy."""
        return array("I", sorted(uid for uid in set(uids).difference(self._uids) if uid >= self._first))

    def result(self) -> Overview:
        """Return everything. A message without a size is none; one without flags has none set."""
        self.tidy()
        if _NO_SIZE in self._sizes:
            self._keep([row for row, size in enumerate(self._sizes) if size != _NO_SIZE])
        return Overview(
            self._uids,
            self._sizes,
            self._marked(_DELETED),
            self._marked(_HIDDEN),
            self._ids,
            self._headers,
        )

    def _marked(self, mark: int) -> bytes:
        return bytes(self._marks.translate(bytes(int(bool(marks & mark)) for marks in range(256))))


def _number(value: Value) -> int:
    if isinstance(value, bytes) and (whole := value.partition(b".")[0]).isdigit() and len(whole) < 20:
        return int(whole)
    return _NO_SIZE


def _words(value: Value) -> bytes:
    if isinstance(value, tuple):
        return b" ".join(one for one in value if isinstance(one, bytes))
    return value or b""

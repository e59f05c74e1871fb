"""Columns of numbers and texts about messages, held in arrays and packed into bytes.

What is packed is read again by the same or a later version: every damage is a ValueError, and what is read
is checked, since it decides which messages clients believe to have seen.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import sub
from typing import Final

from mailgate.translate.uidl import LONGEST, Stored

VERSION: Final = 1
"""The layout of what :func:`packed` makes; another one is refused."""

LARGEST: Final = 1 << 28
"""Bytes that a part may have unpacked: 256 MiB are 2,000,000 messages with everything, and a bound for damage."""

_CODES: Final = "BHIQ"
_VALID_TEXT: Final = re.compile(rb"[\x21-\x7e]*")
_HEAD: Final = b"mgm"


class Exceptions:
    """UIDs, ascending, with their UIDLs and what else identifies the messages; never changed in place.

    A *key* is a letter and a value: ``E`` EMAILID, ``G`` X-GM-MSGID in decimal, ``H`` the MD5 of the
    stable header (16 bytes). It is empty where nothing is known. It finds the message again when
    UIDVALIDITY changes.
    """

    __slots__ = ("keys", "uidls", "uids")

    def __init__(self, uids: array[int], uidls: Stored, keys: Stored) -> None:
        self.uids = uids
        self.uidls = uidls
        self.keys = keys

    @classmethod
    def of(cls, entries: Mapping[int, tuple[bytes, bytes]]) -> Exceptions:
        """Hold UID → (UIDL, key)."""
        uids = array("I", sorted(entries))
        return cls(uids, Stored.of([entries[uid][0] for uid in uids]), Stored.of([entries[uid][1] for uid in uids]))

    def __len__(self) -> int:
        return len(self.uids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exceptions) and self.entries() == other.entries()

    __hash__ = None  # type: ignore[assignment]

    def entries(self) -> dict[int, tuple[bytes, bytes]]:
        """Return UID → (UIDL, key)."""
        return {uid: (self.uidls[index], self.keys[index]) for index, uid in enumerate(self.uids)}

    def get(self, uid: int) -> bytes | None:
        """Return the UIDL of a UID, None where none is remembered."""
        index = bisect_left(self.uids, uid)
        return self.uidls[index] if index < len(self.uids) and self.uids[index] == uid else None

    def plus(self, entries: Mapping[int, tuple[bytes, bytes]]) -> Exceptions:
        """Return them with more, which go before those of the same UIDs here."""
        if not self.uids or not entries or min(entries) <= self.uids[-1]:
            return Exceptions.of(self.entries() | dict(entries))
        # New messages have higher UIDs, and to take all the others apart for them would cost much memory.
        more = Exceptions.of(entries)
        return Exceptions(self.uids + more.uids, self.uidls.plus(more.uidls), self.keys.plus(more.keys))

    def names(self) -> Iterator[bytes]:
        """Give all UIDLs."""
        return (self.uidls[index] for index in range(len(self.uids)))

    def holds(self, uidl: bytes) -> bool:
        """Whether one of the messages has this UIDL, found without a set of them all."""
        blob, offsets = self.uidls.blob, self.uidls.offsets
        start = blob.find(uidl)
        while start >= 0:
            index = bisect_left(offsets, start)
            if offsets[index] == start and offsets[index + 1] == start + len(uidl):
                return True
            start = blob.find(uidl, start + 1)
        return False


@dataclass(frozen=True, slots=True)
class Measured:
    """Exact sizes of messages in POP3's sense, by ascending UID."""

    uids: array[int]
    sizes: array[int]

    @classmethod
    def of(cls, entries: Mapping[int, int]) -> Measured:
        """Hold UID → octets."""
        uids = array("I", sorted(entries))
        return cls(uids, array("Q", [entries[uid] for uid in uids]))

    def entries(self) -> dict[int, int]:
        """Return UID → octets."""
        return dict(zip(self.uids, self.sizes, strict=True))

    def get(self, uid: int) -> int | None:
        """Return the octets of a message, None where they were not counted."""
        index = bisect_left(self.uids, uid)
        return self.sizes[index] if index < len(self.uids) and self.uids[index] == uid else None

    def put(self, uid: int, octets: int) -> None:
        """Note what was counted."""
        index = bisect_left(self.uids, uid)
        if index < len(self.uids) and self.uids[index] == uid:
            self.sizes[index] = octets
        else:
            self.uids.insert(index, uid)
            self.sizes.insert(index, octets)


def among(uids: Sequence[int], uid: int) -> bool:
    """Whether a UID is among ascending ones."""
    index = bisect_left(uids, uid)
    return index < len(uids) and uids[index] == uid


def numbers(values: Sequence[int]) -> bytes:
    """Pack numbers with as few bytes each as the largest needs, all their first bytes first: that compresses well."""
    largest = max(values, default=0)
    code = next(code for code in _CODES if largest < 1 << (8 * array(code).itemsize))
    data = _little(array(code, values)).tobytes()
    width = array(code).itemsize
    return struct.pack("<IB", len(values), _CODES.index(code)) + b"".join(data[at::width] for at in range(width))


def rising(values: Sequence[int]) -> bytes:
    """Pack ascending numbers as the steps between them."""
    return numbers(list(map(sub, values, chain((0,), values))))


def _little(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values


def counted(value: bytes) -> bytes:
    """Pack a text behind its length."""
    return struct.pack("<I", len(value)) + value


def damaged(how: object) -> ValueError:
    """Return the error for bytes that cannot be what was packed."""
    return ValueError(f"what is remembered of a folder is damaged: {how}")


def packed(pieces: Iterable[bytes]) -> bytes:
    """Put pieces into one compressed part."""
    return b"%b%c%b" % (_HEAD, VERSION, zlib.compress(b"".join(pieces), 6))


def unpacked(data: bytes) -> bytes:
    """Return the content of a part; raise ValueError where it is none, or one of another layout."""
    if data[:3] != _HEAD:
        raise ValueError("this is not what is remembered of a folder")
    if data[3:4] != bytes([VERSION]):
        raise ValueError(f"what is remembered of a folder has layout {data[3:4].hex()}, known is {VERSION:02x}")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data[4:], LARGEST)
    except zlib.error as error:
        raise damaged(error) from error
    if not unpacker.eof or unpacker.unused_data:
        raise damaged("it does not end where it should")
    return content


class Reader:
    """Takes apart what :meth:`FolderMemory.encode` put together."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def of(self, layout: str) -> tuple[int, ...]:
        """Read numbers of a :mod:`struct` layout."""
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def take(self, size: int) -> bytes:
        """Read so many bytes."""
        if size > len(self._data) - self._at:
            raise damaged("it is too short")
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self) -> bytes:
        """Read what :func:`counted` made."""
        return self.take(*self.of("<I"))

    def numbers(self, code: str, *, rising: bool = False) -> array[int]:
        """Read what :func:`numbers` or :func:`rising` made; the latter must ascend without repetition."""
        size, kind = self.of("<IB")
        width = array(_CODES[kind]).itemsize
        planes = self.take(size * width)
        data = bytearray(len(planes))
        for at in range(width):
            data[at::width] = planes[at * size : (at + 1) * size]
        values = array(_CODES[kind])
        values.frombytes(data)
        values = _little(values)
        if not rising:
            return values if kind == _CODES.index(code) else array(code, values)
        if 0 in values:
            raise damaged("numbers do not ascend")
        return array(code, accumulate(values))

    def table(self) -> Exceptions:
        """Read exceptions."""
        uids = self.numbers("I", rising=True)
        columns: list[Stored] = []
        for _ in range(2):
            lengths, blob = self.numbers("I"), self.text()
            if len(lengths) != len(uids) + 1 or lengths[0] or sum(lengths) != len(blob):
                raise damaged("texts do not add up")
            columns.append(Stored(blob, array("I", accumulate(lengths))))
            if len(columns) == 1 and uids and not 0 < min(lengths[1:]) <= max(lengths) <= LONGEST:
                raise damaged(f"a UIDL has 1 to {LONGEST} characters")
        uidls, keys = columns
        if _VALID_TEXT.fullmatch(uidls.blob) is None:
            raise damaged("a UIDL has characters of 0x21 to 0x7E")
        return Exceptions(uids, uidls, keys)

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise damaged("something is left over")

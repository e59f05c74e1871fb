"""The maildrop of a session: what POP3 shows of one mailbox or several, frozen at login (RFC 1939 §5).

Message numbers count from 1 and never shift: STAT, LIST and UIDL leave out what is marked as deleted, and everything
else keeps its number. A mailbox of 100,000 messages is held in arrays, of which nothing per message is an object.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress
from typing import Final, Literal, Protocol

LINES: Final = 1_000
"""Lines of LIST or UIDL in one block: some 50 KiB, so that a client that reads slowly holds no more than that."""

_DELETED: Final = 1
_RETRIEVED: Final = 2


class Uidls(Protocol):
    """The UIDLs of one folder's messages, by their place in it, from 0."""

    def __getitem__(self, index: int, /) -> bytes: ...

    def among(self, indexes: Sequence[int], /) -> Sequence[bytes]:
        """Return those of some places, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class FolderView:
    """What a maildrop shows of one folder: UIDs, sizes in octets and UIDLs of its messages, in the same order.

    The arrays are held, not copied: sizes change when RETR shows better ones.
    """

    uids: array[int]
    sizes: array[int]
    uidls: Uidls


class Maildrop:
    """The messages of a session, by number.

    A number that no message has raises IndexError; whether it may be used is asked with :meth:`present`.
    """

    __slots__ = ("_marks", "_order", "_sizes", "_starts", "_uidls", "_uids", "count", "last", "octets")

    count: int
    """Messages that are not marked as deleted."""

    octets: int
    """The sum of their sizes."""

    last: int
    """The highest number that RETR or DELE accessed, 0 for none (LAST, RFC 1460 §5)."""

    def __init__(
        self, uids: array[int], sizes: array[int], uidls: Sequence[Uidls], starts: Sequence[int], order: Sequence[int]
    ) -> None:
        self._uids = uids
        self._sizes = sizes
        self._uidls = uidls
        self._starts = starts
        self._order = order
        self._marks = bytearray(len(uids))
        self.count = len(uids)
        self.octets = sum(sizes)
        self.last = 0

    @classmethod
    def of(cls, folders: Sequence[FolderView], order: Sequence[int] | None = None) -> Maildrop:
        """Return the maildrop of these folders, one behind the other.

        ``order`` changes that: for each number the place, from 0, among all messages so joined.
        """
        starts = list(accumulate((len(folder.uids) for folder in folders), initial=0))
        if len(folders) == 1:
            uids, sizes = folders[0].uids, folders[0].sizes
        else:
            uids = array("I", chain.from_iterable(folder.uids for folder in folders))
            sizes = array("Q", chain.from_iterable(folder.sizes for folder in folders))
        return cls(
            uids, sizes, [folder.uidls for folder in folders], starts, range(len(uids)) if order is None else order
        )

    @property
    def total(self) -> int:
        """All messages, those marked as deleted too: the highest number."""
        return len(self._uids)

    def present(self, number: int) -> bool:
        """Whether a message has this number and is not marked as deleted."""
        return 0 < number <= len(self._uids) and not self._marks[self._order[number - 1]] & _DELETED

    def uid(self, number: int) -> int:
        """Return the UID in its folder."""
        return self._uids[self._place(number)]

    def folder(self, number: int) -> int:
        """Return which of the folders holds it, from 0."""
        return self._folder(self._place(number))

    def size(self, number: int) -> int:
        """Return the size in octets."""
        return self._sizes[self._place(number)]

    def uidl(self, number: int) -> bytes:
        """Return the unique-id."""
        return self._uidl(self._place(number))

    def correct_size(self, number: int, size: int) -> None:
        """Note the real size, which a server may have told wrong (RFC 2683 §3.4.5)."""
        place = self._place(number)
        if not self._marks[place] & _DELETED:
            self.octets += size - self._sizes[place]
        self._sizes[place] = size

    def delete(self, number: int) -> None:
        """Mark a message that is present as deleted."""
        if not self.present(number):
            raise IndexError(number)
        place = self._order[number - 1]
        self._marks[place] |= _DELETED
        self.count -= 1
        self.octets -= self._sizes[place]
        self.last = max(self.last, number)

    def retrieved(self, number: int) -> None:
        """Note that a client has the whole message."""
        self._marks[self._place(number)] |= _RETRIEVED
        self.last = max(self.last, number)

    def reset(self) -> None:
        """Take back all deletions, and what LAST says; what was retrieved has been seen all the same."""
        self._marks = self._marks.translate(_KEEPS_RETRIEVED)
        self.count = len(self._uids)
        self.octets = sum(self._sizes)
        self.last = 0

    def marked(self) -> dict[int, array[int]]:
        """Return, by folder, the UIDs marked as deleted, ascending; folders without any are left out."""
        return self._with(_DELETED)

    def seen(self) -> dict[int, array[int]]:
        """Return, by folder, the UIDs that were retrieved, ascending; folders without any are left out."""
        return self._with(_RETRIEVED)

    def lines(self, kind: Literal["LIST", "UIDL"]) -> Iterator[bytes]:
        """Return the lines of a listing of what is present, some thousand in each block, without the line that ends it.

        A deletion in the meantime holds for blocks that were not taken yet.
        """
        total = len(self._uids)
        for start in range(0, total, LINES):
            numbers: Sequence[int] = range(start + 1, min(start + LINES, total) + 1)
            places = self._order[start : start + LINES]
            if self.count < total:
                numbers = list(filter(self.present, numbers))
                places = [self._order[number - 1] for number in numbers]
            if not numbers:
                continue
            if kind == "LIST":
                yield _block(b"%d %d\r\n", numbers, list(map(self._sizes.__getitem__, places)))
            elif len(self._uidls) == 1:
                yield _block(b"%d %b\r\n", numbers, self._uidls[0].among(places))
            else:
                yield _block(b"%d %b\r\n", numbers, list(map(self._uidl, places)))

    def _place(self, number: int) -> int:
        if not 0 < number <= len(self._uids):
            raise IndexError(number)
        return self._order[number - 1]

    def _folder(self, place: int) -> int:
        return bisect_right(self._starts, place) - 1

    def _uidl(self, place: int) -> bytes:
        folder = self._folder(place)
        return self._uidls[folder][place - self._starts[folder]]

    def _with(self, mark: int) -> dict[int, array[int]]:
        chosen = self._marks.translate(_CHOOSES[mark])
        found = {}
        for folder, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            if 1 in chosen[start:end]:
                found[folder] = array("I", sorted(compress(self._uids[start:end], chosen[start:end])))
        return found


_KEEPS_RETRIEVED: Final = bytes(mark & _RETRIEVED for mark in range(256))
_CHOOSES: Final = {mark: bytes(bool(marks & mark) for marks in range(256)) for mark in (_DELETED, _RETRIEVED)}


def _block(line: bytes, numbers: Sequence[int], values: Sequence[int] | Sequence[bytes]) -> bytes:
    """Return a line for each number and its value, formatted at once: half the price of one by one."""
    return line * len(numbers) % tuple(chain.from_iterable(zip(numbers, values, strict=True)))

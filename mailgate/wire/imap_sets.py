"""What commands to a selected mailbox carry: sets of UIDs, and flags (RFC 9051 §9)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

COMMAND_LINE: Final = 1000
"""Octets of a command line that every server takes (RFC 2683 §3.2.1.5)."""

_FLAGS = re.compile(rb"\\?[!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+(?: \\?[!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+)*")
_LAST_UID: Final = 0xFFFFFFFF


def checked_flags(flags: bytes) -> bytes:
    r"""Return flags as STORE takes them without parentheses, such as ``\Deleted $Junk``; raises ValueError."""
    if _FLAGS.fullmatch(flags) is None:
        raise ValueError("not a list of flags")
    return flags


def uid_sets(uids: Iterable[int], limit: int) -> Iterator[bytes]:
    """Return sequence sets of at most ``limit`` octets that together name exactly ``uids``, ascending.

    Neighbours become ranges (RFC 2683 §3.2.1.5). A range is of UIDs given, never over a gap, so that what a set names
    is what was asked for, whatever arrives meanwhile. Raises ValueError for what is no UID and a limit below 21.
    """
    if limit < len(b"%d:%d" % (_LAST_UID, _LAST_UID)):
        raise ValueError("no room for a range")
    taken: list[bytes] = []
    size = 0
    for first, last in _ranges(uids):
        one = b"%d" % first if first == last else b"%d:%d" % (first, last)
        if size + len(one) > limit:
            yield b",".join(taken)
            taken.clear()
            size = 0
        taken.append(one)
        size += len(one) + 1
    if taken:
        yield b",".join(taken)


def _ranges(uids: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = 0
    for uid in sorted(uids):
        if not 0 < uid <= _LAST_UID:
            raise ValueError("not a UID")
        if uid <= last + 1 and last:
            last = uid
            continue
        if last:
            yield first, last
        first = last = uid
    if last:
        yield first, last


def set_size(numbers: bytes) -> int:
    """Return how many numbers a server's sequence set names; parts that are none count nothing."""
    total = 0
    for part in numbers.split(b","):
        first, _, last = part.partition(b":")
        if first.isdigit() and (last.isdigit() or not last):
            total += abs(int(last or first) - int(first)) + 1
    return total

"""Whose message is that now: what an old server showed, and the messages of an IMAP mailbox; pure.

A wrong match is worse than none: a client takes the message for one that it has, and never downloads it. So nothing is
guessed. Messages match by UID where UIDVALIDITY says that UIDs are the same, by the Maildir file that both name, by
size where only one on either side has it and nothing better is known, and by header and body where
the old server still answers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mailgate.uidls.files import FileError, Known, UidList

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the IMAP mailbox; ``header`` is the digest of its header, empty where it was not asked for."""

    uid: int
    size: int
    header: bytes = b""


@dataclass(slots=True)
class Matches:
    """``found`` is UID → unique-id. ``lost`` are not in the mailbox, ``new`` were not at the old server.

    ``ambiguous`` are groups of both that nothing tells apart.
    """

    found: dict[int, bytes] = field(default_factory=dict)
    lost: list[Known] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    ambiguous: list[tuple[list[Known], list[int]]] = field(default_factory=list)


def by_file(known: Sequence[Known], uids: UidList) -> list[Known]:
    """Return what is known with the UIDs that the files have now; what has no file is left out."""
    return [
        Known(one.uidl, uids.uids[one.file], uids.uidvalidity, one.size, one.file)
        for one in known
        if one.file in uids.uids
    ]


def by_uid(known: Sequence[Known], uidvalidity: int, messages: Sequence[Message]) -> Matches:
    """Match by UID. Raises FileError where UIDVALIDITY differs: then UIDs mean other messages."""
    for one in known:
        if one.uidvalidity not in (0, uidvalidity):
            raise FileError(
                f"its UIDVALIDITY is {one.uidvalidity}, that of the mailbox {uidvalidity}: "
                "UIDs mean other messages there"
            )
    present = {message.uid for message in messages}
    matches = Matches(found={one.uid: one.uidl for one in known if one.uid in present})
    if len(matches.found) < sum(one.uid in present for one in known):
        raise FileError("two of its unique-ids are of one UID")
    matches.lost = [one for one in known if one.uid not in present]
    matches.new = sorted(present - matches.found.keys())
    return matches


def by_size(known: Sequence[Known], messages: Sequence[Message]) -> Matches:
    """Match by size alone, where one message on either side has it."""
    old = _grouped((index, one.size) for index, one in enumerate(known))
    new = _grouped((message.uid, message.size) for message in messages)
    matches = Matches()
    for size, group in old.items():
        uids = new.get(size, [])
        if not uids:
            matches.lost += [known[index] for index in group]
        elif len(group) == len(uids) == 1 and size:
            matches.found[uids[0]] = known[group[0]].uidl
        else:
            matches.ambiguous.append(([known[index] for index in group], uids))
    matches.new = sorted(uid for size, uids in new.items() if size not in old for uid in uids)
    return matches


@dataclass(slots=True)
class Headers:
    """Matches by header, and what only bodies tell apart: numbers at the old server, and UIDs, of each group."""

    pairs: dict[int, int]
    groups: list[tuple[list[int], list[int]]]


def by_header(old: Sequence[tuple[int, bytes]], messages: Sequence[Message]) -> Headers:
    """Match messages by size and header, what is left by header alone; ``old`` has size and header, by number - 1.

    Sizes come second: servers err in them, or count fields that they add.
    """
    left_old = dict(enumerate(old, 1))
    left_new = {message.uid: (message.size, message.header) for message in messages}
    pairs: dict[int, int] = {}
    _pair(left_old, left_new, pairs, lambda key: key)
    groups = _pair(left_old, left_new, pairs, lambda key: key[1])
    return Headers(pairs, groups)


def by_body(
    group: tuple[Sequence[int], Sequence[int]], old: Mapping[int, bytes], new: Mapping[int, bytes]
) -> dict[int, int]:
    """Match the messages of a group by their bodies' digests, number → UID.

    Those that are the same to the last octet are matched in their order: a client that has one has them all.
    """
    numbers, uids = group
    bodies = _grouped((uid, new[uid]) for uid in uids if uid in new)
    pairs: dict[int, int] = {}
    for number in numbers:
        if waiting := bodies.get(old.get(number, b"")):
            pairs[number] = waiting.pop(0)
    return pairs


def _grouped(pairs: Iterable[tuple[int, K]]) -> dict[K, list[int]]:
    """Return the first of each pair by the second."""
    found: dict[K, list[int]] = {}
    for item, key in pairs:
        found.setdefault(key, []).append(item)
    return found


def _pair(
    old: dict[int, tuple[int, bytes]],
    new: dict[int, tuple[int, bytes]],
    pairs: dict[int, int],
    key: Callable[[tuple[int, bytes]], Hashable],
) -> list[tuple[list[int], list[int]]]:
    """Move those that one on either side has from ``old`` and ``new`` to ``pairs``; return the groups of the others."""
    numbers = _grouped((number, key(value)) for number, value in old.items())
    uids = _grouped((uid, key(value)) for uid, value in new.items())
    groups = []
    for value, group in numbers.items():
        others = uids.get(value, [])
        if len(group) == len(others) == 1:
            pairs[group[0]] = others[0]
            del old[group[0]], new[others[0]]
        elif others:
            groups.append((group, others))
    return groups

"""The maildrop: numbers that never shift, listings without what is deleted, and how little memory it takes."""

from __future__ import annotations

import sys
import tracemalloc
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mailgate.translate.maildrop import LINES, FolderView, Maildrop

MANY = 100_000


class Template:
    """UIDLs made from UIDs."""

    def __init__(self, uids: Sequence[int], uidvalidity: int = 7) -> None:
        self.uids = uids
        self.uidvalidity = uidvalidity

    def __getitem__(self, index: int) -> bytes:
        return b"%08x%08x" % (self.uids[index], self.uidvalidity)

    def among(self, indexes: Sequence[int]) -> list[bytes]:
        return [self[index] for index in indexes]


class Blob:
    """UIDLs of 32 octets that no template makes, one behind the other."""

    def __init__(self, count: int) -> None:
        self.blob = b"".join(b"%032x" % number for number in range(count))
        self.offsets = array("I", range(0, 32 * count + 32, 32))

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.offsets[index] : self.offsets[index + 1]]

    def among(self, indexes: Sequence[int]) -> list[bytes]:
        return [self[index] for index in indexes]


def view(*messages: tuple[int, int], uidvalidity: int = 7) -> FolderView:
    """Return the view of a folder from UIDs and sizes."""
    uids = array("I", (uid for uid, _ in messages))
    return FolderView(uids, array("Q", (size for _, size in messages)), Template(uids, uidvalidity))


def listing(drop: Maildrop, kind: Literal["LIST", "UIDL"] = "LIST") -> list[bytes]:
    return b"".join(drop.lines(kind)).splitlines()


def three() -> Maildrop:
    return Maildrop.of([view((3, 100), (5, 200), (9, 300))])


def test_facts_of_single_messages() -> None:
    drop = three()
    assert (drop.total, drop.count, drop.octets) == (3, 3, 600)
    assert [(drop.uid(n), drop.size(n), drop.folder(n), drop.uidl(n)) for n in (1, 3)] == [
        (3, 100, 0, b"0000000300000007"),
        (9, 300, 0, b"0000000900000007"),
    ]


@pytest.mark.parametrize("number", [-1, 0, 4])
def test_a_number_that_no_message_has_is_refused(number: int) -> None:
    drop = three()
    asked: list[Callable[[int], object]] = [drop.uid, drop.size, drop.folder, drop.uidl, drop.delete, drop.retrieved]
    assert not drop.present(number)
    for ask in [*asked, lambda number: drop.correct_size(number, 1)]:
        with pytest.raises(IndexError):
            ask(number)
    assert (drop.count, drop.octets, drop.last, drop.marked(), drop.seen()) == (3, 600, 0, {}, {})


def test_what_is_deleted_cannot_be_deleted_again() -> None:
    drop = three()
    drop.delete(2)
    assert not drop.present(2)
    with pytest.raises(IndexError):
        drop.delete(2)
    assert (drop.count, drop.octets) == (2, 400)


def test_numbers_do_not_shift_when_messages_are_deleted() -> None:
    drop = three()
    drop.delete(2)
    assert listing(drop) == [b"1 100", b"3 300"]
    assert listing(drop, "UIDL") == [b"1 0000000300000007", b"3 0000000900000007"]


def test_folders_stand_one_behind_the_other_and_empty_ones_take_no_place() -> None:
    drop = Maildrop.of([view(), view((4, 1), (6, 2)), view(), view((4, 3), uidvalidity=8)])
    assert [(drop.folder(n), drop.uid(n), drop.size(n)) for n in (1, 2, 3)] == [(1, 4, 1), (1, 6, 2), (3, 4, 3)]
    assert listing(drop, "UIDL")[2] == b"3 0000000400000008"
    drop.delete(1)
    drop.delete(3)
    assert drop.marked() == {1: array("I", [4]), 3: array("I", [4])}


def test_another_order_may_mix_folders() -> None:
    drop = Maildrop.of([view((1, 10), (2, 20)), view((1, 30))], order=array("I", [2, 1, 0]))
    assert [(drop.folder(n), drop.uid(n)) for n in (1, 2, 3)] == [(1, 1), (0, 2), (0, 1)]
    assert listing(drop) == [b"1 30", b"2 20", b"3 10"]
    drop.delete(3)
    drop.delete(2)
    drop.retrieved(1)
    assert drop.marked() == {0: array("I", [1, 2])}
    assert drop.seen() == {1: array("I", [1])}


@pytest.mark.parametrize("folders", [[], [view()], [view(), view()]])
def test_an_empty_maildrop(folders: list[FolderView]) -> None:
    drop = Maildrop.of(folders)
    assert (drop.total, drop.count, drop.octets, drop.present(1)) == (0, 0, 0, False)
    assert list(drop.lines("LIST")) == list(drop.lines("UIDL")) == []


def test_last_is_the_highest_number_that_was_retrieved_or_deleted() -> None:
    drop = three()
    assert drop.last == 0
    drop.retrieved(2)
    drop.retrieved(1)
    assert drop.last == 2
    drop.delete(3)
    assert drop.last == 3


def test_reset_takes_back_deletions_and_last_but_not_what_was_seen() -> None:
    drop = three()
    drop.retrieved(1)
    drop.delete(1)
    drop.delete(3)
    drop.reset()
    assert (drop.count, drop.octets, drop.last, drop.marked()) == (3, 600, 0, {})
    assert drop.seen() == {0: array("I", [3])}


def test_a_better_size_changes_the_sum_unless_the_message_is_deleted() -> None:
    drop = three()
    drop.correct_size(1, 150)
    assert (drop.size(1), drop.octets) == (150, 650)
    drop.delete(2)
    drop.correct_size(2, 250)
    assert drop.octets == 450
    drop.reset()
    assert drop.octets == 700


def test_listings_come_in_blocks_and_skip_those_with_nothing_in_them() -> None:
    drop = Maildrop.of([view(*((uid, uid) for uid in range(1, 2 * LINES + 2)))])
    assert [block.count(b"\r\n") for block in drop.lines("LIST")] == [LINES, LINES, 1]
    for number in range(LINES + 1, 2 * LINES + 1):
        drop.delete(number)
    assert [block.count(b"\r\n") for block in drop.lines("UIDL")] == [LINES, 1]


class AgainstAModel(RuleBasedStateMachine):
    """Random sessions, compared with lists and sets."""

    numbers = st.integers(-1, 12)

    @initialize(sizes=st.lists(st.lists(st.integers(0, 1 << 40), max_size=5), max_size=3))
    def open(self, sizes: list[list[int]]) -> None:
        folders = [[(3 * place + 1, size) for place, size in enumerate(folder)] for folder in sizes]
        self.drop = Maildrop.of([view(*folder, uidvalidity=place) for place, folder in enumerate(folders)])
        self.where = [(place, uid) for place, folder in enumerate(folders) for uid, _ in folder]
        self.sizes = list(chain.from_iterable(sizes))
        self.deleted: set[int] = set()
        self.seen: set[int] = set()
        self.last = 0

    def present(self) -> list[int]:
        return [number for number in range(1, len(self.sizes) + 1) if number not in self.deleted]

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        if number in self.present():
            self.drop.delete(number)
            self.deleted.add(number)
            self.last = max(self.last, number)
        else:
            with pytest.raises(IndexError):
                self.drop.delete(number)

    @rule(number=numbers)
    def retrieve(self, number: int) -> None:
        if number in self.present():
            self.drop.retrieved(number)
            self.seen.add(number)
            self.last = max(self.last, number)

    @rule(number=numbers, size=st.integers(0, 1 << 40))
    def learn_size(self, number: int, size: int) -> None:
        if 0 < number <= len(self.sizes):
            self.drop.correct_size(number, size)
            self.sizes[number - 1] = size

    @rule()
    def reset(self) -> None:
        self.drop.reset()
        self.deleted.clear()
        self.last = 0

    def by_folder(self, numbers: set[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for number in sorted(numbers):
            folder, uid = self.where[number - 1]
            found.setdefault(folder, []).append(uid)
        return found

    @invariant()
    def same(self) -> None:
        present, drop = self.present(), self.drop
        assert (drop.total, drop.count, drop.last) == (len(self.sizes), len(present), self.last)
        assert drop.octets == sum(self.sizes[number - 1] for number in present)
        assert [number for number in range(-1, 20) if drop.present(number)] == present
        assert listing(drop) == [b"%d %d" % (number, self.sizes[number - 1]) for number in present]
        uidls = [b"%d %08x%08x" % (n, self.where[n - 1][1], self.where[n - 1][0]) for n in present]
        assert listing(drop, "UIDL") == uidls == [b"%d %b" % (number, drop.uidl(number)) for number in present]
        for number, (folder, uid) in enumerate(self.where, 1):
            assert (drop.folder(number), drop.uid(number)) == (folder, uid)
        assert {folder: list(uids) for folder, uids in drop.marked().items()} == self.by_folder(self.deleted)
        assert {folder: list(uids) for folder, uids in drop.seen().items()} == self.by_folder(self.seen)


TestAgainstAModel = AgainstAModel.TestCase


@pytest.mark.parametrize(("stored", "folders"), [(False, 1), (True, 1), (True, 4)])
def test_a_message_takes_less_than_64_bytes_and_all_that_is_done_little_more(stored: bool, folders: int) -> None:
    each = MANY // folders
    tracemalloc.start()
    try:
        views = []
        for _ in range(folders):
            uids = array("I", range(1, each + 1))
            views.append(FolderView(uids, array("Q", [50_000]) * each, Blob(each) if stored else Template(uids)))
        drop = Maildrop.of(views)
        del views
        for number in range(1, MANY + 1, 10):
            drop.retrieved(number)
            drop.delete(number)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for listed in (drop.lines("LIST"), drop.lines("UIDL")):
            for _ in listed:
                pass
        _, listed_peak = tracemalloc.get_traced_memory()
        drop.marked()
        drop.seen()
        drop.reset()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / MANY < 64
    assert listed_peak - held < 1 << 20
    assert peak < 16 << 20
    assert sys.getsizeof(drop) < 200

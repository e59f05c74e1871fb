from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.wire.imap_sets import COMMAND_LINE, checked_flags, set_size, uid_sets

LAST = 0xFFFFFFFF


def named(numbers: bytes) -> list[int]:
    """Return the UIDs that a set names."""
    found = []
    for part in numbers.split(b","):
        first, _, last = part.partition(b":")
        found += range(int(first), int(last or first) + 1)
    return found


uids = st.lists(st.one_of(st.integers(1, 60), st.integers(1, LAST), st.integers(LAST - 5, LAST)))


@given(uids, st.integers(21, 80))
def test_sets_name_exactly_what_was_asked_for_in_short_lines(asked: list[int], limit: int) -> None:
    sets = list(uid_sets(asked, limit))
    assert all(0 < len(one) <= limit for one in sets)
    assert [uid for one in sets for uid in named(one)] == sorted(set(asked))


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_neighbours_become_one_range(first: int, count: int) -> None:
    assert len(list(uid_sets(range(first, first + count), 21))) == 1


@pytest.mark.parametrize(
    ("asked", "sets"),
    [
        ([], []),
        ([5], [b"5"]),
        ([5, 6], [b"5:6"]),
        ([7, 5, 6, 5, 9], [b"5:7,9"]),
        ([LAST, LAST - 1], [b"4294967294:4294967295"]),
        ([1, 3, 5, 7, 9, 11, 13, 15, 17, 19], [b"1,3,5,7,9,11,13,15,17", b"19"]),
    ],
)
def test_how_sets_look(asked: list[int], sets: list[bytes]) -> None:
    assert list(uid_sets(asked, 21)) == sets


@pytest.mark.parametrize("uid", [0, -1, LAST + 1])
def test_what_is_no_uid(uid: int) -> None:
    with pytest.raises(ValueError, match="UID"):
        list(uid_sets([1, uid], 100))


def test_a_line_must_hold_a_range() -> None:
    assert COMMAND_LINE == 1000
    with pytest.raises(ValueError, match="room"):
        list(uid_sets([1], 20))


@given(uids)
def test_a_set_is_counted(asked: list[int]) -> None:
    assert sum(map(set_size, uid_sets(asked, 100))) == len(set(asked))


@pytest.mark.parametrize(("numbers", "count"), [(b"", 0), (b"x", 0), (b"5:3", 3), (b"1:*", 0), (b"1,:2", 1)])
def test_sets_of_odd_servers(numbers: bytes, count: int) -> None:
    assert set_size(numbers) == count


def test_flags() -> None:
    assert checked_flags(rb"\Deleted $POP3Deleted a-b") == rb"\Deleted $POP3Deleted a-b"
    for wrong in (b"", b"a)", b"a\r\n", b'"', b"\\", b"a\\b", b"%", b"*", b"{1}"):
        with pytest.raises(ValueError, match="flags"):
            checked_flags(wrong)

"""Whose message is that now: by UID, file, size, header and body, and never by a guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.uidls.files import FileError, Known, UidList
from mailgate.uidls.matching import Headers, Matches, Message, by_body, by_file, by_header, by_size, by_uid


def test_uids_count_where_uidvalidity_is_the_same() -> None:
    known = [Known(b"a", 1, 7), Known(b"b", 2, 7), Known(b"c", 9, 0)]
    messages = [Message(2, 10), Message(3, 10), Message(9, 10)]
    assert by_uid(known, 7, messages) == Matches({2: b"b", 9: b"c"}, [known[0]], [3])
    with pytest.raises(FileError, match="its UIDVALIDITY is 7, that of the mailbox 8"):
        by_uid(known, 8, messages)
    with pytest.raises(FileError, match="of one UID"):
        by_uid([Known(b"a", 2), Known(b"b", 2)], 7, messages)


def test_files_have_uids() -> None:
    known = [Known(b"a", file=b"x", size=5), Known(b"b", file=b"y")]
    assert by_file(known, UidList(7, {b"x": 3})) == [Known(b"a", 3, 7, 5, b"x")]


def test_sizes_count_where_one_on_either_side_has_them() -> None:
    known = [Known(b"a", size=1), Known(b"b", size=2), Known(b"c", size=2), Known(b"d", size=3), Known(b"e", size=4)]
    messages = [Message(1, 1), Message(2, 2), Message(3, 2), Message(4, 4), Message(5, 4), Message(6, 6)]
    assert by_size(known, messages) == Matches(
        {1: b"a"}, [known[3]], [6], [([known[1], known[2]], [2, 3]), ([known[4]], [4, 5])]
    )
    assert by_size([Known(b"a")], [Message(1, 0)]).ambiguous


def test_headers_count_with_sizes_first() -> None:
    old = [(10, b"x"), (20, b"x"), (30, b"y"), (40, b"z"), (40, b"z"), (50, b"gone")]
    messages = [
        Message(1, 20, b"x"),
        Message(2, 10, b"x"),
        Message(3, 31, b"y"),
        Message(4, 40, b"z"),
        Message(5, 40, b"z"),
        Message(6, 60, b"new"),
    ]
    assert by_header(old, messages) == Headers({1: 2, 2: 1, 3: 3}, [([4, 5], [4, 5])])


def test_bodies_tell_the_rest_and_what_is_the_same_keeps_its_order() -> None:
    assert by_body(([1, 2, 3, 4], [7, 8, 9]), {1: b"p", 2: b"q", 3: b"q", 4: b"r"}, {7: b"q", 8: b"p", 9: b"q"}) == {
        1: 8,
        2: 7,
        3: 9,
    }
    # A copy that the old server had not is a new message.
    assert by_body(([1], [7, 8]), {1: b"q"}, {7: b"q", 8: b"q"}) == {1: 7}
    assert by_body(([1], [7]), {}, {7: b"q"}) == {}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([b"x", b"y", b"z"]), st.integers(0, 3)), max_size=12),
    st.data(),
)
def test_only_messages_that_are_the_same_are_matched(kinds: list[tuple[int, bytes, int]], data: st.DataObject) -> None:
    there = data.draw(st.permutations(kinds))
    there = there[: data.draw(st.integers(0, len(there)))]
    messages = [Message(uid, size, header) for uid, (size, header, _) in enumerate(there, 1)]
    bodies = {number: b"%d" % kind[2] for number, kind in enumerate(kinds, 1)}
    bodies_there = {uid: b"%d" % kind[2] for uid, kind in enumerate(there, 1)}
    result = by_header([(size, header) for size, header, _ in kinds], messages)
    pairs = dict(result.pairs)
    for group in result.groups:
        pairs |= by_body(group, bodies, bodies_there)
    assert len(set(pairs.values())) == len(pairs)
    for number, uid in pairs.items():
        assert kinds[number - 1][1] == there[uid - 1][1]
    for group in result.groups:
        for number in set(group[0]) & pairs.keys():
            assert bodies[number] == bodies_there[pairs[number]]

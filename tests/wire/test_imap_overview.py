"""What FETCH tells of all messages: the fast way and the careful one agree, and both are small."""

from __future__ import annotations

import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.errors import RemoteProtocolError
from mailgate.wire.imap_fetch import Fetched, FetchReceiver
from mailgate.wire.imap_overview import (
    FLAG_SETS,
    FLAGS_KEPT,
    ID_LIMIT,
    SPARE_ROWS,
    Overview,
    OverviewRows,
)

LINES = {
    "Dovecot": b"* %d FETCH (UID %d FLAGS (\\Seen) RFC822.SIZE %d)\r\n",
    "Courier": b"* %d FETCH (UID %d RFC822.SIZE %d FLAGS (\\Seen))\r\n",
    "Cyrus": b"* %d FETCH (FLAGS (\\Seen) UID %d RFC822.SIZE %d)\r\n",
    "Gmail": b"* %d FETCH (X-GM-MSGID 1278455344230334865 UID %d RFC822.SIZE %d FLAGS (\\Seen))\r\n",
    "condstore": b"* %d FETCH (UID %d FLAGS (\\Seen) MODSEQ (77) RFC822.SIZE %d)\r\n",
    "mail.ru": b"* %d FETCH (UID %d FLAGS (\\Seen) RFC822.SIZE %d.0)\r\n",
    "bare LF": b"* %d FETCH (UID %d FLAGS (\\Seen) RFC822.SIZE %d)\n",
}


def collect(rows: OverviewRows, data: bytes, step: int = 4096, *, fast: bool = True) -> int:
    """Feed ``data`` to ``rows``; return how many responses went the careful way."""
    receiver = FetchReceiver()
    careful = 0
    for at in range(0, len(data), step):
        receiver.receive(data[at : at + step])
        while True:
            while fast and receiver.between and rows.take(receiver.buffer):
                pass
            event = receiver.next()
            if event is None:
                break
            if isinstance(event, Fetched):
                careful += 1
                rows.add(event)
    return careful


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("step", [1 << 20, 100, 1])
def test_lines_of_common_servers_go_the_fast_way(line: bytes, step: int) -> None:
    rows = OverviewRows(expected=50)
    data = b"".join(line % (number, number * 3, number * 100) for number in range(1, 51))
    assert collect(rows, data, step) == 0
    overview = rows.result()
    assert len(overview) == 50
    assert overview.uids == array("I", range(3, 153, 3))
    assert overview.sizes == array("Q", range(100, 5100, 100))
    assert overview.deleted == bytes(50)


def test_a_line_that_is_nearly_ordinary_goes_the_careful_way() -> None:
    rows = OverviewRows(expected=2)
    line = LINES["Dovecot"].replace(b")\r\n", b" )\r\n")
    assert collect(rows, line % (1, 3, 100) + line % (2, 4, 200)) == 2
    assert rows.result().sizes == array("Q", [100, 200])


FLAGS = [b"", b"\\Seen", b"\\DELETED", b"$gone \\Seen", b"\\Deleted $GONE", b"UID 5", b"a[b"]
ITEM = {
    "uid": st.integers(1, 30).map(lambda uid: b"UID %d" % uid),
    "size": st.sampled_from([b"RFC822.SIZE 5", b"RFC822.SIZE 70.00", b"RFC822.SIZE NIL", b"rfc822.size 9"]),
    "flags": st.sampled_from(FLAGS).map(lambda flags: b"FLAGS (%b)" % flags),
    "date": st.sampled_from([b'INTERNALDATE "17-Jul-1996 02:44:25 -0700"', b'INTERNALDATE "no"']),
    "id": st.sampled_from([b"EMAILID (M1)", b"EMAILID (M2-x)", b"X-GM-MSGID 12345", b"MODSEQ (5)"]),
}


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from([*ITEM, "uid", "size", "flags"]), min_size=1, max_size=5, unique=True))
    items = [draw(ITEM[name]) for name in names]
    end = draw(st.sampled_from([b"\r\n", b"\n"]))
    return b"* %d FETCH (%b)%b" % (draw(st.integers(0, 99)), b" ".join(items), end)


@given(st.lists(responses(), max_size=20), st.integers(1, 200), st.integers(1, 5))
def test_the_fast_way_finds_what_the_careful_one_does(lines: list[bytes], step: int, first: int) -> None:
    def make() -> OverviewRows:
        return OverviewRows(first_uid=first, keyword=b"$Gone", ids=True)

    fast, careful = make(), make()
    collect(fast, b"".join(lines), step)
    collect(careful, b"".join(lines), step, fast=False)
    assert fast.result() == careful.result()
    assert list(fast.result().uids) == sorted(set(fast.result().uids))


def test_rows_are_merged_and_what_is_missing_is_told() -> None:
    rows = OverviewRows(first_uid=2, ids=True)
    collect(
        rows,
        b'* 1 FETCH (UID 9 FLAGS (\\Deleted) INTERNALDATE "01-Jan-1970 00:00:01 +0000")\r\n'
        b"* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 1)\r\n"
        b"* 1 FETCH (UID 4 RFC822.SIZE 4)\r\n"
        b"* 1 FETCH (FLAGS (\\Deleted))\r\n"
        b"* 1 FETCH (UID 3 FLAGS ())\r\n"
        b"* 1 FETCH (UID 0 FLAGS () RFC822.SIZE 1)\r\n"
        b"* 1 FETCH (UID 9 RFC822.SIZE 90 EMAILID (M9))\r\n",
    )
    rows.tidy()
    assert rows.incomplete().tolist() == [3, 4]
    assert rows.missing(array("I", [1, 4, 5, 9])).tolist() == [5]
    assert rows.result() == Overview(
        array("I", [4, 9]),
        array("Q", [4, 90]),
        *(b"\0\1", b"\0\0"),
        [b"", b"M9"],
    )


def test_later_flags_count() -> None:
    rows = OverviewRows()
    line = b"* 1 FETCH (UID 3 FLAGS (%b) RFC822.SIZE 1)\r\n"
    collect(rows, line % b"\\Deleted" + line % b"\\Seen" + b"* 1 FETCH (UID 3 FLAGS (\\Deleted))\r\n")
    assert rows.result().deleted == b"\1"


def test_headers_are_digested() -> None:
    rows = OverviewRows(headers=True, digest=lambda header: header[:3])
    collect(rows, b"* 1 FETCH (UID 3 FLAGS () RFC822.SIZE 1 BODY[HEADER] {6}\r\nabc)\r\n)\r\n", 5)
    assert rows.result().headers == [b"abc"]


@pytest.mark.parametrize("uid", [1 << 32, 9_999_999_999])
@pytest.mark.parametrize("fast", [True, False])
def test_a_uid_over_its_bits(uid: int, fast: bool) -> None:
    with pytest.raises(RemoteProtocolError):
        collect(OverviewRows(), b"* 1 FETCH (UID %d FLAGS () RFC822.SIZE 1)\r\n" % uid, fast=fast)


def test_a_server_that_does_not_end() -> None:
    rows = OverviewRows(expected=1)
    line = b"* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 1)\r\n"
    collect(rows, line * SPARE_ROWS, 1 << 20)
    with pytest.raises(RemoteProtocolError):
        collect(rows, line * 3)


def test_endless_new_flags_are_not_remembered() -> None:
    rows = OverviewRows()
    for number in range(FLAG_SETS + 10):
        collect(rows, b"* 1 FETCH (UID %d FLAGS (f%d \\Deleted) RFC822.SIZE 1)\r\n" % (number + 1, number))
    assert len(rows._meanings) <= FLAG_SETS
    assert rows.result().deleted == b"\1" * (FLAG_SETS + 10)


def test_a_hundred_thousand_messages_are_small() -> None:
    line = LINES["Dovecot"]
    data = b"".join(line % (number, number * 3, number * 100) for number in range(1, 100_001))
    tracemalloc.start()
    try:
        rows = OverviewRows(expected=100_000)
        assert collect(rows, data, 1 << 18) == 0
        assert len(rows.result()) == 100_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_long_lists_of_flags_are_not_remembered_and_long_ids_are_none() -> None:
    rows = OverviewRows(keyword=b"$Gone", ids=True, expected=3)
    long = b"$Gone " + b"x" * FLAGS_KEPT
    line = b"* %d FETCH (UID %d FLAGS (%b) RFC822.SIZE 1 EMAILID (%b))\r\n"
    collect(rows, line % (1, 1, long, b"e" * ID_LIMIT) + line % (2, 2, b"", b"e" * (ID_LIMIT + 1)))
    assert long not in rows._meanings
    found = rows.result()
    assert found.hidden == b"\x01\x00"
    assert found.ids == [b"e" * ID_LIMIT, b""]

"""Responses in a selected mailbox: found alike however the bytes are cut, and never held whole."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.errors import RemoteProtocolError
from mailgate.wire.imap_fetch import (
    LINE_LIMIT,
    LITERAL_LIMIT,
    LITERALS,
    NESTING,
    STALLED,
    TOKENS,
    BodyBegins,
    Fetched,
    FetchReceiver,
    Found,
    body_section,
)
from mailgate.wire.imap_response import Response

NEXT = Response(b"* 5 EXISTS\r\n", b"*", "EXISTS", "", b"", b"")


def read(pieces: list[bytes], *, streams: bool = True) -> list[Any]:
    """Return all events, bodies in full behind their beginning, SEARCH responses whole."""
    receiver = FetchReceiver()
    receiver.streams = streams
    found: list[Any] = []
    for piece in pieces:
        view = memoryview(piece)
        if receiver.left and not len(receiver.buffer):
            found[-1] += receiver.pass_on(view)
        else:
            receiver.receive(view)
        while True:
            if receiver.left:
                taken = receiver.piece()
                if not taken:
                    break
                found[-1] += taken
                continue
            event = receiver.next()
            if event is None:
                break
            if isinstance(event, Found) and found and isinstance(found[-1], Found):
                event = Found(found.pop().numbers + event.numbers)
            found.append(event)
            if isinstance(event, BodyBegins):
                found.append(b"")
    assert receiver.between
    assert not len(receiver.buffer)
    return found


def each_way(data: bytes, *, streams: bool = True) -> list[Any]:
    whole = read([data], streams=streams)
    for step in (1, 3, 7):
        assert read([data[at : at + step] for at in range(0, len(data), step)], streams=streams) == whole
    return whole


def fetched(uid: int | None, **items: object) -> Fetched:
    names = {"SIZE": b"RFC822.SIZE", "BODY": b"BODY[]"}
    known = {b"UID": b"%d" % uid} if uid is not None else {}
    return Fetched(uid, known | {names.get(name, name.encode()): value for name, value in items.items()})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b"* 1 FETCH (UID 5 FLAGS () RFC822.SIZE 7)", fetched(5, FLAGS=(), SIZE=b"7")),
        (b'* 0 fetch (flags (\\Seen a[b "x") uid 5)', fetched(5, FLAGS=(b"\\Seen", b"a[b", b"x"))),
        (b"* 99999 Fetch ( UID  5  RFC822.SIZE 1234.0 )", fetched(5, SIZE=b"1234.0")),
        (b"* 1 FETCH (FLAGS ())", fetched(None, FLAGS=())),
        (b"* 1 FETCH (UID x)", Fetched(None, {b"UID": b"x"})),
        (b"* 1 FETCH (UID 5 BODY[] NIL)", fetched(5, BODY=None)),
        (b'* 1 FETCH (UID 5 BODY[] "")', fetched(5, BODY=b"")),
        (b'* 1 FETCH (UID 5 BODY[] "a\\"\\\\(b")', fetched(5, BODY=b'a"\\(b')),
        (b"* 1 FETCH (UID 5 X ((a) (b NIL)))", fetched(5, X=((b"a",), (b"b", None)))),
        (b"* 1 FETCH (UID 5 FLAGS (a", fetched(5, FLAGS=(b"a",))),
        (b"* 1 FETCH ()", Fetched(None, {})),
        (b"* 1 FETCH (UID)", Fetched(None, {})),
        (b"* OK text {5}", Response(b"* OK text {5}\r\n", b"*", "OK", "", b"", b"text {5}")),
        (b"* OK [ALERT] {5}", Response(b"* OK [ALERT] {5}\r\n", b"*", "OK", "ALERT", b"", b"{5}")),
        (b"m1 NO {5}", Response(b"m1 NO {5}\r\n", b"m1", "NO", "", b"", b"{5}")),
        (b"+ {5}", Response(b"+ {5}\r\n", b"+", "", "", b"", b"{5}")),
        (b"[ALERT] {5}", Response(b"[ALERT] {5}\r\n", b"*", "OK", "ALERT", b"", b"{5}")),
        (b"* VANISHED 1:5", Response(b"* VANISHED 1:5\r\n", b"*", "VANISHED", "", b"", b"1:5")),
        (b"* SEARCH", Response(b"* SEARCH\r\n", b"*", "SEARCH", "", b"", b"")),
        (b"* SEARCH 5 7  9", Found(array("I", [5, 7, 9]))),
        (b"* SEARCH 5 (MODSEQ 7)", Found(array("I", [5]))),
    ],
)
def test_responses(line: bytes, event: object) -> None:
    assert each_way(line + b"\r\n" + NEXT.raw) == [event, NEXT]
    assert each_way(line + b"\r\n" + NEXT.raw, streams=False) == [event, NEXT]


def test_an_empty_search_in_another_form() -> None:
    assert each_way(b"* SEARCH \r\n" + NEXT.raw) == [NEXT]


@pytest.mark.parametrize("announced", [b"{%d}\r\n", b"{%d}\n", b"~{%d}\r\n"])
@pytest.mark.parametrize("body", [b"", b"x", b")\r\n* 1 FETCH (UID 9 BODY[] {3}\r\nabc)\r\nm1 OK\r\n"])
def test_a_body_is_given_out_and_its_bytes_mean_nothing(announced: bytes, body: bytes) -> None:
    data = b"* 1 FETCH (UID 5 BODY[] " + announced % len(body) + body + b" FLAGS ())\r\n" + NEXT.raw
    assert each_way(data) == [BodyBegins(5, b"", len(body)), body, fetched(5, FLAGS=()), NEXT]
    assert each_way(data, streams=False) == [fetched(5, BODY=body, FLAGS=()), NEXT]


def test_a_uid_behind_the_body() -> None:
    data = b"* 1 FETCH (BODY[HEADER] {1}\r\nx BODY[TEXT]<0> {2}\r\nyz UID 5)\r\n"
    assert each_way(data) == [*(BodyBegins(None, b"HEADER", 1), b"x", BodyBegins(None, b"TEXT", 2), b"yz", fetched(5))]


def test_other_literals_are_kept_and_cut_where_they_are_too_long() -> None:
    data = b"* 1 FETCH (X {3}\r\na)b UID 5 Y {%d}\r\n" % (LITERAL_LIMIT + 5) + b"y" * (LITERAL_LIMIT + 5) + b")\r\n"
    (event,) = read([data])
    assert event == Fetched(5, {b"X": b"a)b", b"UID": b"5", b"Y": b"y" * (LITERAL_LIMIT - 3)})
    assert LITERAL_LIMIT == 262_144


def test_a_literal_of_another_response() -> None:
    raw = b'* LIST () "/" {3}\r\na\r\n\r\n'
    assert each_way(raw + NEXT.raw) == [Response(raw, b"*", "LIST", "", b"", b'() "/" {3}'), NEXT]


@pytest.mark.parametrize(
    "line",
    [
        b"* 1 FETCH x",
        b"* 1 FETCH (UID 5))",
        b'* 1 FETCH (UID "5)',
        b"* 1 FETCH " + b"(" * (NESTING + 2),
        b"* 1 FETCH (" + b"a " * TOKENS + b")",
        b"* 1 FETCH (" + b"a[ " * 300_000,
        b"* 1 FETCH (" + b"X {0}\r\n " * (LITERALS + 1),
        b"* 1 FETCH (BODY[] {12345678901}",
        b"* SEARCH 1 x" + b" " * STALLED,
        b"* SEARCH 4294967296",
        b"* SEARCH " + b"1" * 5000,
        b"nonsense",
        b"x" * (LINE_LIMIT + 1),
    ],
    ids=range(13),
)
def test_nonsense(line: bytes) -> None:
    receiver = FetchReceiver()
    receiver.receive(line + b"\r\n")
    with pytest.raises(RemoteProtocolError):
        list(iter(receiver.next, None))


def test_the_limits() -> None:
    assert (LINE_LIMIT, LITERAL_LIMIT, LITERALS) == (1 << 20, 1 << 18, 64)
    assert (TOKENS, NESTING, STALLED) == (10_000, 16, 4096)


def test_a_search_needs_no_line_that_is_held() -> None:
    receiver = FetchReceiver()
    receiver.receive(b"* SEARCH")
    count = most = 0
    for first in range(1, 400_000, 1000):
        receiver.receive(b"".join(b" %d" % uid for uid in range(first, first + 1000)))
        while isinstance(found := receiver.next(), Found):
            count += len(found.numbers)
        most = max(most, len(receiver.buffer))
    receiver.receive(b"\r\n")
    while isinstance(found := receiver.next(), Found):
        count += len(found.numbers)
    assert count == 400_000
    assert most < 16
    assert receiver.between


def test_a_body_is_passed_on_without_a_copy() -> None:
    receiver = FetchReceiver()
    receiver.streams = True
    receiver.receive(b"* 1 FETCH (UID 5 BODY[] {10}\r\nab")
    assert receiver.next() == BodyBegins(5, b"", 10)
    assert receiver.next() is None
    assert receiver.piece() == b"ab"
    assert receiver.piece() == b""
    memory = bytearray(b"cdefghij)\r\n* 5 EXISTS\r\n")
    piece = receiver.pass_on(memoryview(memory))
    assert piece == b"cdefghij"
    assert piece.obj is memory
    memory[:] = bytes(len(memory))
    assert receiver.next() == fetched(5)
    assert receiver.next() == NEXT


@pytest.mark.parametrize(
    ("name", "section"),
    [
        (b"BODY[]", b""),
        (b"BODY[HEADER.FIELDS (A B)]", b"HEADER.FIELDS (A B)"),
        (b"BODY[TEXT]<0>", b"TEXT"),
        (b"BINARY[1]", b"1"),
        (b"RFC822", b""),
        (b"RFC822.HEADER", b"HEADER"),
        (b"RFC822.SIZE", None),
        (b"BODY", None),
        (b"FLAGS", None),
    ],
)
def test_sections(name: bytes, section: bytes | None) -> None:
    assert body_section(name) == section


ITEMS = st.sampled_from(
    [
        b"UID 5",
        b"FLAGS (\\Seen x)",
        b"RFC822.SIZE 10",
        b'ENVELOPE (NIL "a(" ((b)))',
        b"X {5}\r\n)\r\n{2",
        b"BODY[TEXT] {4}\r\n{1}\r",
        b"BODY[] ~{3}\na\0b",
        b'BODY[] "q\\"\\\\"',
        b"BODY[] NIL",
    ]
)
RESPONSES = st.one_of(
    st.lists(ITEMS, min_size=1, max_size=5).map(lambda items: b"* 1 FETCH (%b)" % b" ".join(items)),
    st.sampled_from([b"* OK {3}", b"* 4 EXISTS", b"* SEARCH 3 44 555", b"* SEARCH", b"m1 OK done", b"+ ", b"[X] {1}"]),
    st.just(b"* LIST () NIL {4}\r\n\r\n{1"),
)


@given(st.lists(RESPONSES, max_size=8), st.data(), st.booleans())
def test_the_same_events_however_the_bytes_are_cut(responses: list[bytes], data: st.DataObject, streams: bool) -> None:
    stream = b"".join(one + end for one, end in zip(responses, [b"\r\n", b"\n"] * 4, strict=False))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=9)))
    pieces = [stream[first:last] for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = read([stream], streams=streams)
    assert read(pieces, streams=streams) == whole
    assert read([stream[at : at + 1] for at in range(len(stream))], streams=streams) == whole
    assert len([event for event in whole if isinstance(event, Fetched)]) == sum(b"FETCH" in one for one in responses)


@given(st.binary(max_size=300))
def test_anything_at_all_is_read_or_refused(data: bytes) -> None:
    receiver = FetchReceiver()
    receiver.streams = True
    receiver.receive(b"* 1 FETCH (" + data)
    try:
        while receiver.piece() or receiver.next() is not None:
            pass
    except RemoteProtocolError:
        return

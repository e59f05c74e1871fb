"""Messages become POP3 blocks: every rule against a model that goes octet by octet, however the message is cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate.wire.dotted import MessageEncoder
from tests.wire.cuts import pieces

TRICKY = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b".", b"..", b"\0", b"a", b"Subject: x", b"\n.\n", b"\r\n.\r\n"]
    ),
    max_size=30,
).map(b"".join)
LINES = st.sampled_from([None, 0, 1, 2, 3, 99_999_999])
NUL = st.sampled_from([b"\x80", None])


def normalised(message: bytes, nul: bytes | None, lines: int | None) -> bytes:
    """What the client shall hold in the end, found octet by octet."""
    out = bytearray()
    left = lines
    blank = False
    line = 0
    for octet in message:
        if octet == 0 and nul is not None:
            octet = nul[0]
        if octet == 0x0A and not out.endswith(b"\r"):
            out.append(0x0D)
        out.append(octet)
        if octet == 0x0A:
            if blank and left is not None:
                left -= 1
            blank = blank or out[line:] == b"\r\n"
            line = len(out)
            if blank and left == 0:
                return bytes(out)
    if line < len(out):
        out += b"\r\n"
    if lines is not None and not blank:
        out += b"\r\n"
    return bytes(out)


def unstuffed(block: bytes) -> bytes:
    """What a client makes of a block, by the rules of RFC 1939 §3."""
    out = bytearray()
    while True:
        line, end, block = block.partition(b"\r\n")
        assert end
        if line == b".":
            assert not block
            return bytes(out)
        out += line.removeprefix(b".") + end


def encode(message: bytes, step: int, *, nul: bytes | None = b"\x80", lines: int | None = None) -> tuple[bytes, int]:
    encoder = MessageEncoder(nul=nul, body_lines=lines)
    out = b"".join(encoder.feed(piece) for piece in pieces(message, step))
    return out + encoder.finish(), encoder.octets


@given(TRICKY, LINES, NUL, st.integers(1, 70))
@example(b"a\r\n.b", None, None, 2)
@example(b"a\n\n.b\nc", 1, None, 3)
@example(b"a\r\n\r\nb\r\n", 0, None, 1)
def test_a_client_gets_the_normalised_message(message: bytes, lines: int | None, nul: bytes | None, step: int) -> None:
    expected = normalised(message, nul, lines)
    block, octets = encode(message, step, nul=nul, lines=lines)
    assert unstuffed(block) == expected
    assert octets == len(expected)


LONG_LINES = st.tuples(
    st.sampled_from([1, 30, 31, 74, 76]),
    st.sampled_from([b"\r\n", b"\n", b"\r"]),
    st.lists(
        st.tuples(st.integers(0, 20_000), st.sampled_from([b"\n", b"\r", b".", b"\r\n.", b"\0", b""])), max_size=3
    ),
    st.integers(0, 80),
)


@given(LONG_LINES, st.sampled_from([5_000, 8_191, 1 << 20]))
@example((76, b"\r\n", [], 0), 1 << 20)
@example((76, b"\r\n", [(9_000, b"\n")], 0), 1 << 20)
@example((76, b"\r\n", [], 77), 1 << 20)
def test_attachments_of_equal_lines_too(shape: tuple[int, bytes, list[tuple[int, bytes]], int], step: int) -> None:
    length, end, changes, offset = shape
    message = bytearray((b"x" * length + end) * (20_000 // length))[offset:]
    for at, change in changes:
        message[at : at + len(change)] = change
    expected = normalised(bytes(message), b"\x80", None)
    block, octets = encode(bytes(message), step)
    assert unstuffed(block) == expected
    assert octets == len(expected)


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"Subject: x\r\n\r\nText.\r\n",
        (b"x" * 76 + b"\r\n") * 1_000,
        b"x" * 10_000,
        b"One line. Another\r\nthat is longer\r\n" * 1_000,
    ],
    ids=["nothing", "short", "attachment", "one line", "text"],
)
def test_what_is_right_is_passed_on_as_the_same_object(piece: bytes) -> None:
    assert MessageEncoder().feed(piece) is piece


def test_a_view_is_taken_as_bytes_are() -> None:
    assert MessageEncoder().feed(memoryview(b"a\n.\n")) == b"a\r\n..\r\n"


@pytest.mark.parametrize(
    ("message", "lines", "block"),
    [
        (b"", None, b".\r\n"),
        (b"a", None, b"a\r\n.\r\n"),
        (b"a\r", None, b"a\r\r\n.\r\n"),
        (b".", None, b"..\r\n.\r\n"),
        (b"a\rb\r\n", None, b"a\rb\r\n.\r\n"),
        (b"a\r.\r\n", None, b"a\r.\r\n.\r\n"),
        (b"a: b\r\n", None, b"a: b\r\n.\r\n"),
        (b"", 0, b"\r\n.\r\n"),
        (b"a: b\r\n", 5, b"a: b\r\n\r\n.\r\n"),
        (b"a: b", 5, b"a: b\r\n\r\n.\r\n"),
        (b"\nbody\n", 0, b"\r\n.\r\n"),
        (b"\nbody\n", 1, b"\r\nbody\r\n.\r\n"),
        (b"a: b\n\n1\n\n3\n4\n", 3, b"a: b\r\n\r\n1\r\n\r\n3\r\n.\r\n"),
        (b"a: b\n\n1\n2", 2, b"a: b\r\n\r\n1\r\n2\r\n.\r\n"),
        (b"a: b\n\n.1\n2", 9, b"a: b\r\n\r\n..1\r\n2\r\n.\r\n"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_the_block_itself(message: bytes, lines: int | None, block: bytes, step: int) -> None:
    assert encode(message, step, lines=lines)[0] == block


def test_top_says_when_it_has_enough_and_takes_no_more() -> None:
    encoder = MessageEncoder(body_lines=1)
    assert encoder.feed(b"a: b\r\n") == b"a: b\r\n"
    assert not encoder.enough
    assert encoder.feed(b"\r\n1\r\n2") == b"\r\n1\r\n"
    assert encoder.enough
    assert encoder.feed(b"2\r\n") == b""
    assert encoder.finish() == b".\r\n"
    assert encoder.octets == 11


def test_retr_never_has_enough() -> None:
    encoder = MessageEncoder()
    encoder.feed(b"a: b\r\n\r\n")
    assert not encoder.enough

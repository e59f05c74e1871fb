from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.errors import RemoteProtocolError
from mailgate.wire.framing import Limits, LineBuffer
from tests.wire.cuts import pieces


def holding(data: bytes) -> LineBuffer:
    buffer = LineBuffer()
    buffer.receive(data)
    return buffer


def test_the_limits_are_what_the_standards_and_memory_ask_for() -> None:
    limits = Limits()
    assert (limits.line, limits.literal, limits.literals) == (65_536, 16_384, 64)
    assert (limits.arguments, limits.nesting) == (256, 8)
    assert (limits.sasl_line, limits.total) == (65_536, 262_144)


def test_lines_are_taken_with_their_ends_and_the_rest_stays() -> None:
    buffer = holding(b"one\r\ntwo\n\nthr")
    assert [buffer.line(10), buffer.line(10), buffer.line(10), buffer.line(10)] == [b"one\r\n", b"two\n", b"\n", None]
    assert len(buffer) == 3
    assert buffer.taken == 10
    buffer.receive(memoryview(b"ee\n!"))
    assert buffer.line(10) == b"three\n"
    assert buffer.take(9) == b"!"
    assert buffer.taken == 17


def test_an_empty_line_may_come_first() -> None:
    assert holding(b"\n").line(1) == b"\n"


def test_taking_and_looking() -> None:
    buffer = holding(b"abcdef")
    assert buffer.peek(2) == b"ab"
    assert buffer.peek(99) == b"abcdef"
    assert buffer.starts_with(b"abc")
    assert not buffer.starts_with(b"bc")
    assert buffer.take(0) == b""
    assert buffer.take(4) == b"abcd"
    assert buffer.peek(9) == b"ef"
    assert buffer.taken == 4


@pytest.mark.parametrize("step", [1, 2, 99])
def test_a_line_of_just_the_limit_is_taken(step: int) -> None:
    buffer = LineBuffer()
    for piece in pieces(b"12345\r\n", step):
        assert buffer.line(7) is None
        buffer.receive(piece)
    assert buffer.line(7) == b"12345\r\n"
    assert holding(b"1234567").line(7) is None


def test_a_line_over_the_limit_raises_and_stays() -> None:
    for data in (b"123456\r\n", b"12345678", b"123456\r\nx"):
        buffer = holding(data)
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match=r"^line too long$"):
                buffer.line(7)
        assert buffer.peek(99) == data
        assert buffer.taken == 0


def test_a_line_end_behind_what_was_searched_before_is_found_after_a_take() -> None:
    buffer = holding(b"abc")
    assert buffer.line(9) is None
    buffer.take(2)
    buffer.receive(b"\nd\n")
    assert buffer.line(9) == b"c\n"
    assert buffer.line(9) == b"d\n"


def test_an_unfinished_line_is_not_searched_twice() -> None:
    buffer = holding(b"ab")
    assert buffer.line(9) is None
    assert buffer._scanned == 2
    buffer.receive(b"c\n")
    assert buffer.line(9) == b"abc\n"
    assert buffer._scanned == 0


@pytest.mark.parametrize("step", [1, 2, 3, 99])
def test_a_skipped_line_leaves_its_end_however_it_is_cut(step: int) -> None:
    buffer = LineBuffer()
    found = []
    for piece in pieces(b"0123456789\r\nnext\n", step):
        buffer.receive(piece)
        if not found and (end := buffer.skip_line(5)) is not None:
            found.append(end)
        elif not found:
            assert len(buffer) <= 5
    assert found == [b"789\r\n"]
    assert buffer.line(99) == b"next\n"
    assert buffer.taken == 17


def test_a_skipped_line_that_is_shorter_than_what_is_kept() -> None:
    buffer = holding(b"ab")
    assert buffer.skip_line(5) is None
    assert buffer.peek(9) == b"ab"
    buffer.receive(b"\nc\n")
    assert buffer.skip_line(5) == b"ab\n"
    assert buffer.skip_line(0) == b""
    assert len(buffer) == 0


@pytest.mark.parametrize("step", [1, 2, 3, 99])
def test_an_overlong_line_is_dropped_as_it_comes_and_told_at_its_end(step: int) -> None:
    buffer = LineBuffer()
    heard: list[bytes | str] = []
    for piece in pieces(b"ab\n" + b"x" * 50 + b"\ncd\r\n" + b"y" * 5 + b"\n\n", step):
        buffer.receive(piece)
        while True:
            try:
                line = buffer.line_or_drop(4)
            except RemoteProtocolError as error:
                line = None
                heard.append(str(error))
                continue
            if line is None:
                break
            heard.append(line)
        assert len(buffer) <= 4
    assert heard == [b"ab\n", "line too long", b"cd\r\n", "line too long", b"\n"]


@given(st.binary(max_size=200), st.integers(1, 40))
def test_lines_are_the_same_however_they_are_cut(data: bytes, step: int) -> None:
    buffer = LineBuffer()
    lines = []
    for piece in pieces(data, step):
        buffer.receive(piece)
        while (line := buffer.line(500)) is not None:
            lines.append(line)
    rest = buffer.take(len(buffer))
    assert b"".join(lines) + rest == data
    assert b"\n" not in rest
    assert all(line.find(b"\n") == len(line) - 1 for line in lines)
    assert buffer.taken == len(data)


def test_what_a_pattern_matches_is_counted_and_stays() -> None:
    buffer = holding(b"12 34")
    assert buffer.match(re.compile(rb"[0-9]+")) == 2
    assert buffer.match(re.compile(rb" ")) == 0
    assert buffer.take(9) == b"12 34"

"""Messages between two ends of a channel: whole, in pieces, with descriptors, and to an end that is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.workers import packets
from mailgate.workers.packets import DESCRIPTORS, PIECE, Channel, channels

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = channels()
    yield made
    for one in made:
        one.close()


def taken(channel: Channel) -> list[dict[str, object]]:
    return [message for message, _ in channel.receive()]


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=5), st.integers(0, 5))
def test_what_is_sent_arrives(facts: dict[str, object], more: int) -> None:
    first, second = channels()
    message = {"word": "x", "facts": facts, "long": "ü" * (more * PIECE // 3)}
    assert first.put(message)
    assert first.put({"word": "y"})
    found = taken(second)
    while first.waiting or len(found) < 2:
        first.flush()
        found += taken(second)
    assert found == [message, {"word": "y"}]
    first.close()
    second.close()


def test_more_than_the_socket_takes_waits_for_the_other_end(pair: Pair) -> None:
    first, second = pair
    message = {"sessions": ["x" * 1000] * 5000}
    assert first.put(message)
    assert first.waiting
    found: list[dict[str, object]] = []
    while not found:
        found += taken(second)
        assert first.flush()
    assert found == [message]
    assert not first.waiting
    assert taken(second) == []


@pytest.mark.parametrize("count", [1, DESCRIPTORS, DESCRIPTORS + 1, 2 * DESCRIPTORS + 5])
def test_descriptors_go_with_a_message_and_stay_the_sender_s(count: int, pair: Pair) -> None:
    first, second = pair
    reading, writing = os.pipe()
    try:
        assert first.put({"word": "apply"}, [writing] * count)
        ((message, got),) = second.receive()
        assert (message, len(got)) == ({"word": "apply"}, count)
        os.write(writing, b"a")
        os.write(got[-1], b"b")
        assert os.read(reading, 2) == b"ab"
        for one in got:
            os.close(one)
    finally:
        os.close(reading)
        os.close(writing)


def test_an_end_that_is_gone_is_told_after_what_it_said(pair: Pair) -> None:
    first, second = pair
    first.put({"word": "last"})
    first.close()
    assert taken(second) == [{"word": "last"}]
    with pytest.raises(EOFError):
        second.receive()
    assert not second.put({"word": "nobody hears it"})
    assert not second.waiting


def test_an_end_that_died_with_something_unread_is_gone_too(pair: Pair) -> None:
    first, second = pair
    second.put({"word": "unread"})
    first.close()
    with pytest.raises(EOFError):
        second.receive()


def test_an_end_that_never_reads_is_refused_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "QUEUE_LIMIT", 4 * PIECE)
    first, _ = pair
    message = {"text": "x" * PIECE}
    assert [first.put(message) for _ in range(50)][-1] is False
    # What was accepted is kept, as far as it goes.
    assert first.waiting


def test_a_message_without_bound_is_no_message(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "MESSAGE_LIMIT", 100)
    with pytest.raises(ValueError, match="too large"):
        pair[0].put({"text": "x" * 100})
    assert pair[0].put({"text": "x"})
    assert taken(pair[1]) == [{"text": "x"}]


def test_what_was_not_sent_leaves_no_descriptor_open(pair: Pair) -> None:
    first, second = pair
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket() as sock:
        while not first.waiting:
            first.put({"text": "x" * PIECE}, [sock.fileno()])
    first.close()
    for _, descriptors in second.receive():
        for one in descriptors:
            os.close(one)
    second.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_end_goes_on_in_another_program_where_it_was(pair: Pair) -> None:
    first, second = pair
    long = {"word": "long", "text": "x" * 5 * PIECE}
    for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        first.socket.setsockopt(socket.SOL_SOCKET, size, PIECE)
        second.socket.setsockopt(socket.SOL_SOCKET, size, PIECE)
    first.put(long)
    assert second.receive() == []
    assert first.waiting
    assert second.incoming.data
    # What each knew, and another copy of its socket.
    heirs = [
        Channel(socket.socket(fileno=os.dup(one.socket.fileno())), one.unsent, one.incoming) for one in (first, second)
    ]
    found: list[dict[str, object]] = []
    while not found:
        heirs[0].flush()
        found += taken(heirs[1])
    assert found == [long]
    assert not heirs[0].waiting
    for heir in heirs:
        heir.socket.close()

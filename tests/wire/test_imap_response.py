from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.errors import RemoteProtocolError
from mailgate.wire.imap_response import (
    RESPONSE_LIMIT,
    STATUSES,
    Response,
    ResponseReceiver,
    capabilities,
    capability_tokens,
)
from tests.wire.cuts import each_way, feed

NEXT = Response(b"* 5 EXISTS\r\n", b"*", "EXISTS", "", b"", b"")


def read(line: bytes) -> Response:
    (response,) = feed(ResponseReceiver(), line)
    assert isinstance(response, Response)
    return response


@pytest.mark.parametrize(
    ("line", "tag", "status", "code", "code_data", "text"),
    [
        (b"* OK ready", b"*", "OK", "", b"", b"ready"),
        (b"* ok ready", b"*", "OK", "", b"", b"ready"),
        (b"* OK", b"*", "OK", "", b"", b""),
        (b"* OK ", b"*", "OK", "", b"", b""),
        (b"* OK  two", b"*", "OK", "", b"", b" two"),
        (b"* PREAUTH hello", b"*", "PREAUTH", "", b"", b"hello"),
        (b"* [ALERT] no status {5}", b"*", "OK", "ALERT", b"", b"no status {5}"),
        (b"[ALERT] no star {5}", b"*", "OK", "ALERT", b"", b"no star {5}"),
        (b"* BYE [UNAVAILABLE] later", b"*", "BYE", "UNAVAILABLE", b"", b"later"),
        (b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", b"*", "OK", "CAPABILITY", b"IMAP4rev1 AUTH=PLAIN", b"hi"),
        (b"* OK [Capability IMAP4rev1]hi", b"*", "OK", "CAPABILITY", b"IMAP4rev1", b"hi"),
        (b"* OK [CAPABILITY ] hi", b"*", "OK", "CAPABILITY", b"", b"hi"),
        (b"* OK [broken hi", b"*", "OK", "", b"", b"[broken hi"),
        (b"* OK [] hi", b"*", "OK", "", b"", b"[] hi"),
        (b"* OK see [ALERT] x", b"*", "OK", "", b"", b"see [ALERT] x"),
        (b"* OK this is text {5}", b"*", "OK", "", b"", b"this is text {5}"),
        (b"* NO {100}", b"*", "NO", "", b"", b"{100}"),
        (b"L1 OK Logged in", b"L1", "OK", "", b"", b"Logged in"),
        (b"L1 NO [AUTHENTICATIONFAILED] Invalid.", b"L1", "NO", "AUTHENTICATIONFAILED", b"", b"Invalid."),
        (b"L1 NO [alert]", b"L1", "NO", "ALERT", b"", b""),
        (b"L1 BAD what? {3}", b"L1", "BAD", "", b"", b"what? {3}"),
        ("* OK grüß".encode(), b"*", "OK", "", b"", "grüß".encode()),
        (b"+ dGVzdA==", b"+", "", "", b"", b"dGVzdA=="),
        (b"+ ", b"+", "", "", b"", b""),
        (b"+", b"+", "", "", b"", b""),
        (b"+dGVzdA==", b"+", "", "", b"", b"dGVzdA=="),
        (b"+  x {5}", b"+", "", "", b"", b" x {5}"),
        (b"* CAPABILITY IMAP4rev1 IDLE ", b"*", "CAPABILITY", "", b"", b"IMAP4rev1 IDLE"),
        (b"* capability IMAP4rev1", b"*", "CAPABILITY", "", b"", b"IMAP4rev1"),
        (b'* ID ("name" "x")', b"*", "ID", "", b"", b'("name" "x")'),
        (b"* 12 EXISTS", b"*", "EXISTS", "", b"", b""),
        (b"* 12 Fetch (FLAGS ())", b"*", "FETCH", "", b"", b"(FLAGS ())"),
        (b"* 12", b"*", "12", "", b"", b""),
        (b"* \xb2 EXISTS", b"*", "\xb2", "", b"", b"EXISTS"),
        (b"* FLAGS [x]", b"*", "FLAGS", "", b"", b"[x]"),
        (b"* X\xc3 y", b"*", "X\xc3", "", b"", b"y"),
    ],
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_response_is_read_as_far_as_needed(
    line: bytes, tag: bytes, status: str, code: str, code_data: bytes, text: bytes, end: bytes
) -> None:
    found = each_way(ResponseReceiver, line + end + NEXT.raw)
    assert found == [Response(line + end, tag, status, code, code_data, text), NEXT]


def test_the_statuses() -> None:
    assert {"OK", "NO", "BAD", "BYE", "PREAUTH"} == STATUSES


@pytest.mark.parametrize(
    "raw",
    [
        b'* ID ("name" {4}\r\na\r\nb)\r\n',
        b'* ID ("name" {5}\nL1 OK)\n',
        b"* X {0}\r\n\r\n",
        b"* X {2}\r\n\r\n {3}\r\n+ x ~{1}\r\n\0 y\r\n",
        b"* LIST () NIL {6}\r\n* OK x\r\n",
    ],
)
def test_literals_in_data_are_taken_with_their_response(raw: bytes) -> None:
    first, after = each_way(ResponseReceiver, raw + NEXT.raw)
    assert first.raw == raw
    assert first.text == raw.splitlines()[0].split(b" ", 2)[2].strip()
    assert after == NEXT


@pytest.mark.parametrize(
    "line", [b"* X {5 }\r\n", b"* X {}\r\n", b"* X {a}\r\n", b"* X {5}x\r\n", b"* X {1234567890123}\r\n"]
)
def test_what_announces_no_literal(line: bytes) -> None:
    assert [one.raw for one in each_way(ResponseReceiver, line + NEXT.raw)] == [line, NEXT.raw]


@pytest.mark.parametrize(
    "line", [b"\r\n", b"\n", b" * OK\r\n", b"*\r\n", b"L1\r\n", b"* \r\n", b"*  OK\r\n", b"\r* OK\r\n"]
)
def test_what_is_no_response_raises(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^malformed response$"):
        feed(ResponseReceiver(), line)


@pytest.mark.parametrize("step", [1, 3, 99])
def test_a_response_is_as_long_as_the_limit_at_most(step: int) -> None:
    assert RESPONSE_LIMIT == 65_536
    for fits, longer in (
        (b"* OK 6789012345678\r\n", b"* OK 67890123456789\r\n"),
        (b"* X {9}\r\n123456789\r\n", b"* X {9}\r\n123456789x\r\n"),
        (b"* X {9}\r\n123456789\r\n", b"* X {10}\r\n1234567890\r\n"),
        (b"* X {10}\r\n", b"* X {11}\r\n"),
        (b"* X {9}\n12345678\n\r\n", b"* X {9999999999}\r\n"),
    ):
        assert len(feed(ResponseReceiver(20), fits, step)) == (not fits.endswith(b"{10}\r\n"))
        with pytest.raises(RemoteProtocolError, match=r"^(line|response) too long$"):
            feed(ResponseReceiver(20), longer, step)


def test_the_limit_is_of_each_response() -> None:
    assert len(feed(ResponseReceiver(20), b"* X {2}\r\nxy\r\n* OK abcdef\r\n" * 20)) == 40
    line = b"* OK " + b"x" * (RESPONSE_LIMIT - 7) + b"\r\n"
    assert feed(ResponseReceiver(), line, 5000)[0].raw == line
    with pytest.raises(RemoteProtocolError):
        feed(ResponseReceiver(), b"x" + line, 5000)


def test_what_was_not_read_is_handed_over() -> None:
    receiver = ResponseReceiver()
    receiver.receive(memoryview(b"* OK one\r\n* OK tw"))
    assert receiver.buffered == 17
    assert receiver.next() is not None
    assert receiver.next() is None
    assert receiver.buffered == 7
    assert receiver.take_residual() == b"* OK tw"


def test_an_unfinished_response_is_handed_over_with_its_first_parts() -> None:
    receiver = ResponseReceiver()
    receiver.receive(b"* X {2}\r\nab {3}\r\nc")
    assert receiver.next() is None
    assert receiver.buffered == 18
    assert receiver.take_residual() == b"* X {2}\r\nab {3}\r\nc"


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        (b"* CAPABILITY IMAP4rev1  Idle AUTH=plain\r\n", (b"IMAP4rev1", b"Idle", b"AUTH=plain")),
        (b"* OK [CAPABILITY IMAP4rev1 Idle] x\r\n", (b"IMAP4rev1", b"Idle")),
        (b"L1 OK [capability IMAP4rev1] x\r\n", (b"IMAP4rev1",)),
        (b"* CAPABILITY\r\n", ()),
        (b"* CAPABILITY X\xe4\r\n", (b"X\xe4",)),
        (b"L1 CAPABILITY IMAP4rev1\r\n", None),
        (b"* OK CAPABILITY IMAP4rev1\r\n", None),
        (b"* FLAGS (x)\r\n", None),
        (b"* OK [ALERT CAPABILITY] x\r\n", None),
    ],
)
def test_capabilities(line: bytes, tokens: tuple[bytes, ...] | None) -> None:
    response = read(line)
    assert capability_tokens(response) == tokens
    upper = None if tokens is None else frozenset(token.decode("latin-1").upper() for token in tokens)
    assert capabilities(response) == upper


FRAGMENTS = [
    b"* ",
    b"OK ",
    b"+ ",
    b"X ",
    b"{3}\r\n",
    b"{0}\n",
    b"\r\n",
    b"\n",
    b"L1 NO",
    b"[A b] ",
    b"5 ",
    b"x" * 30,
    b"\r",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.integers(1, 20))
def test_responses_do_not_depend_on_how_they_were_cut(fragments: list[bytes], step: int) -> None:
    data = b"".join(fragments)
    outcomes = []
    for size in (1 << 20, 1, 3, step):
        receiver = ResponseReceiver(60)
        found: list[bytes | str] = []
        for at in range(0, len(data), size):
            receiver.receive(data[at : at + size])
            try:
                while (response := receiver.next()) is not None:
                    found.append(response.raw)
            except RemoteProtocolError:
                found.append("error")
                break
        else:
            found.append(receiver.take_residual())
        outcomes.append(found)
    assert outcomes[1:] == outcomes[:1] * 3


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    receiver = ResponseReceiver()
    with contextlib.suppress(RemoteProtocolError):
        assert sum(len(one.raw) for one in feed(receiver, data)) + receiver.buffered == len(data)

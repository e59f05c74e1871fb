from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.errors import RemoteProtocolError
from mailgate.wire.framing import BadCommand, Limits, SaslLine
from mailgate.wire.pop3 import (
    BLOCK_LIMIT,
    COMMAND_LIMIT,
    REPLY_LIMIT,
    SECRET_LIMIT,
    CommandReceiver,
    Pop3Command,
    Reply,
    ReplyReceiver,
)
from tests.wire.cuts import STEPS, each_way, feed

MALFORMED = BadCommand(None, "Malformed command")
TOO_LONG = BadCommand(None, "Line too long")
SMALL = Limits(sasl_line=10, total=60)

# -------------------------------------------------------------------- commands


def test_the_limits() -> None:
    assert (COMMAND_LIMIT, SECRET_LIMIT, REPLY_LIMIT, BLOCK_LIMIT) == (255, 16_384, 8_192, 16_384)


@pytest.mark.parametrize(
    ("text", "verb", "argument"),
    [
        (b"QUIT", "QUIT", b""),
        (b"quit", "QUIT", b""),
        (b"CAPA ", "CAPA", b""),
        (b"UsEr fred", "USER", b"fred"),
        (b"USER fred smith ", "USER", b"fred smith "),
        (b"USER  fred", "USER", b" fred"),
        ("USER jürgen".encode(), "USER", "jürgen".encode()),
        (b"USER \xff\xfe", "USER", b"\xff\xfe"),
        (b"PASS  two spaces\t", "PASS", b" two spaces\t"),
        (b"PASS", "PASS", b""),
        (b"AUTH PLAIN =", "AUTH", b"PLAIN ="),
        (b"X23456789012345z", "X23456789012345Z", b""),
        (b"UTF8", "UTF8", b""),
    ],
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_command_is_its_verb_and_the_untouched_rest(text: bytes, verb: str, argument: bytes, end: bytes) -> None:
    found = each_way(CommandReceiver, text + end + b"NOOP\r\n")
    assert found == [
        Pop3Command(verb, argument, text + end),
        Pop3Command("NOOP", b"", b"NOOP\r\n"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n",
        b" QUIT\r\n",
        b"QUIT\tx\r\n",
        b"US-ER x\r\n",
        b"USER a\rb\r\n",
        b"USER a\r\r\n",
        b"X234567890123456z\r\n",
        "ÜSER x\r\n".encode(),
    ],
)
def test_what_is_no_command_is_answered_and_the_next_one_is_found(line: bytes) -> None:
    assert each_way(CommandReceiver, line + b"NOOP\r\n") == [
        MALFORMED,
        Pop3Command("NOOP", b"", b"NOOP\r\n"),
    ]


@pytest.mark.parametrize(
    ("verb", "limit"),
    [(b"USER ", COMMAND_LIMIT), (b"NOOP ", COMMAND_LIMIT), (b"PASS ", SECRET_LIMIT), (b"auth ", SECRET_LIMIT)],
)
def test_only_secrets_may_be_long(verb: bytes, limit: int) -> None:
    fits = verb + b"x" * (limit - len(verb) - 2) + b"\r\n"
    (command,) = feed(CommandReceiver(), fits)
    assert command.raw == fits
    for more in (b"x", b"x" * SECRET_LIMIT):
        found = each_way(CommandReceiver, verb + more + fits[len(verb) :] + b"QUIT\r\n", 1000, 9)
        assert found == [TOO_LONG, Pop3Command("QUIT", b"", b"QUIT\r\n")]


def test_an_overlong_line_is_not_kept() -> None:
    receiver = CommandReceiver()
    for _ in range(10):
        receiver.receive(b"x" * 20_000)
        assert receiver.next() is None
        assert receiver.buffered == 0
    assert receiver.total == 200_000


@pytest.mark.parametrize(
    ("data", "text", "foreign"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "TLS is not spoken here", "tls"),
        (b"GET / HTTP/1.1\r\n", "HTTP is not spoken here", "http"),
        (b"PRI * HTTP/2.0\r\n", "HTTP is not spoken here", "http"),
        (b"USER a\0b\r\n", "NUL is not allowed", None),
    ],
)
def test_what_ends_the_connection(data: bytes, text: str, foreign: str | None) -> None:
    found = each_way(CommandReceiver, data + b"\r\nQUIT\r\n")
    assert found == [BadCommand(None, text, fatal=True, foreign=foreign)]


def test_tls_is_recognised_only_at_the_beginning() -> None:
    assert each_way(CommandReceiver, b"NOOP\r\n\x16\x03\r\n")[1:] == [MALFORMED]


def test_all_that_comes_before_login_is_bounded() -> None:
    data = b"NOOP\r\n" * 10
    assert len(feed(CommandReceiver(SMALL), data)) == 10
    receiver = CommandReceiver(SMALL)
    receiver.receive(data + b"Q")
    assert receiver.total == 61
    assert receiver.next() == BadCommand(None, "Too much was sent before login", fatal=True)
    assert receiver.next() is None
    found = feed(CommandReceiver(SMALL), data + b"QUIT\r\n", 6)
    assert [type(one) for one in found] == [Pop3Command] * 10 + [BadCommand]


@pytest.mark.parametrize("step", STEPS)
def test_sasl_lines_and_what_follows_them(step: int) -> None:
    receiver = CommandReceiver(SMALL)
    data = b"dGVzdA==\r\n*\n\r\n12345678\r\n123456789\r\n" + b"x" * 15 + b"\r\n=\r\n"
    assert receiver.next_line() is None
    assert feed(receiver, data, step, receiver.next_line) == [
        SaslLine(b"dGVzdA=="),
        SaslLine(b"*"),
        SaslLine(b""),
        SaslLine(b"12345678"),
        TOO_LONG,
        TOO_LONG,
        SaslLine(b"="),
    ]
    assert receiver.total == len(data)


def test_an_overlong_sasl_line_does_not_end_the_receiver() -> None:
    receiver = CommandReceiver(SMALL)
    receiver.receive(b"0123456789abc")
    assert receiver.next_line() is None
    assert receiver.buffered == 0
    receiver.receive(b"\r\nQUIT\r\n")
    assert receiver.next_line() == TOO_LONG
    assert receiver.next() == Pop3Command("QUIT", b"", b"QUIT\r\n")


def test_what_was_not_read_is_handed_over() -> None:
    receiver = CommandReceiver()
    receiver.receive(b"PASS x\r\nSTAT\r\nLI")
    assert receiver.buffered == 16
    receiver.next()
    assert receiver.buffered == 8
    assert receiver.take_residual() == b"STAT\r\nLI"
    assert receiver.buffered == 0
    assert receiver.total == 16


FRAGMENTS = [
    b"USER a\r\n", b"QUIT", b"\r\n", b"\n", b"\r", b" ", b"PASS ", b"\0", b"GET / HTTP/", b"x" * 250, b"AUTH ",
    b"\x16", b"\xff",
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.integers(1, 30))
def test_commands_do_not_depend_on_how_they_were_cut(fragments: list[bytes], step: int) -> None:
    each_way(CommandReceiver, b"".join(fragments), 1, 3, step)


# -------------------------------------------------------------------- replies


def reply(raw: bytes, ok: bool, code: str, text: bytes) -> Reply:
    return Reply(raw, ok, False, code, text)


@pytest.mark.parametrize(
    ("text", "ok", "code", "rest"),
    [
        (b"+OK", True, "", b""),
        (b"+ok Dovecot ready.", True, "", b"Dovecot ready."),
        (b"+OK <1896.697170952@dbc.mtview.ca.us>", True, "", b"<1896.697170952@dbc.mtview.ca.us>"),
        (b"+OK  two", True, "", b" two"),
        (b"-ERR", False, "", b""),
        (b"-err no", False, "", b"no"),
        (b"-ERR [IN-USE] Do you have another session?", False, "IN-USE", b"Do you have another session?"),
        (b"-ERR [sys/temp] later", False, "SYS/TEMP", b"later"),
        (b"-ERR [AUTH]", False, "AUTH", b""),
        (b"-ERR [X_1]now", False, "X_1", b"now"),
        (b"-ERR [not a code] x", False, "", b"[not a code] x"),
        (b"-ERR see [AUTH] x", False, "", b"see [AUTH] x"),
        (b"+OK caf\xe9", True, "", b"caf\xe9"),
    ],
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_reply(text: bytes, ok: bool, code: str, rest: bytes, end: bytes) -> None:
    found = each_way(ReplyReceiver, text + end + b"+OK\r\n")
    assert found == [reply(text + end, ok, code, rest), reply(b"+OK\r\n", True, "", b"")]


@pytest.mark.parametrize(
    ("text", "challenge"),
    [(b"+ dGVzdA==", b"dGVzdA=="), (b"+ ", b""), (b"+", b""), (b"+dGVzdA==", b"dGVzdA=="), (b"+  x", b" x")],
)
def test_a_continuation(text: bytes, challenge: bytes) -> None:
    assert each_way(ReplyReceiver, text + b"\r\n") == [Reply(text + b"\r\n", False, True, "", challenge)]


@pytest.mark.parametrize("line", [b"\r\n", b"* OK IMAP\r\n", b"220 smtp\r\n", b"-ERROR\r\n", b" +OK\r\n", b"OK\r\n"])
def test_what_is_no_reply_raises(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^malformed reply$"):
        feed(ReplyReceiver(), line)


def test_a_reply_is_as_long_as_the_limit_at_most() -> None:
    line = b"+OK " + b"x" * (REPLY_LIMIT - 6) + b"\r\n"
    assert feed(ReplyReceiver(), line) == [reply(line, True, "", line[4:-2])]
    with pytest.raises(RemoteProtocolError, match="line too long"):
        feed(ReplyReceiver(), b"x" + line)


@pytest.mark.parametrize("step", STEPS)
def test_the_lines_of_a_block_are_unstuffed(step: int) -> None:
    receiver = ReplyReceiver()
    data = b"TOP\r\nSASL PLAIN\n..dots\r\n.x\r\n\r\n.\r\n.\r\nlast\r\n.\n"
    blocks = feed(receiver, data, step, receiver.next_block)
    assert blocks == [(b"TOP", b"SASL PLAIN", b".dots", b"x", b""), (), (b"last",)]
    assert receiver.buffered == 0


def test_a_block_is_bounded() -> None:
    line = b"x" * 1022 + b"\r\n"
    receiver = ReplyReceiver()
    receiver.receive(line * (BLOCK_LIMIT // 1024))
    assert receiver.next_block() is None
    assert receiver.buffered == BLOCK_LIMIT
    receiver.receive(b".\r\n")
    assert receiver.next_block() == (b"x" * 1022,) * 16
    receiver.receive(line * (BLOCK_LIMIT // 1024) + b"\n")
    with pytest.raises(RemoteProtocolError, match=r"^reply too long$"):
        receiver.next_block()
    other = ReplyReceiver()
    other.receive(b"x" * (REPLY_LIMIT + 1))
    with pytest.raises(RemoteProtocolError, match="line too long"):
        other.next_block()


def test_replies_that_were_not_read_are_handed_over() -> None:
    receiver = ReplyReceiver()
    receiver.receive(b"+OK one\r\n+OK tw")
    assert receiver.next() is not None
    assert receiver.next() is None
    assert receiver.buffered == 6
    assert receiver.take_residual() == b"+OK tw"
    assert receiver.buffered == 0


@given(st.binary(max_size=300), st.integers(1, 30))
def test_no_bytes_raise_anything_else(data: bytes, step: int) -> None:
    assert all(isinstance(one, Pop3Command | BadCommand) for one in feed(CommandReceiver(), data, step))
    replies, blocks = ReplyReceiver(), ReplyReceiver()
    with contextlib.suppress(RemoteProtocolError):
        feed(replies, data, step)
    assert replies.buffered <= len(data)
    taken = [line for block in feed(blocks, data, step, blocks.next_block) for line in block]
    assert sum(map(len, taken)) + blocks.buffered <= len(data)

"""Where a reply or the end of a block could be taken for another one, if a detail of the core were different."""

from __future__ import annotations

import pytest

from mailgate.model import Deny, Refusal
from mailgate.wire.relay import MAX_IN_FLIGHT
from mailgate.wire.relay_pop3 import CAPABILITIES_LIMIT, LINE_LIMIT, MAX_REPLIES, REPLY_LIMIT, Pop3Relay
from tests.support.cores import Script
from tests.wire.test_relay_pop3 import REFUSED, VERBS, relay, visible


def test_the_limits() -> None:
    assert (LINE_LIMIT, REPLY_LIMIT, CAPABILITIES_LIMIT) == (1024, 8192, 16_384)


def test_the_core_knows_commands() -> None:
    assert relay().core.opaque is False


@pytest.mark.parametrize(
    ("command", "answer", "out"), [(b"NOOP", b"+OK", False), (b"XQUIT", b"+OK", False), (b"QUIT", b"+OK", True)]
)
def test_only_quit_logs_out(command: bytes, answer: bytes, out: bool) -> None:
    script = relay()
    script.client(command + b"\r\n")
    assert not script.core.logged_out
    script.upstream(answer + b"\r\n")
    assert script.core.logged_out is out


def test_a_command_takes_the_time_until_its_answer() -> None:
    script = relay()
    script.clock = 10
    script.client(b"RETR 1\r\nSTAT\r\n")
    script.upstream(b"+OK\r\n")
    script.upstream(b".\r\n+OK\r\n")
    assert [(done.verb, done.seconds) for done in script.finished] == [("RETR", 2), ("STAT", 2)]


@pytest.mark.parametrize(
    ("line", "result"),
    [
        (b"NO-OP\r\n", ("other", "bad")),
        (b"LIST " + b"1" * LINE_LIMIT + b"\r\n", ("other", "bad")),
        (b"STLS\r\n", ("STLS", "refused")),
    ],
)
def test_what_is_answered_here_is_told(line: bytes, result: tuple[str, str]) -> None:
    script = relay()
    assert script.client(line) == b""
    assert script.results == [result]
    assert script.finished[0].seconds == 0


@pytest.mark.parametrize(
    ("code", "answer"), [("", b"-ERR Slow down\r\n"), ("SYS/TEMP", b"-ERR [SYS/TEMP] Slow down\r\n")]
)
def test_a_refusal_has_its_code(code: str, answer: bytes) -> None:
    refusal = Deny(Refusal("limit", "Slow down", pop3_code=code), "rule")
    script = Script(Pop3Relay(decide=lambda verb: refusal, visible=visible, verbs=VERBS))
    script.client(b"NOOP\r\n")
    assert script.client_got == answer


def test_a_line_of_just_the_limit_passes() -> None:
    line = b"DELE " + b"1" * (LINE_LIMIT - 7) + b"\r\n"
    assert relay().client(line) == line
    assert relay().client(b"DELE 1" + line[5:]) == b""


@pytest.mark.parametrize(
    ("command", "block"),
    [
        (b"LIST", True),
        (b"LIST  ", True),
        (b"LIST x", False),
        (b"UIDL x x", False),
        (b"LANG *", False),
        (b"STAT", False),
    ],
)
def test_which_replies_have_lines(command: bytes, block: bool) -> None:
    script = relay()
    script.client(command + b"\r\nNOOP\r\n")
    script.upstream(b"+OK\r\n-ERR x\r\n")
    assert len(script.results) == (0 if block else 2)


def test_where_a_line_of_the_gateways_may_stand() -> None:
    script = relay()
    script.client(b"RETR 1\r\nSTAT\r\n")
    assert script.core.at_boundary
    for said, boundary in ((b"+O", False), (b"K\r\n", False), (b"x\r\n", False), (b".\r\n", True), (b"+OK 0", False),
                           (b"\r\n", True)):  # fmt: skip
        script.upstream(said)
        assert script.core.at_boundary is boundary, said


def test_a_refused_command_between_two_short_replies() -> None:
    script = relay()
    script.client(b"STAT\r\nSTLS\r\nNOOP\r\n")
    script.upstream(b"+OK 0 0\r\n")
    assert script.client_got == b"+OK 0 0\r\n" + REFUSED
    script.upstream(b"+OK\r\n")
    assert script.client_got == b"+OK 0 0\r\n" + REFUSED + b"+OK\r\n"


def test_a_held_command_waits_though_more_is_offered() -> None:
    script = relay()
    script.client(b"STAT\r\nXTND\r\n")
    for _ in range(2):
        assert script.core.client_sent(b"NOOP\r\n", 6, 0.0) == 0
        assert script.core.to_upstream == []
        assert script.core.held
    script.upstream(b"+OK\r\n")
    assert script.upstream_got == b"STAT\r\nXTND\r\n"


def test_a_reply_that_ends_in_a_bare_lf() -> None:
    script = relay()
    script.client(b"STAT\r\nSTAT\r\n")
    script.upstream(b"+OK\n-ERR\n")
    assert script.results == [("STAT", "ok"), ("STAT", "err")]


@pytest.mark.parametrize(
    ("sent", "first", "burst", "pieces"),
    [
        (b"STAT\r\nNOOP\r\n", b"", b"+OK 0 0\r\n+OK\r\n", [b"+OK 0 0\r\n+OK\r\n"]),
        (b"RETR 1\r\nSTAT\r\n", b"", b"+OK\r\nx\r\n.\r\n+OK 1 1\r\n", [b"+OK\r\nx\r\n.\r\n+OK 1 1\r\n"]),
        (b"STAT\r\nSTLS\r\nNOOP\r\n", b"", b"+OK 0 0\r\n+OK\r\n", [b"+OK 0 0\r\n", REFUSED, b"+OK\r\n"]),
        (b"STAT\r\n", b"+OK 0", b" 0\r\n", [b"+OK 0", b" 0\r\n"]),
        (b"STAT\r\n", b"", b"+OK 0", []),
        (b"CAPA\r\nSTLS\r\n", b"", b"+OK\r\nTOP\r\n.\r\n", [b"+OK\r\n", b"TOP\r\n.\r\n", REFUSED]),
        (b"CAPA\r\n", b"+OK\r\nTO", b"P\r\n.\r\n", [b"TOP\r\n.\r\n"]),
        (b"RETR 1\r\nSTLS\r\n", b"+OK\r\n", b"x\r\n.\r\n", [b"x\r\n.\r\n", REFUSED]),
    ],
)
def test_a_burst_passes_in_as_few_pieces_as_it_can(
    sent: bytes, first: bytes, burst: bytes, pieces: list[bytes]
) -> None:
    core = relay().core
    core.client_sent(sent, len(sent), 0.0)
    core.upstream_sent(first, len(first), 0.0)
    core.to_client.clear()
    core.upstream_sent(burst, len(burst), 0.0)
    assert [bytes(piece) for piece in core.to_client] == pieces


def test_capabilities_keep_their_last_letters() -> None:
    script = relay()
    script.client(b"CAPA\r\n")
    assert script.upstream(b"+OK\r\nX-Tax\r\nTOP\n.\r\n") == b"+OK\r\nX-Tax\r\nTOP\r\n.\r\n"


def test_a_capability_list_of_just_the_limit_is_filtered() -> None:
    lines = b"SASL x\r\n" * (CAPABILITIES_LIMIT // 8)
    script = relay()
    script.client(b"CAPA\r\n")
    script.upstream(b"+OK\r\n")
    assert script.upstream(lines) == b""
    assert script.upstream(b".\r\n") == b".\r\n"


def test_a_longer_one_passes_once_whatever_follows() -> None:
    pieces = [b"+OK\r\n", b"SASL x\r\n" * (CAPABILITIES_LIMIT // 8), b"TOP\r\n", b"UIDL\r\n", b".\r\n", b"+OK\r\n"]
    script = relay()
    script.client(b"CAPA\r\nSTAT\r\n")
    for piece in pieces:
        script.upstream(piece)
    assert script.client_got == b"".join(pieces)
    assert script.results == [("CAPA", "ok"), ("STAT", "ok")]


def test_a_reply_line_is_kept_up_to_the_limit() -> None:
    script = relay()
    script.client(b"STAT\r\n")
    script.upstream(b"+OK " + b"x" * (REPLY_LIMIT - 4))
    assert script.core.fatal == ""
    script.upstream(b"x")
    assert script.core.fatal == "Reply line too long"


def test_a_full_queue_blocks() -> None:
    script = relay()
    script.client(b"NOOP\r\n" * (MAX_IN_FLIGHT - 1))
    assert not script.core.blocked
    script.client(b"NOOP\r\n")
    assert script.core.blocked
    assert not script.core.held


def test_busy_is_whoever_would_lose_something_by_an_end_now() -> None:
    script = relay()
    assert not script.core.busy
    script.client(b"DELE 1\r\n")
    assert script.core.busy
    script.upstream(b"+OK\r\n")
    assert not script.core.busy


# -------------------------------------------------------------------- floods


def test_a_burst_of_bad_lines_is_answered_a_piece_at_a_time() -> None:
    data = b"\n" * 1000
    core = relay().core
    assert core.client_sent(data, len(data), 0.0) == MAX_REPLIES
    assert len(core.to_client) == MAX_REPLIES
    core.to_client.clear()
    assert core.client_sent(data[MAX_REPLIES:], len(data) - MAX_REPLIES, 0.0) == MAX_REPLIES

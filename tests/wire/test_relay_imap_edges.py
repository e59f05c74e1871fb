"""Where a command, a literal or an answer could be taken for another one, if a detail of the core were different."""

from __future__ import annotations

import time

import pytest

from mailgate.model import Deny, Refusal
from mailgate.wire.relay import MAX_IN_FLIGHT
from mailgate.wire.relay_imap import HOLD_LIMIT, LINE_LIMIT, MAX_REPLIES, ImapRelay, literal_mode
from mailgate.wire.relay_imap_lines import TAG_LIMIT
from tests.support.cores import Script
from tests.wire.cuts import short
from tests.wire.test_relay_imap import VERBS, relay, visible

DENIED = b"y NO Command not available\r\n"
FAKE = b"\r\na OK fake\r\n\r\n"
assert len(FAKE) == 15


def test_the_limits() -> None:
    assert (LINE_LIMIT, HOLD_LIMIT, MAX_REPLIES, MAX_IN_FLIGHT) == (131_072, 16_384, 100, 1000)


@pytest.mark.parametrize(
    ("capabilities", "mode"),
    [
        (("LITERAL+",), "plus"),
        (("LITERAL+", "LITERAL-", "IMAP4REV2"), "plus"),
        (("LITERAL-",), "minus"),
        (("IMAP4REV2",), "minus"),
        (("IMAP4REV1",), "none"),
    ],
)
def test_the_literals_of_a_server(capabilities: tuple[str, ...], mode: str) -> None:
    assert literal_mode(frozenset(capabilities)) == mode


def test_the_core_knows_commands() -> None:
    assert relay().core.opaque is False


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("line", "answer", "verb"),
    [
        (b"a", b"* BAD Expected a tag and a command", "other"),
        (b"a  NOOP", b"a BAD Expected a tag and a command", "other"),
        (b"a NOOP y\0", b"a BAD CR and NUL are not allowed here", "NOOP"),
        (b"a XYZZY y\r", b"a BAD CR and NUL are not allowed here", "other"),
        (b"a NOOP y\r", b"a BAD CR and NUL are not allowed here", "NOOP"),
        (b'a SELECT "x', b"a BAD Malformed quoted string", "SELECT"),
        (b"a SELECT {+}", b"a BAD Malformed literal", "SELECT"),
        (b"a SELECT {}", b"a BAD Malformed literal", "SELECT"),
        (b"a SELECT {00000000000000000001}", b"a BAD Malformed literal", "SELECT"),
    ],
)
def test_what_is_answered_here_and_why(line: bytes, answer: bytes, verb: str) -> None:
    script = relay()
    assert script.client(line + b"\r\nz NOOP\r\n") == b"z NOOP\r\n"
    assert script.client_got == answer + b"\r\n"
    assert script.results == [(verb, "bad")]


def test_a_literal_that_the_upstream_does_not_take_is_answered_here() -> None:
    script = relay("IDLE")
    assert script.client(b"a SELECT {1+}\r\nx\r\n") == b""
    assert script.client_got == b"a BAD Non-synchronizing literal not supported\r\n"


def test_a_refusal_has_its_code() -> None:
    core = ImapRelay(
        decide=lambda verb: Deny(Refusal("limit", "Slow down", imap_code="LIMIT"), "rule"),
        visible=visible,
        verbs=VERBS,
        capabilities=frozenset(),
    )
    script = Script(core)
    script.client(b"a NOOP\r\n")
    assert script.client_got == b"a NO [LIMIT] Slow down\r\n"
    assert script.results == [("NOOP", "refused")]


# -------------------------------------------------------------------- literals of the client


def test_numbers_of_nineteen_digits_are_taken() -> None:
    sent = b"a SELECT {0000000000000000001+}\r\nx\r\n"
    assert relay().willing(sent) == sent.replace(b"+", b"")
    assert relay().client(b"x LOGIN {0000000000000000001+}\r\nx\r\nz NOOP\r\n") == b"z NOOP\r\n"


@pytest.mark.parametrize("step", [1, 5, 1 << 30])
def test_a_refused_commands_literal_is_skipped_by_count(step: int) -> None:
    script = relay(step=step)
    assert script.client(b"x LOGIN {8+}\r\ny NOOP\r\n {8+}\r\ny NOOP\r\n\r\nz NOOP\r\n") == b"z NOOP\r\n"
    assert script.client_got.count(b"\r\n") == 1


@pytest.mark.parametrize(
    "ending",
    [
        b"x LOGIN {1+}\r\nx\r\n",
        b"x LOGIN {1+}\r\nx" + b"1" * LINE_LIMIT + b"\r\n",
        b"x LOGIN {1+}\r\nx" + b"1" * LINE_LIMIT + b" {8+}\r\nz NOOP\r\n\r\n",
    ],
    ids=short,
)
def test_the_command_behind_a_skipped_one_is_judged_as_any_other(ending: bytes) -> None:
    script = relay()
    assert script.client(ending + b"y COMPRESS DEFLATE\r\n") == b""
    assert script.client_got == b"x NO Command not available\r\n" + DENIED
    assert script.willing(b"z APPEND x {2+}\r\nhi\r\n") == b"z APPEND x {2}\r\nhi\r\n"


def test_the_command_behind_a_refused_literal_is_judged_as_any_other() -> None:
    script = relay()
    script.client(b"a APPEND x {5}\r\n")
    script.upstream(b"a NO [TRYCREATE] no such mailbox\r\n")
    assert script.client(b"y COMPRESS DEFLATE\r\n") == b""
    assert script.client_got.endswith(DENIED)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"a APPEND x {1+}\r\nx\ry\r\n", "CR and NUL are not allowed here"),
        (b"a APPEND x {1+}\r\n\n\r y\r\n", "CR and NUL are not allowed here"),
        (b"a APPEND x {1+}\r\nx {5 }\r\n", "Malformed literal"),
        (b"a APPEND x {1+}\r\nx" + b"1" * LINE_LIMIT + b"\r\n", "Command line too long"),
        (b"a LOGIN {%d+}\r\n" % 10**19, "Literal too large"),
    ],
    ids=short,
)
def test_what_ends_a_session_and_why(data: bytes, why: str) -> None:
    script = relay()
    script.willing(data + b"z NOOP\r\n")
    assert script.core.fatal == why
    assert b"too long" not in script.client_got
    assert b"NOOP" not in script.upstream_got


def test_a_burst_is_taken_up_to_its_first_literal() -> None:
    data = b"a NOOP\r\nb APPEND x {2+}\r\nhi\r\nc NOOP\r\n"
    core = relay().core
    assert core.client_sent(data, len(data), 0.0) == len(b"a NOOP\r\nb APPEND x {2+}\r\n")
    assert b"".join(core.to_upstream) == b"a NOOP\r\nb APPEND x {2}\r\n"


# -------------------------------------------------------------------- floods


def test_a_burst_of_bad_lines_is_answered_a_piece_at_a_time() -> None:
    data = b"\n" * 1000
    core = relay().core
    assert core.client_sent(data, len(data), 0.0) == MAX_REPLIES
    assert len(core.to_client) == MAX_REPLIES
    core.to_client.clear()
    assert core.client_sent(data[MAX_REPLIES:], len(data) - MAX_REPLIES, 0.0) == MAX_REPLIES


def test_a_tag_is_neither_remembered_nor_echoed_at_any_length() -> None:
    longest = b"t" * TAG_LIMIT
    script = relay()
    assert script.client(longest + b" NOOP\r\n") == longest + b" NOOP\r\n"
    assert script.client(longest + b"t NOOP\r\n" + longest + b"t LOGIN\r\n") == b""
    assert script.client_got == b"* BAD Expected a tag and a command\r\n" * 2


@pytest.mark.parametrize("inside", [b"{" + b"1" * 120_000, b" {1" * 40_000, b"{" * 120_000])
def test_a_line_full_of_braces_is_judged_in_linear_time(inside: bytes) -> None:
    script = relay()
    began = time.perf_counter()
    script.client(b"a SEARCH " + inside + b"{}\r\n")
    assert time.perf_counter() - began < 1
    assert script.client_got == b"a BAD Malformed literal\r\n"


def test_a_command_answered_while_its_literal_passes_is_not_awaited() -> None:
    script = relay()
    script.client(b"a APPEND x {8}\r\n")
    script.upstream(b"+ go\r\na NO quota\r\n")
    script.client(b"1234")
    assert script.core.awaited == 0


# -------------------------------------------------------------------- long lines


def test_a_line_of_just_the_limit_passes() -> None:
    line = b"a SEARCH " + b"1" * (LINE_LIMIT - 11) + b"\r\n"
    assert relay().client(line) == line
    script = relay()
    assert script.client(b"a SEARCH 1" + line[9:]) == b""
    assert script.client_got == b"a BAD Command line too long\r\n"
    assert script.results == [("other", "bad")]


def test_the_literal_behind_a_long_line_is_found_when_its_announcement_is_cut() -> None:
    script = relay()
    for piece in (b"a SEARCH " + b"1" * LINE_LIMIT, b"1 {", b"8", b"+}", b"\r\ny NOOP\r\n\r\nz NOOP\r\n"):
        script.client(piece)
    assert script.upstream_got == b"z NOOP\r\n"


# -------------------------------------------------------------------- who may continue


def test_only_done_ends_idle() -> None:
    script = relay()
    script.client(b"a IDLE\r\n")
    assert script.client(b"DONEx\r\n") == b""
    script.upstream(b"+ idling\r\n")
    assert script.client(b"dGVzdA==\r\n") == b""
    assert script.client(b"Done \r\n") == b"Done \r\n"


def test_a_line_is_asked_for_once() -> None:
    script = relay()
    script.client(b"a XAUTH\r\n")
    script.upstream(b"+ more\r\n")
    assert script.client(b"dGVzdA==\r\ndGVzdA==\r\n") == b"dGVzdA==\r\n"
    assert script.client_got.endswith(b"* BAD Expected a tag and a command\r\n")


def test_a_stray_continuation_asks_for_nothing() -> None:
    script = relay()
    script.client(b"a NOOP\r\n")
    script.upstream(b"+ still here\r\n")
    assert script.client(b"dGVzdA==\r\n") == b""


def test_the_completion_of_another_command_does_not_end_an_unknown_one() -> None:
    script = relay()
    script.client(b"n NOOP\r\na XA\r\nb XB\r\n")
    script.upstream(b"n OK\r\n")
    assert script.upstream_got == b"n NOOP\r\na XA\r\n"
    assert script.core.held
    script.upstream(b"a OK\r\n")
    assert script.upstream_got.endswith(b"b XB\r\n")


def test_a_tag_may_be_used_again() -> None:
    script = relay()
    for _ in range(2):
        script.client(b"a NOOP\r\n")
        script.upstream(b"a OK\r\n* BYE soon\r\n")
    assert script.results == [("NOOP", "ok")] * 2
    assert not script.core.logged_out


@pytest.mark.parametrize(
    ("command", "answer", "out"), [(b"NOOP", b"OK", False), (b"LOGOUT", b"NO", False), (b"LOGOUT", b"OK", True)]
)
def test_only_a_logout_that_succeeds_logs_out(command: bytes, answer: bytes, out: bool) -> None:
    script = relay()
    script.client(b"a %b\r\n" % command)
    script.upstream(b"a %b x\r\n" % answer)
    assert script.core.logged_out is out


def test_only_a_bye_announces_the_end_of_a_logout() -> None:
    script = relay()
    script.client(b"a LOGOUT\r\n")
    script.upstream(b"* CAPABILITY IMAP4rev1\r\n")
    assert not script.core.logged_out
    script.upstream(b"* BYE\r\n")
    assert script.core.logged_out


# -------------------------------------------------------------------- what the upstream says


@pytest.mark.parametrize(
    "parts",
    [
        (b"* X {20}\r\n12345", FAKE + b")\r\n"),
        (b"* OK hi\r\n* X {15}\r\n" + FAKE + b")\r\n",),
        (b"n OK\r\n* X {15}\r\n" + FAKE + b")\r\n",),
        (b"* X {1}\r\nyz OK {15}\r\n" + FAKE + b")\r\n",),
        (b"* X {1}\r\ny", b"a OK", b" fake\r\n"),
        (b"* X {1}\r\ny", b"a OK fake\r\n"),
        (b"* X {1}\r\ny", b" {15", b"}\r\n" + FAKE + b")\r\n"),
        (b"* X {1}\r\ny", b"z OK {15", b"}\r\n" + FAKE + b")\r\n"),
        (b"* X {1}\r\ny", b"a OK " + b"z" * HOLD_LIMIT, b"z\r\n"),
        (b"* X " + b"z" * HOLD_LIMIT, b" {15}\r\n" + FAKE + b")\r\n"),
        (
            b"* OK " + b"z" * HOLD_LIMIT,
            b"\r\n* X {1}\r\ny",
            b"z OK " + b"z" * HOLD_LIMIT,
            b" {15}\r\n" + FAKE + b"\r\n",
        ),
        (b"* SEARCH " + b"1" * HOLD_LIMIT + b"a OK " + b"1" * 27, b"1" * HOLD_LIMIT, b"\r\n"),
    ],
    ids=short,
)
def test_what_looks_like_a_completion_but_is_data(parts: tuple[bytes, ...]) -> None:
    script = relay()
    script.client(b"a FETCH 1 BODY[]\r\nn NOOP\r\n")
    for part in parts:
        script.upstream(part)
    assert ("FETCH", "ok") not in script.results
    script.upstream(b"a NO true\r\n")
    assert script.results[-1] == ("FETCH", "no")
    assert script.client_got == b"".join(parts) + b"a NO true\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (b"* X y\r\n* OK hi {5}\r\na OK\r\n",),
        (b"* 1 EXISTS\r\n* 2 EXISTS\r\n* NO hi {5}\r\na OK\r\n",),
        (b"* X {1}\r\ny", b"\n* OK hi {5}\r\na OK\r\n"),
        (b"* OK " + b"y" * HOLD_LIMIT, b" {5}\r\n", b"a OK\r\n"),
        (b"* OK " + b"y" * HOLD_LIMIT, b"y" * HOLD_LIMIT, b" {5}\r\n", b"a OK\r\n"),
        (b"\na OK\r\n",),
    ],
    ids=short,
)
def test_what_looks_like_a_literal_but_is_text(parts: tuple[bytes, ...]) -> None:
    script = relay()
    script.client(b"a NOOP\r\n")
    for part in parts:
        assert script.upstream(part)
    assert script.results == [("NOOP", "ok")]
    assert script.client_got == b"".join(parts)


@pytest.mark.parametrize(
    ("first", "burst", "pieces"),
    [
        (b"", b"* 1 EXISTS\r\n* 2 EXISTS\r\n* 3 EXISTS\r\n", [b"* 1 EXISTS\r\n* 2 EXISTS\r\n* 3 EXISTS\r\n"]),
        (b"* X {3}\r\na", b"bc) x\r\n* 2 EXISTS\r\n", [b"bc) x\r\n* 2 EXISTS\r\n"]),
        (b"", b"a OK\r\nb OK\r\n* 1 EXISTS\r\n", [b"a OK\r\n", b"b OK\r\n", b"* 1 EXISTS\r\n"]),
        (b"", b"* 1 EXISTS\r\na OK\r\n", [b"* 1 EXISTS\r\n", b"a OK\r\n"]),
        (b"* 1 EX", b"ISTS\r\n", [b"* 1 EXISTS\r\n"]),
        (b"* X {1}\r\ny", b"\n", [b"\n"]),
    ],
)
def test_a_burst_passes_in_as_few_pieces_as_it_can(first: bytes, burst: bytes, pieces: list[bytes]) -> None:
    core = relay().core
    core.upstream_sent(first, len(first), 0.0)
    core.to_client.clear()
    core.upstream_sent(burst, len(burst), 0.0)
    assert [bytes(piece) for piece in core.to_client] == pieces


def test_an_unfinished_line_is_kept_up_to_the_limit() -> None:
    script = relay()
    assert script.upstream(b"a OK " + b"x" * (HOLD_LIMIT - 5)) == b""
    assert script.upstream(b"x") == b"a OK " + b"x" * (HOLD_LIMIT + 1 - 5 - 32)


def test_busy_is_whoever_would_lose_something_by_an_end_now() -> None:
    upload = relay("LITERAL+")
    assert not upload.core.busy
    upload.client(b"a APPEND inbox {8+}\r\nhalf")
    assert (upload.core.busy, upload.core.awaited) == (True, 0)
    upload.client(b"more\r\n")
    assert upload.core.busy
    upload.upstream(b"a OK done\r\n")
    assert not upload.core.busy
    waiting = relay()
    waiting.client(b"a IDLE\r\n")
    waiting.upstream(b"+ idling\r\n")
    assert not waiting.core.busy
    waiting.client(b"DONE\r\n")
    assert waiting.core.busy

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.model import ALLOW, Delay
from mailgate.wire.relay import MAX_IN_FLIGHT
from mailgate.wire.relay_imap import HOLD_LIMIT, LINE_LIMIT, MAX_REPLIES, ImapRelay, literal_mode
from tests.support.cores import Script, deny

VERBS = frozenset(
    ("CAPABILITY NOOP LOGOUT SELECT FETCH UID APPEND IDLE SEARCH ID COMPRESS STARTTLS AUTHENTICATE").split()
) | {"UID FETCH", "UID SEARCH"}
DENIED = ("COMPRESS", "STARTTLS", "AUTHENTICATE", "LOGIN", "UNAUTHENTICATE")


def visible(tokens: list[bytes]) -> list[bytes]:
    return [token for token in tokens if not token.upper().startswith((b"COMPRESS", b"AUTH=", b"STARTTLS"))]


def relay(*capabilities: str, step: int = 1 << 30) -> Script:
    core = ImapRelay(
        decide=deny(*DENIED),
        visible=visible,
        verbs=VERBS,
        capabilities=frozenset(capabilities or ("LITERAL+",)),
    )
    return Script(core, step=step)


@pytest.fixture(params=[1, 2, 7, 1 << 30], ids=["byte by byte", "in twos", "in sevens", "whole"])
def script(request: pytest.FixtureRequest) -> Script:
    return relay(step=request.param)


# -------------------------------------------------------------------- commands and completions


def test_a_command_passes_and_is_matched_with_its_completion(script: Script) -> None:
    assert script.client(b"A7 UID FETCH 1:* (FLAGS)\r\n") == b"A7 UID FETCH 1:* (FLAGS)\r\n"
    assert script.core.awaited == 1
    reply = b"* 1 FETCH (UID 4 FLAGS (\\Seen))\r\nA7 OK Fetch completed\r\n"
    assert script.upstream(reply) == reply
    assert script.results == [("UID FETCH", "ok")]
    assert script.finished[0].seconds == 1
    assert script.core.awaited == 0


def test_pipelined_commands_are_matched_by_tag_in_any_order(script: Script) -> None:
    sent = b"a NOOP\r\nb SEARCH ALL\r\nc fetch 1 FLAGS\r\n"
    assert script.client(sent) == sent
    script.upstream(b"* SEARCH 1\r\nb OK done\r\na NO no\r\nc BAD what\r\n")
    assert script.results == [("SEARCH", "ok"), ("NOOP", "no"), ("FETCH", "bad")]


def test_a_tag_used_twice_at_once_is_matched_in_order() -> None:
    script = relay()
    script.client(b"a NOOP\r\na SEARCH ALL\r\na ID NIL\r\n")
    script.upstream(b"a OK\r\na NO\r\n")
    assert script.results == [("NOOP", "ok"), ("SEARCH", "no")]
    script.upstream(b"a BAD x\r\na OK stray\r\n")
    assert script.results[2:] == [("ID", "bad")]


def test_an_unknown_verb_is_counted_as_other(script: Script) -> None:
    script.client(b"a XYZZY plugh\r\n")
    script.upstream(b"a BAD Unknown command\r\n")
    assert script.results == [("other", "bad")]


def test_logout_is_noted_on_completion_and_on_a_bye_before_it(script: Script) -> None:
    script.client(b"a LOGOUT\r\n")
    assert not script.core.logged_out
    script.upstream(b"* BYE bye\r\n")
    assert script.core.logged_out
    other = relay()
    other.client(b"a LOGOUT\r\n")
    other.upstream(b"a OK bye\r\n")
    assert other.core.logged_out


def test_a_bye_without_logout_is_no_logout() -> None:
    script = relay()
    assert script.upstream(b"* BYE overloaded\r\n") == b"* BYE overloaded\r\n"
    assert not script.core.logged_out


def test_a_bare_lf_is_passed_on_as_crlf() -> None:
    script = relay()
    assert script.client(b"a NOOP\nb NOOP\r\n") == b"a NOOP\r\nb NOOP\r\n"


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "verb", ["COMPRESS DEFLATE", "compress deflate", "STARTTLS", "AUTHENTICATE PLAIN", "LOGIN a b"]
)
def test_a_denied_command_is_answered_here_and_never_seen_upstream(script: Script, verb: str) -> None:
    assert script.client(f"x {verb}\r\ny NOOP\r\n".encode()) == b"y NOOP\r\n"
    assert script.client_got == b"x NO Command not available\r\n"
    assert script.finished[0].result == "refused"


def test_a_denied_command_takes_its_non_synchronising_literals_with_it(script: Script) -> None:
    sent = b"x LOGIN {4+}\r\na\r\nb {6+}\r\nc NOOP\r\ny NOOP\r\n"
    assert script.client(sent) == b"y NOOP\r\n"
    assert script.client_got.count(b"x NO ") == 1


def test_a_denied_command_ends_at_a_synchronising_literal() -> None:
    script = relay()
    assert script.client(b"x LOGIN {4}\r\n") == b""
    assert script.client_got == b"x NO Command not available\r\n"
    assert script.client(b"y NOOP\r\n") == b"y NOOP\r\n"


def test_a_denied_command_whose_second_literal_synchronises_ends_there() -> None:
    script = relay()
    assert script.client(b"x LOGIN {1+}\r\na {4}\r\ny NOOP\r\n") == b"y NOOP\r\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"\r\n", b"* BAD "),
        (b"GET / HTTP/1.1\r\n", b"GET BAD "),
        (b"a\r\n", b"* BAD "),
        (b"a  COMPRESS DEFLATE\r\n", b"a BAD "),
        (b"a\tCOMPRESS DEFLATE\r\n", b"* BAD "),
        (b" a COMPRESS DEFLATE\r\n", b"* BAD "),
        (b"a COMPRESS\tDEFLATE\r\n", b"a BAD "),
        (b'a"b NOOP\r\n', b"* BAD "),
        (b"a(b NOOP\r\n", b"* BAD "),
        (b"+ NOOP\r\n", b"* BAD "),
        (b"* COMPRESS DEFLATE\r\n", b"* BAD "),
        (b"a NOOP\rb COMPRESS DEFLATE\r\n", b"a BAD "),
        (b"a NOOP x\0\r\n", b"a BAD "),
        (b'a SELECT "INBOX\r\n', b"a BAD "),
        (b'a SELECT "IN\\BOX"\r\n', b"a BAD "),
        (b'a SELECT "a"b"\r\n', b"a BAD "),
        (b'a SELECT x"y"\r\n', b"a BAD "),
        (b"a SELECT {\r\n", b""),
        (b"a SELECT {x}\r\n", b"a BAD "),
        (b"a SELECT {5 }\r\n", b"a BAD "),
        (b"a SELECT x{5}\r\n", b"a BAD "),
        (b"a SELECT {99999999999999999999}\r\n", b"a BAD "),
    ],
)
def test_what_cannot_be_framed_for_certain_is_answered_here(line: bytes, answer: bytes) -> None:
    script = relay()
    passed = script.client(line)
    if answer:
        assert passed == b""
        assert script.client_got.startswith(answer)
        assert script.finished[0].result == "bad"
    else:
        assert passed == line
    assert script.client(b"z NOOP\r\n") == b"z NOOP\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b'a SEARCH SUBJECT "a \\"b\\" \\\\ {5}"\r\n',
        b'a FETCH 1 (BODY.PEEK[HEADER.FIELDS ("From" "To")])\r\n',
        b'a LIST "" "*"\r\n',
        b"a SEARCH TEXT }\r\n",
        b"a SEARCH SUBJECT abc}\r\n",
        b'a SETQUOTA "" (STORAGE 512)\r\n',
        'a SELECT "Entwürfe"\r\n'.encode(),
        b"!$&',-./:;<=>?@[]^_`|}~ NOOP\r\n",
        b"a NOOP \r\n",
    ],
)
def test_every_well_formed_line_passes_unaltered(line: bytes) -> None:
    assert relay().client(line) == line


def test_an_answer_waits_for_the_end_of_a_literal_under_way(script: Script) -> None:
    script.client(b"a FETCH 1 BODY[]\r\n")
    script.upstream(b"* 1 FETCH (BODY[] {10}\r\n12345")
    script.client(b"x COMPRESS DEFLATE\r\n")
    assert b"x NO" not in script.client_got
    script.upstream(b"67890)\r\na OK done\r\n")
    assert script.client_got == (
        b"* 1 FETCH (BODY[] {10}\r\n1234567890)\r\nx NO Command not available\r\na OK done\r\n"
    )


def test_an_answer_waits_for_the_end_of_a_line_under_way() -> None:
    script = relay()
    script.upstream(b"* 1 EXI")
    script.client(b"x COMPRESS DEFLATE\r\n")
    assert script.client_got == b""
    script.upstream(b"STS\r\n")
    assert script.client_got == b"* 1 EXISTS\r\nx NO Command not available\r\n"


def test_answers_that_wait_are_bounded() -> None:
    script = relay()
    script.upstream(b"* 1 FETCH (BODY[] {10}\r\n")
    script.client(b"x COMPRESS DEFLATE\r\n" * (MAX_REPLIES + 50))
    assert script.core.blocked
    assert len(script.waiting) == 50 * len(b"x COMPRESS DEFLATE\r\n")
    script.upstream(b"1234567890)\r\n")
    assert script.client_got.count(b"x NO") == MAX_REPLIES + 50


# -------------------------------------------------------------------- literals of commands


def test_a_synchronising_literal_waits_for_the_continuation(script: Script) -> None:
    assert script.client(b"a APPEND x {5}\r\nhello\r\nb NOOP\r\n") == b"a APPEND x {5}\r\n"
    assert script.core.blocked
    assert script.core.awaited == 0
    before = len(script.upstream_got)
    assert script.upstream(b"+ go\r\n") == b"+ go\r\n"
    assert script.upstream_got[before:] == b"hello\r\nb NOOP\r\n"
    script.upstream(b"a OK\r\nb OK\r\n")
    assert script.results == [("APPEND", "ok"), ("NOOP", "ok")]


def test_a_literal_that_the_upstream_refuses_leaves_commands_behind_it(script: Script) -> None:
    script.client(b"a APPEND x {5}\r\n")
    script.upstream(b"a NO [TRYCREATE] no such mailbox\r\n")
    assert not script.core.blocked
    assert script.client(b"b NOOP\r\n") == b"b NOOP\r\n"
    assert script.results == [("APPEND", "no")]


def test_a_literal_refused_only_after_it_began_is_still_sent_whole() -> None:
    script = relay()
    script.client(b"a APPEND x {8}\r\n")
    script.upstream(b"+ go\r\n")
    script.client(b"b NO")
    script.upstream(b"a NO quota\r\n")
    assert script.client(b"OP\r\n") == b"OP\r\n"
    assert script.client(b"\r\nc NOOP\r\n") == b"\r\nc NOOP\r\n"
    assert script.results == [("APPEND", "no")]


def test_non_synchronising_literals_and_several_in_one_command(script: Script) -> None:
    sent = b"a APPEND x {3+}\r\n\r\n\n ~{2+}\r\n\0\0 {0+}\r\n\r\nb NOOP\r\n"
    assert script.willing(sent) == sent.replace(b"+}", b"}")
    assert script.client_got == b""
    script.upstream(b"a OK\r\nb OK\r\n")
    assert script.results == [("APPEND", "ok"), ("NOOP", "ok")]


def test_a_literal_that_its_upstream_does_not_ask_for_goes_nowhere(script: Script) -> None:
    sent = b"a NOOP {24+}\r\n\r\nb COMPRESS DEFLATE\r\n\r\n {6+}\r\nc NOOP more\r\nd NOOP\r\n"
    assert script.client(sent) == b"a NOOP {24}\r\n"
    assert script.core.blocked
    assert script.upstream(b"a OK done\r\n") == b"a OK done\r\n"
    assert script.upstream_got == b"a NOOP {24}\r\nd NOOP\r\n"
    assert script.upstream(b"d OK done\r\n") == b"d OK done\r\n"
    assert script.results == [("NOOP", "ok"), ("NOOP", "ok")]


def test_a_later_literal_that_its_upstream_does_not_ask_for_goes_nowhere(script: Script) -> None:
    script.client(b"a APPEND x {2+}\r\nhi ~{18+}\r\nb COMPRESS DEFLATE\r\nc NOOP\r\n")
    script.upstream(b"+ go\r\n")
    assert script.upstream_got == b"a APPEND x {2}\r\nhi ~{18}\r\n"
    script.upstream(b"a BAD no date\r\n")
    assert script.upstream_got == b"a APPEND x {2}\r\nhi ~{18}\r\nc NOOP\r\n"


def test_a_request_for_a_literal_that_never_ends_ends_the_session() -> None:
    script = relay()
    script.client(b"a SELECT {1+}\r\n")
    script.upstream(b"+" + b"x" * HOLD_LIMIT)
    assert script.core.fatal == "Continuation request too long"


@pytest.mark.parametrize("literal", [b"{30}", b"{30+}"])
def test_an_idle_that_announces_a_literal_is_refused(script: Script, literal: bytes) -> None:
    assert script.client(b"a IDLE %b\r\n" % literal) == b""
    assert script.client_got == b"a BAD IDLE takes no arguments\r\n"


@pytest.mark.parametrize("literal", [b"{30}", b"{30+}"])
def test_a_tag_in_use_announces_no_literal(script: Script, literal: bytes) -> None:
    # Were it sent, the completion of the first could be taken for the refusal of the second.
    assert script.client(b"a NOOP\r\na APPEND x %b\r\n" % literal) == b"a NOOP\r\n"
    assert script.client_got == b"a BAD This tag is in use\r\n"
    assert script.results == [("APPEND", "bad")]


@pytest.mark.parametrize(
    ("capability", "size", "passes"),
    [("LITERAL+", 5000, True), ("LITERAL-", 4096, True), ("LITERAL-", 4097, False), ("IDLE", 1, False)],
)
def test_a_non_synchronising_literal_passes_only_where_the_upstream_takes_it(
    capability: str, size: int, passes: bool
) -> None:
    script = relay(capability)
    sent = b"a APPEND x {%d+}\r\n%b\r\n" % (size, b"x COMPRESS\r\n" * (size // 12) + b"y" * (size % 12))
    assert script.willing(sent) == (sent.replace(b"+}", b"}") if passes else b"")
    assert script.client(b"z NOOP\r\n") == b"z NOOP\r\n"


def test_the_literals_that_an_upstream_takes_follow_what_it_says_later() -> None:
    script = relay("IDLE")
    script.upstream(b"* CAPABILITY IMAP4rev1 LITERAL+\r\n")
    assert script.willing(b"a SELECT {1+}\r\nx\r\n") == b"a SELECT {1}\r\nx\r\n"
    assert literal_mode(frozenset({"IMAP4REV2"})) == "minus"


def test_a_command_that_goes_wrong_behind_its_literal_ends_the_session() -> None:
    script = relay()
    script.willing(b"a APPEND x {1+}\r\nx {5 }\r\n")
    assert script.core.fatal
    assert b"{5 }" not in script.upstream_got


def test_a_swallowed_literal_of_impossible_size_ends_the_session() -> None:
    script = relay()
    script.client(b"a LOGIN {%d+}\r\n" % 10**20)
    assert script.core.fatal


# -------------------------------------------------------------------- long lines


def test_a_command_line_over_the_limit_is_dropped_and_answered(script: Script) -> None:
    if script.step < 7:
        script.step = 1000
    assert script.client(b"a SEARCH " + b"1," * LINE_LIMIT + b"1\r\nb NOOP\r\n") == b"b NOOP\r\n"
    assert script.client_got == b"a BAD Command line too long\r\n"


def test_a_line_over_the_limit_takes_its_literal_with_it() -> None:
    script = relay()
    script.client(b"(" * LINE_LIMIT)
    assert script.client(b"(( {12+}\r\nb NOOP qqqq\r\nc NOOP\r\n") == b"\r\nc NOOP\r\n"[2:]
    assert script.client_got.startswith(b"* BAD ")


def test_a_line_over_the_limit_behind_a_literal_ends_the_session() -> None:
    script = relay()
    script.willing(b"a APPEND x {1+}\r\nx" + b"1" * LINE_LIMIT)
    script.client(b"1\r\n")
    assert script.core.fatal


def test_a_line_over_the_limit_of_a_swallowed_command_is_dropped() -> None:
    script = relay()
    assert script.client(b"a LOGIN {1+}\r\nx " + b"1" * (LINE_LIMIT + 10) + b"\r\nb NOOP\r\n") == b"b NOOP\r\n"


def test_memory_for_an_endless_line_is_bounded() -> None:
    script = relay()
    for _ in range(100):
        script.client(b"x" * 65536)
    assert len(script.core._carry) <= LINE_LIMIT  # type: ignore[attr-defined]
    assert script.upstream_got == b""


# -------------------------------------------------------------------- IDLE


def test_idle_and_done(script: Script) -> None:
    assert script.client(b"a IDLE\r\n") == b"a IDLE\r\n"
    assert script.core.awaited == 0
    script.upstream(b"+ idling\r\n* 5 EXISTS\r\n")
    assert script.client(b"done\r\n") == b"done\r\n"
    assert script.core.awaited == 1
    assert script.client(b"b NOOP\r\n") == b"b NOOP\r\n"
    script.upstream(b"a OK\r\nb OK\r\n")
    assert script.results == [("IDLE", "ok"), ("NOOP", "ok")]


def test_done_may_come_before_the_continuation() -> None:
    script = relay()
    assert script.client(b"a IDLE\r\nDONE\r\n") == b"a IDLE\r\nDONE\r\n"
    script.upstream(b"+ idling\r\na OK\r\n")
    assert script.results == [("IDLE", "ok")]


def test_a_command_while_idling_is_answered_here(script: Script) -> None:
    script.client(b"a IDLE\r\n")
    assert script.client(b"b NOOP\r\nDONE\r\nc NOOP\r\n") == b"DONE\r\nc NOOP\r\n"
    assert script.client_got == b"b BAD Expected DONE\r\n"


def test_the_continuation_of_idle_cannot_release_another_commands_literal() -> None:
    script = relay()
    smuggled = b"DONE\r\nx COMPRESS DEFLATE\r\n"
    script.client(b"a IDLE\r\nb APPEND x {%d}\r\n%b" % (len(smuggled), smuggled))
    script.upstream(b"+ idling\r\n")
    script.upstream(b"a OK\r\n")
    assert b"COMPRESS" not in script.upstream_got
    assert b"APPEND" not in script.upstream_got


def test_a_literal_behind_done_waits_for_the_end_of_idle() -> None:
    script = relay()
    assert script.client(b"a IDLE\r\nDONE\r\nb APPEND x {2}\r\n") == b"a IDLE\r\nDONE\r\n"
    assert script.core.held
    assert script.core.blocked
    script.upstream(b"+ idling\r\n")
    assert script.core.blocked
    script.upstream(b"a OK\r\n")
    assert script.upstream_got.endswith(b"b APPEND x {2}\r\n")
    script.upstream(b"+ go\r\n")
    assert script.client(b"hi\r\n") == b"hi\r\n"


def test_an_idle_that_the_upstream_refuses_or_ends_leaves_commands() -> None:
    script = relay()
    script.client(b"a IDLE\r\n")
    script.upstream(b"a BAD no idle here\r\n")
    assert script.client(b"b NOOP\r\n") == b"b NOOP\r\n"


def test_a_second_idle_waits_for_the_end_of_the_first() -> None:
    script = relay()
    assert script.client(b"a IDLE\r\nDONE\r\nb IDLE\r\n") == b"a IDLE\r\nDONE\r\n"
    script.upstream(b"+ x\r\na OK\r\n")
    assert script.upstream_got.endswith(b"b IDLE\r\n")


# -------------------------------------------------------------------- continuations of unknown commands


def test_an_unknown_command_may_ask_for_lines(script: Script) -> None:
    script.client(b"a XAUTH\r\n")
    script.upstream(b"+ more\r\n")
    assert script.client(b"dGVzdA==\r\n") == b"dGVzdA==\r\n"
    script.upstream(b"+ \r\n")
    assert script.client(b"*\r\n") == b"*\r\n"
    script.upstream(b"a BAD cancelled\r\n")
    assert script.client(b"dGVzdA==\r\n") == b""


def test_a_line_that_was_asked_for_cannot_be_a_command() -> None:
    script = relay()
    script.client(b"a XAUTH\r\n")
    script.upstream(b"+ more\r\n")
    assert script.client(b"x COMPRESS DEFLATE\r\n") == b""
    assert script.client_got.endswith(b"x NO Command not available\r\n")


def test_an_unknown_commands_own_literal() -> None:
    script = relay()
    script.client(b"a XLIT {2}\r\n")
    script.upstream(b"+ \r\n")
    assert script.client(b"hi {1}\r\n") == b"hi {1}\r\n"
    script.upstream(b"+ \r\n")
    assert script.client(b"!\r\n") == b"!\r\n"
    script.upstream(b"a OK\r\n")
    assert script.results == [("other", "ok")]


def test_a_literal_waits_while_an_unknown_command_may_ask() -> None:
    script = relay()
    assert script.client(b"u XAUTH\r\na APPEND x {1+}\r\nx") == b"u XAUTH\r\n"
    assert script.core.held
    script.upstream(b"u OK\r\n")
    assert script.upstream_got == b"u XAUTH\r\na APPEND x {1}\r\n"
    script.upstream(b"+ go\r\n")
    assert script.client(b" {2}\r\n") == b" {2}\r\n"


def test_one_unknown_command_waits_for_another() -> None:
    script = relay()
    assert script.client(b"a XA\r\nb XB\r\n") == b"a XA\r\n"
    script.upstream(b"a OK\r\n")
    assert script.upstream_got == b"a XA\r\nb XB\r\n"


def test_a_stray_continuation_passes_and_changes_nothing() -> None:
    script = relay()
    assert script.upstream(b"+ still here\r\n") == b"+ still here\r\n"
    assert script.client(b"a NOOP\r\n") == b"a NOOP\r\n"


# -------------------------------------------------------------------- what passes to the client


RESPONSES = [
    b"* 1 FETCH (BODY[] {5}\r\nA7 OK FLAGS (\\Seen))\r\n",
    b'* LIST () "/" {7}\r\nA {3}\r\n\r\n',
    b"* 1 FETCH (A {0}\r\n B ~{2}\r\n\0\0)\r\n",
    b"* OK this is human {5}\r\n",
    b"* NO {100}\r\n",
    b"+ human {5}\r\n",
    b"* BAD {5}\r\n",
    b"* SEARCH 1 2 3 {\r\n",
    b'* ESEARCH (TAG "A7") UID ALL 1:5\r\n',
    b"* 1 FETCH (BODY[1] {2}\r\n\r\n BODY[2] {2}\r\n+ )\r\n",
    b"* FLAGS (x)\n",
    b"* 1 FETCH (X {3}\nabc)\n",
]


@pytest.mark.parametrize("step", [1, 3, 11, 1 << 30])
@pytest.mark.parametrize("response", RESPONSES)
def test_a_response_passes_unaltered_and_the_completion_behind_it_is_found(response: bytes, step: int) -> None:
    script = relay(step=step)
    script.client(b"A7 FETCH 1 BODY[]\r\n")
    sent = response * 2 + b"A7 OK done {5}\r\n* 3 EXISTS\r\n"
    assert script.upstream(sent) == sent
    assert script.results == [("FETCH", "ok")]
    assert script.core.at_boundary


def test_a_completion_inside_a_literal_is_none(script: Script) -> None:
    script.client(b"a FETCH 1 BODY[]\r\n")
    script.upstream(b"* 1 FETCH (BODY[] {14}\r\n\r\na OK fake\r\n\r\n")
    assert script.results == []
    script.upstream(b")\r\na OK true\r\n")
    assert script.results == [("FETCH", "ok")]


def test_capabilities_are_filtered_in_every_place(script: Script) -> None:
    said = (
        b"* CAPABILITY IMAP4rev1 COMPRESS=DEFLATE IDLE AUTH=PLAIN\r\n"
        b"* OK [CAPABILITY IMAP4rev1 STARTTLS LITERAL+] hello\r\n"
        b"* ok [Capability IMAP4rev1 COMPRESS=DEFLATE] hello\r\n"
        b"* NO [ALERT] COMPRESS=DEFLATE\r\n"
    )
    heard = (
        b"* CAPABILITY IMAP4rev1 IDLE\r\n"
        b"* OK [CAPABILITY IMAP4rev1 LITERAL+] hello\r\n"
        b"* ok [Capability IMAP4rev1] hello\r\n"
        b"* NO [ALERT] COMPRESS=DEFLATE\r\n"
    )
    assert script.upstream(said) == heard
    script.client(b"a NOOP\r\n")
    assert script.upstream(b"a OK [CAPABILITY X COMPRESS=DEFLATE] yes\r\n") == b"a OK [CAPABILITY X] yes\r\n"
    assert script.results == [("NOOP", "ok")]


def test_a_long_response_line_passes_in_parts_with_bounded_memory() -> None:
    script = relay()
    script.client(b"a SEARCH ALL\r\n")
    line = b"* SEARCH" + b" 1234567" * 100_000
    for at in range(0, len(line), 10_000):
        script.upstream(line[at : at + 10_000])
        assert len(script.core._tail) <= HOLD_LIMIT  # type: ignore[attr-defined]
    assert not script.core.at_boundary
    script.upstream(b"\r\na OK\r\n")
    assert script.client_got == line + b"\r\na OK\r\n"
    assert script.results == [("SEARCH", "ok")]


def test_a_long_line_that_ends_in_a_literal_and_a_long_human_one() -> None:
    script = relay()
    script.client(b"a SEARCH ALL\r\n")
    parts = [
        b"* LIST (" + b"x" * HOLD_LIMIT,
        b") {4}\r",
        b"\na OK\r\n",
        b"* OK " + b"y" * HOLD_LIMIT,
        b" {4}\r\n",
    ]
    for part in parts:
        script.upstream(part)
    script.upstream(b"a OK\r\n")
    assert script.client_got == b"".join(parts) + b"a OK\r\n"
    assert script.results == [("SEARCH", "ok")]


def test_a_long_line_behind_a_literal_and_a_long_completion() -> None:
    script = relay()
    script.client(b"a SEARCH ALL\r\n")
    parts = [b"* X {1}\r\ny", b"+ OK" * HOLD_LIMIT, b"\r\n", b"a OK " + b"z" * HOLD_LIMIT * 2, b"\r\n* X\r\n"]
    for part in parts:
        script.upstream(part)
    assert script.client_got == b"".join(parts)
    assert script.results == [("SEARCH", "ok")]


def test_a_burst_of_a_literal_passes_without_a_copy() -> None:
    core = relay().core
    core.upstream_sent(bytearray(b"* 1 FETCH (BODY[] {100000}\r\n"), 28, 0.0)
    core.to_client.clear()
    burst = bytearray(b"x" * 70_000)
    core.upstream_sent(burst, len(burst), 0.0)
    (piece,) = core.to_client
    assert isinstance(piece, memoryview)
    assert piece.obj is burst


# -------------------------------------------------------------------- limits and delays


def test_commands_in_flight_are_bounded() -> None:
    script = relay()
    script.client(b"".join(b"t%d NOOP\r\n" % n for n in range(MAX_IN_FLIGHT + 5)))
    assert script.upstream_got.count(b"NOOP") == MAX_IN_FLIGHT
    assert script.core.blocked
    script.upstream(b"t0 OK\r\n")
    assert script.upstream_got.count(b"NOOP") == MAX_IN_FLIGHT + 1


def test_a_held_command_is_not_taken_while_blocked() -> None:
    script = relay()
    script.client(b"a XA\r\nb XB\r\n")
    assert script.core.client_sent(b"c NOOP\r\n", 8, 0.0) == 0


def test_a_delay_stops_behind_the_delayed_command() -> None:
    core = ImapRelay(
        decide=lambda verb: Delay(2.5, "commands") if verb == "FETCH" else ALLOW,
        visible=visible,
        verbs=VERBS,
        capabilities=frozenset(),
    )
    data = b"a NOOP\r\nb FETCH 1 FLAGS\r\nc NOOP\r\n"
    used = core.client_sent(data, len(data), 0.0)
    assert data[used:] == b"c NOOP\r\n"
    assert core.delay == 2.5
    assert b"".join(core.to_upstream) == data[:used]


# -------------------------------------------------------------------- properties


def strict_upstream(data: bytes) -> Iterator[bytes]:
    """Yield the verbs that a server sees which frames commands by the letter of RFC 9051."""
    at = 0
    while (end := data.find(b"\r\n", at)) >= 0:
        line = data[at:end]
        words = line.split(b" ")
        yield (words[1] if len(words) > 1 else b"").upper()
        while (match := re.search(rb"[ (]~?\{([0-9]+)\+?\}\Z", line)) and line.count(b'"') % 2 == 0:
            at = end + 2 + int(match[1])
            end = data.find(b"\r\n", at)
            if end < 0:
                return
            line = data[at:end]
        at = end + 2


def careless_upstream(data: bytes) -> Iterator[bytes]:
    """Yield the verbs that a server sees which ends lines at any LF and takes any literal that was asked for."""
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        line = data[at:end].rstrip(b"\r")
        words = line.split()
        yield (words[1] if len(words) > 1 else b"").upper()
        while match := re.search(rb"\{([0-9]+)\+?\}\Z", line):
            at = end + 1 + int(match[1])
            end = data.find(b"\n", at)
            if end < 0:
                return
            line = data[at:end].rstrip(b"\r")
        at = end + 1


FRAGMENTS = st.sampled_from(
    [
        b"a ",
        b"b NOOP\r\n",
        b"c COMPRESS DEFLATE\r\n",
        b"{5+}\r\n",
        b"{14+}\r\n",
        b"a NOOP {20+}\r\n",
        b"{5}\r\n",
        b'"',
        b"\\",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"(",
        b")",
        b"~",
        b"APPEND x ",
        b"IDLE\r\n",
        b"DONE\r\n",
        b"UID ",
        b"hello",
        b"\0",
        b"XA\r\n",
        b"SELECT ",
        b"AUTHENTICATE PLAIN\r\n",
        b"{3+}\n",
        b"x STARTTLS\r\n",
    ]
)
SAYINGS = st.sampled_from([b"+ go\r\n", b"a OK\r\n", b"b OK\r\n", b"a BAD\r\n", b"* 1 EXISTS\r\n"])


@given(st.lists(st.one_of(FRAGMENTS, SAYINGS.map(lambda said: (said,))), max_size=40))
def test_no_upstream_ever_sees_a_denied_command(steps: list[bytes | tuple[bytes]]) -> None:
    script = relay()
    for step in steps:
        if isinstance(step, tuple):
            script.upstream(step[0])
        else:
            script.client(step)
    for reading in (strict_upstream, careless_upstream):
        assert not {verb.decode("latin-1") for verb in reading(bytes(script.upstream_got))} & set(DENIED)


class MoodyUpstream:
    """A server that takes a literal or refuses its command, and then reads on behind the line, as Dovecot does."""

    def __init__(self, moods: list[bool]) -> None:
        self.verbs: list[bytes] = []
        self._moods = moods
        self._unread = b""
        self._literal: int | None = None
        self._tag = b""

    def hears(self, data: bytes) -> bytes:
        """Take bytes; return what it says to them."""
        self._unread += data
        said = b""
        while True:
            if self._literal is not None:
                if len(self._unread) < self._literal:
                    return said
                self._unread = self._unread[self._literal :]
            line, newline, rest = self._unread.partition(b"\n")
            if not newline:
                # The literal is taken, and its line is not complete.
                self._literal = None if self._literal is None else 0
                return said
            self._unread = rest
            if self._literal is None:
                self._tag, _, command = line.partition(b" ")
                self.verbs.append(command.split()[0].upper() if command.split() else b"")
            self._literal = None
            announced = re.search(rb"\{([0-9]+)(\+?)\}\r?\Z", line)
            self._moods = self._moods[1:] + self._moods[:1]
            if announced is None or not self._moods[0]:
                said += self._tag + b" OK done\r\n"
                continue
            self._literal = int(announced[1])
            said += b"" if announced[2] else b"+ go\r\n"


@given(st.lists(FRAGMENTS, max_size=40), st.lists(st.booleans(), min_size=1, max_size=8))
def test_no_denied_command_hides_behind_a_refusal(fragments: list[bytes], moods: list[bool]) -> None:
    script, upstream = relay(), MoodyUpstream(moods)
    script.client(b"".join(fragments))
    told = 0
    while told < len(script.upstream_got):
        heard = bytes(script.upstream_got[told:])
        told = len(script.upstream_got)
        script.upstream(upstream.hears(heard))
    assert not {verb.decode("latin-1") for verb in upstream.verbs} & set(DENIED)


@given(st.lists(FRAGMENTS, max_size=30), st.lists(st.integers(1, 40), min_size=1, max_size=10))
def test_commands_do_not_depend_on_how_they_were_cut(fragments: list[bytes], cuts: list[int]) -> None:
    data = b"".join(fragments)
    whole, cut = relay(), relay()
    whole.client(data)
    at = 0
    while at < len(data):
        cut.client(data[at : at + cuts[0]])
        at += cuts[0]
        cuts = cuts[1:] + cuts[:1]
    assert bytes(cut.upstream_got) == bytes(whole.upstream_got)
    assert bytes(cut.client_got) == bytes(whole.client_got)
    assert cut.results == whole.results


@given(st.lists(st.sampled_from(RESPONSES), max_size=12), st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_responses_are_conserved_however_they_are_cut(responses: list[bytes], cuts: list[int]) -> None:
    data = b"".join(responses)
    script = relay()
    at = 0
    while at < len(data):
        script.upstream(data[at : at + cuts[0]])
        at += cuts[0]
        cuts = cuts[1:] + cuts[:1]
    assert bytes(script.client_got) == data


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_no_bytes_of_either_side_raise(from_client: bytes, from_upstream: bytes) -> None:
    script = relay(step=17)
    script.client(from_client)
    script.upstream(from_upstream)
    script.client(from_client)

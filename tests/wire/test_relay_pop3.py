from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.model import ALLOW, Delay
from mailgate.wire.relay import MAX_IN_FLIGHT
from mailgate.wire.relay_pop3 import CAPABILITIES_LIMIT, LINE_LIMIT, REPLY_LIMIT, Pop3Relay
from tests.support.cores import Script, deny

VERBS = frozenset(("STAT LIST UIDL RETR TOP DELE RSET NOOP QUIT CAPA LANG UTF8 STLS AUTH USER PASS").split())
REFUSED = b"-ERR [SYS/PERM] Command not available\r\n"


def visible(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if not line.upper().startswith((b"STLS", b"SASL"))]


def relay(step: int = 1 << 30) -> Script:
    return Script(Pop3Relay(decide=deny("STLS", "AUTH", "USER", "PASS"), visible=visible, verbs=VERBS), step=step)


@pytest.fixture(params=[1, 2, 3, 5, 1 << 30], ids=["byte by byte", "in twos", "in threes", "in fives", "whole"])
def script(request: pytest.FixtureRequest) -> Script:
    return relay(step=request.param)


def test_commands_and_replies_of_every_shape_are_matched_in_order(script: Script) -> None:
    sent = b"stat\r\nLIST\r\nLIST 1\r\nRETR 1\r\nTOP 1 0\r\nUIDL\r\nUIDL 1\r\nLANG\r\nLANG en\r\nDELE 1\r\nQUIT\r\n"
    assert script.client(sent) == sent
    assert script.core.awaited == 11
    said = (
        b"+OK 1 100\r\n+OK\r\n1 100\r\n.\r\n+OK 1 100\r\n+OK 100 octets\r\nA: b\r\n\r\n..dot\r\n-ERR\r\n+OK\r\n.\r\n"
        b"+OK\r\nA: b\r\n\r\n.\r\n+OK\r\n1 u\r\n.\r\n-ERR no\r\n"
        b"+OK\r\nen English\r\n.\r\n+OK en\r\n+OK gone\r\n+OK bye\r\n"
    )
    assert script.upstream(said) == said
    assert script.results == [
        ("STAT", "ok"), ("LIST", "ok"), ("LIST", "ok"), ("RETR", "ok"), ("TOP", "ok"), ("UIDL", "ok"),
        ("UIDL", "err"), ("LANG", "ok"), ("LANG", "ok"), ("DELE", "ok"), ("QUIT", "ok"),
    ]  # fmt: skip
    assert script.core.awaited == 0
    assert script.core.logged_out


def test_an_error_has_no_lines_behind_it(script: Script) -> None:
    script.client(b"RETR 9\r\nSTAT\r\n")
    script.upstream(b"-ERR no such message\r\n+OK 0 0\r\n")
    assert script.results == [("RETR", "err"), ("STAT", "ok")]


@pytest.mark.parametrize("block", [b".\r\n", b"\r\n.\r\n", b"..\r\n.\r\n", b"x.\r\n.\r\n", b".x\r\n.\r\n", b"\n.\n"])
def test_the_end_of_a_block_is_found_wherever_it_is_cut(block: bytes) -> None:
    for step in (1, 2, 3, 4, 100):
        script = relay(step)
        script.client(b"RETR 1\r\nNOOP\r\n")
        assert script.upstream(b"+OK\r\n" + block + b"+OK noop\r\n") == b"+OK\r\n" + block + b"+OK noop\r\n"
        assert script.results == [("RETR", "ok"), ("NOOP", "ok")]


def test_a_refused_command_is_answered_when_its_turn_comes(script: Script) -> None:
    assert script.client(b"RETR 1\r\nSTLS\r\nAUTH PLAIN x\r\nSTAT\r\n") == b"RETR 1\r\nSTAT\r\n"
    assert script.client_got == b""
    script.upstream(b"+OK\r\nbody\r\n.\r\n+OK 1 1\r\n")
    assert script.client_got == b"+OK\r\nbody\r\n.\r\n" + REFUSED * 2 + b"+OK 1 1\r\n"


def test_a_refused_command_behind_a_short_reply_and_alone(script: Script) -> None:
    script.client(b"STLS\r\n")
    assert script.client_got == REFUSED
    script.client(b"STAT\r\nPASS secret\r\n")
    script.upstream(b"+OK 0 0\r\n")
    assert script.client_got == REFUSED + b"+OK 0 0\r\n" + REFUSED
    assert script.core.at_boundary


@pytest.mark.parametrize(
    "line", [b"\r\n", b" STAT\r\n", b"STAT\tx\r\n", b"ST\0AT\r\n", b"NOOP x\ry\r\n", b"RETR 1\0\r\n"]
)
def test_a_malformed_command_is_answered_here(line: bytes) -> None:
    script = relay()
    assert script.client(line + b"STAT\r\n") == b"STAT\r\n"
    assert script.client_got == b"-ERR Malformed command\r\n"


def test_a_bare_lf_is_passed_on_as_crlf() -> None:
    assert relay().client(b"STAT\nNOOP\r\n") == b"STAT\r\nNOOP\r\n"


def test_a_command_over_the_limit_is_dropped_and_answered(script: Script) -> None:
    if script.step == 1:
        script.step = 100
    assert script.client(b"LIST " + b"1" * 3 * LINE_LIMIT + b"\r\nSTAT\r\n") == b"STAT\r\n"
    assert script.client_got == b"-ERR Command line too long\r\n"


def test_an_unknown_command_is_sent_alone(script: Script) -> None:
    assert script.client(b"STAT\r\nXTND XLST\r\nNOOP\r\n") == b"STAT\r\n"
    assert script.core.held
    assert script.core.client_sent(b"", 0, 0.0) == 0
    script.upstream(b"+OK 0 0\r\n")
    assert script.upstream_got == b"STAT\r\nXTND XLST\r\n"
    assert script.core.blocked
    script.upstream(b"-ERR what\r\n")
    assert script.upstream_got.endswith(b"NOOP\r\n")
    script.upstream(b"+OK\r\n")
    assert script.results == [("STAT", "ok"), ("other", "err"), ("NOOP", "ok")]


def test_lines_that_nobody_asked_for_pass(script: Script) -> None:
    assert script.upstream(b"-ERR autologout\r\n") == b"-ERR autologout\r\n"


def test_capabilities_are_filtered(script: Script) -> None:
    script.client(b"CAPA\r\nSTLS\r\nSTAT\r\n")
    script.upstream(b"+OK list\r\nTOP\r\nSTLS\r\nSASL PLAIN\r\nUIDL\r\n.\r\n+OK 0 0\r\n")
    assert script.client_got == b"+OK list\r\nTOP\r\nUIDL\r\n.\r\n" + REFUSED + b"+OK 0 0\r\n"
    assert script.results[-2:] == [("CAPA", "ok"), ("STAT", "ok")]


def test_an_empty_capability_list() -> None:
    script = relay()
    script.client(b"CAPA\r\n")
    assert script.upstream(b"+OK\r\n.\r\n") == b"+OK\r\n.\r\n"


def test_an_endless_capability_list_is_not_collected() -> None:
    script = relay()
    script.client(b"CAPA\r\nSTAT\r\n")
    lines = b"X-LONG\r\n" * (CAPABILITIES_LIMIT // 8 + 2)
    script.upstream(b"+OK\r\n" + lines)
    assert script.client_got == b"+OK\r\n" + lines
    script.upstream(b".\r\n+OK 0 0\r\n")
    assert script.client_got.endswith(b".\r\n+OK 0 0\r\n")
    assert script.results == [("CAPA", "ok"), ("STAT", "ok")]


def test_a_reply_line_without_end_is_fatal() -> None:
    script = relay()
    script.client(b"STAT\r\n")
    script.upstream(b"+OK " + b"x" * REPLY_LIMIT)
    assert script.core.fatal


def test_a_large_block_passes_without_a_copy() -> None:
    core = relay().core
    core.client_sent(b"RETR 1\r\n", 8, 0.0)
    core.upstream_sent(b"+OK\r\n", 5, 0.0)
    core.to_client.clear()
    burst = bytearray(b"x\r\n" * 20_000)
    core.upstream_sent(burst, len(burst), 0.0)
    (piece,) = core.to_client
    assert isinstance(piece, memoryview)
    assert piece.obj is burst


def test_commands_in_flight_are_bounded() -> None:
    script = relay()
    script.client(b"NOOP\r\n" * (MAX_IN_FLIGHT + 3))
    assert script.upstream_got.count(b"NOOP") == MAX_IN_FLIGHT
    script.upstream(b"+OK\r\n")
    assert script.upstream_got.count(b"NOOP") == MAX_IN_FLIGHT + 1


def test_a_delay_stops_behind_the_delayed_command() -> None:
    core = Pop3Relay(decide=lambda verb: Delay(1.5, "x") if verb == "RETR" else ALLOW, visible=visible, verbs=VERBS)
    used = core.client_sent(b"RETR 1\r\nSTAT\r\n", 14, 0.0)
    assert used == 8
    assert core.delay == 1.5


@given(
    st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"")), max_size=8),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_every_message_passes_and_ends_where_it_ends(lines: list[bytes], cuts: list[int]) -> None:
    body = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    said = b"+OK\r\n" + body + b".\r\n-ERR next\r\n"
    script = relay()
    script.client(b"RETR 1\r\nDELE 1\r\n")
    at = 0
    while at < len(said):
        script.upstream(said[at : at + cuts[0]])
        at += cuts[0]
        cuts = cuts[1:] + cuts[:1]
    assert bytes(script.client_got) == said
    assert script.results == [("RETR", "ok"), ("DELE", "err")]


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_no_bytes_of_either_side_raise(from_client: bytes, from_upstream: bytes) -> None:
    script = relay(step=13)
    script.client(from_client)
    script.upstream(from_upstream)
    script.client(from_client)

"""The same dialogue whole and cut anywhere: a core must make the same of it.

Cut into single bytes, no line is seen whole and everything goes the long way; whole bursts take every short way
that there is. So these properties also say that the short ways keep the rules of the long one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailgate.model import ALLOW, Delay, Verdict
from mailgate.wire.relay import RelayCore
from mailgate.wire.relay_imap import ImapRelay
from mailgate.wire.relay_pop3 import Pop3Relay
from tests.support.cores import NO_COMPRESS

Turn = tuple[str, bytes]
Turns = list[Turn]
Cut = Callable[[bytes], Iterator[bytes]]

IMAP_VERBS = frozenset("CAPABILITY NOOP LOGOUT SELECT FETCH UID APPEND IDLE CHECK COMPRESS".split()) | {"UID FETCH"}
POP3_VERBS = frozenset("STAT LIST UIDL RETR TOP NOOP QUIT CAPA DELE STLS".split())


def visible(tokens: list[bytes]) -> list[bytes]:
    return [token for token in tokens if not token.upper().startswith((b"COMPRESS", b"STLS"))]


class Played:
    """What came of a dialogue: bytes for each side, what finished, what the gate was asked, the core's state."""

    def __init__(self, make: Callable[[Callable[[str], Verdict]], RelayCore], turns: Turns, cut: Cut) -> None:
        self.asked: list[str] = []
        self.core = make(self._decide)
        self.upstream_got = bytearray()
        self.client_got = bytearray()
        self.finished: list[Any] = []
        self.delays = 0.0
        self.said: list[tuple[bytes, bytes]] = []
        waiting = b""
        for clock, (side, data) in enumerate(turns):
            for piece in cut(data):
                if side == "C":
                    waiting = self._client(waiting + piece, clock)
                elif not self.core.fatal:
                    self.core.upstream_sent(bytearray(piece), len(piece), clock)
                    self._collect()
            waiting = self._client(waiting, clock)
            self.said.append((bytes(self.upstream_got), bytes(self.client_got)))
        self.waiting = waiting

    def _decide(self, verb: str) -> Verdict:
        self.asked.append(verb)
        if verb in ("COMPRESS", "STLS"):
            return NO_COMPRESS
        return Delay(1.0, "slow") if verb in ("CHECK", "DELE") else ALLOW

    def _client(self, waiting: bytes, clock: float) -> bytes:
        while (waiting or self.core.held) and not self.core.blocked and not self.core.fatal:
            used = self.core.client_sent(bytearray(waiting), len(waiting), clock)
            waiting = waiting[used:]
            self._collect()
        return waiting

    def _collect(self) -> None:
        core = self.core
        self.upstream_got += b"".join(core.to_upstream)
        self.client_got += b"".join(core.to_client)
        self.finished += core.finished
        self.delays += core.delay
        core.delay = 0.0
        for left in (core.to_upstream, core.to_client, core.finished):
            left.clear()

    @property
    def outcome(self) -> dict[str, Any]:
        """Everything that must not depend on the cuts."""
        core = self.core
        state = {name: getattr(core, name) for kind in type(core).__mro__ for name in getattr(kind, "__slots__", ())}
        del state["_decide"]
        if state.get("_block", "") is None:
            # The last bytes of a block that has ended mean nothing any more.
            del state["_edge"]
        asked = (core.blocked, core.held, core.awaited, core.busy, core.at_boundary)
        facts = (self.said, self.finished, self.asked, self.delays, asked)
        # What the client still has to send is in the core or before it.
        return {**state, "_carry": b"", "facts": facts, "waiting": bytes(state["_carry"]) + self.waiting}


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def at_every_byte(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def at_one(place: int) -> Cut:
    def cut(data: bytes) -> Iterator[bytes]:
        at = place % (len(data) + 1)
        yield from (piece for piece in (data[:at], data[at:]) if piece)

    return cut


Make = Callable[[Callable[[str], Verdict]], RelayCore]


def same_in_bytes(make: Make, turns: Turns) -> None:
    assert Played(make, turns, at_every_byte).outcome == Played(make, turns, whole).outcome


def same_however_cut(make: Make, turns: Turns) -> None:
    same_in_bytes(make, turns)
    expected = Played(make, turns, whole).outcome
    longest = max((len(data) for _, data in turns), default=0)
    for place in range(0, longest, 1 + longest // 50):
        assert Played(make, turns, at_one(place)).outcome == expected


def imap(decide: Callable[[str], Verdict]) -> ImapRelay:
    return ImapRelay(decide=decide, visible=visible, verbs=IMAP_VERBS, capabilities=frozenset({"LITERAL+"}))


def pop3(decide: Callable[[str], Verdict]) -> Pop3Relay:
    return Pop3Relay(decide=decide, visible=visible, verbs=POP3_VERBS)


TAGS = (b"a", b"a", b"b", b"A001", b"UID", b"OK")
ENDS = (b"\r\n", b"\r\n", b"\r\n", b"\n")

IMAP_COMMANDS = (
    *(b" NOOP", b" noop", b" NoOp", b" NOOP ", b" CHECK", b" COMPRESS DEFLATE", b" LOGOUT", b" IDLE", b" IDLE x"),
    *(b" UID FETCH 1 FLAGS", b" uid fetch 1 FLAGS", b" UID", b" UID FETCH", b" UID XYZZY 1", b" UIDFETCH", b" XYZZY"),
    *(b' SELECT "a b"', b' SELECT "a\\"b" ("c")', b' SELECT "a', b' SELECT a"b"', b' SELECT "a"b'),
    *(b' SELECT "{3}"', b" SELECT {3+}x", b" SELECT }", b" SELECT x{3}", b' SELECT ("a"', b' SELECT ["a"]'),
    *(
        b' SELECT "\\a"',
        b' SELECT "a\0"',
        b' SELECT "a\rb"',
        b' SELECT "a" "b\0"',
        b' SELECT "a" x\0',
        b' SELECT "" x{3}',
    ),
    *(b"", b" ", b"  NOOP", b" NOOP\r", b" NOOP\0", b" NO\rOP", b" NOOP x\ry", b" NOOP x\0", b" NOOP \xff", b"\tNOOP"),
    *(b" APPEND x {3+}", b" APPEND x {3}", b" APPEND x ~{2+}", b" NOOP {3+}", b" COMPRESS {3+}", b" FETCH(1)"),
)
IMAP_FRAGMENTS = (
    b"abc",
    b" (x)\r\n",
    b"\r\n",
    b"DONE\r\n",
    b"done \n",
    b"=\r\n",
    b"* NOOP\r\n",
    b"+ NOOP\r\n",
    b"a NO",
)
IMAP_RESULTS = (b" OK", b" NO", b" BAD", b" ok", b" OKAY", b" BYE")
IMAP_TEXTS = (b" done", b"", b" [READ-WRITE] x", b" [CAPABILITY IMAP4rev1 COMPRESS=X] x", b" {3}", b" x\ry")
IMAP_RESPONSES = (
    *(b"* 5 EXISTS\r\n", b"* 5 EXISTS\n", b"* 1 FETCH (FLAGS ())\r\n", b"* SEARCH 1 2\r\n", b"* OK still here\r\n"),
    *(b"* 1 FETCH (BODY[] {3}\r\n", b"* 1 FETCH (A {1} B {3}\r\n", b"* LIST () {2}\r\n", b"* 1 FETCH {0}\r\n"),
    *(b"* OK x {3}\r\n", b"* 1 FETCH {3}\n", b"* 1 FETCH {x}\r\n", b"* 1 FETCH }\r\n", b"* 1 FETCH x\r{3}\r\n"),
    *(b"* CAPABILITY IMAP4rev1 COMPRESS=DEFLATE LITERAL-\r\n", b"* BYE bye\r\n", b"* bye {3}\r\n", b"* ok x\r\n"),
    *(b"+ go\r\n", b"+\r\n", b"abc", b")\r\n", b" X {2}\r\n", b"\r\n", b"\n", b"* ", b"* 5 EXI", b"a O", b"*\r\n"),
)


@pytest.mark.parametrize("first", IMAP_COMMANDS)
def test_two_imap_commands_in_one_burst_are_taken_as_byte_by_byte(first: bytes) -> None:
    for second in IMAP_COMMANDS:
        same_in_bytes(imap, [("C", b"a NOOP\r\n"), ("C", b"b%b\r\nc%b\r\n" % (first, second)), ("C", b"d NOOP\r\n")])


@pytest.mark.parametrize("first", IMAP_RESPONSES)
def test_three_imap_responses_in_one_burst_are_taken_as_byte_by_byte(first: bytes) -> None:
    for second in IMAP_RESPONSES:
        for third in (b"a OK done\r\n", b"* 6 EXISTS\r\n", b"b NO [CAPABILITY X COMPRESS=Y] no\r\n"):
            same_in_bytes(
                imap, [("C", b"a LOGOUT\r\nb NOOP\r\n"), ("S", first + second + third), ("C", b"x COMPRESS x\r\n")]
            )


def joined(*parts: bytes) -> bytes:
    return b"".join(parts)


ends = st.sampled_from(ENDS)
imap_command = st.builds(joined, st.sampled_from(TAGS), st.sampled_from(IMAP_COMMANDS), ends)
imap_sent = st.one_of(imap_command, imap_command, st.sampled_from(IMAP_FRAGMENTS))
imap_said = st.one_of(
    st.builds(joined, st.sampled_from(TAGS), st.sampled_from(IMAP_RESULTS), st.sampled_from(IMAP_TEXTS), ends),
    st.sampled_from(IMAP_RESPONSES),
)


def turns_of(sent: st.SearchStrategy[bytes], said: st.SearchStrategy[bytes]) -> st.SearchStrategy[Turns]:
    bursts = st.one_of(
        st.tuples(st.just("C"), st.lists(sent, min_size=1, max_size=5).map(b"".join)),
        st.tuples(st.just("S"), st.lists(said, min_size=1, max_size=5).map(b"".join)),
    )
    return st.lists(bursts, max_size=6)


@settings(deadline=None)
@given(turns_of(imap_sent, imap_said))
@example([("C", b"a NOOP\r\nb CHECK\r\nc COMPRESS x\r\nd NOOP\r\n"), ("S", b"a OK x\r\nb OK [CAPABILITY X] x\r\n")])
@example(
    [("C", b"a NOOP\r\nb NOOP\r\nb CHECK\r\nb UID\r\n"), ("S", b"b OK x\r\nb NO x\r\na OK x\r\nb BAD x\r\nb OK\r\n")]
)
@example([("S", b"* 1 FETCH {3}\r\nab"), ("C", b"a COMPRESS\r\n"), ("S", b"c)\r\n* 5 EXISTS\r\n* 6 EXISTS\r\n")])
@example([("C", b"a IDLE\r\n"), ("S", b"+ go\r\n* 5 EXISTS\r\n"), ("C", b"b NOOP\r\n"), ("C", b"DONE\r\nc NOOP\r\n")])
def test_an_imap_dialogue_comes_to_the_same_however_it_is_cut(turns: Turns) -> None:
    same_however_cut(imap, turns)


POP3_WORDS = (
    *(b"NOOP", b"noop", b"NoOp", b"RETR", b"TOP", b"LIST", b"UIDL", b"CAPA", b"STLS", b"QUIT", b"DELE", b"XYZZY"),
    *(b"", b" ", b"STAT\0", b"ST\rAT", b"A" * 17, b"STAT" + b" x" * 520, b"STAT" + b" " * 1030 + b"NOOP"),
)
POP3_ARGUMENTS = (b"", b"", b" 1", b" ", b" 1\r", b" \0", b"\t1")
POP3_REPLIES = (
    *(b"+OK\r\n", b"+OK 1 100\r\n", b"+ok\n", b"-ERR no\r\n", b"+O\r\n", b"\n", b"+OKAY\r\n", b"+OK", b"+"),
    *(b".\r\n", b".\n", b"..\r\n", b".x\r\n", b"x\r\n", b"x.\r\n", b"\r\n", b"a\r\n.\r\n", b".\r", b"STLS\r\n.\r\n"),
)


@pytest.mark.parametrize("first", POP3_WORDS)
def test_two_pop3_commands_in_one_burst_are_taken_as_byte_by_byte(first: bytes) -> None:
    for second in POP3_WORDS:
        for argument in POP3_ARGUMENTS:
            sent = b"%b%b\r\n%b%b\r\n" % (first, argument, second, argument)
            same_in_bytes(pop3, [("C", b"STAT\r\n"), ("C", sent), ("S", b"+OK\r\n"), ("C", b"NOOP\r\n")])


@pytest.mark.parametrize("first", POP3_REPLIES)
def test_three_pop3_replies_in_one_burst_are_taken_as_byte_by_byte(first: bytes) -> None:
    for second in POP3_REPLIES:
        for third in POP3_REPLIES:
            sent = b"STAT\r\nRETR 1\r\nSTLS\r\nCAPA\r\n"
            same_in_bytes(pop3, [("C", sent), ("S", first + second + third), ("S", b"+OK\r\n")])


pop3_sent = st.builds(joined, st.sampled_from(POP3_WORDS), st.sampled_from(POP3_ARGUMENTS), ends)


@settings(deadline=None)
@given(turns_of(pop3_sent, st.sampled_from(POP3_REPLIES)))
@example([("C", b"NOOP\r\nDELE 1\r\nSTLS\r\nRETR 1\r\n"), ("S", b"+OK\r\n-ERR\r\n+OK\r\na\r\n.\r\n")])
@example([("C", b"CAPA\r\nSTLS\r\nLIST 1\r\n"), ("S", b"+OK\r\nTOP\r\nSTLS\r\n.\r\n+OK\r\n")])
@example([("C", b"RETR 1\r\nNOOP\r\n"), ("S", b"+OK\r\n.\r\n+OK\r\n")])
@example([("C", b"A" * 1030), ("C", b"NOOP\r\nSTAT\r\n")])
def test_a_pop3_dialogue_comes_to_the_same_however_it_is_cut(turns: Turns) -> None:
    same_however_cut(pop3, turns)

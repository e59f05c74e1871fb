"""The IMAP relay core: every command framed and named, every completion matched, nothing altered.

Towards the upstream a command passes line by line. A line is checked before it is forwarded: a
valid tag, a verb, quoted strings that end, a literal announced where one may stand. Where mailgate
is stricter than some server it answers BAD itself, since the alternative is that the two disagree
on where the command ends, and a client could hide a second command in the difference.

A literal is sent on only when the upstream has asked for it. A server that refuses a command in
the middle of its line (Dovecot does for ``a NOOP {9+}``) reads what follows as the next command,
so ``{9+}`` becomes ``{9}`` on its way, and if the command is answered instead of a ``+``, the
client's literal goes nowhere.

Towards the client most of a burst passes unread: one search finds the next line that matters (a
completion, a continuation request, capabilities, a literal announcement), and literals are skipped
by count.

Who owns a ``+``: only a synchronising literal, IDLE and commands that mailgate does not know ask
the client to go on. The core lets one of these be under way at a time and holds the next one back,
so that no continuation request can be taken for another command's.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from mailgate.model import Delay, Deny
from mailgate.wire.relay import MAX_IN_FLIGHT, Decide, FilterCapabilities, Finished, Outbox

LINE_LIMIT: Final = 128 * 1024
"""Longest piece of a command between literals. RFC 2683 §3.2.1.5 asks servers for 8,000 octets,
Dovecot takes 64 KiB and Cyrus 128 KiB: what is longer would be refused behind the gateway too."""

HOLD_LIMIT: Final = 16 * 1024
"""Longest unfinished response line that is kept until its end arrives. The lines that are read
whole (completions, capabilities) are far shorter; longer ones (SEARCH results) pass in parts."""

MAX_REPLIES: Final = 100
"""Answers of the gateway's own, sent at once or waiting for the end of a response, after which the
core stops taking commands for the moment: a burst of bad lines must not grow a hundredfold, nor
keep the other sessions waiting."""

TAG_LIMIT: Final = 512
"""Longest tag that is remembered and echoed; the longest seen in clients have some tens."""

LITERAL_DIGITS: Final = 19
"""Digits of the largest 63-bit number (RFC 9051 §9, number64)."""

LITERAL_MINUS_LIMIT: Final = 4096
"""The largest non-synchronising literal under LITERAL- (RFC 7888 §5)."""

LiteralMode = Literal["none", "minus", "plus"]

_TAG_CHARS: Final = rb"[!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]"
_TAG_TOKEN: Final = _TAG_CHARS + b"{1,%d}+" % TAG_LIMIT
_HEAD = re.compile(rb"(" + _TAG_TOKEN + rb") ((?:[Uu][Ii][Dd] )?[A-Za-z][A-Za-z0-9._\-]*+)(?=[ \r])")
_TAG = re.compile(rb"(" + _TAG_TOKEN + rb") ")
# Only one way leads through each line, so a failure takes time in proportion to its length. Possessive groups
# would say so, but Python before 3.11.5 takes them wrongly.
_QUOTED_WELL = re.compile(rb'[^"]*(?:(?<=[ (\[])"[^"\\]*(?:\\["\\][^"\\]*)*"(?=[ )\]\r])[^"]*)*\Z')
_ANNOUNCED = re.compile(rb"(?:(?<=[ (])|(?<=[ (]~))\{([0-9]++)(\+?)\}\r\n\Z")
_BRACED = re.compile(rb"\{([0-9]*+)([^{}]*+)\}\r\n\Z")
_SASL_LINE = re.compile(rb"(?:[A-Za-z0-9+/]*={0,2}|\*)\r\n\Z")

_MATTERS = re.compile(
    rb"\n(?:(?<=\}\r\n)|(?<=\}\n)|(?=[^*]|\* (?:CAPABILITY|BYE|(?:OK|NO|BAD) \[CAPABILITY)))",
    re.IGNORECASE,
)
_READ_WHOLE = re.compile(rb"[^*]|\* (?:CAPABILITY|BYE|(?:OK|NO|BAD) \[CAPABILITY)", re.IGNORECASE)
_RESPONSE_LITERAL = re.compile(rb"\{([0-9]{1,19})\}\r?\n\Z")
_HUMAN = re.compile(rb"\+|[^ +\r\n]+ (?:OK|NO|BAD|BYE|PREAUTH)(?=[ \r\n])", re.IGNORECASE)
_COMPLETION = re.compile(rb"([^ *+\r\n][^ \r\n]*) (OK|NO|BAD)(?=[ \r\n])", re.IGNORECASE)
_CODE = re.compile(rb"[^ +\r\n]+ (?:OK|NO|BAD) \[CAPABILITY ([^\]\r\n]*)\]", re.IGNORECASE)
_UNTAGGED = re.compile(rb"\* CAPABILITY ([^\r\n]*)", re.IGNORECASE)
_BYE = re.compile(rb"\* BYE(?=[ \r\n])", re.IGNORECASE)
_ANNOUNCEMENT_ROOM: Final = 32


def literal_mode(capabilities: frozenset[str]) -> LiteralMode:
    """Return which non-synchronising literals a server with these capabilities takes (RFC 7888)."""
    if "LITERAL+" in capabilities:
        return "plus"
    if "LITERAL-" in capabilities or "IMAP4REV2" in capabilities:
        return "minus"
    return "none"


class _Pending:
    """A command in flight.

    ``later`` is a younger one with the same tag, which RFC 9051 §2.2.1 forbids and some clients
    send all the same.
    """

    __slots__ = ("later", "since", "verb")

    def __init__(self, verb: str, since: float) -> None:
        self.verb = verb
        self.since = since
        self.later: _Pending | None = None


class ImapRelay(Outbox):
    """A relay core (see ``mailgate.wire.relay``) for one IMAP session after its login.

    ``decide`` is the command gate and ``visible`` the filter of capabilities; ``verbs`` are the
    commands that mailgate knows (``UID FETCH`` is one); ``capabilities`` is what the upstream
    said after the login, in upper case: it tells which non-synchronising literals the upstream
    understands. ``fatal`` is set when the session cannot go on soundly.
    """

    __slots__ = (
        "_asked",
        "_asker",
        "_carry",
        "_current",
        "_decide",
        "_idling",
        "_in_flight",
        "_left",
        "_long",
        "_long_human",
        "_overlong",
        "_part",
        "_pending",
        "_ready",
        "_replies",
        "_starts",
        "_swallow",
        "_tag",
        "_tail",
        "_to_pass",
        "_verbs",
        "_visible",
        "_waiting",
        "literals",
    )

    def __init__(
        self,
        *,
        decide: Decide,
        visible: FilterCapabilities,
        verbs: frozenset[str],
        capabilities: frozenset[str],
    ) -> None:
        super().__init__(opaque=False)
        self.literals: LiteralMode = literal_mode(capabilities)
        self._decide = decide
        self._visible = visible
        self._verbs = verbs
        # The client's direction: what is kept of an unfinished line, and how far its command has come.
        self._carry = b""
        self._overlong = False
        self._tag = b""
        self._part = False
        self._swallow = False
        self._to_pass = 0
        self._waiting: int | None = None
        # The command that is being sent, and whether its client sends the literal without being asked.
        self._current: _Pending | None = None
        self._ready = False
        # The commands in flight, and the one of them that may ask for a continuation.
        self._pending: dict[bytes, _Pending] = {}
        self._in_flight = 0
        self._asker: _Pending | None = None
        self._asked = False
        self._idling = False
        # The upstream's direction: an unfinished line, a literal under way, answers that wait for its end.
        self._tail = b""
        self._starts = True
        self._left = 0
        self._long = False
        self._long_human = False
        self._replies: list[bytes] = []

    # ---------------------------------------------------------------- what the client sends

    @property
    def held(self) -> bool:
        """Whether a complete line waits for the command that may ask for a continuation."""
        return self._carry.endswith(b"\n") and not self._overlong

    @property
    def blocked(self) -> bool:
        """Whether the client's bytes wait: for a literal's ``+``, another asker, a full table."""
        return (
            self._waiting is not None
            or self._in_flight >= MAX_IN_FLIGHT
            or len(self._replies) >= MAX_REPLIES
            or (self._asker is not None and self.held)
        )

    @property
    def awaited(self) -> int:
        """Commands in flight, without an IDLE (it ends only when asked) and one that is half sent."""
        half_sent = self._part and not self._swallow
        return max(0, self._in_flight - self._idling - half_sent)

    @property
    def busy(self) -> bool:
        """Whether a command is under way, an IDLE aside; an upload in the middle of its literal is."""
        return self._in_flight > self._idling

    def client_sent(self, data: bytes | bytearray, end: int, now: float) -> int:
        """Take commands; see ``RelayCore.client_sent``."""
        if self.held:
            line, self._carry = self._carry, b""
            self._client_line(line, now)
        at = 0
        while at < end and not self.delay and not self.fatal and not self.blocked:
            if len(self.to_client) >= MAX_REPLIES:
                break
            if self._to_pass:
                step = min(self._to_pass, end - at)
                if not self._swallow:
                    self.to_upstream.append(memoryview(data)[at : at + step])
                self._to_pass -= step
                at += step
                continue
            newline = data.find(b"\n", at, end)
            stop = newline + 1 if newline >= 0 else end
            line = self._carry + bytes(memoryview(data)[at:stop])
            at = stop
            if self._overlong or len(line) > LINE_LIMIT:
                self._too_long(line)
            elif newline < 0:
                self._carry = line
            else:
                self._carry = b""
                self._client_line(line, now)
        return at

    def _client_line(self, line: bytes, now: float) -> None:
        """Judge one complete line: a command's first, or what follows one of its literals."""
        if not line.endswith(b"\r\n"):
            # A bare LF ends a line here, as old clients expect. The upstream gets a CRLF, so that a stricter one
            # does not read on where the gateway stopped.
            line = line[:-1] + b"\r\n"
        if self._part:
            self._continue(line)
        elif self._idling and line[:-2].rstrip(b" ").upper() == b"DONE":
            self._idling = False
            self.to_upstream.append(line)
        elif self._asked and _SASL_LINE.match(line):
            self._asked = False
            self.to_upstream.append(line)
        else:
            self._begin(line, now)

    def _begin(self, line: bytes, now: float) -> None:
        """Judge a command's first line, and forward or refuse it."""
        head = _HEAD.match(line)
        if head is None:
            tagged = _TAG.match(line)
            self._refuse(tagged[1] if tagged else b"*", b"BAD", "Expected a tag and a command", "other", line)
            return
        tag, word = head[1], head[2].decode("ascii").upper()
        known = word in self._verbs
        verb = word if known else "other"
        problem, announced = self._shape(line)
        if not problem and self._idling:
            problem = "Expected DONE"
        elif not problem and word == "IDLE" and line[head.end() :].strip():
            # Its "+" would be taken for a literal's.
            problem = "IDLE takes no arguments"
        elif not problem and announced is not None and tag in self._pending:
            # Whose completion comes first could not be told, nor whether it refuses the literal.
            problem = "This tag is in use"
        if problem:
            self._refuse(tag, b"BAD", problem, verb, line)
            return
        asks = not known or word == "IDLE"
        if (asks or announced is not None) and self._asker is not None:
            self._carry = line
            return
        verdict = self._decide(word)
        if isinstance(verdict, Deny):
            refusal = verdict.refusal
            code = f"[{refusal.imap_code}] " if refusal.imap_code else ""
            self._refuse(tag, b"NO", code + refusal.text, verb, line)
            return
        if isinstance(verdict, Delay):
            self.delay = verdict.seconds
        pending = _Pending(verb, now)
        self._note(tag, pending)
        if asks:
            self._asker = pending
            self._idling = word == "IDLE"
        self._tag, self._current = tag, pending
        self._send(line, announced)

    def _continue(self, line: bytes) -> None:
        """Judge what follows a literal: the command's end, or its next literal."""
        problem, announced = self._shape(line)
        if self._swallow:
            self._part = False
            self._skip_literal(line)
        elif problem:
            # The upstream has half of a command that nobody can take back.
            self.fatal = problem
        else:
            # No other command can be asking: this one could not have begun beside it.
            self._part = False
            self._send(line, announced)

    def _shape(self, line: bytes) -> tuple[str, tuple[int, bool] | None]:
        """Return what is wrong with a line, and the literal that it announces: size, without waiting."""
        if line.find(b"\r", 0, -2) >= 0 or b"\0" in line:
            return "CR and NUL are not allowed here", None
        if b'"' in line and not _QUOTED_WELL.match(line):
            return "Malformed quoted string", None
        if not line.endswith(b"}\r\n") or _BRACED.search(line) is None:
            return "", None
        match = _ANNOUNCED.search(line)
        if match is None or len(match[1]) > LITERAL_DIGITS:
            return "Malformed literal", None
        size, without_waiting = int(match[1]), bool(match[2])
        if without_waiting and (self.literals == "none" or (self.literals == "minus" and size > LITERAL_MINUS_LIMIT)):
            return "Non-synchronizing literal not supported", None
        return "", (size, without_waiting)

    def _send(self, line: bytes, announced: tuple[int, bool] | None) -> None:
        """Forward a line, and prepare for the literal that it announces."""
        if announced is None:
            self.to_upstream.append(line)
            return
        self._waiting, self._ready = announced
        self._part = True
        self.to_upstream.append(line[: -len(b"+}\r\n")] + b"}\r\n" if self._ready else line)

    def _refuse(self, tag: bytes, status: bytes, text: str, verb: str, line: bytes) -> None:
        """Answer a command instead of forwarding it, and skip the literal that comes with it."""
        self.finished.append(Finished(verb, "refused" if status == b"NO" else "bad", 0.0))
        self._reply(b"%b %b %b\r\n" % (tag, status, text.encode("ascii")))
        self._skip_literal(line)

    def _skip_literal(self, line: bytes) -> None:
        """Skip the literal that a refused line announces and the client sends without waiting.

        One that it would wait for is not sent after a refusal, so the command ends here.
        """
        self._swallow = False
        braced = _BRACED.search(line)
        if braced is None or braced[2] != b"+" or not braced[1]:
            return
        if len(braced[1]) > LITERAL_DIGITS:
            self.fatal = "Literal too large"
            return
        self._part = self._swallow = True
        self._to_pass = int(braced[1])

    def _too_long(self, line: bytes) -> None:
        """Drop a line that is over the limit, keeping its end, which may announce a literal."""
        if not self._overlong:
            self._overlong = True
            if self._part and not self._swallow:
                self.fatal = "Command line too long"
                return
            tagged = _TAG.match(line)
            self._tag = tagged[1] if tagged else b"*"
        if not line.endswith(b"\n"):
            self._carry = line[-_ANNOUNCEMENT_ROOM:]
            return
        self._carry = b""
        self._overlong = False
        end = line[-_ANNOUNCEMENT_ROOM:]
        if self._swallow:
            self._part = False
            self._skip_literal(end)
        else:
            self._refuse(self._tag, b"BAD", "Command line too long", "other", end)

    def _note(self, tag: bytes, pending: _Pending) -> None:
        """Remember a command until its completion."""
        self._in_flight += 1
        elder = self._pending.setdefault(tag, pending)
        if elder is pending:
            return
        while elder.later is not None:
            elder = elder.later
        elder.later = pending

    # ---------------------------------------------------------------- what the upstream sends

    def upstream_sent(self, data: bytes | bytearray, end: int, now: float) -> None:
        """Take responses; see ``RelayCore.upstream_sent``."""
        view = memoryview(data)
        at = 0
        if self._tail:
            newline = data.find(b"\n", 0, end)
            at = newline + 1 if newline >= 0 else end
            line, self._tail = self._tail + bytes(view[:at]), b""
            if newline < 0:
                self._keep(line, now)
            else:
                self._line(line, now)
                self._flush_replies()
        mark = at
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            if self._starts and (self._replies or _READ_WHOLE.match(data, at, end)):
                newline = data.find(b"\n", at, end)
                if newline < 0:
                    break
                if mark < at:
                    self.to_client.append(view[mark:at])
                self._flush_replies()
                self._line(bytes(view[at : newline + 1]), now)
                at = mark = newline + 1
                continue
            found = _MATTERS.search(data, at, end)
            newline = found.start() if found else data.rfind(b"\n", at, end)
            if newline < 0:
                break
            size = self._announced(data, at, newline + 1)
            self._starts = size is None
            self._left = size or 0
            at = newline + 1
        if mark < at:
            self.to_client.append(view[mark:at])
        if at < end:
            self._keep(bytes(view[at:end]), now)
        self._flush_replies()

    def _announced(self, data: bytes | bytearray, at: int, stop: int) -> int | None:
        """Return the size of the literal that the line ending at ``stop`` announces, if it does."""
        begin = data.rfind(b"\n", at, stop - 1) + 1
        starts = begin > 0 or self._starts
        begin = begin or at
        match = _RESPONSE_LITERAL.search(bytes(data[max(begin, stop - _ANNOUNCEMENT_ROOM) : stop]))
        if match is None or (starts and _HUMAN.match(data, begin, stop)):
            return None
        return int(match[1])

    def _line(self, line: bytes, now: float) -> None:
        """Read one complete line and forward it, its capabilities filtered."""
        if self._long:
            human = self._long_human
            self._long = False
        elif self._starts:
            human = _HUMAN.match(line) is not None
            line = self._head(line, now)
        else:
            human = False
        self.to_client.append(line)
        match = None if human else _RESPONSE_LITERAL.search(line[-_ANNOUNCEMENT_ROOM:])
        self._starts = match is None
        self._left = int(match[1]) if match else 0

    def _head(self, line: bytes, now: float) -> bytes:
        """Act on what a response line says to the gateway; return what the client shall see."""
        completion = _COMPLETION.match(line)
        if completion is not None:
            self._completed(completion[1], completion[2].decode("ascii").lower(), now)
        elif line.startswith(b"+"):
            return line if self._continuation() else b""
        elif _BYE.match(line):
            self.logged_out = self.logged_out or self._in_flight_verb("LOGOUT")
        match = _UNTAGGED.match(line) or _CODE.match(line)
        if match is None:
            return line
        tokens = match[1].split()
        self.literals = literal_mode(frozenset(token.decode("latin-1").upper() for token in tokens))
        start, stop = match.span(1)
        return line[:start] + b" ".join(self._visible(tokens)) + line[stop:]

    def _in_flight_verb(self, verb: str) -> bool:
        return any(pending.verb == verb for pending in self._pending.values())

    def _continuation(self) -> bool:
        """Give a ``+`` to the one command that can have asked for it; return whether its client waits for it."""
        if self._waiting is not None:
            self._to_pass, self._waiting = self._waiting, None
            return not self._ready
        if self._asker is not None and self._asker.verb != "IDLE":
            self._asked = True
        return True

    def _completed(self, tag: bytes, result: str, now: float) -> None:
        """Match a completion with its command."""
        pending = self._pending.get(tag)
        if pending is None:
            return
        if pending.later is None:
            del self._pending[tag]
        else:
            self._pending[tag] = pending.later
        self._in_flight -= 1
        if pending is self._asker:
            self._asker = None
            self._asked = self._idling = False
        if self._waiting is not None and pending is self._current:
            # The upstream wants no literal; what the client sends of it all the same is skipped.
            self._swallow = self._part = self._ready
            self._to_pass = self._waiting if self._ready else 0
            self._waiting = None
        if pending.verb == "LOGOUT" and result == "ok":
            self.logged_out = True
        self.finished.append(Finished(pending.verb, result, now - pending.since))

    def _keep(self, line: bytes, now: float) -> None:
        """Keep an unfinished line; pass on all but its end when it is a long one."""
        if len(line) <= HOLD_LIMIT:
            self._tail = line
            return
        if self._starts and not self._long:
            self._long_human = _HUMAN.match(line) is not None
            line = self._head(line, now)
            if not line:
                self.fatal = "Continuation request too long"
                return
        elif not self._long:
            self._long_human = False
        self._long = True
        self.to_client.append(line[:-_ANNOUNCEMENT_ROOM])
        self._tail = line[-_ANNOUNCEMENT_ROOM:]

    def _reply(self, reply: bytes) -> None:
        """Answer the client now, or at the end of the response that is under way."""
        self._replies.append(reply)
        self._flush_replies()

    @property
    def at_boundary(self) -> bool:
        """Whether the last byte for the client ended a response."""
        return self._starts and not self._left and not self._tail

    def _flush_replies(self) -> None:
        if self._replies and self.at_boundary:
            self.to_client += self._replies
            self._replies.clear()

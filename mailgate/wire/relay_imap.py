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

from typing import Final

from mailgate.model import ALLOW, Delay, Deny, Verdict
from mailgate.wire import relay_imap_lines as lines
from mailgate.wire.relay import MAX_IN_FLIGHT, Decide, FilterCapabilities, Finished, cut, spellings
from mailgate.wire.relay_imap_lines import LiteralMode
from mailgate.wire.tagged import Command, TaggedCommands

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


def literal_mode(capabilities: frozenset[str]) -> LiteralMode:
    """Return which non-synchronising literals a server with these capabilities takes (RFC 7888)."""
    if "LITERAL+" in capabilities:
        return "plus"
    if "LITERAL-" in capabilities or "IMAP4REV2" in capabilities:
        return "minus"
    return "none"


class ImapRelay(TaggedCommands):
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
        "_left",
        "_long",
        "_long_human",
        "_overlong",
        "_part",
        "_ready",
        "_replies",
        "_spellings",
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
        self._spellings = spellings(verbs)
        # The client's direction: what is kept of an unfinished line, and how far its command has come.
        self._carry = b""
        self._overlong = False
        self._tag = b""
        self._part = False
        self._swallow = False
        self._to_pass = 0
        self._waiting: int | None = None
        # The command whose literal is under way, and whether its client sends it without being asked.
        self._current: Command | None = None
        self._ready = False
        # The one of the commands in flight that may ask for a continuation.
        self._asker: Command | None = None
        self._asked = False
        self._idling = False
        # The upstream's direction: an unfinished line, a literal under way, answers that wait for its end.
        self._tail = b""
        self._starts = True
        self._left = 0
        self._long = False
        self._long_human = False
        self._replies: list[bytes] | None = None

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
            or (self._replies is not None and len(self._replies) >= MAX_REPLIES)
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
        at = 0
        if not (
            self._carry
            or self._part
            or self._asker
            or self._replies
            or self.to_client
            or self.delay
            or self.fatal
            or end > LINE_LIMIT
        ):
            at = self._plain_lines(data, end, now)
            if at == end:
                return at
        elif self.held:
            line, self._carry = self._carry, b""
            self._client_line(line, now)
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
            line = self._carry + data[at:stop]
            at = stop
            if self._overlong or len(line) > LINE_LIMIT:
                self._too_long(line)
            elif newline < 0:
                self._carry = line
            else:
                self._carry = b""
                self._client_line(line, now)
        return at

    def _plain_lines(self, data: bytes | bytearray, end: int, now: float) -> int:
        """Take commands as long as they have the ordinary shape and nothing but commands is under way beside them.

        Returns how many bytes were consumed. What this takes, the long way would take in the same way.
        """
        match_plain, find_verb, decide = lines.PLAIN.match, self._spellings.get, self._decide
        at = mark = 0
        while at < end and self._in_flight < MAX_IN_FLIGHT:
            match = match_plain(data, at, end)
            if match is None:
                break
            tag, word = match.group(1, 2)
            verb = find_verb(word)
            if verb is None or verb == "IDLE":
                break
            verdict = decide(verb)
            if verdict is ALLOW:
                at = match.end()
                self._note((tag, verb, now))
                continue
            line = match[0]
            if mark < at:
                self.to_upstream.append(cut(data, mark, at))
            at = mark = match.end()
            if self._passes(verdict, tag, verb, line):
                self._note((tag, verb, now))
                self.to_upstream.append(line)
            break
        if mark < at:
            self.to_upstream.append(cut(data, mark, at))
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
        elif self._asked and lines.SASL_LINE.match(line):
            self._asked = False
            self.to_upstream.append(line)
        else:
            self._begin(line, now)

    def _begin(self, line: bytes, now: float) -> None:
        """Judge a command's first line, and forward or refuse it."""
        head = lines.HEAD.match(line)
        if head is None:
            tagged = lines.TAG.match(line)
            self._refuse(tagged[1] if tagged else b"*", b"BAD", "Expected a tag and a command", "other", line)
            return
        tag, word = head[1], head[2].decode("ascii").upper()
        known = word in self._verbs
        verb = word if known else "other"
        problem, announced = lines.shape(line, self.literals)
        if not problem and self._idling:
            problem = "Expected DONE"
        elif not problem and word == "IDLE" and line[head.end() :].strip():
            # Its "+" would be taken for a literal's.
            problem = "IDLE takes no arguments"
        elif not problem and announced is not None and self._uses(tag):
            # Whose completion comes first could not be told, nor whether it refuses the literal.
            problem = "This tag is in use"
        if problem:
            self._refuse(tag, b"BAD", problem, verb, line)
            return
        asks = not known or word == "IDLE"
        if (asks or announced is not None) and self._asker is not None:
            self._carry = line
            return
        if not self._passes(self._decide(word), tag, verb, line):
            return
        command = (tag, verb, now)
        self._note(command)
        if asks:
            self._asker = command
            self._idling = word == "IDLE"
        self._send(line, announced)
        if announced is not None:
            self._current = command

    def _passes(self, verdict: Verdict, tag: bytes, verb: str, line: bytes) -> bool:
        """Do what the gate said; return whether the command may pass."""
        if isinstance(verdict, Deny):
            refusal = verdict.refusal
            code = f"[{refusal.imap_code}] " if refusal.imap_code else ""
            self._refuse(tag, b"NO", code + refusal.text, verb, line)
            return False
        if isinstance(verdict, Delay):
            self.delay = verdict.seconds
        return True

    def _continue(self, line: bytes) -> None:
        """Judge what follows a literal: the command's end, or its next literal."""
        problem, announced = lines.shape(line, self.literals)
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

    def _send(self, line: bytes, announced: tuple[int, bool] | None) -> None:
        """Forward a line, and prepare for the literal that it announces."""
        if announced is None:
            self._current = None
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
        braced = lines.BRACED.search(line)
        if braced is None or braced[2] != b"+" or not braced[1]:
            return
        if len(braced[1]) > lines.LITERAL_DIGITS:
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
            tagged = lines.TAG.match(line)
            self._tag = tagged[1] if tagged else b"*"
        if not line.endswith(b"\n"):
            self._carry = line[-lines.ANNOUNCEMENT_ROOM :]
            return
        self._carry = b""
        self._overlong = False
        end = line[-lines.ANNOUNCEMENT_ROOM :]
        if self._swallow:
            self._part = False
            self._skip_literal(end)
        else:
            self._refuse(self._tag, b"BAD", "Command line too long", "other", end)

    # ---------------------------------------------------------------- what the upstream sends

    def upstream_sent(self, data: bytes | bytearray, end: int, now: float) -> None:
        """Take responses; see ``RelayCore.upstream_sent``."""
        at = 0
        if self._tail:
            newline = data.find(b"\n", 0, end)
            at = newline + 1 if newline >= 0 else end
            line, self._tail = self._tail + data[:at], b""
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
            if self._starts:
                if self._replies:
                    # What they waited for the end of stands before them in this burst.
                    self.to_client.append(cut(data, mark, at))
                    mark = at
                    self._flush_replies()
                if data[at] == lines.STAR:
                    fetched = lines.FETCHED.match(data, at, end)
                    if fetched is not None:
                        self._starts = False
                        self._left = int(fetched[1])
                        at = fetched.end()
                        continue
                else:
                    completed = lines.COMPLETED.match(data, at, end)
                    if completed is not None:
                        newline = data.find(b"\n", completed.end(), end)
                        if newline < 0:
                            break
                        tag, result = completed.group(1, 2)
                        self._completed(tag, lines.RESULTS[result], now)
                        at = newline + 1
                        continue
                if lines.READ_WHOLE.match(data, at, end):
                    newline = data.find(b"\n", at, end)
                    if newline < 0:
                        break
                    if mark < at:
                        self.to_client.append(cut(data, mark, at))
                    self._line(bytes(data[at : newline + 1]), now)
                    at = mark = newline + 1
                    continue
            if self._replies:
                # An answer of the gateway's own goes behind this line.
                newline = data.find(b"\n", at, end)
                if newline < 0:
                    break
            elif found := lines.MATTERS.search(data, at, end):
                newline = found.start()
            else:
                # None of the lines up to the last end announces a literal.
                newline = data.rfind(b"\n", at, end)
                if newline < 0:
                    break
                self._starts = True
                at = newline + 1
                continue
            size = lines.announced_size(data, at, newline + 1, starts=self._starts)
            self._starts = size is None
            self._left = size or 0
            at = newline + 1
        if mark < at:
            self.to_client.append(cut(data, mark, at))
        if at < end:
            self._keep(bytes(data[at:end]), now)
        if self._replies:
            self._flush_replies()

    def _line(self, line: bytes, now: float) -> None:
        """Read one complete line and forward it, its capabilities filtered."""
        if self._long:
            human = self._long_human
            self._long = False
        elif self._starts:
            human = lines.HUMAN.match(line) is not None
            line = self._head(line, now)
        else:
            human = False
        self.to_client.append(line)
        match = None if human else lines.RESPONSE_LITERAL.search(line[-lines.ANNOUNCEMENT_ROOM :])
        self._starts = match is None
        self._left = int(match[1]) if match else 0

    def _head(self, line: bytes, now: float) -> bytes:
        """Act on what a response line says to the gateway; return what the client shall see."""
        completion = lines.COMPLETION.match(line)
        if completion is not None:
            self._completed(completion[1], completion[2].decode("ascii").lower(), now)
        elif line.startswith(b"+"):
            return line if self._continuation() else b""
        elif lines.BYE.match(line):
            self.logged_out = self.logged_out or self._awaits("LOGOUT")
        match = lines.UNTAGGED.match(line) or lines.CODE.match(line)
        if match is None:
            return line
        tokens = match[1].split()
        self.literals = literal_mode(frozenset(token.decode("latin-1").upper() for token in tokens))
        start, stop = match.span(1)
        return line[:start] + b" ".join(self._visible(tokens)) + line[stop:]

    def _continuation(self) -> bool:
        """Give a ``+`` to the one command that can have asked for it; return whether its client waits for it."""
        if self._waiting is not None:
            self._to_pass, self._waiting = self._waiting, None
            return not self._ready
        if self._asker is not None and self._asker[1] != "IDLE":
            self._asked = True
        return True

    def _completed(self, tag: bytes, result: str, now: float) -> None:
        """Match a completion with its command."""
        command = self._take(tag)
        if command is None:
            return
        _, verb, since = command
        if command is self._asker:
            self._asker = None
            self._asked = self._idling = False
        if self._waiting is not None and command is self._current:
            # The upstream wants no literal; what the client sends of it all the same is skipped.
            self._swallow = self._part = self._ready
            self._to_pass = self._waiting if self._ready else 0
            self._waiting = self._current = None
        if verb == "LOGOUT" and result == "ok":
            self.logged_out = True
        # Half the price of calling Finished, and each command pays it.
        self.finished.append(tuple.__new__(Finished, (verb, result, now - since)))

    def _keep(self, line: bytes, now: float) -> None:
        """Keep an unfinished line; pass on all but its end when it is a long one."""
        if len(line) <= HOLD_LIMIT:
            self._tail = line
            return
        if self._starts and not self._long:
            self._long_human = lines.HUMAN.match(line) is not None
            line = self._head(line, now)
            if not line:
                self.fatal = "Continuation request too long"
                return
        elif not self._long:
            self._long_human = False
        self._long = True
        self.to_client.append(line[: -lines.ANNOUNCEMENT_ROOM])
        self._tail = line[-lines.ANNOUNCEMENT_ROOM :]

    def _reply(self, reply: bytes) -> None:
        """Answer the client now, or at the end of the response that is under way."""
        if self.at_boundary:
            self.to_client.append(reply)
        elif self._replies is None:
            self._replies = [reply]
        else:
            self._replies.append(reply)

    @property
    def at_boundary(self) -> bool:
        """Whether the last byte for the client ended a response."""
        return self._starts and not self._left and not self._tail

    def _flush_replies(self) -> None:
        if self._replies and self.at_boundary:
            self.to_client += self._replies
            self._replies = None

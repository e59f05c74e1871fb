"""The POP3 relay core: every command named, every reply matched in order, bodies skipped.

POP3 answers strictly in order (RFC 2449 §6.6), so a queue of the commands in flight tells what each
reply belongs to and whether lines follow it up to a dot. A command that the gateway refuses takes
its place in the queue and is answered when its turn comes.
"""

from __future__ import annotations

import re
from typing import Final

from mailgate.model import ALLOW, Delay, Deny, Verdict
from mailgate.wire.relay import MAX_IN_FLIGHT, Decide, FilterCapabilities, Finished, Outbox, cut, spellings

LINE_LIMIT: Final = 1024
"""Longest command after login: RFC 2449 §4 allows 255 octets, and RFC 6856 names in UTF-8 may need
more; nothing that follows a login carries a token."""

REPLY_LIMIT: Final = 8 * 1024
"""Longest unfinished reply line that is kept; RFC 2449 §4 allows 512 octets."""

CAPABILITIES_LIMIT: Final = 16 * 1024
"""Longest CAPA reply that is filtered. The registry's entries together stay under 2 KiB."""

MAX_REPLIES: Final = 100
"""Answers of the gateway's own after which the core stops taking commands for the moment: a burst of
bad lines must not grow twentyfold, nor keep the other sessions waiting."""

_COMMAND = re.compile(rb"([A-Za-z0-9]{1,16}+)(?: ([^\r\n\0]*+))?\r\n")
_BLOCK_END = re.compile(rb"\n\.\r?\n")

_BLOCK_ALWAYS: Final = frozenset({"RETR", "TOP", "CAPA"})
_BLOCK_WITHOUT_ARGUMENT: Final = frozenset({"LIST", "UIDL", "LANG"})


def _has_block(verb: str, argument: bytes | None) -> bool:
    """Whether lines up to a dot follow a command's +OK."""
    return verb in _BLOCK_ALWAYS or (verb in _BLOCK_WITHOUT_ARGUMENT and not (argument or b"").strip(b" "))


_Command = tuple[str, bool, float, bytes | None]
"""A command in flight: its verb, whether lines up to a dot follow its reply, when it began in seconds, and
the gateway's own answer if it was refused."""


class Pop3Relay(Outbox):
    """A relay core (see ``mailgate.wire.relay``) for one POP3 session after its login.

    ``decide`` is the command gate, ``visible`` the filter of CAPA's lines, ``verbs`` the commands
    that mailgate knows. A command that it does not know is sent alone: whether its reply has more
    than one line cannot be told, so nothing else is in flight beside it.
    """

    __slots__ = (
        "_block",
        "_carry",
        "_decide",
        "_edge",
        "_held_line",
        "_in_flight",
        "_listing",
        "_overlong",
        "_spellings",
        "_tail",
        "_unknown",
        "_verbs",
        "_visible",
    )

    def __init__(self, *, decide: Decide, visible: FilterCapabilities, verbs: frozenset[str]) -> None:
        super().__init__(opaque=False)
        self._decide = decide
        self._visible = visible
        self._verbs = verbs
        self._spellings = spellings(verbs)
        self._carry = b""
        self._held_line = False
        self._overlong = False
        self._in_flight: list[_Command] = []
        self._unknown = False
        # The upstream's direction: an unfinished reply line, the command whose lines are under way with the
        # last bytes of them, and a CAPA reply that is collected.
        self._tail = b""
        self._block: _Command | None = None
        self._edge = b""
        self._listing: bytes | None = None

    # ---------------------------------------------------------------- what the client sends

    @property
    def held(self) -> bool:
        """Whether a complete command waits because one of unknown shape is beside it."""
        return self._held_line

    @property
    def blocked(self) -> bool:
        """Whether the client's bytes wait: beside an unknown command, or for a place in the queue."""
        return self._unknown or len(self._in_flight) >= MAX_IN_FLIGHT or (self.held and bool(self._in_flight))

    @property
    def awaited(self) -> int:
        """Commands in flight: a QUIT whose client has gone must still do its UPDATE."""
        return len(self._in_flight)

    @property
    def busy(self) -> bool:
        """Whether a command is under way."""
        return bool(self._in_flight)

    def client_sent(self, data: bytes | bytearray, end: int, now: float) -> int:
        """Take commands; see ``RelayCore.client_sent``."""
        at = 0
        if not (self._carry or self._overlong or self._unknown or self.to_client or self.delay):
            at = self._plain_commands(data, end, now)
            if at == end:
                return at
        elif self._held_line:
            self._held_line = False
            line, self._carry = self._carry, b""
            self._command(line, now)
        while at < end and not self.delay and not self.blocked and len(self.to_client) < MAX_REPLIES:
            newline = data.find(b"\n", at, end)
            stop = newline + 1 if newline >= 0 else end
            line = self._carry + data[at:stop]
            at = stop
            self._carry = b""
            if self._overlong or len(line) > LINE_LIMIT:
                self._overlong = newline < 0
                if newline >= 0:
                    self._refuse("other", b"-ERR Command line too long\r\n", "bad", now)
            elif newline < 0:
                self._carry = line
            else:
                self._command(line, now)
        return at

    def _plain_commands(self, data: bytes | bytearray, end: int, now: float) -> int:
        """Take commands as long as they are well formed and known; return how many bytes were consumed.

        What this takes, the long way would take in the same way.
        """
        match_command, find_verb, decide, in_flight = _COMMAND.match, self._spellings.get, self._decide, self._in_flight
        at = mark = 0
        while at < end and len(in_flight) < MAX_IN_FLIGHT:
            match = match_command(data, at, end)
            if match is None:
                break
            word, argument = match.group(1, 2)
            verb = find_verb(word)
            stop = match.end()
            if verb is None or stop - at > LINE_LIMIT:
                break
            verdict = decide(verb)
            if verdict is not ALLOW:
                line = match[0]
                if mark < at:
                    self.to_upstream.append(cut(data, mark, at))
                at = mark = stop
                if self._passes(verdict, verb, now):
                    in_flight.append((verb, _has_block(verb, argument), now, None))
                    self.to_upstream.append(line)
                break
            in_flight.append((verb, _has_block(verb, argument), now, None))
            at = stop
        if mark < at:
            self.to_upstream.append(cut(data, mark, at))
        return at

    def _command(self, line: bytes, now: float) -> None:
        """Judge one complete command, and forward or refuse it."""
        if not line.endswith(b"\r\n"):
            line = line[:-1] + b"\r\n"
        match = _COMMAND.fullmatch(line)
        if match is None:
            self._refuse("other", b"-ERR Malformed command\r\n", "bad", now)
            return
        word = match[1].decode("ascii").upper()
        known = word in self._verbs
        if not known and self._in_flight:
            self._carry = line
            self._held_line = True
            return
        verb = word if known else "other"
        if not self._passes(self._decide(word), verb, now):
            return
        self._in_flight.append((verb, _has_block(word, match[2]), now, None))
        self._unknown = not known
        self.to_upstream.append(line)

    def _passes(self, verdict: Verdict, verb: str, now: float) -> bool:
        """Do what the gate said; return whether the command may pass."""
        if isinstance(verdict, Deny):
            refusal = verdict.refusal
            code = f"[{refusal.pop3_code}] " if refusal.pop3_code else ""
            self._refuse(verb, f"-ERR {code}{refusal.text}\r\n".encode("ascii"), "refused", now)
            return False
        if isinstance(verdict, Delay):
            self.delay = verdict.seconds
        return True

    def _refuse(self, verb: str, reply: bytes, result: str, now: float) -> None:
        """Answer a command instead of forwarding it, when its turn comes."""
        self.finished.append(Finished(verb, result, 0.0))
        self._in_flight.append((verb, False, now, reply))
        self._answer_refused()

    @property
    def at_boundary(self) -> bool:
        """Whether the last byte for the client ended a reply."""
        return self._block is None and not self._tail

    # ---------------------------------------------------------------- what the upstream sends

    def upstream_sent(self, data: bytes | bytearray, end: int, now: float) -> None:
        """Take replies; see ``RelayCore.upstream_sent``."""
        in_flight = self._in_flight
        at = mark = 0
        while at < end:
            if self._block is not None:
                stop = self._block_stop(data, at, end)
                if self._listing is not None:
                    if mark < at:
                        self.to_client.append(cut(data, mark, at))
                    self._collect(bytes(data[at : stop or end]), ended=stop is not None)
                    mark = stop or end
                at = stop or end
                if stop is None:
                    break
                self._finish("ok", now)
            else:
                newline = data.find(b"\n", at, end)
                if newline < 0:
                    break
                if self._tail:
                    self.to_client.append(self._tail)
                    status: bytes | bytearray = (self._tail + data[at : at + 3])[:3]
                    self._tail = b""
                else:
                    # What stands behind a shorter line cannot make it a +OK, for its end is in between.
                    status = data[at : at + 3]
                at = newline + 1
                # Where nothing was asked it is a farewell, such as an autologout's, and passes as it is.
                if in_flight:
                    self._reply(status.upper() == b"+OK", now)
            if in_flight and in_flight[0][3] is not None and self._block is None:
                if mark < at:
                    self.to_client.append(cut(data, mark, at))
                mark = at
                self._answer_refused()
        if mark < at:
            self.to_client.append(cut(data, mark, at))
        if at < end:
            self._keep(bytes(data[at:end]))

    def _reply(self, well: bool, now: float) -> None:
        """Match a reply's first line with the command whose turn it is."""
        command = self._in_flight[0]
        if not well:
            self._finish("err", now)
        elif command[1]:
            self._block = command
            self._edge = b"\n"
            self._listing = b"" if command[0] == "CAPA" else None
        else:
            self._finish("ok", now)

    def _block_stop(self, data: bytes | bytearray, at: int, end: int) -> int | None:
        """Return where the block under way ends in this burst, just behind its last line."""
        if at:
            # The reply's line is in this burst as well, and its end may be the one before the dot.
            match = _BLOCK_END.search(data, at - 1, end)
            if match is not None:
                return match.end()
        else:
            # The final ".CRLF" may be cut anywhere, so its beginning is looked for in what came before.
            match = _BLOCK_END.search(self._edge + data[: min(end, 3)])
            if match is not None:
                return match.end() - len(self._edge)
            match = _BLOCK_END.search(data, 0, end)
            if match is not None:
                return match.end()
        self._edge = (self._edge + data[max(at, end - 3) : end])[-3:]
        return None

    def _collect(self, piece: bytes, *, ended: bool) -> None:
        """Gather a CAPA reply and forward it without the lines that the client must not see."""
        listing = (self._listing or b"") + piece
        if not ended and len(listing) <= CAPABILITIES_LIMIT:
            self._listing = listing
            return
        self._listing = None
        if not ended:
            # Longer than any server's: it passes as it is, which costs the client a refusal at worst.
            self.to_client.append(listing)
            return
        lines = [line.rstrip(b"\r") for line in listing.split(b"\n")[:-2]]
        self.to_client.append(b"".join(b"%b\r\n" % line for line in [*self._visible(lines), b"."]))

    def _finish(self, result: str, now: float) -> None:
        """Note that the oldest command was answered."""
        verb, _, since, _ = self._in_flight.pop(0)
        self._block = None
        self._unknown = False
        if verb == "QUIT":
            self.logged_out = True
        # Half the price of calling Finished, and each command pays it.
        self.finished.append(tuple.__new__(Finished, (verb, result, now - since)))

    def _answer_refused(self) -> None:
        """Answer refused commands whose turn has come."""
        while self._block is None and not self._tail and self._in_flight:
            reply = self._in_flight[0][3]
            if reply is None:
                return
            self._in_flight.pop(0)
            self.to_client.append(reply)

    def _keep(self, piece: bytes) -> None:
        """Keep an unfinished reply line until its end arrives."""
        self._tail += piece
        if len(self._tail) > REPLY_LIMIT:
            self.fatal = "Reply line too long"

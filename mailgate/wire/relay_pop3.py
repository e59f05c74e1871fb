"""The POP3 relay core: every command named, every reply matched in order, bodies skipped.

POP3 answers strictly in order (RFC 2449 §6.6), so a queue of the commands in flight tells what each
reply belongs to and whether lines follow it up to a dot. A command that the gateway refuses takes
its place in the queue and is answered when its turn comes.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

from mailgate.model import Delay, Deny
from mailgate.wire.relay import MAX_IN_FLIGHT, Decide, FilterCapabilities, Finished, Outbox

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

_COMMAND = re.compile(rb"([A-Za-z0-9]{1,16}+)(?:( )([^\r\n]*+))?\r\n\Z")
_BLOCK_END = re.compile(rb"\n\.\r?\n")

_BLOCK_ALWAYS: Final = frozenset({"RETR", "TOP", "CAPA"})
_BLOCK_WITHOUT_ARGUMENT: Final = frozenset({"LIST", "UIDL", "LANG"})


class _Pending:
    """A command in flight; ``reply`` is the gateway's own answer to one that was refused."""

    __slots__ = ("block", "reply", "since", "verb")

    def __init__(self, verb: str, block: bool, since: float, reply: bytes | None = None) -> None:
        self.verb = verb
        self.block = block
        self.since = since
        self.reply = reply


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
        self._carry = b""
        self._held_line = False
        self._overlong = False
        self._in_flight: deque[_Pending] = deque()
        self._unknown = False
        # The upstream's direction: an unfinished reply line, the command whose lines are under way with the
        # last bytes of them, and a CAPA reply that is collected.
        self._tail = b""
        self._block: _Pending | None = None
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
        if self.held:
            self._held_line = False
            line, self._carry = self._carry, b""
            self._command(line, now)
        at = 0
        while at < end and not self.delay and not self.blocked and len(self.to_client) < MAX_REPLIES:
            newline = data.find(b"\n", at, end)
            stop = newline + 1 if newline >= 0 else end
            line = self._carry + bytes(memoryview(data)[at:stop])
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

    def _command(self, line: bytes, now: float) -> None:
        """Judge one complete command, and forward or refuse it."""
        if not line.endswith(b"\r\n"):
            line = line[:-1] + b"\r\n"
        match = _COMMAND.match(line)
        if match is None or b"\0" in line:
            self._refuse("other", b"-ERR Malformed command\r\n", "bad", now)
            return
        word = match[1].decode("ascii").upper()
        known = word in self._verbs
        if not known and self._in_flight:
            self._carry = line
            self._held_line = True
            return
        verdict = self._decide(word)
        verb = word if known else "other"
        if isinstance(verdict, Deny):
            refusal = verdict.refusal
            code = f"[{refusal.pop3_code}] " if refusal.pop3_code else ""
            self._refuse(verb, f"-ERR {code}{refusal.text}\r\n".encode("ascii"), "refused", now)
            return
        if isinstance(verdict, Delay):
            self.delay = verdict.seconds
        block = word in _BLOCK_ALWAYS or (word in _BLOCK_WITHOUT_ARGUMENT and not (match[3] or b"").strip(b" "))
        self._in_flight.append(_Pending(verb, block, now))
        self._unknown = not known
        self.to_upstream.append(line)

    def _refuse(self, verb: str, reply: bytes, result: str, now: float) -> None:
        """Answer a command instead of forwarding it, when its turn comes."""
        self.finished.append(Finished(verb, result, 0.0))
        self._in_flight.append(_Pending(verb, False, now, reply))
        self._answer_refused()

    @property
    def at_boundary(self) -> bool:
        """Whether the last byte for the client ended a reply."""
        return self._block is None and not self._tail

    # ---------------------------------------------------------------- what the upstream sends

    def upstream_sent(self, data: bytes | bytearray, end: int, now: float) -> None:
        """Take replies; see ``RelayCore.upstream_sent``."""
        view = memoryview(data)
        at = mark = 0
        while at < end:
            if self._block is not None:
                stop = self._block_stop(data, at, end)
                if self._listing is not None:
                    if mark < at:
                        self.to_client.append(view[mark:at])
                    self._collect(bytes(view[at : stop or end]), ended=stop is not None)
                    mark = stop or end
                at = stop or end
                if stop is not None:
                    self._finish(self._block, "ok", now)
                    if self._in_flight and self._in_flight[0].reply is not None:
                        if mark < at:
                            self.to_client.append(view[mark:at])
                        mark = at
                        self._answer_refused()
                continue
            newline = data.find(b"\n", at, end)
            if newline < 0:
                break
            if self._tail:
                self.to_client.append(self._tail)
            line = self._tail + bytes(view[at : newline + 1])
            self._tail = b""
            at = newline + 1
            self._reply(line, now)
            if self._block is None and self._in_flight and self._in_flight[0].reply is not None:
                self.to_client.append(view[mark:at])
                mark = at
                self._answer_refused()
        if mark < at:
            self.to_client.append(view[mark:at])
        if at < end:
            self._keep(bytes(view[at:end]))

    def _reply(self, line: bytes, now: float) -> None:
        """Match a reply's first line with the command whose turn it is."""
        if not self._in_flight:
            # Nothing was asked: a farewell such as an autologout's. It passes as it is.
            return
        pending = self._in_flight[0]
        if line[:3].upper() != b"+OK":
            self._finish(pending, "err", now)
        elif pending.block:
            self._block = pending
            self._edge = b"\n"
            self._listing = b"" if pending.verb == "CAPA" else None
        else:
            self._finish(pending, "ok", now)

    def _block_stop(self, data: bytes | bytearray, at: int, end: int) -> int | None:
        """Return where the block under way ends in this burst, just behind its last line."""
        edge = self._edge
        # The final ".CRLF" may be cut anywhere, so its beginning is looked for in what came before.
        joined = edge + bytes(data[at : min(end, at + 3)])
        match = _BLOCK_END.search(joined)
        if match is not None:
            return at + match.end() - len(edge)
        match = _BLOCK_END.search(data, at, end)
        if match is not None:
            return match.end()
        self._edge = (edge + bytes(data[max(at, end - 3) : end]))[-3:]
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

    def _finish(self, pending: _Pending, result: str, now: float) -> None:
        """Note that the oldest command was answered."""
        self._in_flight.popleft()
        self._block = None
        self._unknown = False
        if pending.verb == "QUIT":
            self.logged_out = True
        self.finished.append(Finished(pending.verb, result, now - pending.since))

    def _answer_refused(self) -> None:
        """Answer refused commands whose turn has come."""
        while self._block is None and not self._tail and self._in_flight:
            reply = self._in_flight[0].reply
            if reply is None:
                return
            self._in_flight.popleft()
            self.to_client.append(reply)

    def _keep(self, piece: bytes) -> None:
        """Keep an unfinished reply line until its end arrives."""
        self._tail += piece
        if len(self._tail) > REPLY_LIMIT:
            self.fatal = "Reply line too long"

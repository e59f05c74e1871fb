"""POP3 commands before login and replies while signing in (RFC 1939 §3, RFC 2449, RFC 5034)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mailgate.errors import RemoteProtocolError
from mailgate.wire.framing import BadCommand, LineBuffer, Receiver

COMMAND_LIMIT: Final = 255
"""Octets of a command (RFC 2449 §4), for those that carry no secret."""

SECRET_LIMIT: Final = 16_384
"""Octets of PASS and AUTH: app passwords and tokens are longer than the RFC's 255, and servers take
them; the longest tokens seen have 12 KiB."""

REPLY_LIMIT: Final = 8_192
"""Octets of a reply's line. RFC 2449 §4 allows 512; challenges of SASL may be longer."""

BLOCK_LIMIT: Final = 16_384
"""Octets of a CAPA reply, whose registered entries together stay under 2 KiB."""

_VERB = re.compile(rb"([A-Za-z0-9]{1,16})(?: (.*))?\Z", re.DOTALL)
_SECRET_VERBS: Final = (b"PASS", b"AUTH")
_HTTP = re.compile(rb"(?:GET|POST|HEAD|PUT|OPTIONS|CONNECT|DELETE|PATCH|TRACE|PRI) [^ ]+ HTTP/")
_REPLY = re.compile(rb"(\+OK|-ERR)(?: |\Z)(?:\[([A-Za-z0-9/_-]+)\] ?)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pop3Command:
    """A command; ``verb`` in upper case, ``argument`` the rest of the line behind one space, untouched."""

    verb: str
    argument: bytes
    raw: bytes


class CommandReceiver(Receiver):
    """The client's leg before login: bytes in, commands out."""

    __slots__ = ()

    def next(self) -> Pop3Command | BadCommand | None:
        """Return the next command, None if it is not complete."""
        if self._dead:
            return None
        if self._fresh and len(self._buffer):
            if self._buffer.starts_with(b"\x16"):
                return self._fatal("TLS is not spoken here", foreign="tls")
            self._fresh = False
        if self.total > self._limits.total:
            return self._fatal("Too much was sent before login")
        try:
            line = self._buffer.line_or_drop(SECRET_LIMIT)
        except RemoteProtocolError:
            return BadCommand(None, "Line too long")
        if line is None:
            return None
        return self._command(line)

    def _fatal(self, text: str, foreign: str | None = None) -> BadCommand:
        self._dead = True
        return BadCommand(None, text, fatal=True, foreign=foreign)

    def _command(self, line: bytes) -> Pop3Command | BadCommand:
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if b"\0" in text:
            return self._fatal("NUL is not allowed")
        if _HTTP.match(text):
            return self._fatal("HTTP is not spoken here", foreign="http")
        if len(line) > COMMAND_LIMIT and text[:4].upper() not in _SECRET_VERBS:
            return BadCommand(None, "Line too long")
        match = _VERB.match(text)
        if match is None or b"\r" in text:
            return BadCommand(None, "Malformed command")
        return Pop3Command(match[1].decode("ascii").upper(), match[2] or b"", line)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's first line: ``ok``, or a ``continuation`` of SASL; ``code`` in upper case (RFC 2449 §8)."""

    raw: bytes
    ok: bool
    continuation: bool
    code: str
    text: bytes


class ReplyReceiver:
    """Bytes from an upstream in, replies out; raises RemoteProtocolError for what is none."""

    __slots__ = ("_block", "_block_size", "_buffer")

    def __init__(self) -> None:
        self._buffer = LineBuffer()
        self._block: list[bytes] = []
        self._block_size = 0

    @property
    def buffered(self) -> int:
        """Bytes that arrived and were not used."""
        return len(self._buffer) + self._block_size

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the upstream."""
        self._buffer.receive(data)

    def take_residual(self) -> bytes:
        """Return everything unread; the receiver is finished."""
        return self._buffer.take(len(self._buffer))

    def next(self) -> Reply | None:
        """Return the next reply's first line, None if it is not complete."""
        line = self._buffer.line(REPLY_LIMIT)
        if line is None:
            return None
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        match = _REPLY.match(text)
        if match is not None:
            code = (match[2] or b"").decode("ascii").upper()
            return Reply(line, match[1].upper() == b"+OK", False, code, text[match.end() :])
        if text.startswith(b"+"):
            return Reply(line, False, True, "", text[1:].removeprefix(b" "))
        raise RemoteProtocolError("malformed reply")

    def next_block(self) -> tuple[bytes, ...] | None:
        """Return the lines of a multi-line reply behind its first, unstuffed; None if incomplete."""
        while True:
            line = self._buffer.line(REPLY_LIMIT)
            if line is None:
                return None
            text = line.removesuffix(b"\n").removesuffix(b"\r")
            if text == b".":
                block = tuple(self._block)
                self._block.clear()
                self._block_size = 0
                return block
            self._block.append(text.removeprefix(b"."))
            self._block_size += len(line)
            if self._block_size > BLOCK_LIMIT:
                raise RemoteProtocolError("reply too long")

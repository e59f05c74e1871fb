"""What both protocols share before login: limits with their reasons, and a buffer of lines.

Framing comes before grammar. A receiver takes bytes as they come, finds lines and literals, and
only then looks at what they say, so that a bad command can never change where the next one begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailgate.errors import RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may send before its login.

    ``line``: bytes of a line. An ID command of 30 pairs with values of 1,024 bytes is legal
    (RFC 2971 §3.3) and has 31,841; twice that leaves room.

    ``literal``: bytes of a literal. User names, passwords and initial responses come so; a
    Kerberos ticket or a JSON web token of 12 KiB is the largest seen.

    ``literals``: literals in one command. ID may send its 60 strings so.

    ``arguments`` and ``nesting``: of one command. ID has 60 in one list; more is an attempt to
    fill memory (CVE-2026-27857).

    ``sasl_line``: bytes of a line of a SASL exchange; RFC 5034 §4 asks for 12,288, tokens may
    need more.

    ``total``: bytes of everything before login, which bounds what one connection can make the
    gateway parse for nothing.
    """

    line: int = 65_536
    literal: int = 16_384
    literals: int = 64
    arguments: int = 256
    nesting: int = 8
    sasl_line: int = 65_536
    total: int = 262_144


class LineBuffer:
    """Bytes that arrived and were not used yet, from which lines and counted pieces are taken."""

    __slots__ = ("_data", "_dropping", "_scanned", "taken")

    def __init__(self) -> None:
        self._data = bytearray()
        self._scanned = 0
        self._dropping = False
        self.taken = 0

    def __len__(self) -> int:
        return len(self._data)

    def starts_with(self, prefix: bytes) -> bool:
        """Whether the next bytes are ``prefix``."""
        return self._data.startswith(prefix)

    def peek(self, size: int) -> bytes:
        """Return up to ``size`` next bytes without taking them."""
        return bytes(self._data[:size])

    def match(self, pattern: re.Pattern[bytes]) -> int:
        """Return how many of the next bytes ``pattern`` matches; 0 if it matches none."""
        found = pattern.match(self._data)
        return 0 if found is None else found.end()

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes."""
        self._data += data

    def line(self, limit: int) -> bytes | None:
        """Take a line with its LF; ``None`` if it is not complete. Raises if it is over ``limit``.

        After the error the bytes are still there; :meth:`skip_line` drops them.
        """
        end = self._data.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._data)
            if self._scanned > limit:
                raise RemoteProtocolError("line too long")
            return None
        if end >= limit:
            raise RemoteProtocolError("line too long")
        return self.take(end + 1)

    def line_or_drop(self, limit: int) -> bytes | None:
        """Take a line as :meth:`line` does, but drop one over ``limit`` as it comes and raise at its end."""
        if not self._dropping:
            try:
                return self.line(limit)
            except RemoteProtocolError:
                self._dropping = True
        if self.skip_line(0) is None:
            return None
        self._dropping = False
        raise RemoteProtocolError("line too long")

    def skip_line(self, keep: int) -> bytes | None:
        """Drop a line and return its last ``keep`` bytes; ``None``, with those still here, before its end was seen."""
        end = self._data.find(b"\n")
        if end < 0:
            self.take(max(0, len(self._data) - keep))
            return None
        return self.take(end + 1)[max(0, end + 1 - keep) :]

    def take(self, size: int) -> bytes:
        """Take ``size`` bytes, or all there are."""
        if size >= len(self._data):
            # Most lines come by themselves.
            piece = bytes(self._data)
            self._data.clear()
        else:
            piece = bytes(self._data[:size])
            del self._data[:size]
        self._scanned = 0
        self.taken += len(piece)
        return piece


@dataclass(frozen=True, slots=True)
class BadCommand:
    """Something that is no command.

    ``tag`` is None where it had none that may be echoed. After a ``fatal`` one the connection
    cannot go on. ``foreign`` names another protocol that the client speaks: ``http`` or ``tls``.
    """

    tag: bytes | None
    text: str
    fatal: bool = False
    foreign: str | None = None


@dataclass(frozen=True, slots=True)
class SaslLine:
    """A line of a SASL exchange without its line end."""

    data: bytes


class Receiver:
    """What the receivers of both protocols' commands do alike: hold bytes, bounded, and read SASL lines."""

    __slots__ = ("_buffer", "_dead", "_fresh", "_limits")

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._buffer = LineBuffer()
        self._fresh = True
        self._dead = False

    @property
    def buffered(self) -> int:
        """Bytes that arrived and were not used."""
        return len(self._buffer)

    @property
    def total(self) -> int:
        """Bytes that arrived in all."""
        return self._buffer.taken + len(self._buffer)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client."""
        self._buffer.receive(data)

    def take_residual(self) -> bytes:
        """Return everything unread; the receiver is finished."""
        return self._buffer.take(len(self._buffer))

    def next_line(self) -> SaslLine | BadCommand | None:
        """Return the next line of a SASL exchange, None if it is not complete.

        One that is too long is dropped as it comes and is a BadCommand at its end.
        """
        try:
            line = self._buffer.line_or_drop(self._limits.sasl_line)
        except RemoteProtocolError:
            return BadCommand(None, "Line too long")
        if line is None:
            return None
        return SaslLine(line.removesuffix(b"\n").removesuffix(b"\r"))

"""A message as a POP3 block: CRLF line ends, stuffed dots, a line with a dot at its end (RFC 1939 §3, §7).

What comes is what an IMAP server holds, in pieces cut anywhere. Mail passes by the gigabyte here, and nearly all of it
needs no change, so the searches are chosen by what they cost: CPython looks for one byte with ``memchr``, which is some
fifty times faster where the byte is rare than a search for two, or than counting. Where it is not, in plain text, one
expression that looks at each line's end once costs half of what several searches do.
"""

from __future__ import annotations

import re
from typing import Final

_CR: Final = 0x0D
_LF: Final = 0x0A

_CHANGES = re.compile(rb"\n(?:\.|(?<!\r\n))")
"""A line that begins with a dot, or ends with LF alone."""

_REGULAR_FROM: Final = 4_096
"""Octets from which it pays to look for lines of one length."""

_REGULAR_LINE: Final = 32
"""Octets of such a line, at least: shorter ones cost more than they save."""


class MessageEncoder:
    """Makes one message a block, piece by piece.

    ``nul`` stands for a NUL, one octet for one; None leaves them. RFC 5322 forbids them, and clients that think in C
    strings lose the rest of the line; 0x80 is what Dovecot's ``outlook-no-nuls`` puts there.

    ``body_lines`` makes it a TOP (RFC 1939 §7): the header, the blank line, which is not counted, and as many lines.
    A message without that blank line gets one in TOP, since clients look for it; in RETR it stays as it is.

    A bare LF becomes CRLF. A bare CR stays: it is no line end to IMAP servers, nor to a client of POP3, and what is
    signed or counted by its octets would be another message with one put in its place.
    """

    __slots__ = ("_blank", "_last", "_line", "_lines", "_nul", "octets")

    octets: int
    """The size in POP3's sense of what was fed: with CRLF, without the stuffing and the last line."""

    def __init__(self, *, nul: bytes | None = b"\x80", body_lines: int | None = None) -> None:
        self._nul = nul
        self._lines = body_lines
        self._blank = False
        self._line = b""
        self._last = _LF
        self.octets = 0

    @property
    def enough(self) -> bool:
        """Whether TOP has all that it wants."""
        return self._blank and self._lines == 0

    def feed(self, data: bytes | memoryview) -> bytes:
        """Return what goes to the client for the next piece: the same object if it is bytes and right as it is."""
        if self.enough:
            return b""
        data = bytes(data)
        if self._nul is not None and b"\0" in data:
            data = data.replace(b"\0", self._nul)
        if self._lines is None and _is_right(data):
            self.octets += len(data)
            self._last = data[-1]
            return data
        if data.startswith(b"\n"):
            # Whether this one is bare only the piece before can tell.
            data = (b"\n" if self._last == _CR else b"\r\n") + _with_crlf(data[1:])
        else:
            data = _with_crlf(data)
        if self._lines is not None:
            data = self._top(data, self._lines)
        if not data:
            return data
        self.octets += len(data)
        begins_line = self._last == _LF
        self._last = data[-1]
        return _stuffed(data, begins_line)

    def finish(self) -> bytes:
        """Return the end of the block, to be sent with the last piece: some clients want it in one packet."""
        end = b"" if self._last == _LF else b"\r\n"
        if self._lines is not None and not self._blank:
            end += b"\r\n"
        self.octets += len(end)
        return end + b".\r\n"

    def _top(self, data: bytes, lines: int) -> bytes:
        """Return as much of ``data``, whose lines end with CRLF, as TOP wants."""
        body = 0
        if not self._blank:
            body = self._header_end(data)
            if not body:
                return data
            self._blank = True
        rest = data[body:]
        ends = rest.count(b"\n")
        if ends < lines:
            self._lines = lines - ends
            return data
        self._lines = 0
        return data[: len(data) - len(rest.split(b"\n", lines)[-1])]

    def _header_end(self, data: bytes) -> int:
        """Return where the body begins in ``data``, 0 if the header goes on; notes the unfinished line's beginning."""
        if (self._line + data[:2]).startswith(b"\r\n"):
            return 2 - len(self._line)
        blank = data.find(b"\n\r\n")
        if blank >= 0:
            return blank + 3
        line = data.rfind(b"\n") + 1
        self._line = ((b"" if line else self._line) + data[line:])[:2]
        return 0


def _is_right(data: bytes) -> bool:
    """Whether a piece is right as it is, whatever stands before it; not always known."""
    if data[:1] in (b"", b"\n", b"."):
        return False
    return (b"." not in data and _is_regular(data)) or _CHANGES.search(data) is None


def _with_crlf(data: bytes) -> bytes:
    """Return ``data``, which does not begin with LF, with CRLF for each bare LF."""
    bare = data.replace(b"\r", b"")
    ended = bare.replace(b"\n", b"\r\n")
    if ended == data:
        return data
    if len(bare) == len(data):
        return ended
    # CR and LF are mixed: a rare one, or a piece that ends between them.
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _is_regular(data: bytes) -> bool:
    """Whether ``data`` is lines of one length and every LF in it has its CR: an attachment in base64.

    One column of such lines holds every LF: when it is blanked and no LF is left, and the column before it is all CR,
    that is proven for a quarter of what looking at every line costs.
    """
    if len(data) < _REGULAR_FROM:
        return False
    end = data.find(b"\n", len(data) // 2)
    length = data.find(b"\n", end + 1) - end
    if end < 0 or length < _REGULAR_LINE:
        return False
    column = end % length
    if data[(column - 1) % length :: length].strip(b"\r"):
        return False
    blanked = bytearray(data)
    blanked[column::length] = bytes(len(range(column, len(data), length)))
    return b"\n" not in blanked


def _stuffed(data: bytes, begins_line: bool) -> bytes:
    """Return ``data``, whose lines end with CRLF, with a dot more for each line that begins with one."""
    first = data.find(b".")
    if first < 0:
        return data
    if data.rfind(b"\r\n.", max(first - 2, 0), data.rfind(b".") + 1) >= 0:
        # Looking from the end costs half of looking from the beginning, and most pieces have none.
        data = data.replace(b"\r\n.", b"\r\n..")
    if first == 0 and begins_line:
        return b"." + data
    if first == 1 and data[0] == _LF:
        return b"\n." + data[1:]
    return data

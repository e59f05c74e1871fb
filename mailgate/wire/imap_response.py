"""IMAP responses (RFC 9051 §7): found whole, then read as far as needed.

Signing in to an upstream takes all of its responses so; in a selected mailbox ``imap_fetch`` finds them. Literals in
untagged data are taken with their response. Human text never announces one: a status response or a continuation
request may end in ``{5}`` and means nothing by it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

from mailgate.errors import RemoteProtocolError
from mailgate.wire.framing import LineBuffer

RESPONSE_LIMIT: Final = 65_536
"""Bytes of one response before the login is accepted. Greetings, capabilities and ID responses are
far shorter; an upstream that sends more is not one."""

REMEMBERED_LINE: Final = 1024
"""Bytes of a line whose meaning is remembered: a server greets and accepts in the same words at nearly every login."""

STATUSES: Final = frozenset({"OK", "NO", "BAD", "BYE", "PREAUTH"})

_LITERAL = re.compile(rb"\{([0-9]{1,10})\}\r?\n\Z")
_WORDS = re.compile(rb"([^ \r\n]+)(?: ([^ \r\n]+))?(?: ([^ \r\n]+))?")
_CODE = re.compile(rb"\[([^ \]\r\n]+)(?: ([^\]\r\n]*))?\] ?")


@dataclass(frozen=True, slots=True)
class Response:
    """One response.

    ``tag`` is ``*``, ``+`` or a command's tag; ``status`` one of STATUSES or the keyword of a data
    response in upper case, empty for ``+``; ``code`` and ``code_data`` the response code's name in
    upper case and what follows it; ``text`` what is left of the line; ``raw`` all of it.
    """

    raw: bytes
    tag: bytes
    status: str
    code: str
    code_data: bytes
    text: bytes


class ResponseReceiver:
    """Bytes from an upstream in, responses out; raises RemoteProtocolError for what is none."""

    __slots__ = ("_buffer", "_left", "_limit", "_parts", "_size")

    def __init__(self, limit: int = RESPONSE_LIMIT) -> None:
        self._buffer = LineBuffer()
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._left = 0

    @property
    def buffered(self) -> int:
        """Bytes that arrived and were not used."""
        return len(self._buffer) + self._size

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the upstream."""
        self._buffer.receive(data)

    def take_residual(self) -> bytes:
        """Return everything unread; the receiver is finished."""
        return b"".join(self._parts) + self._buffer.take(len(self._buffer))

    def next(self) -> Response | None:
        """Return the next response, None if it is not complete."""
        while True:
            if self._left:
                if len(self._buffer) < self._left:
                    return None
                self._keep(self._buffer.take(self._left))
                self._left = 0
            line = self._buffer.line(self._limit - self._size)
            if line is None:
                return None
            if not self._parts:
                response = of_one_line(line)
                if response is not None:
                    return response
            self._keep(line)
            size = literal_size(line)
            if size is None:
                raw, head = b"".join(self._parts), self._parts[0]
                self._parts.clear()
                self._size = 0
                return read(raw, head)
            self._left = size
            if self._size + self._left > self._limit:
                raise RemoteProtocolError("response too long")

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)


def of_one_line(line: bytes) -> Response | None:
    """Return the response that a line is, None if it announces a literal. Raises RemoteProtocolError."""
    return _remembered(line) if len(line) <= REMEMBERED_LINE else _of_one_line(line)


def _of_one_line(line: bytes) -> Response | None:
    return read(line, line) if literal_size(line) is None or _is_status(line) else None


_remembered = functools.lru_cache(maxsize=256)(_of_one_line)


def literal_size(line: bytes) -> int | None:
    """Return the size of the literal that a response's line ends in, None if it ends in none.

    ``~{5}`` is literal8 (RFC 9051 §4.3). The line must be no status response's, nor a continuation request.
    """
    match = _LITERAL.search(line)
    return None if match is None else int(match[1])


def _is_status(line: bytes) -> bool:
    """Whether the text of a response is for people."""
    if line.startswith((b"+", b"[")):
        return True
    words = _WORDS.match(line)
    if words is None or words[2] is None:
        return False
    return words[2].startswith(b"[") or words[2].decode("latin-1").upper() in STATUSES


def read(raw: bytes, head: bytes) -> Response:
    """Return the response ``raw`` whose first line is ``head``; raises RemoteProtocolError for what is none.

    A response code without ``* OK`` before it counts as if that stood there: Office 365 sends such lines.
    """
    line = head.removesuffix(b"\n").removesuffix(b"\r")
    if line.startswith((b"[", b"* [")):
        line = b"* OK " + line.removeprefix(b"* ")
    if line.startswith(b"+"):
        # Some servers leave the space out.
        return Response(raw, b"+", "", "", b"", line[1:].removeprefix(b" "))
    words = _WORDS.match(line)
    if words is None or words[2] is None:
        raise RemoteProtocolError("malformed response")
    tag = words[1]
    status = words[2].decode("latin-1").upper()
    if status not in STATUSES:
        if status.isdecimal() and words[3] is not None:
            return Response(raw, tag, words[3].decode("latin-1").upper(), "", b"", line[words.end(3) :].strip())
        return Response(raw, tag, status, "", b"", line[words.end(2) :].strip())
    text = line[words.end(2) :].removeprefix(b" ")
    code = _CODE.match(text)
    if code is None:
        return Response(raw, tag, status, "", b"", text)
    return Response(raw, tag, status, code[1].decode("latin-1").upper(), code[2] or b"", text[code.end() :])


def capability_tokens(response: Response) -> tuple[bytes, ...] | None:
    """Return the capabilities that a response lists, as it spells them; None if it lists none."""
    if response.code == "CAPABILITY":
        return tuple(response.code_data.split())
    if response.tag == b"*" and response.status == "CAPABILITY":
        return tuple(response.text.split())
    return None


def capabilities(response: Response) -> frozenset[str] | None:
    """Return the capabilities that a response lists, in upper case; None if it lists none."""
    tokens = capability_tokens(response)
    return None if tokens is None else frozenset(token.decode("latin-1").upper() for token in tokens)

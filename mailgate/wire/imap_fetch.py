"""Responses in a selected mailbox as a stream (RFC 9051 §7): a message's literal in pieces, all else whole and bounded.

Signing in holds every response whole (``imap_response``). Here a literal may be a message of any size: of it
nothing is held but what has come and was not taken yet. Lines and literals are found first, whatever they say, so
that no server's oddity moves the place where the next response begins.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from typing import Final, TypeAlias

from mailgate.errors import RemoteProtocolError
from mailgate.wire.framing import LineBuffer
from mailgate.wire.imap_response import Response, literal_size, of_one_line, read

LINE_LIMIT: Final = 1 << 20
"""Bytes of the lines of one response. The longest are VANISHED with 100,000 scattered UIDs and a message in a quoted
string, which servers use for short ones only."""

LITERAL_LIMIT: Final = 256 * 1024
"""Bytes of a response's literals that are kept, a message's own apart; what is more is dropped as it comes. Headers are
asked for, and no server takes one from outside that is longer."""

LITERALS: Final = 64
"""Literals in a FETCH response: what is asked for here has one."""

TOKENS: Final = 10_000
"""Atoms, strings and parentheses in a FETCH response. A message has a few dozen of them, flags included."""

NESTING: Final = 16
"""Lists within lists in a FETCH response. What is asked for here has two."""

STALLED: Final = 4096
"""Bytes of a SEARCH response without a number in them."""

Value: TypeAlias = "bytes | tuple[Value, ...] | None"
"""A string, atom or number as bytes, NIL as None, a list as a tuple."""

_FETCH = re.compile(rb"\* [0-9]{1,20} FETCH(?= )", re.IGNORECASE)
# What stands in brackets is repeated from a command, and is no longer than one: else a line of opening brackets would
# be searched to its end for each of them.
_TOKEN = re.compile(
    rb" *(?:"
    rb"(?P<mark>[()])"
    rb'|"(?P<quoted>(?:[^"\\\r\n]|\\[^\r\n])*)"'
    rb"|(?P<literal>~?\{[0-9]+\}\r?\n\Z)"
    rb'|(?P<atom>[^ ()"\r\n\[]*\[[^\]\r\n]{0,2000}\](?:<[0-9.]*>)?|[^ ()"\r\n]+)'
    rb"|(?P<end>\r?\n\Z))"
)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_BODY = re.compile(rb"(?:BODY|BINARY)\[([^\]]*)\](?:<[0-9.]*>)?")
_RFC822: Final = {b"RFC822": b"", b"RFC822.HEADER": b"HEADER", b"RFC822.TEXT": b"TEXT"}
_SEARCH: Final = b"* SEARCH "
_NUMBERS = re.compile(rb"[ 0-9]*[0-9](?= |\r?\n)")
_SEARCH_END = re.compile(rb" {0,8}(?:\(MODSEQ [0-9]{1,20}\))? {0,8}\r?\n")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A FETCH response, complete. ``items`` has their names in upper case, without messages that were given out."""

    uid: int | None
    items: dict[bytes, Value]


@dataclass(frozen=True, slots=True)
class BodyBegins:
    """A message's literal of ``size`` bytes follows, to be taken before anything else.

    ``section`` is what stands in the brackets, in upper case; ``uid`` None if the response has not told it before,
    which its :class:`Fetched` at the end does.
    """

    uid: int | None
    section: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Found:
    """A part of a SEARCH response."""

    numbers: array[int]


Event: TypeAlias = Response | Fetched | BodyBegins | Found


def body_section(name: bytes) -> bytes | None:
    """Return which section of a message a FETCH item is, None if it is none; ``name`` in upper case."""
    match = _BODY.fullmatch(name)
    return match[1] if match else _RFC822.get(name)


class FetchReceiver:
    """Bytes from a server in, events out; raises RemoteProtocolError, after which nothing makes sense any more.

    While :attr:`left` is not zero a message's literal is under way: :meth:`piece` and :meth:`pass_on` take it.
    """

    __slots__ = (
        "_given",
        "_kept",
        "_literal",
        "_parts",
        "_room",
        "_searching",
        "_size",
        "_skip",
        "buffer",
        "left",
        "streams",
    )

    def __init__(self) -> None:
        self.buffer = LineBuffer()
        self.left = 0
        # Whether messages' literals are given out as they come; otherwise they are kept like others.
        self.streams = False
        # The response that is collected: lines and literals in turn, messages given out, the size of its lines, room
        # for literals.
        self._parts: list[bytes] = []
        self._given: list[bytes] = []
        self._size = 0
        self._room = LITERAL_LIMIT
        # The literal that is collected: what is to be kept of it, and dropped.
        self._literal = False
        self._kept = bytearray()
        self._skip = 0
        self._searching = False

    @property
    def between(self) -> bool:
        """Whether the next byte begins a response."""
        return not self._parts and not self.left and not self._searching

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the server, with a copy."""
        self.buffer.receive(data)

    def pass_on(self, data: memoryview) -> memoryview:
        """Take bytes from the server in the middle of a message; return what of them is the message's.

        That is a view of the same memory. What follows the message is kept. Nothing may be buffered.
        """
        count = min(self.left, len(data))
        self.left -= count
        if count < len(data):
            self.buffer.receive(data[count:])
        return data[:count]

    def piece(self) -> bytes:
        """Return what is buffered of the message under way, empty if nothing is."""
        if not self.left or not len(self.buffer):
            return b""
        piece = self.buffer.take(self.left)
        self.left -= len(piece)
        return piece

    def next(self) -> Event | None:
        """Return what is complete, None if nothing is or a message's literal is under way."""
        while not self.left:
            if self._literal and not self._take_literal():
                return None
            if not self._parts and (self._searching or self.buffer.starts_with(_SEARCH)):
                if (found := self._search()) is not None or self._searching:
                    return found
                continue
            line = self.buffer.line(LINE_LIMIT - self._size)
            if line is None:
                return None
            event = self._line(line)
            if event is not None:
                return event
        return None

    def _line(self, line: bytes) -> Event | None:
        """Take one line; return the event that it completes or begins."""
        parts = self._parts
        fetch = _FETCH.match(parts[0] if parts else line)
        if not parts and fetch is None and (response := of_one_line(line)) is not None:
            return response
        parts.append(line)
        self._size += len(line)
        size = literal_size(line)
        if size is None:
            return self._complete(fetch)
        if len(parts) > 2 * LITERALS:
            raise RemoteProtocolError("too many literals in a response")
        if fetch is not None and self.streams:
            parts.append(b"")
            name, items = _items(parts, fetch.end())
            section = None if name is None else body_section(name)
            if name is not None and section is not None:
                self._given.append(name)
                self.left = size
                return BodyBegins(_uid(items), section, size)
            parts.pop()
        self._literal = True
        self._skip = size
        return None

    def _take_literal(self) -> bool:
        """Take what has come of a literal that is kept; return whether it is complete."""
        while self._skip:
            piece = self.buffer.take(self._skip)
            if not piece:
                return False
            self._skip -= len(piece)
            piece = piece[: self._room]
            self._room -= len(piece)
            self._kept += piece
        self._parts.append(bytes(self._kept))
        self._kept.clear()
        self._literal = False
        return True

    def _complete(self, fetch: re.Match[bytes] | None) -> Event:
        parts, self._parts = self._parts, []
        self._size = 0
        self._room = LITERAL_LIMIT
        if fetch is None:
            return read(b"".join(parts), parts[0])
        items = _items(parts, fetch.end())[1]
        for name in self._given:
            items.pop(name, None)
        self._given.clear()
        return Fetched(_uid(items), items)

    def _search(self) -> Found | None:
        """Take what has come of a SEARCH response, whose line no limit on lines fits."""
        if not self._searching:
            # The space stays: each number has one before it.
            self.buffer.take(len(_SEARCH) - 1)
            self._searching = True
        if end := self.buffer.match(_NUMBERS):
            try:
                return Found(array("I", map(int, self.buffer.take(end).split())))
            except (OverflowError, ValueError):
                # ValueError is Python's for thousands of digits.
                raise RemoteProtocolError("a number over 32 bits in a SEARCH response") from None
        if end := self.buffer.match(_SEARCH_END):
            self.buffer.take(end)
            self._searching = False
        elif len(self.buffer) > STALLED:
            raise RemoteProtocolError("malformed SEARCH response")
        return None


def _uid(items: dict[bytes, Value]) -> int | None:
    value = items.get(b"UID")
    return int(value) if isinstance(value, bytes) and value.isdigit() and len(value) <= 20 else None


def _items(parts: list[bytes], at: int) -> tuple[bytes | None, dict[bytes, Value]]:
    """Parse a FETCH response, lines at even places and literals at odd ones, from ``at`` in the first.

    Returns the name of the last item as well. A response that is not complete yet is read as far as it goes, and so is
    one that leaves its parentheses open.
    """
    stack: list[list[Value]] = [[]]
    count = 0
    for index in range(0, len(parts), 2):
        line = parts[index]
        while at < len(line):
            match = _TOKEN.match(line, at)
            count += 1
            if match is None or count > TOKENS:
                raise RemoteProtocolError("malformed FETCH response")
            at = match.end()
            mark = match["mark"]
            if mark == b"(":
                if len(stack) > NESTING:
                    raise RemoteProtocolError("too many lists in a FETCH response")
                stack.append([])
            elif mark == b")":
                if len(stack) == 1:
                    raise RemoteProtocolError("malformed FETCH response")
                done = tuple(stack.pop())
                stack[-1].append(done)
            elif match["quoted"] is not None:
                stack[-1].append(_ESCAPE.sub(rb"\1", match["quoted"]))
            elif match["atom"] is not None:
                atom: bytes = match["atom"]
                stack[-1].append(None if atom.upper() == b"NIL" else atom)
            elif match["literal"] is not None:
                if index + 1 == len(parts):
                    raise RemoteProtocolError("a literal of a size that none can have")
                stack[-1].append(parts[index + 1])
        at = 0
    while len(stack) > 1:
        done = tuple(stack.pop())
        stack[-1].append(done)
    listed = stack[0][0] if stack[0] else None
    if not isinstance(listed, tuple):
        raise RemoteProtocolError("malformed FETCH response")
    names = [name.upper() if isinstance(name, bytes) else b"" for name in listed[::2]]
    return (names[-1] if names else None), dict(zip(names, listed[1::2], strict=False))

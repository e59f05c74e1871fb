"""IMAP commands before login: found, bounded, then parsed (RFC 9051 §2.2 and §9, RFC 3501, RFC 7888).

A command is a line, or lines with literals between them. The receiver collects it whole, under the
limits, and gives it out parsed. What is wrong with it becomes a :class:`BadCommand`, and its
literals are skipped by count, so that the next command is found where the client began it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mailgate.errors import RemoteProtocolError
from mailgate.wire.framing import BadCommand, Limits, Receiver

LITERAL_MINUS_LIMIT: Final = 4096
"""The largest non-synchronising literal under LITERAL- (RFC 7888 §5)."""

Argument: TypeAlias = "bytes | tuple[Argument, ...] | None"
"""A string or atom as bytes, ID's NIL as None, a parenthesized list as a tuple."""

_ATOM: Final = rb"[!#$&'+,\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+"
_LINE_TAG = re.compile(rb"[!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+(?=[ \r\n])")
_HEAD = re.compile(rb"([!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+) ([A-Za-z][A-Za-z0-9._\-]*)")
_QUOTED: Final = rb'(?:[^"\\\r\n\0]|\\["\\])*'
_TOKEN = re.compile(rb"(?P<atom>" + _ATOM + rb')|"(?P<quoted>' + _QUOTED + rb')"|(?P<mark>[ ()])')
_WORD = re.compile(rb" (?:(" + _ATOM + rb')|"(' + _QUOTED + rb')")')
_WORDS_ALONE = re.compile(rb"(?: (?:" + _ATOM + rb'|"' + _QUOTED + rb'"))*\r?\n')
_ESCAPE = re.compile(rb"\\(.)")
_ANNOUNCED = re.compile(rb"(~?)\{([0-9]+)(\+?)\}\r?\n\Z")
_HTTP = re.compile(rb"(?:GET|POST|HEAD|PUT|OPTIONS|CONNECT|DELETE|PATCH|TRACE|PRI) [^ ]+ HTTP/")
_UNQUOTABLE = re.compile(rb"[\r\n\0\x80-\xff]")
_COMMANDS: Final = frozenset(
    {b"LOGIN", b"AUTHENTICATE", b"CAPABILITY", b"NOOP", b"LOGOUT", b"STARTTLS", b"ID", b"SELECT", b"ENABLE"}
)
# Elsewhere NIL is an atom like any other (RFC 9051 §4.5): a user may be called so.
_TAKES_NIL: Final = frozenset({"ID"})
_ROOM_FOR_ANNOUNCEMENT: Final = 64
_DIGITS: Final = 10
_TAG_ROOM: Final = 512


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed command; ``name`` in upper case, ``raw`` with its literals and line ends."""

    tag: bytes
    name: str
    args: tuple[Argument, ...]
    raw: bytes


@dataclass(frozen=True, slots=True)
class LiteralAnnounced:
    """A client waits for ``+`` before it sends a literal of ``size`` bytes, which is within the limits."""

    tag: bytes
    size: int


def quote(value: bytes) -> bytes:
    """Return ``value`` as a quoted string; raises ValueError for what only a literal can hold."""
    if _UNQUOTABLE.search(value):
        raise ValueError("needs a literal")
    return _quoted(value)


def _quoted(value: bytes) -> bytes:
    return b'"%b"' % value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def needs_literal(value: bytes) -> bool:
    """Whether ``value`` can only be sent as a literal."""
    return _UNQUOTABLE.search(value) is not None


def encode_arguments(values: Sequence[bytes], literal: Literal["sync", "plus", "minus"]) -> tuple[bytes, ...]:
    """Return strings as command arguments, each with a space before it.

    The pieces are to be sent one after another, a continuation awaited between them. ``literal``
    says which non-synchronising literals the server takes (RFC 7888). Raises ValueError for NUL,
    which no string may hold.
    """
    pieces = [b""]
    for value in values:
        if not needs_literal(value):
            pieces[-1] += b" " + _quoted(value)
        elif b"\0" in value:
            raise ValueError("NUL in a string")
        elif literal == "plus" or (literal == "minus" and len(value) <= LITERAL_MINUS_LIMIT):
            pieces[-1] += b" {%d+}\r\n%b" % (len(value), value)
        else:
            pieces[-1] += b" {%d}\r\n" % len(value)
            pieces.append(value)
    return tuple(pieces)


def encode_id(pairs: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    """Return ID's argument from the pairs that quoted strings can hold (RFC 2971 §3.1), empty if there are none."""
    said = [
        b"%b %b" % (quote(key), b"NIL" if value is None else quote(value))
        for key, value in pairs
        if not needs_literal(key) and not (value is not None and needs_literal(value))
    ]
    return b"(%b)" % b" ".join(said) if said else b""


class CommandReceiver(Receiver):
    """The client's leg before login: bytes in, commands out; see the module's text."""

    __slots__ = ("_bad", "_left", "_overlong", "_parts", "_size")

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits)
        # The command that is collected: lines and literals in turn, its bytes, and a literal under way.
        self._parts: list[bytes] = []
        self._size = 0
        self._left = 0
        # Why the command that is collected is bad: the rest of it is skipped.
        self._bad: BadCommand | None = None
        self._overlong = False

    @property
    def buffered(self) -> int:
        """Bytes that arrived and were not used."""
        return super().buffered + self._size

    def next(self) -> Command | LiteralAnnounced | BadCommand | None:
        """Return what is complete, None if nothing is."""
        if self._dead:
            return None
        if self._fresh and len(self._buffer):
            if self._buffer.starts_with(b"\x16"):
                return self._fatal(BadCommand(None, "TLS is not spoken here", fatal=True, foreign="tls"))
            self._fresh = False
        if self.total > self._limits.total:
            return self._fatal(BadCommand(None, "Too much was sent before login", fatal=True))
        while True:
            if self._left and not self._take_literal():
                return None
            if self._overlong:
                if not self._skip_line():
                    return None
                continue
            if self._bad is not None and not self._left and not self._parts:
                bad, self._bad = self._bad, None
                return self._fatal(bad) if bad.fatal else bad
            try:
                line = self._buffer.line(self._limits.line)
            except RemoteProtocolError:
                self._begin_overlong()
                continue
            if line is None:
                return None
            result = self._line(line)
            if result is not None:
                return result

    def _fatal(self, bad: BadCommand) -> BadCommand:
        """Stop for good: nothing behind a fatal error is looked at."""
        self._dead = True
        return bad

    # ---------------------------------------------------------------- framing

    def _take_literal(self) -> bool:
        """Take the literal under way; return whether it is complete."""
        if self._bad is None and len(self._buffer) < self._left:
            return False
        piece = self._buffer.take(self._left)
        self._left -= len(piece)
        if self._bad is None:
            self._keep(piece)
        return self._left == 0

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)

    def _begin_overlong(self) -> None:
        self._overlong = True
        # Only what is over the limit in any case is looked at, so that it matters not how the bytes were cut.
        tag = self._tag() or _tag_of(self._buffer.peek(min(_TAG_ROOM, self._limits.line + 1)))
        self._spoil("Line too long", tag)

    def _skip_line(self) -> bool:
        """Drop an overlong line as it comes; return whether its end was seen."""
        end = self._buffer.skip_line(_ROOM_FOR_ANNOUNCEMENT)
        if end is None:
            return False
        self._overlong = False
        self._skip_literal(end)
        return True

    def _spoil(self, text: str, tag: bytes | None, *, fatal: bool = False) -> None:
        """Give the command that is collected up."""
        self._bad = self._bad or BadCommand(tag, text, fatal=fatal)
        self._parts.clear()
        self._size = 0

    def _skip_literal(self, line: bytes) -> None:
        """Skip the literal that a bad line announces, if the client sends it without waiting."""
        match = _ANNOUNCED.search(line)
        if match is not None and match[3]:
            if len(match[2]) > _DIGITS:
                self._bad = BadCommand(None, "Literal too large", fatal=True)
                return
            self._left = int(match[2])
            # The rest of the command's line follows its literal and is skipped with it.
            self._parts.append(b"")

    def _line(self, line: bytes) -> Command | LiteralAnnounced | BadCommand | None:
        """Take one line: a command's end, or a part that ends in a literal."""
        if self._bad is not None:
            self._parts.clear()
            self._skip_literal(line)
            return None
        if b"\0" in line:
            return self._fatal(BadCommand(None, "NUL is not allowed", fatal=True))
        if not self._parts and _HTTP.match(line):
            return self._fatal(BadCommand(None, "HTTP is not spoken here", fatal=True, foreign="http"))
        self._keep(line)
        match = _ANNOUNCED.search(line)
        if match is None:
            return self._complete()
        tag = self._tag()
        if tag is None:
            return self._reject(line, "Expected a tag and a command", None)
        if len(match[2]) > _DIGITS or int(match[2]) > self._limits.literal:
            return self._reject(line, "Literal too large", tag)
        if len(self._parts) // 2 >= self._limits.literals:
            return self._reject(line, "Too many literals", tag)
        self._left = int(match[2])
        if self._left == 0:
            self._keep(b"")
        return None if match[3] else LiteralAnnounced(tag, self._left)

    def _reject(self, line: bytes, text: str, tag: bytes | None) -> BadCommand | None:
        """Refuse a command at its literal; the answer comes when what the client has sent of it is skipped."""
        self._spoil(text, tag)
        self._skip_literal(line)
        return None

    def _tag(self) -> bytes | None:
        return _tag_of(self._parts[0]) if self._parts else None

    def _complete(self) -> Command | BadCommand:
        parts = tuple(self._parts)
        self._parts.clear()
        self._size = 0
        try:
            return _parse(parts, self._limits)
        except RemoteProtocolError as error:
            return BadCommand(_tag_of(parts[0]), str(error))


def _tag_of(line: bytes) -> bytes | None:
    match = _LINE_TAG.match(line)
    return match[0] if match else None


def _parse(parts: tuple[bytes, ...], limits: Limits) -> Command:
    """Parse a complete command: lines at even places, literals at odd ones."""
    head = _HEAD.match(parts[0])
    if head is None:
        words = parts[0].split()
        if words and words[0].upper() in _COMMANDS:
            raise RemoteProtocolError("Begin with a tag of your choice, as in: a1 LOGIN name password")
        raise RemoteProtocolError("Expected a tag and a command")
    tag, name = head[1], head[2].decode("ascii").upper()
    if tag.upper() in _COMMANDS and name.encode() not in _COMMANDS:
        raise RemoteProtocolError("Begin with a tag of your choice, as in: a1 LOGIN name password")
    return Command(tag, name, _arguments(parts, head.end(), limits, nil=name in _TAKES_NIL), b"".join(parts))


def _arguments(parts: tuple[bytes, ...], at: int, limits: Limits, *, nil: bool) -> tuple[Argument, ...]:
    """Parse the arguments behind a command's name; ``nil`` says that an atom NIL stands for nothing."""
    if len(parts) == 1 and not nil and _WORDS_ALONE.match(parts[0], at):
        # What LOGIN and AUTHENTICATE hold, without the general case's steps for each token.
        words = _WORD.findall(parts[0], at)
        if len(words) > limits.arguments:
            raise RemoteProtocolError("Too many arguments")
        return tuple([atom or _ESCAPE.sub(rb"\1", quoted) for atom, quoted in words])
    stack: list[list[Argument]] = [[]]
    count = 0
    # A value follows a space or an opening parenthesis and nothing else.
    ready = False
    for index in range(0, len(parts), 2):
        line = parts[index]
        announced = _ANNOUNCED.search(line)
        end = announced.start() if announced else len(line.removesuffix(b"\n").removesuffix(b"\r"))
        while at < end:
            match = _TOKEN.match(line, at, end)
            if match is None:
                raise RemoteProtocolError("Malformed argument")
            at = match.end()
            mark = match["mark"]
            if mark == b" ":
                if ready:
                    raise RemoteProtocolError("Expected an argument")
                ready = True
                continue
            if mark == b")":
                if len(stack) == 1 or (ready and stack[-1]):
                    raise RemoteProtocolError("Malformed list")
                done = tuple(stack.pop())
                stack[-1].append(done)
                ready = False
                continue
            if not ready:
                raise RemoteProtocolError("Expected a space")
            count += 1
            if count > limits.arguments:
                raise RemoteProtocolError("Too many arguments")
            if mark == b"(":
                if len(stack) > limits.nesting:
                    raise RemoteProtocolError("Too many lists in lists")
                stack.append([])
                continue
            stack[-1].append(_value(match, nil=nil))
            ready = False
        if announced:
            if not ready:
                raise RemoteProtocolError("Expected a space")
            count += 1
            if count > limits.arguments:
                raise RemoteProtocolError("Too many arguments")
            stack[-1].append(parts[index + 1])
            ready = False
        at = 0
    arguments = stack.pop()
    if stack or (ready and arguments):
        raise RemoteProtocolError("Unfinished arguments")
    return tuple(arguments)


def _value(match: re.Match[bytes], *, nil: bool) -> bytes | None:
    quoted = match["quoted"]
    if quoted is not None:
        return _ESCAPE.sub(rb"\1", quoted)
    atom: bytes = match["atom"]
    return None if nil and atom.upper() == b"NIL" else atom

"""What the IMAP relay core knows of single lines: the expressions for their parts, and their literals.

All of it is stateless; where a line stands in its command or response is the core's affair.
"""

from __future__ import annotations

import re
from typing import Final, Literal

TAG_LIMIT: Final = 512
"""Longest tag that is remembered and echoed; the longest seen in clients have some tens."""

LITERAL_DIGITS: Final = 19
"""Digits of the largest 63-bit number (RFC 9051 §9, number64)."""

LITERAL_MINUS_LIMIT: Final = 4096
"""The largest non-synchronising literal under LITERAL- (RFC 7888 §5)."""

LiteralMode = Literal["none", "minus", "plus"]
"""Which non-synchronising literals a server takes (RFC 7888)."""

_TAG_CHARS: Final = rb"[!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]"
_TAG_TOKEN: Final = _TAG_CHARS + b"{1,%d}+" % TAG_LIMIT
HEAD = re.compile(rb"(" + _TAG_TOKEN + rb") ((?:[Uu][Ii][Dd] )?[A-Za-z][A-Za-z0-9._\-]*+)(?=[ \r])")
TAG = re.compile(rb"(" + _TAG_TOKEN + rb") ")
# Only one way leads through each line, so a failure takes time in proportion to its length. Possessive groups
# would say so, but Python before 3.11.5 takes them wrongly.
QUOTED_WELL = re.compile(rb'[^"]*(?:(?<=[ (\[])"[^"\\]*(?:\\["\\][^"\\]*)*"(?=[ )\]\r])[^"]*)*\Z')
ANNOUNCED = re.compile(rb"(?:(?<=[ (])|(?<=[ (]~))\{([0-9]++)(\+?)\}\r\n\Z")
BRACED = re.compile(rb"\{([0-9]*+)([^{}]*+)\}\r\n\Z")
# A whole line of the shape that nearly all have, without a literal: only its verb needs to be asked about. What it
# takes, HEAD and shape() take as well, with the same tag and verb.
PLAIN = re.compile(
    rb"(" + _TAG_TOKEN + rb") ((?:[Uu][Ii][Dd] )?[A-Za-z][A-Za-z0-9._\-]*+)"
    rb'(?: [^"{\r\n\0]*+(?:(?<=[ (\[])"[^"\\\r\n\0]*+(?:\\["\\][^"\\\r\n\0]*+)*"(?=[ )\]\r])[^"{\r\n\0]*+)*)?\r\n'
)
SASL_LINE = re.compile(rb"(?:[A-Za-z0-9+/]*={0,2}|\*)\r\n\Z")

_FILTERED: Final = (
    rb"\* (?:[Cc][Aa][Pp][Aa][Bb][Ii][Ll][Ii][Tt][Yy]|[Bb][Yy][Ee]|"
    rb"(?:[Oo][Kk]|[Nn][Oo]|[Bb][Aa][Dd]) \[[Cc][Aa][Pp][Aa][Bb][Ii][Ll][Ii][Tt][Yy])"
)
# Most lines are passed over by their first three octets.
MATTERS = re.compile(rb"\n(?:(?!\* [^BbCcNnOo])(?=[^*]|" + _FILTERED + rb")|(?<=\}\r\n)|(?<=\}\n))")
READ_WHOLE = re.compile(rb"[^*]|" + _FILTERED)
# A whole line that announces a literal, of the shape that FETCH responses have.
FETCHED = re.compile(rb"\* [0-9][^{\n]*+\{([0-9]{1,19})\}\r\n")
RESPONSE_LITERAL = re.compile(rb"\{([0-9]{1,19})\}\r?\n\Z")
HUMAN = re.compile(rb"\+|[^ +\r\n]+ (?:OK|NO|BAD|BYE|PREAUTH)(?=[ \r\n])", re.IGNORECASE)
COMPLETION = re.compile(rb"([^ *+\r\n][^ \r\n]*) (OK|NO|BAD)(?=[ \r\n])", re.IGNORECASE)
CODE = re.compile(rb"[^ +\r\n]+ (?:OK|NO|BAD) \[CAPABILITY ([^\]\r\n]*)\]", re.IGNORECASE)
UNTAGGED = re.compile(rb"\* CAPABILITY ([^\r\n]*)", re.IGNORECASE)
# The beginning of a completion that says nothing but its result: no capabilities to be filtered.
COMPLETED = re.compile(rb"([^ *+\r\n][^ \r\n]*+) (OK|NO|BAD) (?!\[[Cc])")
RESULTS: Final = {b"OK": "ok", b"NO": "no", b"BAD": "bad"}
BYE = re.compile(rb"\* BYE(?=[ \r\n])", re.IGNORECASE)
STAR: Final = ord("*")
ANNOUNCEMENT_ROOM: Final = 32
"""Octets that hold any announcement of a literal with its CRLF."""


def shape(line: bytes, literals: LiteralMode) -> tuple[str, tuple[int, bool] | None]:
    """Return what is wrong with a line, and the literal that it announces: size, without waiting."""
    if line.find(b"\r", 0, -2) >= 0 or b"\0" in line:
        return "CR and NUL are not allowed here", None
    if b'"' in line and not QUOTED_WELL.match(line):
        return "Malformed quoted string", None
    if not line.endswith(b"}\r\n") or BRACED.search(line) is None:
        return "", None
    match = ANNOUNCED.search(line)
    if match is None or len(match[1]) > LITERAL_DIGITS:
        return "Malformed literal", None
    size, without_waiting = int(match[1]), bool(match[2])
    if without_waiting and (literals == "none" or (literals == "minus" and size > LITERAL_MINUS_LIMIT)):
        return "Non-synchronizing literal not supported", None
    return "", (size, without_waiting)


def announced_size(data: bytes | bytearray, at: int, stop: int, *, starts: bool) -> int | None:
    """Return the size of the literal that the line ending at ``stop`` announces, if it does."""
    if b"}" not in data[max(at, stop - 3) : stop]:
        return None
    begin = data.rfind(b"\n", at, stop - 1) + 1
    starts = begin > 0 or starts
    begin = begin or at
    match = RESPONSE_LITERAL.search(data, max(begin, stop - ANNOUNCEMENT_ROOM), stop)
    if match is None or (starts and HUMAN.match(data, begin, stop)):
        return None
    return int(match[1])

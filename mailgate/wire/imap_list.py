"""What LIST tells of mailboxes: their attributes and names (RFC 9051 §7.3.1, RFC 6154, Gmail's XLIST)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailgate.wire.imap_response import Response

_LISTED = re.compile(
    rb"\* X?LIST +\(([^)]*)\) +"
    rb'(?:NIL|"(?:[^"\\]|\\.)*") +'
    rb'(?:"((?:[^"\\\r\n]|\\.)*)"|~?\{[0-9]+\}\r?\n(.*?)|([^ (){}"\r\n]+))'
    rb"(?: +\(.*\))? *\r?\n?",
    re.IGNORECASE | re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(.)")
_NO_MAILBOX = frozenset({"\\NOSELECT", "\\NONEXISTENT"})


@dataclass(frozen=True, slots=True)
class Listed:
    """A mailbox: its attributes in upper case, its name as the server spells it."""

    attributes: frozenset[str]
    name: bytes

    @property
    def selectable(self) -> bool:
        """Whether it can hold messages."""
        return self.attributes.isdisjoint(_NO_MAILBOX)


def listed(response: Response) -> Listed | None:
    """Return the mailbox that a response tells of, ``None`` if it is no LIST or cannot be understood."""
    if response.status not in ("LIST", "XLIST"):
        return None
    found = _LISTED.fullmatch(response.raw)
    if found is None:
        return None
    attributes, quoted, literal, atom = found.groups()
    name = _ESCAPE.sub(rb"\1", quoted) if quoted is not None else literal if literal is not None else atom
    return Listed(frozenset(attributes.decode("latin-1").upper().split()), name)

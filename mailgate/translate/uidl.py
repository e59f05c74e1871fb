"""UIDLs: how a message's unique-id of POP3 is made from what IMAP tells of it (RFC 1939 §7).

A client that meets other UIDLs than before downloads everything again, so formats are those of the
servers that people migrate from. A *template* is text with fields in braces::

    {uid:08x}{uidvalidity:08x}      Dovecot's default
    GmailId{gm_msgid:x}             Gmail's POP3

Templates of ``uid``, ``uidvalidity`` and ``folder`` alone are rendered when a UIDL is asked for and
cost no memory; they are unique by themselves, since each contains the whole UID. The others need facts
of each message (``needs``), are made once and stored, and duplicates among them get a number.

The parser is not ``str.format``: that follows attributes and indexes of what it is given.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count
from types import MappingProxyType
from typing import Final, Protocol

from mailgate.errors import MailgateError
from mailgate.wire.mailbox_name import canonical

LONGEST: Final = 70
"""Characters of a UIDL at most (RFC 1939 §7); each of them is one of 0x21 to 0x7E."""

LONGEST_OF_UID: Final = 58
"""Characters of a UIDL made of UIDs: the rest of the 70 is for a folder's prefix and a duplicate's number."""

SHORTEST_HASH: Final = 16
"""Hexadecimal digits that must remain of a shortened hash: 64 bits keep 100,000 messages apart."""

FORMATS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "dovecot": "{uid:08x}{uidvalidity:08x}",
        "dovecot-old": "{uidvalidity}.{uid}",
        "uw": "{uidvalidity:08x}{uid:08x}",
        # Courier counts by itself: its numbers are not the UIDs of its IMAP server. What its clients
        # have seen must be imported, and the format gives new messages the same look only.
        "courier": "UID{uid}-{uidvalidity}",
        "courier-v1": "UID{uid}",
        "cyrus": "{uidvalidity}.{uid}",
        "cyrus-old": "{uid}",
        "gmail": "GmailId{gm_msgid:x}",
    }
)
"""The formats that have a name: those of servers that people migrate from."""

BY_HEADER: Final = "{header_md5}"
"""What is used where the chosen template cannot be: it needs nothing but BODY[HEADER]."""

IGNORED_FIELDS: Final = frozenset(
    {
        b"content-length",
        b"return-path",
        b"status",
        b"x-imap",
        b"x-imapbase",
        b"x-keywords",
        b"x-message-flag",
        b"x-status",
        b"x-uid",
        b"x-uidl",
        b"x-yahoo-newman-property",
    }
)
"""Header fields that differ between POP3 and IMAP or over time (Dovecot's pop3-migration plugin has the same list)."""

_NUMBERS: Final = frozenset({"uid", "uidvalidity", "gm_msgid"})
_HASHES: Final = {"header_md5": 32, "header_sha1": 40, "header_sha256": 64}
_TEXTS: Final = frozenset({"emailid", "message_id", "folder"})
_NEEDS: Final = {"emailid": "emailid", "gm_msgid": "gm_msgid", "message_id": "headers"} | dict.fromkeys(
    _HASHES, "headers"
)
_NUMBER_SPEC: Final = re.compile(r"(?:0([1-9][0-9]?))?([dxX]?)")
_HASH_SPEC: Final = re.compile(r"\.([1-9][0-9]?)")
_VALID: Final = re.compile(rb"[\x21-\x7e]{1,70}")
_FIELD: Final = re.compile(rb"([^\x00-\x20\x7f-\xff:]+)[ \t]*:")
_LINE: Final = re.compile(rb"([^\n]*?)\r?(?:\n|\Z)")
_UNSTABLE: Final = re.compile(rb"[^\t\n\x20-\x3e\x40-\x7e]+")
_MESSAGE_ID: Final = re.compile(rb"^message-id[ \t]*:[ \t\r\n]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class TemplateError(MailgateError):
    """A template cannot be used; ``position`` is where in its text, counted from 1, what is wrong begins."""

    def __init__(self, message: str, position: int = 1) -> None:
        super().__init__(f"{message} (at character {position})" if position > 1 else message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Facts:
    """What a template may ask of one message; what it does not need may stay empty.

    ``gm_msgid`` is Gmail's X-GM-MSGID, 64 bits. ``header`` is the message's header as
    BODY[HEADER] gives it, or ``digest`` is what :meth:`Template.digest` made of it. ``folder`` is the
    short id of :func:`folder_id`.
    """

    uid: int
    uidvalidity: int
    emailid: bytes = b""
    gm_msgid: int = 0
    header: bytes = b""
    folder: bytes = b""
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a template: ``spec`` is the conversion of a number, ``digits`` what remains of a hash (0: all)."""

    name: str
    text: str
    spec: bytes = b"d"
    digits: int = 0

    @property
    def longest(self) -> int:
        """Characters that the field can have at most, 0 where that is not known."""
        if self.name in _HASHES:
            return self.digits or _HASHES[self.name]
        if self.name in _NUMBERS:
            most = 0xFFFFFFFFFFFFFFFF if self.name == "gm_msgid" else 0xFFFFFFFF
            return len((b"%" + self.spec) % most)
        return 8 if self.name == "folder" else 0


@dataclass(frozen=True)
class Template:
    """A checked template; ``text`` is its text, where a name was given that of the format."""

    text: str
    parts: tuple[bytes | _Field, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Return the template of a format's name or of a text; raise TemplateError."""
        if "{" not in text and "}" not in text and text not in FORMATS:
            known = ", ".join(FORMATS)
            raise TemplateError(f"no format has this name; known are {known}, or a template such as {{uid}}")
        text = FORMATS.get(text, text)
        template = cls(text, tuple(_parts(text)))
        template._check()
        return template

    def _check(self) -> None:
        names = {part.name for part in self._fields}
        if not names - {"uidvalidity", "folder"}:
            raise TemplateError("without uid, emailid, gm_msgid, message_id or header_… all messages would be the same")
        if {"emailid", "gm_msgid"} <= names:
            raise TemplateError("emailid and gm_msgid are of different servers")
        if sum(part.name == "uid" for part in self._fields) > 1:
            raise TemplateError("uid can stand in a template once")
        known = [part.longest if isinstance(part, _Field) else len(part) for part in self.parts]
        most = LONGEST if self.needs else LONGEST_OF_UID
        if sum(known) > most:
            raise TemplateError(f"UIDLs would have up to {sum(known)} characters, and {most} are possible")

    @cached_property
    def _fields(self) -> tuple[_Field, ...]:
        return tuple(part for part in self.parts if isinstance(part, _Field))

    @cached_property
    def needs(self) -> frozenset[str]:
        """What must be fetched of each message: "emailid", "gm_msgid", "headers"; empty where UIDs are enough."""
        return frozenset(_NEEDS[part.name] for part in self._fields if part.name in _NEEDS)

    @cached_property
    def names_folder(self) -> bool:
        """Whether the UIDLs contain the folder by themselves."""
        return any(part.name == "folder" for part in self._fields)

    @cached_property
    def uses_uid(self) -> bool:
        """Whether UIDLs are made of UIDs or UIDVALIDITY, which must not be where UIDs do not last (UIDNOTSTICKY)."""
        return any(part.name in ("uid", "uidvalidity") for part in self._fields)

    def bound(self, uidvalidity: int, prefix: bytes = b"", folder: bytes = b"") -> Template:
        """Return the template with everything but the UID written out, so that its text alone says what UIDLs were.

        Only for templates that need nothing else of a message.
        """
        known = {"uidvalidity": uidvalidity}
        parts: list[bytes | _Field] = [prefix]
        for part in self.parts:
            if isinstance(part, _Field) and part.name != "uid":
                part = (b"%" + part.spec) % known[part.name] if part.name in known else folder
            if isinstance(part, bytes) and isinstance(parts[-1], bytes):
                parts[-1] += part
            else:
                parts.append(part)
        text = "".join(
            part.text if isinstance(part, _Field) else part.decode("ascii").replace("{", "{{").replace("}", "}}")
            for part in parts
        )
        return Template(text, tuple(part for part in parts if part))

    @classmethod
    def of_bound(cls, text: str) -> Template:
        """Return the template of a :meth:`bound` one's text; raise TemplateError where it is none."""
        template = cls(text, tuple(_parts(text)))
        if [part.name for part in template._fields] != ["uid"]:
            raise TemplateError("a template of UIDs alone has the field uid once and no other")
        return template

    @cached_property
    def _of_uid(self) -> bytes:
        """Return a format for ``%`` that takes the UID; the template is a bound one."""
        return b"".join(
            b"%" + part.spec if isinstance(part, _Field) else part.replace(b"%", b"%%") for part in self.parts
        )

    def of_uid(self, uid: int) -> bytes:
        """Return the UIDL of a UID; the template must be a bound one."""
        return self._of_uid % uid

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        text = b""
        for part in self.parts:
            if isinstance(part, bytes):
                text += re.escape(part)
            else:
                text += b"([0-9]+)" if part.spec.endswith(b"d") else b"([0-9a-fA-F]+)"
        return re.compile(text)

    def of_uids(self, uids: Sequence[int]) -> list[bytes]:
        """Return the UIDLs of many UIDs, formatted at once; the template must be a bound one."""
        return (b"%b\n" % self._of_uid * len(uids) % tuple(uids)).split()

    def uid_of(self, uidl: bytes) -> int | None:
        """Return the UID whose UIDL this is, None where it is of none; the template must be a bound one."""
        found = self._pattern.fullmatch(uidl)
        if found is None:
            return None
        uid = int(found[1], 10 if self._fields[0].spec.endswith(b"d") else 16)
        return uid if 0 < uid <= 0xFFFFFFFF and self.of_uid(uid) == uidl else None

    def digest(self, header: bytes) -> bytes:
        """Return what a header tells in few bytes: its MD5, 16 bytes, then the values of the fields made of it."""
        facts = Facts(0, 0, header=header)
        values = [_value(part, facts) for part in self._fields if _NEEDS.get(part.name) == "headers"]
        return header_hash(header) + b"\0".join(value.replace(b"\0", b"?") for value in values)

    def render(self, facts: Facts, prefix: bytes = b"") -> bytes:
        """Return the UIDL of one message, valid but not yet compared with those of others."""
        told = iter(facts.digest[16:].split(b"\0"))
        pieces = [
            part
            if isinstance(part, bytes)
            else next(told)
            if facts.digest and _NEEDS.get(part.name) == "headers"
            else _value(part, facts)
            for part in self.parts
        ]
        if b"" in pieces:
            # A message without Message-ID or EMAILID still needs a UIDL that no other has.
            return prefix + _hash(b"%d.%d" % (facts.uidvalidity, facts.uid))
        return fitted(prefix + b"".join(pieces))


def _parts(text: str) -> Iterable[bytes | _Field]:
    """Split a template's text."""
    literal = ""
    position = 0
    while position < len(text):
        char = text[position]
        if text[position : position + 2] in ("{{", "}}"):
            literal += char
            position += 2
            continue
        if char == "}":
            raise TemplateError('"}" without "{"; the character itself is written "}}"', position + 1)
        if char != "{":
            if not "!" <= char <= "~":
                raise TemplateError("a UIDL has printable ASCII characters without spaces only", position + 1)
            literal += char
            position += 1
            continue
        end = text.find("}", position)
        if end < 0:
            raise TemplateError('"{" without "}"; the character itself is written "{{"', position + 1)
        if literal:
            yield literal.encode("ascii")
            literal = ""
        yield _field(text[position : end + 1], position + 1)
        position = end + 1
    if literal:
        yield literal.encode("ascii")


def _field(text: str, position: int) -> _Field:
    """Read one field with its braces."""
    name, colon, spec = text[1:-1].partition(":")
    if name in _NUMBERS:
        found = _NUMBER_SPEC.fullmatch(spec)
        if found is None or (colon and not spec) or int(found[1] or 0) > 20:
            raise TemplateError(f"{name} takes d, x, X or these with a width of up to 20: {{{name}:08x}}", position)
        width = b"0" + found[1].encode("ascii") if found[1] else b""
        return _Field(name, text, width + (found[2] or "d").encode("ascii"))
    if name in _HASHES:
        found = _HASH_SPEC.fullmatch(spec)
        if colon and (found is None or not SHORTEST_HASH <= int(found[1]) <= _HASHES[name]):
            wanted = f"{SHORTEST_HASH} to {_HASHES[name]}"
            raise TemplateError(f"{name} can be cut to its first {wanted} digits: {{{name}:.32}}", position)
        return _Field(name, text, digits=int(found[1]) if found else 0)
    if name in _TEXTS:
        if colon:
            raise TemplateError(f"{name} is taken as it is: {{{name}}}", position)
        return _Field(name, text)
    known = ", ".join(sorted({*_NUMBERS, *_HASHES, *_TEXTS}))
    raise TemplateError(f"there is no field of this name; known are {known}", position)


def _value(field: _Field, facts: Facts) -> bytes:
    match field.name:
        case "uid":
            return (b"%" + field.spec) % facts.uid
        case "uidvalidity":
            return (b"%" + field.spec) % facts.uidvalidity
        case "gm_msgid":
            return (b"%" + field.spec) % facts.gm_msgid if facts.gm_msgid else b""
        case "emailid":
            return facts.emailid
        case "folder":
            return facts.folder
        case "message_id":
            found = _MESSAGE_ID.search(facts.header)
            return found[1].strip(b" \t") if found else b""
        case _:
            digest = header_hash(facts.header, field.name.removeprefix("header_")).hex().encode("ascii")
            return digest[: field.digits or None]


def stable_header(header: bytes) -> bytes:
    """Return of a header what every server shows of it alike, by POP3 and by IMAP.

    As Dovecot's pop3-migration: without :data:`IGNORED_FIELDS` and fields with invalid names, lines
    end with LF, runs of control and 8-bit characters (and "?") are one "?", and a line of CRs ends
    it. The empty line behind the header is left out, since not every server gives it.
    """
    kept: list[bytes] = []
    keep = False
    for found in _LINE.finditer(header):
        line = found[1]
        if not line.strip(b"\r"):
            break
        if line[0] not in b" \t":
            name = _FIELD.match(line)
            keep = name is not None and name[1].lower() not in IGNORED_FIELDS
        if keep:
            kept.append(line)
    return _UNSTABLE.sub(b"?", b"\n".join(kept))


def header_hash(header: bytes, algorithm: str = "md5") -> bytes:
    """Return the digest of a :func:`stable_header`: md5, sha1 or sha256."""
    return hashlib.new(algorithm, stable_header(header), usedforsecurity=False).digest()


def folder_id(folder: bytes) -> bytes:
    """Return the short id of a folder: eight hexadecimal digits that its name alone decides."""
    return hashlib.sha256(canonical(folder)).hexdigest()[:8].encode("ascii")


def folder_prefix(folder: bytes) -> bytes:
    """Return what stands before the UIDLs of a folder that is merged behind another."""
    return b"f%b." % folder_id(folder)


def is_valid(uidl: bytes) -> bool:
    """Whether these bytes may be a UIDL: 1 to 70 characters of 0x21 to 0x7E."""
    return _VALID.fullmatch(uidl) is not None


def fitted(value: bytes) -> bytes:
    """Return a value that may be a UIDL as it is, of any other a hash that stays the same."""
    return value if is_valid(value) else _hash(value)


def numbered(uidl: bytes, taken: Callable[[bytes], bool]) -> bytes:
    """Return a UIDL that is not taken: the given one, or with ``-2``, ``-3``, … behind it."""
    if not taken(uidl):
        return uidl
    base = uidl if len(uidl) <= LONGEST - len("-999999") else _hash(uidl)
    return next(name for number in count(2) if not taken(name := b"%b-%d" % (base, number)))


def _hash(value: bytes) -> bytes:
    return hashlib.md5(value, usedforsecurity=False).hexdigest().encode("ascii")


class Uidls(Protocol):
    """The UIDLs of a folder's messages, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> bytes: ...

    def among(self, indexes: Sequence[int], /) -> Sequence[bytes]:
        """Return those of some indexes, in their order."""
        ...


class Rendered:
    """The UIDLs of messages whose template needs nothing but UIDs: made when asked for.

    ``uids`` is held, not copied.
    """

    __slots__ = ("_template", "_uids")

    def __init__(self, template: Template, uids: Sequence[int], uidvalidity: int, prefix: bytes = b"") -> None:
        self._template = template.bound(uidvalidity, prefix)
        self._uids = uids

    def __len__(self) -> int:
        return len(self._uids)

    def __getitem__(self, index: int) -> bytes:
        return self._template.of_uid(self._uids[index])

    def among(self, indexes: Sequence[int]) -> list[bytes]:
        """See :class:`Uidls`."""
        return self._template.of_uids(list(map(self._uids.__getitem__, indexes)))


class Stored:
    """Byte strings one behind the other: ``offsets`` holds where each begins, and the end of the last."""

    __slots__ = ("blob", "offsets")

    def __init__(self, blob: bytes, offsets: array[int]) -> None:
        self.blob = blob
        self.offsets = offsets

    @classmethod
    def of(cls, values: Sequence[bytes]) -> Stored:
        """Hold these values."""
        return cls(b"".join(values), array("I", accumulate(map(len, values), initial=0)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.blob[self.offsets[index] : self.offsets[index + 1]]

    def among(self, indexes: Sequence[int]) -> list[bytes]:
        """See :class:`Uidls`."""
        return list(map(self.__getitem__, indexes))

    def plus(self, other: Stored) -> Stored:
        """Return these and the others behind them."""
        end = self.offsets[-1]
        return Stored(self.blob + other.blob, self.offsets + array("I", [end + at for at in other.offsets[1:]]))

    def part(self, start: int, end: int) -> Stored:
        """Return those of some indexes; all of them are not copied."""
        if start == 0 and end == len(self):
            return self
        first = self.offsets[start]
        offsets = array("I", [at - first for at in self.offsets[start : end + 1]])
        return Stored(self.blob[first : self.offsets[end]], offsets)

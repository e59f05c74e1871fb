"""Files in which old servers, or an administrator, keep what clients know messages by; pure.

Sources: Courier's pop3dserver.C (courierpop3dsizelist), Dovecot's maildir-uidlist.c and its documentation of the
Maildir format (dovecot-uidlist, which in its first version was Courier's courierimapuiddb).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from mailgate.errors import MailgateError
from mailgate.translate.uidl import Template, is_valid

COLUMNS: Final = ("folder", "uidvalidity", "uid", "file", "size", "uidl")
"""The columns that a CSV file may have; ``export`` writes those that it knows."""

FILENAME: Final = "filename"
"""The format of servers whose unique-ids are the names of Maildir files (qmail, Courier before 0.43, Dovecot's %f)."""

_COURIER_HEAD = re.compile(rb"/([0-9]+) ([0-9]+)(?: ([0-9]+))?")
_COURIER_LINE = re.compile(rb"(.+) ([0-9]+) ([0-9]+):([0-9]+)(?::[0-9]+)?")
_COURIER_ESCAPED = re.compile(rb"[^!-~]|['\"+]")
_UIDLIST_OLD = re.compile(rb"1 ([0-9]+) ([0-9]+)")
_UIDLIST_LINE = re.compile(rb"([0-9]+)((?: [A-Za-z][^ ]*)*) :(.+)")
_DOVECOT_SIZE = re.compile(rb",W=([0-9]+)")


class FileError(MailgateError):
    """A file is not what it should be; the text says where."""


@dataclass(frozen=True, slots=True)
class Known:
    """A message as the old server knew it. What a file does not tell is 0 or empty.

    ``size`` is in octets with CRLF line ends, ``file`` the name of a Maildir file without its flags.
    """

    uidl: bytes
    uid: int = 0
    uidvalidity: int = 0
    size: int = 0
    file: bytes = b""

    def __str__(self) -> str:
        about = {"UID": self.uid, "size": self.size, "file": self.file.decode("ascii", "backslashreplace")}
        told = ", ".join(f"{name} {value}" for name, value in about.items() if value)
        return self.uidl.decode("ascii", "backslashreplace") + (f" ({told})" if told else "")


@dataclass(frozen=True, slots=True)
class UidList:
    """Which file has which UID: a dovecot-uidlist or a courierimapuiddb."""

    uidvalidity: int
    uids: dict[bytes, int]


def base_name(file: bytes) -> bytes:
    """Return the name of a Maildir file without its folder and its flags."""
    return file.rpartition(b"/")[2].partition(b":")[0]


def read_courier(content: bytes) -> list[Known]:
    """Return what a courierpop3dsizelist of version 2 or 3 holds. Raises FileError."""
    lines = content.splitlines()
    head = _COURIER_HEAD.fullmatch(lines[0]) if lines else None
    if head is None or head[1] not in (b"2", b"3"):
        raise FileError("line 1: not a courierpop3dsizelist of version 2 or 3")
    found = []
    for number, line in enumerate(lines[1:], 2):
        match = _COURIER_LINE.fullmatch(line)
        if match is None:
            raise FileError(f"line {number}: not a file's name, size and number")
        file, size, uid, uidvalidity = base_name(match[1]), int(match[2]), int(match[3]), int(match[4])
        if uid == 0:
            uidl = _COURIER_ESCAPED.sub(lambda one: b"+%02X" % one[0][0], file)
        else:
            uidl = b"UID%d-%d" % (uid, uidvalidity) if uidvalidity else b"UID%d" % uid
        # Courier's own numbers are not the UIDs of its IMAP server.
        found.append(Known(uidl, size=size, file=file))
    return _checked(found)


def read_dovecot(content: bytes, template: str) -> list[Known]:
    """Return what a dovecot-uidlist of version 3 or 1 holds.

    A message's own unique-id (its field P) goes before ``template``, which is what pop3_uidl_format was: a format's
    name, a template of UIDs, or FILENAME. Raises FileError and TemplateError.
    """
    bound: Template | None = None
    found = []
    for record in _uidlist(content):
        if not record.uidl:
            if template == FILENAME:
                record = replace(record, uidl=record.file)
            else:
                if bound is None:
                    parsed = Template.parse(template)
                    if parsed.needs:
                        raise FileError("the file does not hold what this format needs: import from the POP3 server")
                    bound = parsed.bound(record.uidvalidity)
                record = replace(record, uidl=bound.of_uid(record.uid))
        found.append(record)
    return _checked(found)


def read_uid_list(content: bytes) -> UidList:
    """Return which file has which UID, of a dovecot-uidlist or a courierimapuiddb. Raises FileError."""
    records = list(_uidlist(content))
    return UidList(
        records[0].uidvalidity if records else 0, {record.file: record.uid for record in records if record.file}
    )


def _uidlist(content: bytes) -> Iterator[Known]:
    lines = content.splitlines()
    head = lines[0] if lines else b""
    old = _UIDLIST_OLD.fullmatch(head)
    fields = {word[:1]: word[1:] for word in head.split(b" ")[1:]}
    if old is not None:
        uidvalidity = int(old[1])
    elif head.startswith(b"3 ") and fields.get(b"V", b"").isdigit():
        uidvalidity = int(fields[b"V"])
    else:
        raise FileError("line 1: not a dovecot-uidlist or courierimapuiddb")
    for number, line in enumerate(lines[1:], 2):
        if old is not None:
            uid, space, file = line.partition(b" ")
            values: dict[bytes, bytes] = {}
            good = bool(space) and uid.isdigit()
        else:
            match = _UIDLIST_LINE.fullmatch(line)
            good = match is not None
            if match is not None:
                uid, file = match[1], match[3]
                values = {word[:1]: word[1:] for word in match[2].split()}
        if not good:
            raise FileError(f"line {number}: not a UID and a file's name")
        size = values.get(b"W", b"")
        if not size and (inside := _DOVECOT_SIZE.search(file)) is not None:
            size = inside[1]
        octets = int(size) if size.isdigit() else 0
        yield Known(values.get(b"P", b""), int(uid), uidvalidity, octets, base_name(file))


def read_csv(text: str, folder: str) -> list[Known]:
    """Return what a CSV file says of one mailbox; rows without ``folder`` are of INBOX. Raises FileError."""
    reader = csv.DictReader(io.StringIO(text))
    columns = set(reader.fieldnames or ())
    if "uidl" not in columns or not columns & {"uid", "file", "size"} or columns - set(COLUMNS):
        raise FileError(f"line 1: the columns are uidl and some of {', '.join(COLUMNS[:-1])}, by their names")
    found = []
    for row in reader:
        if (row.get("folder") or "INBOX") != folder:
            continue
        numbers = {}
        for column in ("uid", "uidvalidity", "size"):
            value = row.get(column) or "0"
            if not value.isascii() or not value.isdigit():
                raise FileError(f"line {reader.line_num}: {column} is no number")
            numbers[column] = int(value)
        uidl = (row["uidl"] or "").encode("utf-8", "surrogateescape")
        file = base_name((row.get("file") or "").encode("utf-8", "surrogateescape"))
        found.append(Known(uidl, file=file, **numbers))
    return _checked(found)


def write_csv(rows: Iterator[tuple[str, int, int, bytes]]) -> Iterator[str]:
    """Give the lines of a CSV file that :func:`read_csv` reads: mailbox, UIDVALIDITY, UID, unique-id."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(("folder", "uidvalidity", "uid", "uidl"))
    yield line.getvalue()
    for folder, uidvalidity, uid, uidl in rows:
        line.seek(0)
        line.truncate()
        writer.writerow((folder, uidvalidity, uid, uidl.decode("ascii", "backslashreplace")))
        yield line.getvalue()


def _checked(found: list[Known]) -> list[Known]:
    seen: set[bytes] = set()
    for known in found:
        if not is_valid(known.uidl):
            raise FileError(f"{known}: a unique-id has 1 to 70 printable ASCII characters")
        if known.uidl in seen:
            raise FileError(f"{known}: this unique-id stands there twice")
        seen.add(known.uidl)
    return found

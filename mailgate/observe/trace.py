"""Protocol traces of one user or one address, switched on while the gateway runs.

A trace is a file that shows a dialogue line by line. Credentials are not in it by construction:
before login the dialogue hands over commands without their arguments where those are secret, and
in the relay a LOGIN, AUTHENTICATE, PASS or AUTH that is refused there is masked with its literals,
and so is a line that is no command at all.
Message bodies are left out, as literals and dot-blocks, unless they were asked for. Every trace
ends by itself, and its start and end are told to the log.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from mailgate.errors import MailgateError
from mailgate.model import Protocol, Session

LINE_LIMIT: Final = 4_096
"""Bytes of a line that are shown; more is cut, so that a line without end costs nothing."""

FILE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a trace's file, after which it ends: a forgotten trace must not fill the disk."""

TRACES: Final = 16
"""Traces at a time. Each costs a look-up for every login and a copy of what it traces."""

LONGEST: Final = 24 * 3600.0
"""Seconds that a trace may run."""

# Wider than the grammars, because what is malformed may hold a password too.
_SECRET = re.compile(
    rb"([ \t]*(?:[^ \t\r\n]+[ \t]+)?(?:LOGIN|AUTHENTICATE|PASS|AUTH|APOP))(?=[ \t\r\n])", re.IGNORECASE
)
# A SASL response that is sent although its exchange was refused looks like this, and is no command.
_NO_IMAP_COMMAND = re.compile(rb"(?!DONE\r?\n)[^ \r\n]+\r?\n", re.IGNORECASE)
# RFC 1939 §3: keywords have three or four characters.
_NO_POP3_COMMAND = re.compile(rb"[^ \r\n]{5}")
_LITERAL = re.compile(rb"\{([0-9]{1,19})\+?\}\r?\n\Z")
_HUMAN = re.compile(rb"\+|[^ +\r\n]+ (?:OK|NO|BAD|BYE|PREAUTH)(?=[ \r\n])", re.IGNORECASE)


class TraceError(MailgateError):
    """A trace cannot be started; the text says why."""


def _canonical(address: str) -> str:
    """Return an address in the form that ``Peer`` has; raises TraceError for what is none."""
    if address == "unix":
        return address
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise TraceError("not an IP address; connections over Unix sockets have the address unix") from None
    return str(getattr(found, "ipv4_mapped", None) or found)


def _folded(user: str | None) -> str | None:
    return None if user is None else user.casefold()


class _Literals:
    """One direction of an IMAP dialogue: its lines, with literals counted instead of shown."""

    def __init__(self, show: Callable[[bytes], None], *, bodies: bool, from_client: bool) -> None:
        self._show = show
        self._bodies = bodies
        self._from_client = from_client
        self._line = b""
        self._left = 0
        self._secret = False
        self._continued = False

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                if self._bodies and not self._secret:
                    self._show(piece)
                continue
            newline = data.find(b"\n", at)
            stop = newline + 1 if newline >= 0 else len(data)
            # Of an overlong line the end is kept, since it may announce a literal.
            line = self._line + data[at:stop]
            self._line = line if len(line) <= LINE_LIMIT else line[: LINE_LIMIT - 64] + line[-64:]
            at = stop
            if newline >= 0:
                line, self._line = self._line, b""
                self._complete(line)

    def _complete(self, line: bytes) -> None:
        literal = _LITERAL.search(line)
        if literal is not None and not self._continued and not self._from_client and _HUMAN.match(line):
            literal = None
        shown = line.rstrip(b"\r\n")
        if self._from_client and not self._continued:
            match = _SECRET.match(line)
            self._secret = match is not None
            if match is not None:
                shown = match[1] + b" <hidden>"
            elif _NO_IMAP_COMMAND.match(line):
                shown = b"<hidden>"
        elif self._secret:
            shown = b"<hidden>"
        if literal is not None:
            self._left = int(literal[1])
        self._continued = literal is not None
        self._show(shown + (b" <%d bytes>" % self._left if self._left and not self._bodies else b""))


class _Pop3:
    """A POP3 dialogue after login: what each reply belongs to tells which lines are a message's."""

    def __init__(self, client: Callable[[bytes], None], server: Callable[[bytes], None], *, bodies: bool) -> None:
        self._client = client
        self._server = server
        self._bodies = bodies
        self._asked: deque[bool] = deque()
        self._client_line = b""
        self._server_line = b""
        self._cut = 0
        self._hidden: int | None = None

    def client(self, data: bytes) -> None:
        lines = (self._client_line + data).split(b"\n")
        # Of an overlong line the beginning is kept, since it tells whether the rest is secret.
        self._client_line = lines.pop()[:LINE_LIMIT]
        for line in lines:
            match = _SECRET.match(line + b"\n")
            shown = b"<hidden>" if _NO_POP3_COMMAND.match(line) else line.rstrip(b"\r")[:LINE_LIMIT]
            self._client(match[1] + b" <hidden>" if match else shown)
            self._asked.append(line[:4].upper().rstrip() in (b"RETR", b"TOP"))

    def server(self, data: bytes) -> None:
        lines = (self._server_line + data).split(b"\n")
        rest = lines.pop()
        for line in lines:
            text = line.rstrip(b"\r")[:LINE_LIMIT]
            if self._hidden is not None:
                if text != b".":
                    self._hidden += self._cut + len(line) + 1
                    self._cut = 0
                    if self._bodies:
                        self._server(text)
                    continue
                if not self._bodies:
                    self._server(b"<%d bytes>" % self._hidden)
                self._hidden = None
                self._server(text)
                continue
            first = text[:3].upper() == b"+OK" or text[:4].upper() == b"-ERR"
            if first and self._asked and self._asked.popleft() and text[:1] == b"+":
                self._hidden = 0
            self._server(text)
            self._cut = 0
        self._server_line = rest[:LINE_LIMIT]
        self._cut += len(rest) - len(self._server_line)


@dataclass(slots=True)
class _Active:
    """A trace that runs."""

    id: str
    user: str | None
    address: str | None
    ends: float
    bodies: bool
    by: str
    path: Path
    file: BinaryIO
    written: int = 0
    joined: bool = False


class Trace:
    """One session's part of a trace; what it is handed is written masked, or dropped when it has ended."""

    def __init__(self, tracer: Tracer, active: _Active, session: Session) -> None:
        self._tracer = tracer
        self._active = active
        self._session = session.id
        if session.protocol is Protocol.POP3:
            pop3 = _Pop3(self._from_client, self._from_server, bodies=active.bodies)
            self._feed_client, self._feed_server = pop3.client, pop3.server
        else:
            self._feed_client = _Literals(self._from_client, bodies=active.bodies, from_client=True).feed
            self._feed_server = _Literals(self._from_server, bodies=active.bodies, from_client=False).feed

    def client(self, data: bytes) -> None:
        """Note what the client sent."""
        self._feed_client(data)

    def upstream(self, data: bytes) -> None:
        """Note what the client was sent."""
        self._feed_server(data)

    def _from_client(self, line: bytes) -> None:
        self._tracer.write(self._active, self._session, "C:", line)

    def _from_server(self, line: bytes) -> None:
        self._tracer.write(self._active, self._session, "S:", line)


class Tracer:
    """All traces. ``clock`` tells seconds that only rise; ``audit`` hears of every start and end.

    ``directory`` is made with mode 0700; None means that traces are not to be made at all.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Callable[[], float],
        audit: Callable[[str, dict[str, object]], None],
    ) -> None:
        self.directory = directory
        self._clock = clock
        self._audit = audit
        self._active: dict[str, _Active] = {}

    def start(
        self, *, user: str | None, address: str | None, seconds: float, by: str, bodies: bool = False
    ) -> dict[str, object]:
        """Begin a trace of one user or one address; return its facts. Raises TraceError."""
        if self.directory is None:
            raise TraceError("traces are off: set trace.directory in the configuration")
        if (user is None) == (address is None):
            raise TraceError("name a user or an address")
        if address is not None:
            address = _canonical(address)
        if not 0 < seconds <= LONGEST:
            raise TraceError(f"a trace runs from 1 to {LONGEST:.0f} seconds")
        self._expire()
        for active in self._active.values():
            # A session is written to one file, so a second trace of the same would stay empty.
            if active.address == address and _folded(active.user) == _folded(user):
                raise TraceError(f"this is traced already: {active.id}")
        if len(self._active) >= TRACES:
            raise TraceError(f"{TRACES} traces run already; stop one first")
        name = secrets.token_hex(6)
        path = self.directory / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}.trace"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}") from error
        active = _Active(
            name,
            user,
            address,
            self._clock() + seconds,
            bodies,
            by,
            path,
            os.fdopen(handle, "ab", buffering=0),
        )
        self._active[name] = active
        self._audit("trace started", self._facts(active))
        return self._facts(active)

    def join(
        self, *, name: str, user: str | None, address: str | None, seconds: float, bodies: bool, by: str, path: Path
    ) -> None:
        """Take part in a trace that another worker has begun, unless this is the one; raises TraceError.

        Both append whole lines to the same file. That it began, and that its time is over, the other tells.
        """
        if name in self._active:
            return
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}") from error
        file = os.fdopen(handle, "ab", buffering=0)
        ends = self._clock() + seconds
        self._active[name] = _Active(name, user, address, ends, bodies, by, path, file, joined=True)

    def __contains__(self, name: str) -> bool:
        return name in self._active

    def stop(self, name: str, by: str, *, silent: bool = False) -> bool:
        """End a trace; return whether there was one. ``silent`` says that somebody else tells of it."""
        active = self._active.pop(name, None)
        if active is None:
            return False
        active.file.close()
        if not silent:
            self._audit("trace stopped", self._facts(active) | {"stopped_by": by})
        return True

    def list(self) -> list[dict[str, object]]:
        """Return the facts of the traces that run."""
        self._expire()
        return [self._facts(active) for active in self._active.values()]

    def for_session(self, session: Session) -> Trace | None:
        """Return a session's trace, if its user or address is being traced."""
        if not self._active:
            return None
        self._expire()
        user = None if session.user is None else session.user.decode("utf-8", "backslashreplace").casefold()
        for active in self._active.values():
            if active.address == session.peer.address or (active.user is not None and _folded(active.user) == user):
                return Trace(self, active, session)
        return None

    def close(self) -> None:
        """End all traces."""
        for name, active in list(self._active.items()):
            self.stop(name, "shutdown", silent=active.joined)

    def write(self, active: _Active, session: str, direction: str, line: bytes) -> None:
        """Write a line of a trace that runs; an error of the disk ends the trace and harms no session."""
        if self._active.get(active.id) is not active:
            return
        now = self._clock()
        if now >= active.ends:
            self.stop(active.id, "time limit", silent=active.joined)
            return
        text = line.decode("utf-8", "backslashreplace")
        text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
        entry = f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {session} {direction} {text}\n".encode()
        active.written += len(entry)
        if active.written > FILE_LIMIT:
            self.stop(active.id, "size limit")
            return
        try:
            active.file.write(entry)
        except OSError as error:
            self.stop(active.id, error.strerror or "error of the disk")

    def _expire(self) -> None:
        now = self._clock()
        for active in list(self._active.values()):
            if now >= active.ends:
                self.stop(active.id, "time limit", silent=active.joined)

    def _facts(self, active: _Active) -> dict[str, object]:
        facts: dict[str, object] = {"id": active.id, "user": active.user, "address": active.address}
        return facts | {
            "remaining": round(max(0.0, active.ends - self._clock())),
            "bodies": active.bodies,
            "by": active.by,
            "file": str(active.path),
        }

"""A signed-in connection to an IMAP server: commands out, responses in, and what the server says of its own accord.

One coroutine uses it at a time. A connection on which a command was broken off, by an error or by a cancellation, is
of no more use: :attr:`~ImapConnection.alive` is False then, and every further command raises :class:`UpstreamLost`.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from mailgate.errors import MailgateError, RemoteProtocolError
from mailgate.stream import ByteStream, SocketStream
from mailgate.wire.imap_fetch import Event, Fetched, FetchReceiver
from mailgate.wire.imap_overview import OverviewRows
from mailgate.wire.imap_response import Response, capabilities
from mailgate.wire.imap_sets import COMMAND_LINE, set_size

WINDOW: Final = 16
"""Commands that are sent before the first of them is answered; their lines fit into any socket's buffer."""

COMMAND_SECONDS: Final = 300.0
"""How long a server may go on talking without coming nearer to the end of a command: no client waits longer."""

EVENTS_AT_ONCE: Final = 250
"""Responses that are taken before other sessions have their turn: some milliseconds."""

MESSAGES: Final = 2_000_000
"""Messages in a mailbox. The largest that are known, archives of whole companies, have half as many."""

GOODBYE_SECONDS: Final = 5.0
"""How long a server may take to answer LOGOUT."""

SET_ROOM: Final = 64
"""Octets of a command's line for its tag and name; sets of UIDs take what is left."""

_TEXT_SHOWN: Final = 200


class ClientError(MailgateError):
    """What can become of a command; see the classes below it."""


class UpstreamLost(ClientError):
    """The connection is gone or of no more use: reset, end, BYE, time limit, a command that was broken off."""


class Malformed(UpstreamLost):
    """The server broke the protocol's rules, so that nothing behind it can be understood."""


class MailboxChanged(ClientError):
    """UIDVALIDITY is another one now, or the server closed the mailbox: no UID means what it meant."""


class Refused(ClientError):
    """A tagged NO or BAD. ``code`` in upper case; ``text`` is the server's and for the log alone."""

    def __init__(self, status: str, code: str, text: str) -> None:
        super().__init__(f"{status} [{code}]" if code else status)
        self.status = status
        self.code = code
        self.text = text


class Vanished(ClientError):
    """The message asked for is not in the mailbox any more."""

    def __init__(self, uid: int) -> None:
        super().__init__(f"message {uid} is gone")
        self.uid = uid


@dataclass(frozen=True, slots=True)
class Selected:
    """A mailbox as SELECT or EXAMINE opened it.

    ``uidvalidity`` 0: the server gave none. ``uids_sticky`` False: UIDs last as long as the session (RFC 4315 §3,
    UIDNOTSTICKY). ``flags_kept``: what PERMANENTFLAGS lists, in upper case; all flags where a server says nothing.
    """

    uidvalidity: int
    exists: int
    uidnext: int | None
    highestmodseq: int | None
    uids_sticky: bool
    flags_kept: frozenset[str]
    read_only: bool


_OPENING_CODES: Final = frozenset({"PERMANENTFLAGS", "UIDVALIDITY", "UIDNEXT", "HIGHESTMODSEQ", "UIDNOTSTICKY"})


@dataclass(slots=True)
class Opening:
    """What a SELECT has told so far."""

    exists: int | None = None
    codes: dict[str, bytes] = field(default_factory=dict)
    flags: bytes = b""


class ImapConnection:
    """See the module's text.

    ``buffer`` is what bursts are read into, shared with other sessions of the process. ``residual`` is what was
    received behind the login's answer. ``seconds`` is how long the server may be silent while it is waited for.
    ``quirks`` are some of :data:`mailgate.config.pop3.QUIRKS`.

    ``exists`` is how many messages the server says there are, ``expunged`` how many went since the mailbox was
    selected.
    """

    def __init__(
        self,
        stream: ByteStream,
        buffer: bytearray,
        capabilities: frozenset[str],
        residual: bytes = b"",
        *,
        quirks: frozenset[str] = frozenset(),
        seconds: float = 60.0,
    ) -> None:
        self.capabilities = capabilities
        self.seconds = seconds
        self.alive = True
        self.exists = 0
        self.expunged = 0
        self.quirks = quirks
        self.utf8 = False
        self.selected: Selected | None = None
        self.opening: Opening | None = None
        # Tags of commands that were carried out, and whose tagged responses are still to come.
        self.owed: deque[bytes] = deque()
        self.receiver = FetchReceiver()
        self.receiver.receive(residual)
        self._stream = stream
        self._view = memoryview(buffer)
        self._number = 0
        self._events = 0
        self._patience = math.inf
        # The socket, where its acknowledgements can be hurried; see :meth:`receive`.
        sock = stream.socket if isinstance(stream, SocketStream) else None
        self._hurried = None if sock is None or sock.family == socket.AF_UNIX else sock

    @property
    def idle(self) -> bool:
        """Whether nothing is to come of earlier commands."""
        return True

    async def settle(self) -> None:
        """Take what is still to come of earlier commands, so that the next one's answers are its own."""

    # ---------------------------------------------------------------- bytes

    async def send(self, data: bytes) -> None:
        """Send; raises UpstreamLost."""
        if not self.alive:
            raise UpstreamLost("the connection is of no more use")
        now = trio.current_time()
        self._patience = now + COMMAND_SECONDS
        self._stream.deadline = now + self.seconds
        # Until it was sent whole it is not known what the server has.
        self.alive = False
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise UpstreamLost(f"connection lost: {error}") from error
        except trio.TooSlowError as error:
            raise UpstreamLost("the server does not read") from error
        self.alive = True

    async def receive(self) -> memoryview:
        """Return what has come, valid until the next await; raises UpstreamLost, at the end too."""
        if not self.alive:
            raise UpstreamLost("the connection is of no more use")
        now = trio.current_time()
        if self.receiver.left:
            # A message may take as long as its reader needs.
            self._patience = now + COMMAND_SECONDS
        self._stream.deadline = min(now + self.seconds, self._patience)
        self.alive = False
        try:
            if self._hurried is not None:
                # Courier writes its answers in pieces and keeps the last one back until the first is acknowledged,
                # which the kernel puts off for 40 ms: on every message. The option holds for what is received next.
                self._hurried.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            count = await self._stream.receive(self._view)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise UpstreamLost(f"connection lost: {error}") from error
        except trio.TooSlowError as error:
            raise UpstreamLost("the server does not answer in time") from error
        if count == 0:
            raise UpstreamLost("the server closed the connection")
        self.alive = True
        return self._view[:count]

    def begins(self) -> None:
        """Note that what is waited for from now on may take its time, however long ago it was asked for."""
        self._patience = trio.current_time() + COMMAND_SECONDS

    async def next_event(self, tag: bytes, rows: OverviewRows | None = None) -> Event:
        """Return the next event while ``tag`` is answered; what the server says of its own accord is noticed.

        Lines of the ordinary shape go to ``rows`` and are not told.
        """
        receiver = self.receiver
        try:
            while True:
                while rows is not None and receiver.between and rows.take(receiver.buffer):
                    # There are so many at most, so that this is progress.
                    self._patience = trio.current_time() + COMMAND_SECONDS
                event = receiver.next()
                if event is None:
                    receiver.receive(await self.receive())
                elif isinstance(event, Response) and event.tag in self.owed:
                    self._settled(event)
                else:
                    break
            if isinstance(event, Response):
                self._notice(event, tag)
            elif rows is not None and isinstance(event, Fetched):
                rows.add(event)
                self._patience = trio.current_time() + COMMAND_SECONDS
            self._events += 1
            if self._events >= EVENTS_AT_ONCE:
                self._events = 0
                await trio.lowlevel.checkpoint()
        except RemoteProtocolError as error:
            self.alive = False
            raise Malformed(str(error)) from error
        except BaseException:
            self.alive = False
            raise
        return event

    def _settled(self, response: Response) -> None:
        """Take a tagged response that was owed.

        Raises UpstreamLost for a NO: what was taken for done is given to a client by then, and a server that is in such
        trouble is not asked on.
        """
        self.owed.remove(response.tag)
        if response.status != "OK":
            raise UpstreamLost(f"the server says {response.status} to what it has done")

    def _notice(self, response: Response, tag: bytes) -> None:
        """Take what a response says of the mailbox and the connection.

        Raises UpstreamLost for BYE, MailboxChanged, RemoteProtocolError.
        """
        if response.tag not in (b"*", b"+", tag):
            raise RemoteProtocolError("a response to a command that was not sent")
        if response.tag == b"*":
            match response.status:
                case "BYE":
                    raise UpstreamLost(f"the server says BYE [{response.code}]")
                case "EXISTS":
                    self.exists = _number_of(response)
                    if self.exists > MESSAGES:
                        raise RemoteProtocolError("more messages than a mailbox can have")
                    if self.opening is not None:
                        self.opening.exists = self.exists
                case "EXPUNGE":
                    self._expunge(1)
                case "VANISHED" if not response.text.upper().startswith(b"(EARLIER)"):
                    self._expunge(set_size(response.text))
                case "FLAGS" if self.opening is not None:
                    self.opening.flags = response.text
        if (listed := capabilities(response)) is not None:
            self.capabilities = listed
        if self.opening is not None:
            if response.code in _OPENING_CODES:
                self.opening.codes[response.code] = response.code_data
        elif self.selected is not None:
            if response.code == "CLOSED":
                raise MailboxChanged("the server closed the mailbox")
            if response.code == "UIDVALIDITY" and integer(response.code_data) != self.selected.uidvalidity:
                raise MailboxChanged("UIDVALIDITY changed")

    def _expunge(self, count: int) -> None:
        self.expunged += count
        self.exists = max(0, self.exists - count)

    # ---------------------------------------------------------------- commands

    def next_tag(self) -> bytes:
        """Return a tag that was not used before."""
        self._number += 1
        return b"m%d" % self._number

    async def command(self, *pieces: bytes, take: Callable[[Event], None] | None = None) -> Response:
        """Send a command in pieces, between which the server asks to go on; return its tagged OK. Raises Refused."""
        await self.settle()
        tag = self.next_tag()
        await self.send(command_line(tag, pieces[0], last=len(pieces) == 1))
        for number, piece in enumerate(pieces[1:], 2):
            refusal = await self.until(tag, take, goes_on=True)
            if refusal is not None:
                accepted(refusal)
                self.alive = False
                raise Malformed("OK to a command that was not sent whole")
            await self.send(piece + (b"\r\n" if number == len(pieces) else b""))
        response = await self.until(tag, take)
        assert response is not None
        return accepted(response)

    async def commands(self, commands: Iterable[bytes], rows: OverviewRows | None = None) -> None:
        """Send commands, some before others are answered. After one that is refused none is sent; raises Refused."""
        await self.settle()
        window = 1 if "no-pipelining" in self.quirks else WINDOW
        lines = [command_line(self.next_tag(), command) for command in commands]
        refused: Response | None = None
        sent = 0
        for number, line in enumerate(lines):
            if refused is None and sent < len(lines) and sent - number <= window // 2:
                # Several at a time: one write, one record of TLS.
                more = lines[sent : number + window]
                await self.send(b"".join(more))
                sent += len(more)
            if number == sent:
                break
            response = await self.until(line.partition(b" ")[0], rows=rows)
            if response is not None and response.status != "OK":
                refused = refused or response
        if refused is not None:
            accepted(refused)

    async def until(
        self,
        tag: bytes,
        take: Callable[[Event], None] | None = None,
        *,
        rows: OverviewRows | None = None,
        goes_on: bool = False,
    ) -> Response | None:
        """Return a command's tagged response; None if ``goes_on`` and the server asks for more."""
        while True:
            event = await self.next_event(tag, rows)
            if isinstance(event, Response):
                if event.tag == tag:
                    return event
                if event.tag == b"+" and goes_on:
                    return None
            if take is not None:
                take(event)

    # ---------------------------------------------------------------- whatever is selected

    async def enable(self, *names: str) -> frozenset[str]:
        """Enable extensions (RFC 5161); return which the server did, in upper case. Raises Refused."""
        asked = {name.upper() for name in names}
        enabled: set[str] = set()

        def take(event: Event) -> None:
            if isinstance(event, Response) and event.status == "ENABLED":
                enabled.update(asked.intersection(event.text.decode("latin-1").upper().split()))

        await self.command(b"ENABLE " + " ".join(names).encode("ascii"), take=take)
        self.utf8 = self.utf8 or not enabled.isdisjoint({"UTF8=ACCEPT", "IMAP4REV2"})
        return frozenset(enabled)

    async def noop(self) -> None:
        """Hear what is new, and keep the connection in use."""
        await self.command(b"NOOP")

    async def logout(self) -> None:
        """Say goodbye and close, within a few seconds whatever the server does; raises nothing."""
        try:
            if self.alive and self.idle:
                self.seconds = min(self.seconds, GOODBYE_SECONDS)
                with trio.move_on_after(GOODBYE_SECONDS):
                    # BYE comes first, and is enough.
                    await self.command(b"LOGOUT")
        except ClientError:
            return
        finally:
            self.alive = False
            await self._stream.aclose()

    async def aclose(self) -> None:
        """Close the connection without a LOGOUT, even when cancelled."""
        self.alive = False
        await self._stream.aclose()

    def abort(self) -> None:
        """Drop the connection without a word."""
        self.alive = False
        if isinstance(self._stream, SocketStream):
            self._stream.abort()


def command_line(tag: bytes, command: bytes, *, last: bool = True) -> bytes:
    """Return a command's line; one that is not its ``last`` ends in a literal. Raises ValueError for too long a one."""
    line = b"%b %b%b" % (tag, command, b"\r\n" if last else b"")
    if len(line) > COMMAND_LINE:
        raise ValueError("the command's line is too long")
    return line


def accepted(response: Response) -> Response:
    """Return a tagged OK; raises Refused for anything else."""
    if response.status != "OK":
        raise Refused(response.status, response.code, response.text.decode("utf-8", "replace")[:_TEXT_SHOWN])
    return response


def _number_of(response: Response) -> int:
    """Return the number that stands before an untagged response's name; raises RemoteProtocolError."""
    number = integer(response.raw.split(None, 2)[1])
    if number is None:
        raise RemoteProtocolError("a response without its number")
    return number


def integer(data: bytes) -> int | None:
    """Return a number of a response, None if it is none."""
    data = data.strip()
    return int(data) if data.isdigit() and len(data) <= 20 else None

"""Messages of a selected mailbox in pieces, also asked for ahead (RFC 9051 §6.4.5): nothing is held but one burst."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from mailgate.stream import ByteStream
from mailgate.translate.imap_connection import ImapConnection, Malformed, Vanished, accepted, command_line
from mailgate.wire.imap_fetch import BodyBegins, Fetched, body_section
from mailgate.wire.imap_response import Response

_TEMPORARY: Final = frozenset(
    {
        *("UNAVAILABLE", "SERVERBUG", "INUSE", "LIMIT", "THROTTLED", "OVERQUOTA", "CONTACTADMIN"),
        *("NOPERM", "AUTHORIZATIONFAILED", "EXPIRED", "PRIVACYREQUIRED", "CORRUPTION", "TEMPFAIL", "UNKNOWN-CTE"),
    }
)
"""Response codes of a NO to FETCH that do not say that the message is gone (RFC 5530 §3; Yahoo, Gmail)."""


_HEADER: Final = b"From: System Administrator <root@localhost>\r\nSubject: message unavailable\r\n\r\n"
_TEXT: Final = b"This message is no longer available on the server.\r\n"
_PLACEHOLDERS: Final = {len(text): text for text in (_HEADER + _TEXT, _HEADER, _TEXT)}
"""What Courier gives out for a message that is gone, for its header and for its text, by their sizes."""


@dataclass(frozen=True, slots=True)
class _Body:
    """A section of a message, or a part of it."""

    uid: int
    section: bytes
    first: int | None
    length: int | None

    @property
    def item(self) -> bytes:
        part = b"" if self.first is None or self.length is None else b"<%d.%d>" % (self.first, self.length)
        return b"BODY.PEEK[%b]%b" % (self.section, part)

    @property
    def may_be_empty(self) -> bool:
        """Whether nothing is what a message can have there: only header and whole message never are nothing."""
        return self.section not in (b"", b"HEADER") or bool(self.first)


@dataclass(slots=True)
class _Asked:
    """A body that was asked for: the command's tag, whether it was sent, and whether its answer was dropped."""

    body: _Body
    tag: bytes
    sent: bool = False
    dropped: bool = False


class ImapBodies(ImapConnection):
    """See the module's text."""

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
        super().__init__(stream, buffer, capabilities, residual, quirks=quirks, seconds=seconds)
        # Bodies that were asked for ahead, in order, and the one under way: what came of it in a quoted string, and
        # whether the response has still to say whose it is.
        self._ahead: deque[_Asked] = deque()
        self._body: _Asked | None = None
        # The body of the first of them that has begun already.
        self._begun: BodyBegins | None = None
        self._inline = b""
        self._unnamed = False

    @property
    def idle(self) -> bool:
        """See :class:`ImapConnection`."""
        return self._body is None and not self._ahead and not self.owed

    @property
    def ahead(self) -> int:
        """How many bodies were asked for and not begun."""
        return len(self._ahead)

    def ask_body(self, uid: int, section: bytes = b"", first: int | None = None, length: int | None = None) -> None:
        """Have a section of a message asked for ahead, with what is sent next; :meth:`begin_body` takes its answer.

        Nothing waits here: it is sent by :meth:`begin_body` or :meth:`next_piece`, whichever comes first. All that is
        asked for and not taken is received and dropped before any other command.
        """
        if "no-pipelining" not in self.quirks:
            self._ahead.append(_Asked(_Body(uid, section, first, length), self.next_tag()))

    async def _ask(self) -> None:
        """Send what is not sent yet of the bodies asked for."""
        lines = []
        for asked in self._ahead:
            if not asked.sent:
                asked.sent = True
                lines.append(command_line(asked.tag, b"UID FETCH %d (UID %b)" % (asked.body.uid, asked.body.item)))
        if lines:
            await self.send(b"".join(lines))

    async def begin_body(
        self, uid: int, section: bytes = b"", first: int | None = None, length: int | None = None
    ) -> int:
        """Ask for a section of a message, of which ``first`` and ``length`` name a part; return its size in octets.

        ``section`` is what stands in the brackets of BODY.PEEK: empty for the whole message, ``HEADER``, ``TEXT``.

        Raises Vanished where the server has none: it answers OK without the message, NIL or, for what cannot be empty,
        an empty string (Exchange, Gmail), or NO with a code that tells of no other trouble. Raises Refused.
        """
        self.begins()
        await self.skip_body()
        body = _Body(uid, section, first, length)
        if not any(asked.body == body for asked in self._ahead):
            await self.settle()
            self._ahead.append(_Asked(body, self.next_tag()))
        while self._ahead[0].body != body:
            await self._drop(self._ahead.popleft())
        if self._ahead[0].dropped:
            await self.settle()
            self._ahead.append(_Asked(body, self.next_tag()))
        await self._ask()
        asked = self._ahead.popleft()
        self._inline = b""
        self.receiver.streams = True
        if self._begun is not None:
            begun, self._begun = self._begun, None
            self._body, self._unnamed = asked, False
            return begun.size
        while True:
            event = await self.next_event(asked.tag)
            if isinstance(event, BodyBegins):
                if (
                    event.uid in (None, uid)
                    and _kind(event.section) == _kind(section)
                    and (event.size or self._may_be_empty(body))
                    and not await self._is_placeholder(event)
                ):
                    self._body, self._unnamed = asked, event.uid is None
                    return event.size
                await self._skip_body_of(event)
            elif isinstance(event, Fetched):
                if event.uid in (None, uid) and (inline := self._inline_body(event, body)) is not None:
                    self._body, self._inline, self._unnamed = asked, inline, False
                    return len(inline)
                self._drop_inline(event)
            elif isinstance(event, Response) and event.tag == asked.tag:
                if event.status == "BAD" or event.code in _TEMPORARY:
                    accepted(event)
                raise Vanished(uid)

    def _may_be_empty(self, body: _Body) -> bool:
        return body.may_be_empty or "empty-is-message" in self.quirks

    def _drop_inline(self, fetched: Fetched) -> None:
        """See :meth:`_skip_body_of`: the same for a body in a quoted string."""
        for asked in self._ahead:
            if asked.body.uid == fetched.uid and any(body_section(name) is not None for name in fetched.items):
                asked.dropped = True

    def _inline_body(self, fetched: Fetched, body: _Body) -> bytes | None:
        """Return a body that came as a quoted string, None if none did."""
        for name, value in fetched.items.items():
            section = body_section(name)
            if section is None or _kind(section) != _kind(body.section):
                continue
            if isinstance(value, bytes) and (value or self._may_be_empty(body)):
                return value
        return None

    async def _is_placeholder(self, event: BodyBegins) -> bool:
        """Whether what begins is what Courier says in place of a message that another client removed."""
        placeholder = _PLACEHOLDERS.get(event.size)
        if placeholder is None:
            return False
        self._inline = await self._whole()
        return self._inline == placeholder

    async def _whole(self) -> bytes:
        """Return the literal under way, which is a short one."""
        whole = bytearray()
        while self.receiver.left:
            whole += self.receiver.piece() or self.receiver.pass_on(await self.receive())
        return bytes(whole)

    async def _skip_body_of(self, event: BodyBegins) -> None:
        """Drop a body that is not the one that is waited for; if it was asked for it has to be asked for again."""
        self._inline = b""
        for asked in self._ahead:
            if asked.body.uid == event.uid:
                asked.dropped = True
        await self._skip()

    async def next_piece(self) -> memoryview | bytes | None:
        """Return what has come of the body, valid until the next await; None at its end, the command's answer taken.

        Raises Refused if the server says in the end that what it sent is not all right: nothing tells then that the
        message is complete.
        """
        asked = self._body
        if asked is None:
            return None
        await self._ask()
        if self._inline:
            inline, self._inline = self._inline, b""
            return inline
        receiver = self.receiver
        if receiver.left:
            return receiver.piece() or receiver.pass_on(await self.receive())
        self._body = None
        response = await self._body_ends(asked)
        if response is not None:
            accepted(response)
        return None

    async def _body_ends(self, asked: _Asked) -> Response | None:
        """Return the tagged response behind a body; None if the next one begins before it, which is noted.

        Dovecot says what it has to say of removed messages at the end of a command, and puts that and the tagged
        response off while it has another to execute. What it does next tells that it has done what was before.
        """
        whole = False
        while True:
            event = await self.next_event(asked.tag)
            if isinstance(event, BodyBegins):
                if whole and self._is_next(event):
                    self.owed.append(asked.tag)
                    self._begun = event
                    return None
                await self._skip_body_of(event)
            elif isinstance(event, Fetched):
                whole = True
                self._drop_inline(event)
                if self._unnamed and event.uid not in (None, asked.body.uid):
                    self.alive = False
                    raise Malformed("another message than the one that was asked for")
                self._unnamed = False
            elif isinstance(event, Response) and event.tag == asked.tag:
                return event

    def _is_next(self, event: BodyBegins) -> bool:
        """Whether this is the body that was asked for next, beyond doubt."""
        if not self._ahead or not self._ahead[0].sent or self._ahead[0].dropped:
            return False
        body = self._ahead[0].body
        return (
            event.uid == body.uid
            and _kind(event.section) == _kind(body.section)
            and event.size > 0
            and event.size not in _PLACEHOLDERS
        )

    async def _skip(self) -> None:
        """Drop the literal under way."""
        receiver = self.receiver
        while receiver.left:
            if not receiver.piece():
                receiver.pass_on(await self.receive())

    async def _drop(self, asked: _Asked) -> None:
        """Receive the answer to a body asked for and drop it."""
        self._begun = None
        if asked.sent:
            self.receiver.streams = True
            await self._skip()
            await self._body_ends(asked)

    async def skip_body(self) -> None:
        """Receive what is left of the body under way and drop it; does nothing if there is none."""
        self._inline = b""
        if self._body is not None:
            asked, self._body = self._body, None
            await self._drop(asked)

    async def settle(self) -> None:
        """Drop everything that was asked for and not taken; see :class:`ImapConnection`."""
        self.begins()
        await self.skip_body()
        while self._ahead:
            await self._drop(self._ahead.popleft())
        self.receiver.streams = False
        while self.owed:
            await self.until(self.owed.pop())


def _kind(section: bytes) -> bytes:
    """Return a section without its list of fields, which servers quote and order as they like."""
    return section.upper().partition(b" ")[0]

"""A POP3 server as one who compares or imports sees it: its lists, headers and messages; nothing is changed there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Final

import trio

from mailgate.errors import MailgateError
from mailgate.stream import ByteStream
from mailgate.uidls.comparing import Listing

SECONDS: Final = 60.0
"""How long the server may be silent; one with a large maildrop takes some time for UIDL."""

GOODBYE_SECONDS: Final = 5.0

READ_SIZE: Final = 64 * 1024

WINDOW: Final = 50
"""TOP commands that are sent before the first is answered, where the server has PIPELINING."""

STATUS_LIMIT: Final = 8_192
LISTING_LIMIT: Final = 256 << 20
"""Octets of a list: more than two million messages need."""

MESSAGE_LIMIT: Final = 1 << 30
"""Octets of a message or header: it is held as a whole."""

_BLANK = re.compile(rb"\r?\n\r?\n|\A\r?\n")


class Pop3Error(MailgateError):
    """The server refuses, breaks the protocol or goes away; the text holds nothing that it sent but its status line."""


class Pop3Server:
    """A signed-in connection; ``residual`` is what was received behind the login's answer."""

    def __init__(self, stream: ByteStream, residual: bytes, capabilities: frozenset[str]) -> None:
        self._stream = stream
        self._buffer = bytearray(residual)
        self._view = memoryview(bytearray(READ_SIZE))
        self._window = WINDOW if "PIPELINING" in capabilities else 1
        self._has_top = True

    async def listing(self) -> Listing:
        """Return what UIDL and LIST show. Raises Pop3Error."""
        uidls = _numbered(await self._ask_block(b"UIDL\r\n", LISTING_LIMIT))
        sizes = _numbered(await self._ask_block(b"LIST\r\n", LISTING_LIMIT))
        if list(uidls) != list(sizes) or list(uidls) != list(range(1, len(uidls) + 1)):
            raise Pop3Error("the server's UIDL and LIST do not name the same messages")
        try:
            octets = tuple(int(size.split()[0]) for size in sizes.values())
        except (ValueError, IndexError):
            raise Pop3Error("the server's LIST has something that is no size") from None
        return Listing(tuple(uidls.values()), octets)

    async def headers(self, numbers: Sequence[int], take: Callable[[int, bytes], None]) -> None:
        """Hand the header of each of these messages to ``take``, in order. Raises Pop3Error."""
        # The first is asked for alone: whether the server has TOP shows before others are asked for ahead.
        start, count = 0, 1
        while start < len(numbers):
            some = numbers[start : start + count]
            if self._has_top:
                await self._send(b"".join(b"TOP %d 0\r\n" % number for number in some))
            for number in some:
                take(number, await self._header(number, first=start == 0))
            start += len(some)
            count = self._window

    async def _header(self, number: int, *, first: bool) -> bytes:
        if self._has_top:
            try:
                return await self._block(MESSAGE_LIMIT)
            except _Refused:
                if not first:
                    raise
                # TOP is optional (RFC 1939 §7).
                self._has_top = False
        message = await self._ask_block(b"RETR %d\r\n" % number, MESSAGE_LIMIT)
        end = _BLANK.search(message)
        return message[: end.end()] if end else message

    async def digest(self, number: int) -> bytes:
        """Return the digest of a whole message; see :class:`MessageDigest`. Raises Pop3Error."""
        hashed = MessageDigest()
        hashed.update(await self._ask_block(b"RETR %d\r\n" % number, MESSAGE_LIMIT))
        return hashed.digest()

    async def quit(self) -> None:
        """Take leave, shortly, and close the connection."""
        with trio.move_on_after(GOODBYE_SECONDS, shield=True):
            try:
                await self._send(b"QUIT\r\n")
                await self._status()
            except Pop3Error:
                # Nothing was to be changed there, so nothing is lost.
                pass
            finally:
                await self._stream.aclose()

    async def _ask_block(self, command: bytes, limit: int) -> bytes:
        await self._send(command)
        return await self._block(limit)

    async def _send(self, data: bytes) -> None:
        self._stream.deadline = trio.current_time() + SECONDS
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Pop3Error("the server closed the connection") from None
        except trio.TooSlowError:
            raise Pop3Error(f"the server has not read for {SECONDS:.0f} s") from None

    async def _fill(self) -> None:
        self._stream.deadline = trio.current_time() + SECONDS
        try:
            count = await self._stream.receive(self._view)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            count = 0
        except trio.TooSlowError:
            raise Pop3Error(f"the server has been silent for {SECONDS:.0f} s") from None
        if not count:
            raise Pop3Error("the server closed the connection")
        self._buffer += self._view[:count]

    async def _status(self) -> None:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > STATUS_LIMIT:
                raise Pop3Error("the server's reply is too long")
            await self._fill()
        line = bytes(self._buffer[:end]).strip()
        del self._buffer[: end + 1]
        if line[:4].upper() == b"-ERR":
            raise _Refused(f"the server says {line.decode('ascii', 'backslashreplace')}")
        if line[:3].upper() != b"+OK":
            raise Pop3Error("the server's reply is neither +OK nor -ERR")

    async def _block(self, limit: int) -> bytes:
        """Return the lines behind a good reply's first one, as they were before they were dot-stuffed."""
        await self._status()
        seen = 0
        while not self._buffer.startswith((b".\r\n", b".\n")):
            # The end may have begun in what was searched before.
            end = self._buffer.find(b"\n.\r\n", max(0, seen - 3))
            if end >= 0:
                block = bytes(self._buffer[: end + 1])
                del self._buffer[: end + 4]
                block = block.removeprefix(b".") if block.startswith(b"..") else block
                return block.replace(b"\n..", b"\n.")
            seen = len(self._buffer)
            if seen > limit:
                raise Pop3Error("the server's reply is too long")
            await self._fill()
        del self._buffer[: self._buffer.index(b"\n") + 1]
        return b""


class _Refused(Pop3Error):
    """The server said -ERR."""


class MessageDigest:
    """The digest of a message that is the same by POP3 and IMAP: line ends count as LF, those at the end not at all."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(usedforsecurity=False)
        self._held = b""

    def update(self, data: bytes | memoryview) -> None:
        """Take the next piece."""
        text = self._held + bytes(data)
        end = len(text.rstrip(b"\r\n"))
        # Line ends are held until something comes behind them.
        self._hash.update(text[:end].replace(b"\r\n", b"\n"))
        self._held = text[end:]

    def digest(self) -> bytes:
        """Return the digest."""
        return self._hash.digest()


def _numbered(block: bytes) -> dict[int, bytes]:
    """Return the lines of a list by their numbers."""
    found: dict[int, bytes] = {}
    for line in block.splitlines():
        number, _, value = line.strip().partition(b" ")
        if not number.isdigit() or int(number) in found or not value.strip():
            raise Pop3Error("the server's list has a line that is none")
        found[int(number)] = value.strip()
    return found

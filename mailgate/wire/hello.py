"""The first bytes of a TLS connection (RFC 8446 §4.1.2), read before OpenSSL sees them.

Python's ``ssl`` goes on without ALPN where a client offers only protocols that the server does not
have. RFC 7301 §3.2 wants such a connection refused, and against cross-protocol attacks (a browser
made to speak to a mail server) it must be. So the ClientHello is read here first, which also tells
a client that speaks in clear on a TLS port.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

HELLO_LIMIT: Final = 65_536
"""Bytes of a ClientHello; post-quantum key shares make it 2 KiB, and OpenSSL takes 128 KiB."""

RECORDS: Final = 128
"""Records that a ClientHello may be spread over; OpenSSL sends one, tools against censorship some tens. It is
read from its beginning whenever more of it has come, so thousands of tiny ones would cost seconds."""

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_VERSIONS: Final = 43
_HTTP = re.compile(rb"(?:GET|POST|HEAD|PUT|OPTIONS|CONNECT|DELETE|PATCH|TRACE|PRI) ")
_POP3 = re.compile(rb"(?:CAPA|USER|AUTH|STLS|QUIT|APOP|NOOP|PASS)[ \r\n]", re.IGNORECASE)
_IMAP = re.compile(rb"[!-~]{1,32} (?:CAPABILITY|LOGIN|AUTHENTICATE|STARTTLS|NOOP|ID|LOGOUT)[ \r\n]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client offers: the server's name, its protocols (None if it sent none), TLS versions."""

    server_name: str | None
    alpn: tuple[bytes, ...] | None
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NotTls:
    """A connection that does not begin with TLS."""

    kind: Literal["http", "imap", "pop3", "sslv2", "unknown"]


class _Truncated(Exception):
    """A field reaches beyond what there is."""


class _Reader:
    """Takes length-prefixed fields off the front of some bytes."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise _Truncated
        self._at += size
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Take a vector whose length has ``size`` bytes."""
        return self.take(self.number(size))


def read_client_hello(data: bytes) -> ClientHello | NotTls | None:
    """Read a connection's first bytes; None if there are too few to tell."""
    if not data:
        return None
    if data[0] != _HANDSHAKE:
        return _not_tls(data)
    if len(data) > 1 and data[1] != 3:
        return NotTls("unknown")
    message = b""
    reader = _Reader(data)
    try:
        # A ClientHello may be spread over several records.
        records = 0
        while len(message) < 4 + int.from_bytes(message[1:4], "big"):
            records += 1
            if records > RECORDS:
                return NotTls("unknown")
            if reader.number(1) != _HANDSHAKE:
                return NotTls("unknown")
            reader.take(2)
            message += reader.vector(2)
    except _Truncated:
        return None if len(data) < HELLO_LIMIT else NotTls("unknown")
    try:
        return _hello(message)
    except (_Truncated, UnicodeDecodeError):
        return NotTls("unknown")


def _not_tls(data: bytes) -> NotTls | None:
    if data[0] & 0x80:
        if len(data) < 3:
            return None
        return NotTls("sslv2" if data[2] == _CLIENT_HELLO else "unknown")
    for pattern, kind in ((_HTTP, "http"), (_POP3, "pop3"), (_IMAP, "imap")):
        if pattern.match(data):
            return NotTls(kind)  # type: ignore[arg-type]
    complete = b"\n" in data or len(data) >= 256 or not data.isascii() or data[0] < 0x20
    return NotTls("unknown") if complete else None


def _hello(message: bytes) -> ClientHello | NotTls:
    reader = _Reader(message)
    if reader.number(1) != _CLIENT_HELLO:
        return NotTls("unknown")
    body = _Reader(reader.vector(3))
    versions: tuple[int, ...] = (body.number(2),)
    body.take(32)
    body.vector(1)
    body.vector(2)
    body.vector(1)
    name: str | None = None
    alpn: tuple[bytes, ...] | None = None
    extensions = _Reader(body.vector(2) if body else b"")
    while extensions:
        kind = extensions.number(2)
        content = _Reader(extensions.vector(2))
        if kind == _SERVER_NAME and content:
            names = _Reader(content.vector(2))
            if names and names.number(1) == 0:
                name = names.vector(2).decode("ascii").lower()
        elif kind == _ALPN:
            offered = _Reader(content.vector(2))
            found: list[bytes] = []
            while offered:
                found.append(offered.vector(1))
            alpn = tuple(found)
        elif kind == _VERSIONS:
            listed = content.vector(1)
            versions = tuple(int.from_bytes(listed[at : at + 2], "big") for at in range(0, len(listed), 2))
    return ClientHello(name, alpn, versions)


def no_application_protocol_alert() -> bytes:
    """Return the record with the fatal alert of RFC 7301 §3.2, as an answer to a ClientHello."""
    return b"\x15\x03\x03\x00\x02\x02\x78"

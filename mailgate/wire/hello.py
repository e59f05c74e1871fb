"""The first bytes of a TLS connection (RFC 8446 §4.1.2), read before OpenSSL sees them.

Python's ``ssl`` goes on without ALPN where a client offers only protocols that the server does not
have. RFC 7301 §3.2 wants such a connection refused, and against cross-protocol attacks (a browser
made to speak to a mail server) it must be. So the ClientHello is read here first, which also tells
a client that speaks in clear on a TLS port.
"""

from __future__ import annotations

import re
import struct
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
_EXTENSION: Final = struct.Struct(">HH")
_number = int.from_bytes
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


def read_client_hello(data: bytes) -> ClientHello | NotTls | None:
    """Read a connection's first bytes; None if there are too few to tell."""
    if not data:
        return None
    if data[0] != _HANDSHAKE:
        return _not_tls(data)
    if len(data) > 1 and data[1] != 3:
        return NotTls("unknown")
    try:
        message = _message(data)
    except _Truncated:
        return None if len(data) < HELLO_LIMIT else NotTls("unknown")
    if message is None:
        return NotTls("unknown")
    try:
        return _hello(message)
    except (_Truncated, IndexError, struct.error, UnicodeDecodeError):
        return NotTls("unknown")


def _message(data: bytes) -> bytes | None:
    """Return the first handshake message, which may be spread over several records; None if other things are sent."""
    message = b""
    at = 0
    for _ in range(RECORDS):
        if at >= len(data):
            raise _Truncated
        if data[at] != _HANDSHAKE:
            return None
        begin = at + 5
        at = begin + _number(data[at + 3 : begin], "big")
        if max(begin, at) > len(data):
            raise _Truncated
        message += data[begin:at]
        size = 4 + _number(message[1:4], "big")
        if len(message) >= size:
            return message[:size]
    return None


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
    """Read a whole message. A field that reaches beyond the end is met at the latest when the next one is read."""
    if message[0] != _CLIENT_HELLO:
        return NotTls("unknown")
    versions: tuple[int, ...] = (_number(message[4:6], "big"),)
    at = 6 + 32
    at += 1 + message[at]
    at += 2 + _number(message[at : at + 2], "big")
    at += 1 + message[at]
    if at == len(message):
        return ClientHello(None, None, versions)
    end = at + 2 + _number(message[at : at + 2], "big")
    at += 2
    if max(at, end) > len(message):
        raise _Truncated
    name: str | None = None
    alpn: tuple[bytes, ...] | None = None
    while at < end:
        kind, size = _EXTENSION.unpack_from(message, at)
        at += _EXTENSION.size + size
        if at > end:
            raise _Truncated
        if kind == _SERVER_NAME and size:
            names = _vector(message[at - size : at], 2)
            if names and names[0] == 0:
                name = _vector(names[1:], 2).decode("ascii").lower()
        elif kind == _ALPN:
            offered = _vector(message[at - size : at], 2)
            found: list[bytes] = []
            while offered:
                found.append(_vector(offered, 1))
                offered = offered[1 + len(found[-1]) :]
            alpn = tuple(found)
        elif kind == _VERSIONS:
            listed = _vector(message[at - size : at], 1)
            versions = tuple(_number(listed[one : one + 2], "big") for one in range(0, len(listed), 2))
    return ClientHello(name, alpn, versions)


def _vector(data: bytes, size: int) -> bytes:
    """Return the vector at the beginning of ``data`` whose length has ``size`` bytes."""
    end = size + _number(data[:size], "big")
    if end > len(data):
        raise _Truncated
    return data[size:end]


def no_application_protocol_alert() -> bytes:
    """Return the record with the fatal alert of RFC 7301 §3.2, as an answer to a ClientHello."""
    return b"\x15\x03\x03\x00\x02\x02\x78"

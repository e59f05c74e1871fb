"""200 MB through the gateway, byte for byte, in memory that does not grow with it."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.real.conftest import Gateway

pytestmark = pytest.mark.real

SIZE = 200_000_000
GROWTH = 8 << 20
LINE = 78
PIECE = LINE * 16_384


def mail(size: int) -> Iterator[bytes]:
    """A message of exactly ``size`` bytes in pieces: a header, then lines that differ from piece to piece."""
    header = b"Subject: large\r\n\r\n"
    yield header
    left = size - len(header)
    source = random.Random(7)
    block = b"".join(source.randbytes((LINE - 2) // 2).hex().encode() + b"\r\n" for _ in range(PIECE // LINE))
    while left > LINE:
        piece = source.randbytes(8).hex().encode() + block[16:]
        piece = piece[: min(len(piece), left - left % LINE)]
        yield piece
        left -= len(piece)
    yield b"x" * max(0, left - 2) + b"\r\n"[:left]


class Wire:
    """A mail client that holds one burst at a time, since it is measured beside the gateway."""

    def __init__(self, gateway: Gateway, client: str, upstream: str) -> None:
        sock = socket.create_connection(("127.0.0.1", gateway.port("imap", client, upstream)), 120)
        self.sock: socket.socket = sock
        if client == "implicit":
            self.sock = gateway.context.wrap_socket(sock, server_hostname="localhost")
        self.unread = b""

    def line(self) -> bytes:
        while b"\n" not in self.unread:
            data = self.sock.recv(65_536)
            assert data, "the connection ended"
            self.unread += data
        line, _, self.unread = self.unread.partition(b"\n")
        return line.removesuffix(b"\r")

    def answer(self, tag: bytes) -> bytes:
        while not (line := self.line()).startswith(tag + b" "):
            assert line.startswith(b"* "), line
        return line

    def digest(self, size: int) -> bytes:
        found = hashlib.sha256(self.unread[:size])
        left = size - len(self.unread[:size])
        self.unread = self.unread[size:]
        while left:
            data = self.sock.recv(min(left, 262_144))
            assert data, "the connection ended in the literal"
            found.update(data)
            left -= len(data)
        return found.digest()

    def close(self) -> None:
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock = self.sock.unwrap()
        self.sock.close()


@pytest.mark.parametrize(("client", "upstream"), [("implicit", "off"), ("implicit", "implicit"), ("plain", "off")])
def test_two_hundred_megabytes_each_way_leave_memory_as_it_was(
    gateway: Gateway, user: tuple[str, str], client: str, upstream: str
) -> None:
    wire = Wire(gateway, client, upstream)
    wire.line()
    wire.sock.sendall(f'a LOGIN {user[0]} "{user[1]}"\r\n'.encode())
    assert wire.answer(b"a").startswith(b"a OK")

    gateway.program.forget_peak()
    before = gateway.program.resident()
    wire.sock.sendall(b"b APPEND INBOX {%d+}\r\n" % SIZE)
    sent = hashlib.sha256()
    for piece in mail(SIZE):
        sent.update(piece)
        wire.sock.sendall(piece)
    wire.sock.sendall(b"\r\n")
    assert wire.answer(b"b").startswith(b"b OK")
    uploaded = gateway.program.peak() - before

    gateway.program.forget_peak()
    wire.sock.sendall(b"c SELECT INBOX\r\n")
    assert wire.answer(b"c").startswith(b"c OK")
    wire.sock.sendall(b"d FETCH 1 BODY.PEEK[]\r\n")
    assert wire.line() == b"* 1 FETCH (BODY[] {%d}" % SIZE
    assert wire.digest(SIZE) == sent.digest()
    assert wire.line() == b")"
    assert wire.answer(b"d").startswith(b"d OK")
    downloaded = gateway.program.peak() - before
    wire.sock.sendall(b"e STORE 1 +FLAGS (\\Deleted)\r\nf EXPUNGE\r\ng LOGOUT\r\n")
    for tag in (b"e", b"f", b"g"):
        assert wire.answer(tag).startswith(tag + b" OK")
    wire.close()
    assert uploaded < GROWTH
    assert downloaded < GROWTH

"""A POP3 client that believes nothing: every reply is checked against RFC 1939 byte by byte."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import Iterable

REPLY_LIMIT = 512
"""The longest line of a reply, with its CRLF (RFC 1939 §3)."""

# A line that begins with a single dot, or a line end that is not CRLF.
_UNSTUFFED = re.compile(rb"(?:\A|\n)\.(?![.])")


class Ended(Exception):
    """The server closed the connection; what came before is the argument."""


class Pop3:
    """One connection."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None, seconds: float = 30.0) -> None:
        self.sock: socket.socket = socket.create_connection(("127.0.0.1", port), seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unread = bytearray()
        try:
            if context is not None:
                self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
            self.greeting = self.status()
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Pop3:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *lines: bytes) -> None:
        """Send commands, all at once."""
        self.sock.sendall(b"".join(line + b"\r\n" for line in lines))

    def more(self) -> None:
        try:
            data = self.sock.recv(262_144)
        except (ConnectionError, ssl.SSLError) as error:
            raise Ended(bytes(self.unread)) from error
        if not data:
            raise Ended(bytes(self.unread))
        self.unread += data

    def line(self) -> bytes:
        """Return the next line without its CRLF."""
        while b"\n" not in self.unread:
            self.more()
        line, _, rest = self.unread.partition(b"\n")
        self.unread = rest
        assert line.endswith(b"\r"), line
        return bytes(line[:-1])

    def status(self) -> bytes:
        """Return the next reply's first line, which must be one."""
        line = self.line()
        assert re.match(rb"(?:\+OK|-ERR)(?: |\Z)", line), line
        assert len(line) + 2 <= REPLY_LIMIT, line
        return line

    def block(self) -> bytes:
        """Return what follows up to the line with a dot, without stuffing, each line with its CRLF."""
        seen = 0
        if not self.unread.startswith(b".\r\n"):
            while self.unread[:3] == b".\r\n"[: len(self.unread)] or (end := self.unread.find(b"\r\n.\r\n", seen)) < 0:
                if self.unread.startswith(b".\r\n"):
                    break
                seen = max(0, len(self.unread) - 4)
                self.more()
        if self.unread.startswith(b".\r\n"):
            del self.unread[:3]
            return b""
        raw = bytes(self.unread[: end + 2])
        del self.unread[: end + 5]
        assert _UNSTUFFED.search(raw) is None, "a line begins with a dot that is not doubled"
        assert b"\n" not in raw.replace(b"\r\n", b""), "a line ends with LF alone"
        data = raw.replace(b"\r\n..", b"\r\n.")
        return data[1:] if data.startswith(b".") else data

    def ask(self, line: bytes) -> bytes:
        """Send a command whose reply is one line and return that."""
        self.send(line)
        return self.status()

    def fetch(self, line: bytes) -> bytes:
        """Send a command whose reply has more lines, which must succeed, and return those."""
        status = self.ask(line)
        assert status.startswith(b"+OK"), (line, status)
        return self.block()

    def good(self, line: bytes) -> bytes:
        """Send a command whose reply is one line; it must be +OK, and what follows that is returned."""
        status = self.ask(line)
        assert status.startswith(b"+OK"), (line, status)
        return status[4:]

    def bad(self, line: bytes) -> bytes:
        """Send a command that must be refused; what follows -ERR is returned."""
        status = self.ask(line)
        assert status.startswith(b"-ERR"), (line, status)
        return status[5:]

    def login(self, user: str, password: str) -> Pop3:
        try:
            self.good(b"USER " + user.encode())
            self.good(b"PASS " + password.encode())
        except BaseException:
            self.sock.close()
            raise
        return self

    def stls(self, context: ssl.SSLContext) -> Pop3:
        self.good(b"STLS")
        assert not self.unread
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        return self

    def stat(self) -> tuple[int, int]:
        count, octets = self.good(b"STAT").split()[:2]
        return int(count), int(octets)

    def sizes(self) -> dict[int, int]:
        return {int(number): int(size) for number, size in map(bytes.split, self.fetch(b"LIST").splitlines())}

    def uidls(self) -> dict[int, bytes]:
        lines = (line.split(b" ") for line in self.fetch(b"UIDL").splitlines())
        return {int(number): uidl for number, uidl in lines}

    def capabilities(self) -> list[bytes]:
        return self.fetch(b"CAPA").splitlines()

    def quit(self) -> bytes:
        """Say QUIT, expect the end and return the reply."""
        status = self.ask(b"QUIT")
        assert self.ends() == b""
        self.sock.close()
        return status

    def ends(self) -> bytes:
        """Read up to the end and return what came."""
        try:
            while True:
                self.more()
        except Ended as end:
            return end.args[0]  # type: ignore[no-any-return]

    def vanish(self) -> None:
        """Be gone, by a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def numbers(lines: Iterable[bytes]) -> list[int]:
    """Return the message numbers that lines of LIST or UIDL begin with."""
    return [int(line.split()[0]) for line in lines]

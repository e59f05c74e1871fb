"""Client sessions with as little as possible between them and the socket."""

from __future__ import annotations

import socket
import ssl

from benchmarks.mails import BIG, SMALL

SILENCE = 30.0
"""Seconds after which a silent server is given up."""


def tls_context() -> ssl.SSLContext:
    """Return TLS 1.3 without a look at the certificate: what the client spends is not measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Session:
    """One connection over TLS; ``resume`` is an earlier connection's TLS session."""

    noop: bytes
    small: bytes
    big: bytes
    bye: bytes

    def __init__(self, port: int, context: ssl.SSLContext, resume: ssl.SSLSession | None = None) -> None:
        raw = socket.create_connection(("127.0.0.1", port), SILENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(raw, session=resume)
        self.line()

    def line(self) -> bytes:
        """Read up to the end of a line; only for moments when the server says one and waits."""
        data = b""
        while not data.endswith(b"\r\n"):
            data += self._receive()
        return data

    def exchange(self, request: bytes) -> bytes:
        """Send a request and return its whole response, which must not be a refusal."""
        self.socket.sendall(request)
        data = b""
        while not self.complete(request, data):
            data += self._receive()
        return data

    def complete(self, request: bytes, data: bytes) -> bool:
        """Tell whether ``data`` is the whole response; raises RuntimeError for a refusal."""
        raise NotImplementedError

    def login(self, user: str, password: str) -> None:
        raise NotImplementedError

    def open(self) -> None:
        """Make messages accessible."""

    def fetch(self, buffer: memoryview) -> int:
        """Fetch the big message and return its size."""
        raise NotImplementedError

    def close(self) -> None:
        self.socket.close()

    def _receive(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data

    def _receive_into(self, buffer: memoryview) -> int:
        count = self.socket.recv_into(buffer)
        if not count:
            raise RuntimeError("closed in the middle of a message")
        return count


class Imap(Session):
    """IMAP; every command has the tag x."""

    noop = b"x NOOP\r\n"
    small = b"x FETCH %d BODY.PEEK[]\r\n" % SMALL
    big = b"x FETCH %d BODY.PEEK[]\r\n" % BIG
    bye = b"x LOGOUT\r\n"

    def complete(self, request: bytes, data: bytes) -> bool:
        if not data.endswith(b"\r\n"):
            return False
        last = data[data.rfind(b"\n", 0, -1) + 1 :]
        if not last.startswith(b"x "):
            return False
        if not last.startswith(b"x OK"):
            raise RuntimeError(f"refused: {data[-200:]!r}")
        return True

    def login(self, user: str, password: str) -> None:
        self.exchange(f"x LOGIN {user} {password}\r\n".encode())

    def open(self) -> None:
        self.exchange(b"x SELECT INBOX\r\n")

    def idle(self) -> None:
        self.socket.sendall(b"x IDLE\r\n")
        while not self.line().startswith(b"+"):
            pass

    def fetch(self, buffer: memoryview) -> int:
        self.socket.sendall(self.big)
        head = b""
        while b"}\r\n" not in head:
            head += self._receive()
        announcement, _, rest = head.partition(b"}\r\n")
        size = int(announcement.rpartition(b"{")[2])
        left = size - len(rest)
        while left > 0:
            left -= self._receive_into(buffer[: min(left, len(buffer))])
        data = rest[size:]
        while not self.complete(self.big, data):
            data += self._receive()
        return size

    def append(self, mail: bytes) -> None:
        self.socket.sendall(b"x APPEND Sink {%d}\r\n" % len(mail))
        answer = self.line()
        if not answer.startswith(b"+"):
            raise RuntimeError(f"refused: {answer!r}")
        self.socket.sendall(mail)
        self.exchange(b"\r\n")


class Pop3(Session):
    """POP3."""

    noop = b"NOOP\r\n"
    small = b"RETR %d\r\n" % SMALL
    big = b"RETR %d\r\n" % BIG
    bye = b"QUIT\r\n"

    def complete(self, request: bytes, data: bytes) -> bool:
        if data.startswith(b"-"):
            raise RuntimeError(f"refused: {data!r}")
        return data.endswith(b"\r\n.\r\n" if request.startswith(b"RETR") else b"\r\n")

    def login(self, user: str, password: str) -> None:
        self.exchange(f"USER {user}\r\n".encode())
        self.exchange(f"PASS {password}\r\n".encode())

    def fetch(self, buffer: memoryview) -> int:
        self.socket.sendall(self.big)
        total = 0
        tail = b""
        while tail != b"\r\n.\r\n":
            count = self._receive_into(buffer)
            total += count
            tail = (tail + buffer[max(0, count - 5) : count])[-5:]
        return total


SESSIONS: dict[str, type[Imap] | type[Pop3]] = {"imap": Imap, "pop3": Pop3}

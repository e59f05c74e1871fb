"""A mail server for measurements: in memory, without a disk or a database behind it, so that it is never what is slow.

A program of its own, one epoll loop: ``python -m benchmarks.upstream CERTIFICATE KEY BYTES IMAP IMAPS POP3 POP3S``.
It lets everybody in and has two messages in every mailbox, 4 KB and BYTES long; what is appended it forgets. SIGUSR1
has it tell every client in IDLE of a new message at once, SIGUSR2 each at a random moment of ``SPREAD_SECONDS``.
"""

from __future__ import annotations

import contextlib
import random
import re
import resource
import select
import signal
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable

from benchmarks.mails import BIG, SMALL, SMALL_SIZE, message

Answer = Callable[["Connection", bytes], "bytes | memoryview"]

ROUNDS = 16
"""How many reads or writes one connection may do before others have their turn."""

PIECE = 1024 * 1024

SPREAD_SECONDS = 10.0
WRAP = 2**32
"""IMAP's numbers end here."""

CAPABILITIES = b"CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=LOGIN"
LITERAL = re.compile(rb"\{(\d+)(\+?)\}\r?\n\Z")

SCRATCH = bytearray(256 * 1024)
VIEW = memoryview(SCRATCH)

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Closed(Exception):
    """The client has gone, or said that it goes."""


class Connection:
    """One client: its socket, what it has begun to say, and what is still to be sent to it."""

    __slots__ = ("answer", "line", "pending", "skip", "socket", "state", "wants")

    def __init__(self, sock: socket.socket, answer: Answer) -> None:
        self.socket = sock
        self.answer = answer
        self.line = b""
        self.skip = 0
        self.pending: deque[memoryview] = deque()
        self.state: bytes | None = None
        self.wants = select.EPOLLIN

    def on_ready(self) -> None:
        """Do what can be done at once; raises Closed."""
        try:
            if isinstance(self.socket, ssl.SSLSocket) and self.state == b"handshake":
                self.socket.do_handshake()
                self.state = None
                self.send(GREETING[self.answer])
            if self.flush():
                for _ in range(ROUNDS):
                    self.read()
        except WOULD_BLOCK:
            pass
        except (OSError, ssl.SSLError) as error:
            raise Closed from error

    def read(self) -> None:
        count = self.socket.recv_into(VIEW)
        if not count:
            raise Closed
        if self.skip >= count:
            self.skip -= count
            return
        data = self.line + VIEW[self.skip : count]
        self.skip = start = 0
        while end := data.find(b"\n", start) + 1:
            self.send(self.answer(self, data[start:end]))
            start = end + self.skip
            self.skip = max(0, start - len(data))
        self.line = data[start:]

    def send(self, data: bytes | memoryview) -> None:
        if data:
            self.pending.append(memoryview(data))
            self.flush()

    def flush(self) -> bool:
        """Send what the socket takes; tells whether that was all."""
        for _ in range(ROUNDS):
            if not self.pending:
                return True
            first = self.pending[0]
            try:
                sent = self.socket.send(first[:PIECE])
            except WOULD_BLOCK:
                return False
            if sent == len(first):
                self.pending.popleft()
            else:
                self.pending[0] = first[sent:]
        return not self.pending


class Protocols:
    """The two protocols' answers, and the responses that hold a message, made once."""

    def __init__(self, size: int) -> None:
        mails = {SMALL: message(SMALL_SIZE), BIG: message(size)}
        self.fetches = {
            number: b"* %d FETCH (BODY[] {%d}\r\n%b)\r\n" % (number, len(mail), mail) for number, mail in mails.items()
        }
        self.sizes = {number: len(mail) for number, mail in mails.items()}
        self.retrievals = {
            number: memoryview(b"+OK %d octets\r\n%b.\r\n" % (len(mail), mail)) for number, mail in mails.items()
        }

    def imap(self, connection: Connection, line: bytes) -> bytes | memoryview:
        if connection.state is not None:
            return self._imap_goes_on(connection, line)
        tag, _, rest = line.strip().partition(b" ")
        verb, _, argument = rest.partition(b" ")
        match verb.upper():
            case b"NOOP":
                return tag + b" OK NOOP completed.\r\n"
            case b"FETCH":
                number = int(re.search(rb"\d+", argument)[0])  # type: ignore[index]
                # Only the small one is put together, the big one goes out as it lies there.
                done = tag + b" OK Fetch completed.\r\n"
                if number == SMALL:
                    return self.fetches[SMALL] + done
                connection.send(memoryview(self.fetches[BIG]))
                return done
            case b"LOGIN" if LITERAL.search(line):
                return self._literal(connection, line, b"LOGIN " + tag)
            case b"LOGIN":
                return tag + b" OK [" + CAPABILITIES + b"] Logged in\r\n"
            case b"AUTHENTICATE" if b" " not in argument:
                connection.state = tag
                return b"+ \r\n"
            case b"AUTHENTICATE":
                return tag + b" OK [" + CAPABILITIES + b"] Logged in\r\n"
            case b"APPEND":
                return self._literal(connection, line, b"APPEND " + tag)
            case b"IDLE":
                connection.state = b"IDLE " + tag
                return b"+ idling\r\n"
            case b"CAPABILITY":
                return b"* " + CAPABILITIES + b"\r\n" + tag + b" OK Capability completed.\r\n"
            case b"ID":
                return b'* ID ("name" "bench")\r\n' + tag + b" OK ID completed.\r\n"
            case b"SELECT":
                return b"* 2 EXISTS\r\n* FLAGS (\\Seen)\r\n" + tag + b" OK [READ-WRITE] Select completed.\r\n"
            case b"LOGOUT":
                connection.send(b"* BYE Logging out\r\n" + tag + b" OK Logout completed.\r\n")
                raise Closed
            case _:
                return tag + b" BAD Unknown command\r\n"

    def _literal(self, connection: Connection, line: bytes, state: bytes) -> bytes:
        announced = LITERAL.search(line)
        connection.skip = int(announced[1])  # type: ignore[index]
        connection.state = state
        return b"" if announced[2] else b"+ OK\r\n"  # type: ignore[index]

    def _imap_goes_on(self, connection: Connection, line: bytes) -> bytes:
        """Answer the line that ends what a command has begun: after a literal, in IDLE, in AUTHENTICATE."""
        state = connection.state or b""
        kind, _, tag = state.rpartition(b" ")
        if kind == b"LOGIN" and LITERAL.search(line):
            return self._literal(connection, line, state)
        connection.state = None
        if kind == b"APPEND":
            return tag + b" OK Append completed.\r\n"
        if kind == b"IDLE":
            return tag + b" OK Idle completed.\r\n"
        return tag + b" OK [" + CAPABILITIES + b"] Logged in\r\n"

    def pop3(self, connection: Connection, line: bytes) -> bytes | memoryview:
        if connection.state is not None:
            connection.state = None
            return b"+OK Logged in.\r\n"
        verb, _, argument = line.strip().partition(b" ")
        match verb.upper():
            case b"RETR":
                return self.retrievals[int(argument)]
            case b"STAT":
                return b"+OK 2 %d\r\n" % sum(self.sizes.values())
            case b"CAPA":
                return b"+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nUSER\r\nSASL PLAIN LOGIN\r\n.\r\n"
            case b"AUTH" if b" " not in argument:
                connection.state = b"AUTH"
                return b"+ \r\n"
            case b"QUIT":
                connection.send(b"+OK Logging out.\r\n")
                raise Closed
            case b"USER" | b"PASS" | b"NOOP" | b"AUTH":
                return b"+OK\r\n"
            case _:
                return b"-ERR Unknown command.\r\n"


GREETING: dict[Answer, bytes] = {}


def microseconds() -> int:
    """Return the time as one of IMAP's numbers; all processes of a machine have the same clock."""
    return time.monotonic_ns() // 1000 % WRAP


class Pushes:
    """What clients in IDLE are told without asking: ``* N EXISTS``, where N is the microsecond in which it is sent."""

    def __init__(self) -> None:
        self._due: deque[tuple[float, int, Connection]] = deque()

    def plan(self, connections: Iterable[tuple[int, Connection]], seconds: float) -> None:
        """Tell all that are in IDLE now, each at a random moment of the next seconds."""
        now = time.monotonic()
        self._due = deque(
            sorted(
                (now + random.uniform(0, seconds), number, connection)
                for number, connection in connections
                if connection.state is not None and connection.state.startswith(b"IDLE ")
            )
        )

    def wait(self) -> float | None:
        """Return the seconds to the next one, None if there is none."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def send(self, connections: dict[int, Connection]) -> list[int]:
        """Tell those whose time has come; return which."""
        told = []
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, number, connection = self._due.popleft()
            if connections.get(number) is connection:
                with contextlib.suppress(OSError):
                    connection.send(b"* %d EXISTS\r\n" % max(1, microseconds()))
                told.append(number)
        return told


def signals() -> socket.socket:
    """Return a socket on which the numbers of SIGUSR1 and SIGUSR2 arrive."""
    heard, told = socket.socketpair()
    heard.setblocking(False)
    told.setblocking(False)
    signal.set_wakeup_fd(told.detach())
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    return heard


def serve(listeners: dict[socket.socket, Answer], tls: ssl.SSLContext, heard: socket.socket) -> None:
    """Serve every second listener over TLS, until the program is ended; ``heard`` is what ``signals`` returned."""
    poll = select.epoll()
    pushes = Pushes()
    poll.register(heard, select.EPOLLIN)
    accepting = {
        sock.fileno(): (sock, answer, number % 2 == 1) for number, (sock, answer) in enumerate(listeners.items())
    }
    connections: dict[int, Connection] = {}
    for number in accepting:
        poll.register(number, select.EPOLLIN)

    def accept(listener: socket.socket, answer: Answer, secure: bool) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(ROUNDS):
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if secure:
                    sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                connection = connections[sock.fileno()] = Connection(sock, answer)
                poll.register(sock.fileno(), select.EPOLLIN)
                if secure:
                    connection.state = b"handshake"
                else:
                    connection.send(GREETING[answer])

    def arrange(number: int) -> None:
        connection = connections[number]
        wants = select.EPOLLIN | select.EPOLLOUT if connection.pending else select.EPOLLIN
        if wants != connection.wants:
            connection.wants = wants
            poll.modify(number, wants)

    while True:
        for number, _ in poll.poll(pushes.wait()):
            if number in accepting:
                accept(*accepting[number])
                continue
            if number == heard.fileno():
                last = heard.recv(16)[-1]
                pushes.plan(connections.items(), SPREAD_SECONDS if last == signal.SIGUSR2 else 0.0)
                continue
            connection = connections[number]
            try:
                connection.on_ready()
            except Closed:
                del connections[number]
                poll.unregister(number)
                connection.socket.close()
                continue
            arrange(number)
        for number in pushes.send(connections):
            arrange(number)


def main() -> None:
    certificate, key, size, *ports = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.load_cert_chain(certificate, key)
    protocols = Protocols(int(size))
    imap, pop3 = protocols.imap, protocols.pop3
    GREETING[imap] = b"* OK [" + CAPABILITIES + b"] Ready.\r\n"
    GREETING[pop3] = b"+OK Ready.\r\n"
    listeners = {}
    for port, answer in zip(ports, (imap, imap, pop3, pop3), strict=True):
        sock = socket.create_server(("127.0.0.1", int(port)), backlog=4096)
        sock.setblocking(False)
        listeners[sock] = answer
    serve(listeners, tls, signals())


if __name__ == "__main__":
    main()

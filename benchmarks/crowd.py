"""A crowd of IMAP clients that are logged in and wait in IDLE, and a few that work beside them.

Several processes share the crowd, each with one epoll loop for thousands of connections and an address of its own, so
that neither their files nor their ports run out before the proxy's. ``Crowd`` is the harness's end.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import multiprocessing
import os
import random
import re
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Self

from benchmarks.mails import USERS
from benchmarks.session import SILENCE, Imap, tls_context
from benchmarks.upstream import WRAP, microseconds

PARTS = 4
"""Processes of a crowd."""

AHEAD = 4
"""Logins that each process has under way where nothing says when they begin."""

IP_BIND_ADDRESS_NO_PORT = 24
"""From Linux's <linux/in.h>: a port is chosen when the other end is known, so that both ends together are unique."""

PUSH = re.compile(rb"\* (\d+) EXISTS\r\n")
STEPS = ("the connection", "the TLS handshake", "the greeting", "the login", "IDLE", "the rest")

now = time.monotonic


class Client:
    """One connection: what it waits for, and since when."""

    __slots__ = ("began", "data", "sock", "step")

    def __init__(self, sock: socket.socket, began: float) -> None:
        self.sock = sock
        self.began = began
        self.step = 0
        self.data = b""


class Part:
    """One process of a crowd. Each public method is an order; what it returns goes back to the harness."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._address = f"127.0.1.{number + 1}"
        self._user, self._password = USERS[number % len(USERS)]
        self._context = tls_context()
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._busy = 0
        self._errors: Counter[str] = Counter()
        self._trips: list[float] = []
        self._delays: list[float] = []
        self._again: list[float] = []

    def open(self, count: int, seconds: float, patience: float) -> dict[str, Any]:
        """Open so many sessions, at random within the seconds, or a few at a time; return how it went.

        One that fails is tried again after about a second.
        """
        began = now()
        self._errors, self._trips = Counter(), []
        self._again = sorted(began + random.uniform(0, seconds) for _ in range(count))
        waiting = self._again
        most = count if seconds else AHEAD
        while waiting or self._busy:
            at = now()
            if at > began + patience:
                self._errors[f"not opened within {patience:g} s"] += len(waiting) + self._busy
                break
            while waiting and waiting[0] <= at and self._busy < most:
                heapq.heappop(waiting)
                self._connect()
            self._turn(max(0.0, min(1.0, waiting[0] - at)) if waiting and self._busy < most else 1.0)
        return {"sessions": len(self._clients), "trips": self._trips, "errors": self._errors, "ended": now()}

    def listen(self, seconds: float) -> dict[str, Any]:
        """Wait until every session has been told of a new message; return how long ago it had been sent, in seconds."""
        self._delays = []
        until = now() + seconds
        while len(self._delays) < len(self._clients) and now() < until:
            self._turn(0.2)
        return {"delays": self._delays, "sessions": len(self._clients), "ended": now()}

    def drop(self) -> dict[str, Any]:
        """Be gone, all at once and without a word."""
        count = len(self._clients)
        for client in self._clients.values():
            client.sock.close()
        self._clients.clear()
        return {"dropped": count}

    def noops(self, count: int, pause: float) -> dict[str, Any]:
        """Send one NOOP after the other on a session of its own, with pauses."""
        session = Imap(self._port, self._context)
        session.login(self._user, self._password)
        trips = []
        for _ in range(count):
            time.sleep(pause)
            began = now()
            session.exchange(session.noop)
            trips.append(now() - began)
        session.close()
        return {"trips": trips}

    def logins(self, count: int, pause: float) -> dict[str, Any]:
        """Log in and out, again and again, with pauses; a trip is from the connection to the login's answer."""
        trips = []
        for _ in range(count):
            time.sleep(pause)
            began = now()
            session = Imap(self._port, self._context)
            session.login(self._user, self._password)
            trips.append(now() - began)
            session.exchange(session.bye)
            session.close()
        return {"trips": trips}

    def _connect(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((self._address, 0))
        client = self._clients[sock.fileno()] = Client(sock, now())
        self._busy += 1
        error = sock.connect_ex(("127.0.0.1", self._port))
        if error not in (0, errno.EINPROGRESS):
            self._fail(client, OSError(error, os.strerror(error)))
            return
        self._poll.register(sock.fileno(), select.EPOLLOUT)

    def _turn(self, seconds: float) -> None:
        for number, _ in self._poll.poll(seconds, 256):
            client = self._clients[number]
            try:
                self._go_on(client)
            except (ssl.SSLWantReadError, BlockingIOError):
                pass
            except (OSError, RuntimeError) as error:
                self._fail(client, error)

    def _go_on(self, client: Client) -> None:
        """Take the steps that can be taken; raises what says that the next must wait, or cannot be."""
        if client.step == 0:
            if error := client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            client.sock = self._context.wrap_socket(client.sock, do_handshake_on_connect=False)
            self._poll.modify(client.sock.fileno(), select.EPOLLIN)
            client.step = 1
        sock = client.sock
        assert isinstance(sock, ssl.SSLSocket)
        if client.step == 1:
            sock.do_handshake()
            client.step = 2
        while True:
            data = sock.recv(4096)
            if not data:
                raise RuntimeError("closed")
            client.data += data
            if client.data.endswith(b"\r\n"):
                self._answer(client, sock)

    def _answer(self, client: Client, sock: ssl.SSLSocket) -> None:
        """Do what comes behind a whole line."""
        data, client.data = client.data, b""
        match client.step:
            case 2:
                sock.send(f"x LOGIN {self._user} {self._password}\r\n".encode())
            case 3:
                if b"x OK" not in data:
                    raise RuntimeError(f"refused: {data!r}")
                sock.send(b"x IDLE\r\n")
            case 4:
                if not data.startswith(b"+"):
                    raise RuntimeError(f"refused: {data!r}")
                self._busy -= 1
                self._trips.append(now() - client.began)
            case _:
                arrived = microseconds()
                self._delays += [(arrived - int(sent)) % WRAP / 1e6 for sent in PUSH.findall(data)]
                if data.startswith(b"* BYE"):
                    raise RuntimeError(f"ended: {data!r}")
                return
        client.step += 1

    def _fail(self, client: Client, error: Exception) -> None:
        """Note that a client lost its connection, and have it come back."""
        self._errors[f"{STEPS[client.step]}: {error}"] += 1
        del self._clients[client.sock.fileno()]
        client.sock.close()
        if client.step < len(STEPS) - 1:
            self._busy -= 1
        heapq.heappush(self._again, now() + random.uniform(0.5, 1.5))


def _serve(harness: Connection, port: int, number: int) -> None:
    """Be one process of a crowd: obey until the harness has gone."""
    part = Part(port, number)
    with contextlib.suppress(EOFError):
        while True:
            order, *arguments = harness.recv()
            harness.send(getattr(part, order)(*arguments))


class Crowd:
    """The harness's end of a crowd that comes to a port of this machine."""

    def __init__(self, port: int, parts: int = PARTS) -> None:
        fork = multiprocessing.get_context("fork")
        self._ends: list[Connection] = []
        self._processes = []
        for number in range(parts):
            here, there = fork.Pipe()
            process = fork.Process(target=_serve, args=(there, port, number), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def open(self, count: int, seconds: float = 0.0, patience: float = 600.0) -> dict[str, Any]:
        """Open so many sessions more, at random within the seconds; 0 is as fast as a few at a time go."""
        shares = [len(range(number, count, len(self._ends))) for number in range(len(self._ends))]
        for end, share in zip(self._ends, shares, strict=True):
            end.send(("open", share, seconds, patience))
        return _merged(list(self._answers(patience)))

    def drop(self) -> int:
        """Close all connections at once; return how many they were."""
        return int(_merged(list(self._ask("drop", SILENCE)))["dropped"])

    def begin_listening(self, seconds: float) -> None:
        """Have everyone wait for news; ``heard`` returns what came."""
        for end in self._ends:
            end.send(("listen", seconds))

    def heard(self, seconds: float) -> dict[str, Any]:
        """Return the delays of what everyone was told, for which they wait so many seconds at most."""
        return _merged(list(self._answers(seconds)))

    def alone(self, order: str, count: int, pause: float) -> list[float]:
        """Have one process do something beside the crowd, ``noops`` or ``logins``; return what each took."""
        self._ends[0].send((order, count, pause))
        return sorted(_answer(self._ends[0], SILENCE + count * (pause + 1.0))["trips"])

    def _ask(self, order: str, seconds: float) -> Iterator[dict[str, Any]]:
        for end in self._ends:
            end.send((order,))
        return self._answers(seconds)

    def _answers(self, seconds: float) -> Iterator[dict[str, Any]]:
        return (_answer(end, seconds + SILENCE) for end in self._ends)


def _answer(end: Connection, seconds: float) -> dict[str, Any]:
    if not end.poll(seconds):
        raise RuntimeError("a process of the crowd does not answer")
    answer: dict[str, Any] = end.recv()
    return answer


def _merged(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one answer of all: sums, what lists hold in order, and the last moment."""
    merged: dict[str, Any] = {}
    for name, first in answers[0].items():
        values = [answer[name] for answer in answers]
        if isinstance(first, list):
            merged[name] = sorted(one for value in values for one in value)
        elif isinstance(first, Counter):
            merged[name] = sum(values, Counter())
        else:
            merged[name] = max(values) if name == "ended" else sum(values)
    return merged

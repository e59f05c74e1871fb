"""The measuring client: a program of its own, so that no proxy waits for the harness.

It takes one job as JSON in its argument, prepares it, prints ``ready``, and does it when a line comes on
standard input. The result is one line of JSON; then it holds its connections until standard input ends.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

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
    """One IMAP connection with as little between it and the socket as possible."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        raw = socket.create_connection(("127.0.0.1", port), SILENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket: socket.socket = raw if context is None else context.wrap_socket(raw)
        self.line()

    def line(self) -> bytes:
        """Read up to the end of a line; only for moments when the server says one and waits."""
        data = b""
        while not data.endswith(b"\r\n"):
            data += self._receive()
        return data

    def command(self, text: bytes) -> bytes:
        """Send a command and return everything up to its tagged response, which must be OK."""
        self.socket.sendall(b"x " + text + b"\r\n")
        return self.finish()

    def finish(self, data: bytes = b"") -> bytes:
        """Read up to the tagged response, which must be OK."""
        while not (data.endswith(b"\r\n") and data[data.rfind(b"\n", 0, -1) + 1 :].startswith(b"x ")):
            data += self._receive()
        if not data[data.rfind(b"\n", 0, -1) + 1 :].startswith(b"x OK"):
            raise RuntimeError(f"refused: {data[-200:]!r}")
        return data

    def login(self, user: str, password: str) -> None:
        self.command(f"LOGIN {user} {password}".encode())

    def fetch(self, buffer: memoryview) -> int:
        """Fetch the whole first message and return its size."""
        self.socket.sendall(b"x FETCH 1 BODY.PEEK[]\r\n")
        head = b""
        while b"}\r\n" not in head:
            head += self._receive()
        announcement, _, rest = head.partition(b"}\r\n")
        size = int(announcement.rpartition(b"{")[2])
        left = size - len(rest)
        while left > 0:
            count = self.socket.recv_into(buffer[: min(left, len(buffer))])
            if not count:
                raise RuntimeError("closed in the middle of a message")
            left -= count
        self.finish(rest[size:])
        return size

    def append(self, mailbox: str, message: bytes) -> None:
        self.socket.sendall(f"x APPEND {mailbox} {{{len(message)}}}\r\n".encode())
        answer = self.line()
        if not answer.startswith(b"+"):
            raise RuntimeError(f"refused: {answer!r}")
        self.socket.sendall(message)
        self.socket.sendall(b"\r\n")
        self.finish()

    def close(self) -> None:
        self.socket.close()

    def _receive(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data


def message(size: int) -> bytes:
    """Return a mail of about ``size`` bytes, with lines as an encoded attachment has them."""
    head = b"From: a@example.org\r\nTo: b@example.org\r\nSubject: bulk\r\nMIME-Version: 1.0\r\n\r\n"
    line = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAxMjM0\r\n"
    return head + line * (size // len(line))


class Job:
    """What is asked for, and the connections that it opens."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.kind: str = job["kind"]
        self.port: int = job["port"]
        self.count: int = job["count"]
        self.size: int = job.get("size", 0)
        self.users: list[tuple[str, str]] = job["users"]
        self.concurrency: int = job.get("concurrency", 1)
        self.seconds: float = job["seconds"]
        self.context = tls_context() if job["tls"] else None
        self.held: list[Session] = []

    def session(self, number: int = 0) -> Session:
        session = Session(self.port, self.context)
        session.login(*self.users[number % len(self.users)])
        return session

    def prepare(self) -> Callable[[], dict[str, Any]]:
        """Do what is not measured, and return what is."""
        return getattr(self, f"_{self.kind}")()  # type: ignore[no-any-return]

    # Each kind of job prepares itself and returns the part that is measured.

    def _logins(self) -> Callable[[], dict[str, Any]]:
        workers: list[Connection] = []
        processes = []
        fork = multiprocessing.get_context("fork")
        for number in range(self.concurrency):
            here, there = fork.Pipe()
            share = len(range(number, self.count, self.concurrency))
            process = fork.Process(target=self._log_in, args=(there, number, share), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            workers.append(here)

        def run() -> dict[str, Any]:
            began = time.perf_counter()
            for worker in workers:
                worker.send(True)
            done = sum(worker.recv() for worker in workers)
            elapsed = time.perf_counter() - began
            for process in processes:
                process.join()
            return {"count": done, "elapsed": elapsed}

        return run

    def _log_in(self, harness: Connection, number: int, share: int) -> None:
        harness.recv()
        deadline = time.monotonic() + self.seconds
        done = 0
        while done < share and time.monotonic() < deadline:
            session = self.session(number)
            session.command(b"LOGOUT")
            session.close()
            done += 1
        harness.send(done)

    def _commands(self) -> Callable[[], dict[str, Any]]:
        session = self.session()
        for _ in range(20):
            session.command(b"NOOP")

        def run() -> dict[str, Any]:
            now = time.perf_counter
            trips = []
            deadline = now() + self.seconds
            while len(trips) < self.count and now() < deadline:
                began = now()
                session.command(b"NOOP")
                trips.append(now() - began)
            trips.sort()
            return {
                "count": len(trips),
                "elapsed": sum(trips),
                "median": trips[len(trips) // 2],
                "p99": trips[len(trips) * 99 // 100],
            }

        return run

    def _fetch(self) -> Callable[[], dict[str, Any]]:
        session = self.session()
        session.command(b"SELECT INBOX")
        buffer = memoryview(bytearray(262144))

        def run() -> dict[str, Any]:
            return self._bulk(lambda: session.fetch(buffer))

        return run

    def _append(self) -> Callable[[], dict[str, Any]]:
        session = self.session()
        mail = message(self.size)
        session.command(b"CREATE Sink")

        def send() -> int:
            session.append("Sink", mail)
            return len(mail)

        def run() -> dict[str, Any]:
            result = self._bulk(send)
            session.command(b"DELETE Sink")
            return result

        return run

    def _bulk(self, transfer: Callable[[], int]) -> dict[str, Any]:
        began = time.perf_counter()
        total = count = 0
        while count < self.count and time.perf_counter() - began < self.seconds:
            total += transfer()
            count += 1
        return {"count": count, "bytes": total, "elapsed": time.perf_counter() - began}

    def _idle(self) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            began = time.perf_counter()
            while len(self.held) < self.count and time.perf_counter() - began < self.seconds:
                self.held.append(self.session(len(self.held)))
            return {"count": len(self.held), "elapsed": time.perf_counter() - began}

        return run


def main() -> None:
    job = Job(json.loads(sys.argv[1]))
    run = job.prepare()
    print("ready", flush=True)
    sys.stdin.readline()
    before = sum(os.times()[:4])
    result = run()
    result["client_cpu"] = sum(os.times()[:4]) - before
    print(json.dumps(result), flush=True)
    sys.stdin.read()
    for session in job.held:
        session.close()


if __name__ == "__main__":
    main()

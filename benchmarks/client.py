"""The load generator: a program of its own with several processes, so that no proxy waits for the harness.

It takes one job as JSON in its argument, prepares it, prints ``ready``, and does it when a line comes on
standard input. The result is one line of JSON; then it holds its connections until standard input ends.
"""

from __future__ import annotations

import json
import multiprocessing
import select
import ssl
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.mails import USERS, message
from benchmarks.session import SESSIONS, Imap, Session, tls_context

Result = dict[str, Any]
now = time.perf_counter


class Worker:
    """One process of a job: what it opens and does. Each kind prepares itself and returns what is measured."""

    def __init__(self, job: dict[str, Any], number: int) -> None:
        self.number = number
        self.protocol = SESSIONS[job["protocol"]]
        self.port: int = job["port"]
        self.count = len(range(number, job["count"], job["workers"]))
        self.seconds: float = job["seconds"]
        self.sessions: int = job.get("sessions", 1)
        self.size: int = job.get("size", 0)
        self.request: str = job.get("request", "noop")
        self.context = tls_context()
        self.held: list[Session] = []

    def session(self, resume: ssl.SSLSession | None = None) -> Session:
        session = self.protocol(self.port, self.context, resume)
        session.login(*USERS[self.number % len(USERS)])
        return session

    def logins(self) -> Callable[[], Result]:
        return lambda: self._log_in(None)

    def resumed_logins(self) -> Callable[[], Result]:
        session = self.session()
        session.exchange(session.bye)
        ticket = session.socket.session
        session.close()
        return lambda: self._log_in(ticket)

    def _log_in(self, ticket: ssl.SSLSession | None) -> Result:
        """Log in and out again, each time with the ticket of the last connection if there was one to begin with."""
        deadline = now() + self.seconds
        done = resumed = 0
        while done < self.count and now() < deadline:
            session = self.session(ticket)
            resumed += bool(session.socket.session_reused)
            session.exchange(session.bye)
            if ticket is not None:
                ticket = session.socket.session
            session.close()
            done += 1
        return {"count": done, "resumed": resumed}

    def exchanges(self) -> Callable[[], Result]:
        """One request after the other on each of several sessions, all of them busy all the time."""
        sessions = {}
        for _ in range(self.sessions):
            session = self.session()
            session.open()
            for _ in range(5):
                session.exchange(session.noop)
            session.socket.setblocking(False)
            sessions[session.socket.fileno()] = session
        request: bytes = getattr(self.protocol, self.request)
        if self.sessions == 1:
            session.socket.settimeout(30)
            return lambda: self._one(session, request)
        return lambda: self._many(sessions, request)

    def _one(self, session: Session, request: bytes) -> Result:
        trips = []
        deadline = now() + self.seconds
        while len(trips) < self.count and now() < deadline:
            began = now()
            session.exchange(request)
            trips.append(now() - began)
        return {"count": len(trips), "trips": trips}

    def _many(self, sessions: dict[int, Session], request: bytes) -> Result:
        poll = select.epoll()
        trips = []
        began = {}
        responses = dict.fromkeys(sessions, b"")
        deadline = now() + self.seconds
        for number, session in sessions.items():
            poll.register(number, select.EPOLLIN)
            began[number] = now()
            session.socket.send(request)
        left = self.count - len(sessions)
        while began:
            for number, _ in poll.poll(30) or _silent():
                session = sessions[number]
                try:
                    data = responses[number] + session.socket.recv(65536)
                except ssl.SSLWantReadError:
                    continue
                while session.socket.pending():
                    data += session.socket.recv(65536)
                if not session.complete(request, data):
                    if data == responses[number]:
                        raise RuntimeError("the server closed the connection")
                    responses[number] = data
                    continue
                responses[number] = b""
                at = now()
                trips.append(at - began[number])
                if left > 0 and at < deadline:
                    left -= 1
                    began[number] = at
                    session.socket.send(request)
                else:
                    del began[number]
        return {"count": len(trips), "trips": trips}

    def fetches(self) -> Callable[[], Result]:
        session = self.session()
        session.open()
        buffer = memoryview(bytearray(262144))
        return lambda: self._bulk(lambda: session.fetch(buffer))

    def appends(self) -> Callable[[], Result]:
        session = self.session()
        assert isinstance(session, Imap)
        mail = message(self.size)

        def send() -> int:
            session.append(mail)
            return len(mail)

        return lambda: self._bulk(send)

    def _bulk(self, transfer: Callable[[], int]) -> Result:
        began = now()
        total = count = 0
        while count < self.count and now() - began < self.seconds:
            total += transfer()
            count += 1
        return {"count": count, "bytes": total}

    def idles(self) -> Callable[[], Result]:
        """Sessions that are logged in and wait: in IDLE where the protocol has it."""

        def run() -> Result:
            deadline = now() + self.seconds
            while len(self.held) < self.count and now() < deadline:
                session = self.session()
                if isinstance(session, Imap):
                    session.idle()
                self.held.append(session)
            return {"count": len(self.held)}

        return run


def _silent() -> list[tuple[int, int]]:
    raise RuntimeError("the server is silent")


def work(harness: Connection, job: dict[str, Any], number: int) -> None:
    """Be one process of a job: say ready, do it when told, tell the result, and hold what is open until told."""
    worker = Worker(job, number)
    run = getattr(worker, job["kind"])()
    harness.send(None)
    harness.recv()
    before = time.process_time()
    result = run()
    result["client_cpu"] = time.process_time() - before
    harness.send(result)
    harness.recv()
    for session in worker.held:
        session.close()


def merged(results: list[Result]) -> Result:
    """Return one result of all processes: sums, and what the round trips were."""
    total: Result = {name: sum(one[name] for one in results) for name in results[0] if name != "trips"}
    trips = sorted(trip for one in results for trip in one.get("trips", ()))
    if trips:
        total |= {"p50": trips[len(trips) // 2], "p99": trips[len(trips) * 99 // 100]}
    return total


def main() -> None:
    job = json.loads(sys.argv[1])
    fork = multiprocessing.get_context("fork")
    workers: list[Connection] = []
    for number in range(job["workers"]):
        here, there = fork.Pipe()
        fork.Process(target=work, args=(there, job, number), daemon=True).start()
        there.close()
        workers.append(here)
    for worker in workers:
        worker.recv()
    print("ready", flush=True)
    sys.stdin.readline()
    began = now()
    for worker in workers:
        worker.send(None)
    results = [worker.recv() for worker in workers]
    elapsed = now() - began
    print(json.dumps({**merged(results), "elapsed": elapsed}), flush=True)
    sys.stdin.read()
    for worker in workers:
        worker.send(None)


if __name__ == "__main__":
    main()

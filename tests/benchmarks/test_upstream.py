"""The mail server of the benchmarks: what it answers, however the bytes arrive."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest

from benchmarks import upstream
from benchmarks.mails import message
from benchmarks.upstream import WRAP, Closed, Connection, Protocols, Pushes, microseconds

SIZE = 9000
PROTOCOLS = Protocols(SIZE)
SMALL = message(4096)
CAPABILITY = upstream.CAPABILITIES


@contextlib.contextmanager
def connected(protocol: str) -> Iterator[tuple[socket.socket, Connection]]:
    client, server = socket.socketpair()
    with client, server:
        server.setblocking(False)
        client.setblocking(False)
        yield client, Connection(server, getattr(PROTOCOLS, protocol))


def answers(protocol: str, *pieces: bytes) -> bytes:
    """Return all that is answered to pieces of which each arrives by itself."""
    said = b""
    with connected(protocol) as (client, connection):
        for piece in pieces:
            client.sendall(piece)
            with contextlib.suppress(Closed):
                connection.on_ready()
            with contextlib.suppress(BlockingIOError):
                while data := client.recv(1 << 20):
                    said += data
    return said


OK = b"a OK [" + CAPABILITY + b"] Logged in\r\n"
APPENDED = b"a OK Append completed.\r\n"


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (b"a LOGIN me pw\r\n", OK),
        (b"a login {2}\r\nme {2}\r\npw\r\n", b"+ OK\r\n+ OK\r\n" + OK),
        (b"a AUTHENTICATE PLAIN AG1lAHB3\r\n", OK),
        (b"a AUTHENTICATE PLAIN\r\nAG1lAHB3\r\n", b"+ \r\n" + OK),
        (b"a NOOP\r\n", b"a OK NOOP completed.\r\n"),
        (b"a CAPABILITY\r\n", b"* " + CAPABILITY + b"\r\na OK Capability completed.\r\n"),
        (b"a APPEND Sink {5}\r\nhello\r\n", b"+ OK\r\n" + APPENDED),
        (b"a APPEND Sink {5+}\r\nhe\nlo\r\nb NOOP\r\n", APPENDED + b"b OK NOOP completed.\r\n"),
        (b"a IDLE\r\nDONE\r\n", b"+ idling\r\na OK Idle completed.\r\n"),
        (b"a LOGOUT\r\n", b"* BYE Logging out\r\na OK Logout completed.\r\n"),
        (b"a EXPUNGE\r\n", b"a BAD Unknown command\r\n"),
        (
            b"a FETCH 1 BODY.PEEK[]\r\n",
            b"* 1 FETCH (BODY[] {%d}\r\n%b)\r\na OK Fetch completed.\r\n" % (len(SMALL), SMALL),
        ),
        (
            b"a FETCH 2 BODY.PEEK[]\r\n",
            b"* 2 FETCH (BODY[] {%d}\r\n%b)\r\na OK Fetch completed.\r\n" % (len(message(SIZE)), message(SIZE)),
        ),
    ],
)
def test_imap_is_answered_whole_and_byte_by_byte(asked: bytes, answer: bytes) -> None:
    assert answers("imap", asked) == answer
    assert answers("imap", *(bytes([byte]) for byte in asked)) == answer


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (b"USER me\r\nPASS pw\r\n", b"+OK\r\n+OK\r\n"),
        (b"AUTH PLAIN\r\nAG1lAHB3\r\n", b"+ \r\n+OK Logged in.\r\n"),
        (b"STAT\r\n", b"+OK 2 %d\r\n" % (len(SMALL) + len(message(SIZE)))),
        (b"RETR 1\r\n", b"+OK %d octets\r\n%b.\r\n" % (len(SMALL), SMALL)),
        (b"QUIT\r\n", b"+OK Logging out.\r\n"),
        (b"XYZ\r\n", b"-ERR Unknown command.\r\n"),
    ],
)
def test_pop3_is_answered_whole_and_byte_by_byte(asked: bytes, answer: bytes) -> None:
    assert answers("pop3", asked) == answer
    assert answers("pop3", *(bytes([byte]) for byte in asked)) == answer


def test_what_the_socket_does_not_take_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "PIECE", 100)
    with connected("imap") as (client, connection):
        client.sendall(b"a FETCH 2 BODY.PEEK[]\r\n")
        connection.on_ready()
        assert connection.pending
        said = b""
        while connection.pending:
            with contextlib.suppress(BlockingIOError):
                said += client.recv(1 << 20)
            connection.on_ready()
        with contextlib.suppress(BlockingIOError):
            said += client.recv(1 << 20)
    assert said.endswith(b")\r\na OK Fetch completed.\r\n")
    assert message(SIZE) in said


def test_a_client_that_has_gone_is_closed() -> None:
    with connected("pop3") as (client, connection):
        client.close()
        with pytest.raises(Closed):
            connection.on_ready()


def test_who_idles_is_told_of_a_message_with_the_time() -> None:
    with connected("imap") as (idle, one), connected("imap") as (busy, other), connected("imap") as (_, gone):
        idle.sendall(b"a IDLE\r\n")
        one.on_ready()
        gone.state = b"IDLE b"
        pushes = Pushes()
        assert pushes.wait() is None
        pushes.plan([(1, one), (2, other), (3, gone)], 0.0)
        assert pushes.wait() == 0
        assert pushes.send({1: one, 2: other}) == [1]
        assert pushes.wait() is None
        told = re.fullmatch(rb"\+ idling\r\n\* (\d+) EXISTS\r\n", idle.recv(1000))
        assert told is not None
        assert (microseconds() - int(told[1])) % WRAP < 10_000_000
        with pytest.raises(BlockingIOError):
            busy.recv(1000)


def test_nobody_is_told_before_the_time() -> None:
    with connected("imap") as (_, one):
        one.state = b"IDLE a"
        pushes = Pushes()
        pushes.plan([(1, one)], 1e6)
        assert pushes.send({1: one}) == []
        wait = pushes.wait()
        assert wait is not None
        assert 0 < wait <= 1e6


def test_signals_arrive_as_bytes() -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    handlers = [signal.getsignal(number) for number in numbers]
    heard = upstream.signals()
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert heard.recv(16) == bytes([signal.SIGUSR2])
    finally:
        os.close(signal.set_wakeup_fd(-1))
        heard.close()
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)

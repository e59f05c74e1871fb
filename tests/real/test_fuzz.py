"""Noise and mutated dialogues on every port, before and after login: nothing breaks, nothing is left behind.

``./scripts/test`` throws some hundreds of them at each port, ``--full`` ten thousand. What is random
comes from a seed that a failure shows; each port's noise is its own.
"""

from __future__ import annotations

import os
import random
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.conftest import FULL
from tests.real.conftest import Gateway
from tests.support.servers import free_ports, mailgate

pytestmark = pytest.mark.real

ROUNDS = 10_000 if FULL else 300
AT_ONCE = 24
GROWTH = 12 << 20
"""Bytes by which the gateway may grow over a run: allocators keep some of what a burst needed."""

IMAP_LINES = [
    b"a CAPABILITY\r\n",
    b'a ID ("name" "x" "version" NIL)\r\n',
    b"a LOGIN alice secret\r\n",
    b'a LOGIN "al\\"ice" {6+}\r\nsecret\r\n',
    b"a LOGIN {5}\r\nalice {6}\r\nsecret\r\n",
    b"a AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==\r\n",
    b"a AUTHENTICATE LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\n",
    b"a ENABLE UTF8=ACCEPT\r\n",
    b"b SELECT INBOX\r\n",
    b"c UID FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])\r\n",
    b"d APPEND INBOX (\\Seen) {10+}\r\n0123456789\r\n",
    b"d APPEND INBOX ~{10}\r\n0123456789\r\n",
    b"e IDLE\r\nDONE\r\n",
    b"f SEARCH CHARSET UTF-8 TEXT {4}\r\nblub\r\n",
    b"g COMPRESS DEFLATE\r\n",
    b"h STARTTLS\r\n",
    b"i LOGOUT\r\n",
]
POP3_LINES = [
    b"CAPA\r\n",
    b"USER alice\r\nPASS secret\r\n",
    b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
    b"AUTH PLAIN\r\nAGFsaWNlAHNlY3JldA==\r\n",
    b"AUTH\r\n",
    b"STAT\r\nLIST\r\nUIDL\r\n",
    b"RETR 1\r\nDELE 1\r\nTOP 1 5\r\n",
    b"UTF8\r\nLANG en\r\n",
    b"NOOP\r\nRSET\r\n",
    b"STLS\r\n",
    b"QUIT\r\n",
]
PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"{",
    b"}",
    b"{9999999999}",
    b"{5+}\r\n",
    b'"',
    b"\\",
    b"(",
    b"))",
    b"*",
    b"+",
]
PIECES += [b"\xff\xfe", b"\x16\x03\x01", b"a" * 9000, b"{-1}", b"~{3+}\r\n", b"=", b".", b".\r\n", b"\x80"]
SERVER_NOISE = [
    b"* 1 FETCH (BODY[] {5}\r\n",
    b"{100000}\r\n",
    b"* BYE\r\n",
    b"+ go\r\n",
    b"+OK\r\n",
    b".\r\n",
    b"-ERR\r\n",
]
SERVER_NOISE += [b"a OK\r\n", b"* OK [CAPABILITY X]\r\n", b"\0\0", b"x" * 70_000]


def mutated(source: random.Random, lines: list[bytes]) -> bytes:
    """Return a dialogue in which bytes are lost, doubled, changed and put in."""
    data = bytearray(b"".join(source.choices(lines, k=source.randint(1, 6))))
    for _ in range(source.randint(0, 6)):
        at = source.randrange(len(data) + 1)
        match source.randrange(5):
            case 0:
                data[at:at] = source.choice(PIECES)
            case 1:
                del data[at : at + source.randint(1, 12)]
            case 2 if data:
                data[at % len(data)] = source.randrange(256)
            case 3:
                data[at:at] = data[at : at + source.randint(1, 40)]
            case _:
                data[at:at] = source.randbytes(source.randint(1, 20))
    return bytes(data)


def noise(source: random.Random, protocol: str) -> bytes:
    lines = IMAP_LINES if protocol == "imap" else POP3_LINES
    return source.randbytes(source.randint(1, 400)) if source.random() < 0.3 else mutated(source, lines)


class NoisyServer:
    """An upstream that accepts everybody and answers what it hears, sometimes with noise."""

    def __init__(self, protocol: str, seed: int) -> None:
        self.protocol = protocol
        self.source = random.Random(seed)

    async def __call__(self, stream: trio.SocketStream) -> None:
        async with stream:
            with trio.move_on_after(20):
                try:
                    await (self._imap(stream) if self.protocol == "imap" else self._pop3(stream))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return

    async def _imap(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"* OK [CAPABILITY IMAP4rev1 LITERAL+ AUTH=PLAIN AUTH=LOGIN SASL-IR ID] ready\r\n")
        async for data in stream:
            for line in data.splitlines():
                tag = line.split(b" ", 1)[0] or b"x"
                if self.source.random() < 0.1:
                    await stream.send_all(self.source.choice(SERVER_NOISE))
                await stream.send_all(b"* 1 EXISTS\r\n" + tag[:40] + b" OK done\r\n")

    async def _pop3(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"+OK ready\r\n")
        async for data in stream:
            for line in data.splitlines():
                verb = line[:4].upper()
                if self.source.random() < 0.1:
                    await stream.send_all(self.source.choice(SERVER_NOISE))
                long = verb in {b"CAPA", b"RETR"} or (verb in {b"LIST", b"UIDL"} and len(line) == 4)
                await stream.send_all(b"+OK\r\nTOP\r\n.\r\n" if long else b"+OK\r\n")


@pytest.fixture(scope="module")
def noisy(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, dict[str, int]]]:
    folder = tmp_path_factory.mktemp("noisy")
    upstreams = dict(zip(("imap", "pop3"), free_ports(2), strict=True))
    doors = [(protocol, client) for protocol in ("imap", "pop3") for client in ("implicit", "starttls", "plain")]
    *mail, metrics = free_ports(len(doors) + 1)
    config = f"""
[tls]
certificate = "{authority}"
key = "{authority.with_name("key.pem")}"
[metrics]
bind = "127.0.0.1:{metrics}"
[limits]
failure_delay = "0s"
failure_delay_max = "0s"
sessions_per_address = 1000
half_open_per_address = 1000
[log]
level = "error"
"""
    for protocol, port in upstreams.items():
        config += f'[pool.{protocol}]\nprotocol = "{protocol}"\nservers = ["127.0.0.1:{port}"]\ntls = "off"\n'
        config += 'connect_timeout = "1s"\nlogin_timeout = "1s"\ngreeting_timeout = "1s"\n'
    ports = {}
    for (protocol, client), port in zip(doors, mail, strict=True):
        tls = {"implicit": "implicit", "starttls": "starttls", "plain": "off"}[client]
        name = f"{protocol}-{client}"
        config += (
            f'[[listener]]\nname = "{name}"\nprotocol = "{protocol}"\nbind = ["127.0.0.1:{port}"]\ntls = "{tls}"\n'
        )
        config += f'[[route]]\nmatch.listener = ["{name}"]\npool = "{protocol}"\n'
        ports[protocol, client, "off"] = port
    with mailgate(folder, config, [*mail, metrics]) as program:
        yield Gateway(program, folder, authority, ports, metrics), upstreams


async def _until(stream: trio.abc.Stream, *marks: bytes) -> bytes:
    data = b""
    while not any(mark in data for mark in marks):
        more = await stream.receive_some()
        if not more:
            raise trio.BrokenResourceError
        data += more
    return data


async def open_door(gateway: Gateway, protocol: str, client: str, *, log_in: bool) -> trio.abc.Stream:
    """Return a connection, inside TLS where the port needs it, logged in where asked."""
    tcp = await trio.open_tcp_stream("127.0.0.1", gateway.port(protocol, client))
    stream: trio.abc.Stream = tcp
    try:
        if client == "starttls" and log_in:
            await _until(stream, b"\r\n")
            await stream.send_all(b"s STARTTLS\r\n" if protocol == "imap" else b"STLS\r\n")
            await _until(stream, b"\r\n")
        if client == "implicit" or (client == "starttls" and log_in):
            stream = trio.SSLStream(tcp, gateway.context, server_hostname="localhost", https_compatible=True)
        if client != "starttls" or not log_in:
            await _until(stream, b"\r\n")
        if log_in:
            await stream.send_all(b"l LOGIN a b\r\n" if protocol == "imap" else b"USER a\r\nPASS b\r\n")
            # The noisy upstream spoils some of the logins.
            await _until(stream, b"l OK", b"l NO", b"Logged in", b"-ERR")
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise
    return stream


async def one_round(gateway: Gateway, protocol: str, client: str, log_in: bool, seed: int) -> None:
    source = random.Random(seed)
    with trio.move_on_after(30) as limit:
        try:
            raw = client == "implicit" and not log_in and source.random() < 0.2
            if raw:
                # Noise instead of a handshake.
                stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", gateway.port(protocol, client))
            else:
                stream = await open_door(gateway, protocol, client, log_in=log_in)
        except (trio.BrokenResourceError, ssl.SSLError):
            return
        data = noise(source, protocol)
        try:
            async with trio.open_nursery() as nursery:

                async def drain() -> None:
                    async for _ in stream:
                        continue

                nursery.start_soon(drain)
                at = 0
                while at < len(data):
                    step = source.choice((1, 7, 100, len(data)))
                    await stream.send_all(data[at : at + step])
                    at += step
                if source.random() < 0.05:
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            # Being hung up on is one right answer to noise.
            pass
        finally:
            await trio.aclose_forcefully(stream)
    assert not limit.cancelled_caught, f"seed {seed}: the gateway neither answered nor read"


async def storm(
    gateway: Gateway, upstreams: dict[str, int], protocol: str, client: str, log_in: bool, rounds: int, seed: int
) -> None:
    async with trio.open_nursery() as nursery:
        server = NoisyServer(protocol, seed)
        await nursery.start(lambda task_status: _serve(server, upstreams[protocol], task_status))
        async with trio.open_nursery() as clients:
            places = trio.CapacityLimiter(AT_ONCE)

            async def limited(number: int) -> None:
                async with places:
                    await one_round(gateway, protocol, client, log_in, seed + number)

            for number in range(rounds):
                clients.start_soon(limited, number)
        nursery.cancel_scope.cancel()


async def _serve(server: NoisyServer, port: int, task_status: trio.TaskStatus[object]) -> None:
    await trio.serve_tcp(server, port, host="127.0.0.1", task_status=task_status)


def open_files(gateway: Gateway) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (gateway.program.pid, *gateway.program.workers()))


def settled(gateway: Gateway, files: int) -> bool:
    """Wait until no session is open and no file is left; return whether that came to be."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if gateway.metric("mailgate_sessions_open") == 0 and open_files(gateway) <= files:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("log_in", [False, True], ids=["before login", "after login"])
@pytest.mark.parametrize("client", ["implicit", "starttls", "plain"])
@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_noise_breaks_nothing_and_leaves_nothing(
    noisy: tuple[Gateway, dict[str, int]], protocol: str, client: str, log_in: bool
) -> None:
    gateway, upstreams = noisy
    seed = random.SystemRandom().randrange(1 << 32)
    gateway.http("/metrics")
    # What a first storm loads and caches is no leak.
    trio.run(storm, gateway, upstreams, protocol, client, log_in, min(ROUNDS // 3, 500), seed)
    assert settled(gateway, 1000)
    files, memory = open_files(gateway), gateway.program.resident()

    trio.run(storm, gateway, upstreams, protocol, client, log_in, ROUNDS, seed)

    assert settled(gateway, files), f"seed {seed}: sessions or files are left"
    assert gateway.metric("mailgate_session_crashes_total") == 0, f"seed {seed}: {gateway.program.output()}"
    assert gateway.metric("mailgate_observer_errors_total") == 0
    assert "Traceback" not in gateway.program.output()
    assert gateway.program.resident() - memory < GROWTH, f"seed {seed}"

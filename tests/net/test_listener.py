"""Listening sockets, and the loop that accepts."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mailgate.config import Endpoint
from mailgate.model import Peer
from mailgate.net.listener import PAUSE_SECONDS, ListenError, open_socket, peer_of, serve, take_waiting
from mailgate.stream import PROBE_SECONDS, PROBE_SPREAD, SocketStream

LOOPBACK = Endpoint("127.0.0.1", 0)


def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")


async def accepted(sock: socket.socket, connect: Callable[[], socket.socket]) -> Peer:
    """Return who the listener says has come."""
    peers: list[Peer] = []

    async def handle(stream: SocketStream, peer: Peer) -> None:
        peers.append(peer)
        await stream.send_all(b"hi")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, [sock], handle, nursery, pytest.fail)
        with connect() as client:
            client.settimeout(5)
            assert await trio.to_thread.run_sync(client.recv, 10) == b"hi"
            assert await trio.to_thread.run_sync(client.recv, 10) == b""
        nursery.cancel_scope.cancel()
    sock.close()
    return peers[0]


async def test_ipv4() -> None:
    sock = open_socket(LOOPBACK)
    assert sock.getblocking() is False
    peer = await accepted(sock, lambda: socket.create_connection(sock.getsockname()))
    assert peer.address == "127.0.0.1"
    assert peer.port > 0


async def test_ipv6_leaves_ipv4_alone() -> None:
    needs_ipv6()
    sock = open_socket(Endpoint("::", 0))
    port = sock.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert (await accepted(sock, lambda: socket.create_connection(("::1", port)))).address == "::1"


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, None)])
async def test_unix_sockets(private: bool, mode: int | None, tmp_path: Path) -> None:
    path = tmp_path / "imap"
    sock = open_socket(Endpoint("", 0, path), private=private)
    if mode is not None:
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        return client

    assert await accepted(sock, connect) == Peer("unix", 0)


@pytest.mark.parametrize("own", [True, False])
async def test_connections_are_kept_alive_whoever_opened_the_socket(own: bool) -> None:
    sock = open_socket(Endpoint("127.0.0.1", 0)) if own else socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    found: list[int] = []

    async def handle(stream: SocketStream, peer: Peer) -> None:
        for level, option in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        ):
            found.append(stream.socket.getsockopt(level, option))
        nursery.cancel_scope.cancel()

    with socket.create_connection(sock.getsockname()):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [sock], handle, nursery, pytest.fail)
    sock.close()
    assert found[:2] == [1, 1]
    assert PROBE_SECONDS - PROBE_SPREAD <= found[2] <= PROBE_SECONDS


async def test_a_unix_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    endpoint = Endpoint("", 0, tmp_path / "imap")
    open_socket(endpoint).close()
    assert endpoint.path is not None
    assert endpoint.path.exists()
    sock = open_socket(endpoint)
    with pytest.raises(ListenError, match="something else listens there already"):
        open_socket(endpoint)
    sock.close()


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_text("dear")
    with pytest.raises(ListenError):
        open_socket(Endpoint("", 0, path))
    assert path.read_text() == "dear"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        open_socket(Endpoint("", 0, tmp_path / "absent" / "imap"))


def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            open_socket(Endpoint("127.0.0.1", port))
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: something else listens there already; `ss -ltnp` tells what"
    )


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on 192\.0\.2\.1:143: this machine has no such address$"):
        open_socket(Endpoint("192.0.2.1", 143))


def test_a_port_that_only_root_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Denied)
    with pytest.raises(ListenError, match="ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"):
        open_socket(Endpoint("127.0.0.1", 993))


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("192.0.2.1", 4711), "192.0.2.1"),
        (("::ffff:192.0.2.1", 4711, 0, 0), "192.0.2.1"),
        (("2001:db8::1", 4711, 0, 0), "2001:db8::1"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::1"),
    ],
)
def test_addresses_have_one_form(name: tuple[object, ...], address: str) -> None:
    class Named:
        family = socket.AF_INET

        def getpeername(self) -> tuple[object, ...]:
            return name

    assert peer_of(Named()) == Peer(address, 4711)  # type: ignore[arg-type]


# ---------------------------------------------------------------- faults


class Accepting:
    """A listening socket whose ``accept`` does what it is told, in turn; readable until nothing is left."""

    def __init__(self, *outcomes: int | socket.socket) -> None:
        self._outcomes = list(outcomes)
        self._idle, self._other = socket.socketpair()
        self._other.send(b"?" * len(outcomes))

    def accept(self) -> tuple[socket.socket, object]:
        if not self._outcomes:
            raise BlockingIOError
        outcome = self._outcomes.pop(0)
        self._idle.recv(1)
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome))
        return outcome, None

    def fileno(self) -> int:
        return self._idle.fileno()

    def close(self) -> None:
        self._idle.close()
        self._other.close()


async def served(*outcomes: int | socket.socket) -> tuple[int, list[str], float]:
    """Return how many connections were handled, what was told of pauses, and the seconds that it took."""
    listening = Accepting(*outcomes)
    pauses: list[str] = []
    handled: list[Peer] = []
    began = trio.current_time()
    ended = began

    async def handle(stream: SocketStream, peer: Peer) -> None:
        nonlocal ended
        handled.append(peer)
        ended = trio.current_time()
        await trio.lowlevel.checkpoint()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [listening], handle, nursery, pauses.append)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    finally:
        listening.close()
    return len(handled), pauses, ended - began


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_accepting_rests_when_files_ran_out(number: int, autojump_clock: trio.testing.MockClock) -> None:
    near, far = socket.socketpair()
    with far:
        assert await served(number, number, near) == (1, [os.strerror(number)] * 2, pytest.approx(2 * PAUSE_SECONDS))
    assert near.fileno() == -1


async def test_a_client_that_went_before_it_was_accepted(autojump_clock: trio.testing.MockClock) -> None:
    near, far = socket.socketpair()
    with far:
        assert await served(errno.ECONNABORTED, errno.EPROTO, near) == (1, [], 0)


async def test_a_client_that_went_while_it_was_accepted(autojump_clock: trio.testing.MockClock) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        never_connected = socket.socket()
    near, far = socket.socketpair()
    with far:
        assert (await served(never_connected, near))[:2] == (1, [])
    assert never_connected.fileno() == -1


async def test_other_errors_of_accept_end_the_listener() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await served(errno.EINVAL)
    assert caught.group_contains(OSError, match="Invalid argument")


async def test_a_stream_is_closed_behind_its_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = open_socket(LOOPBACK)
    streams: list[SocketStream] = []

    async def handle(stream: SocketStream, peer: Peer) -> None:
        streams.append(stream)
        await trio.lowlevel.checkpoint()
        raise ConnectionResetError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, [sock], handle, nursery, pytest.fail)
        client = await trio.open_tcp_stream(*sock.getsockname())
        assert await client.receive_some() == b""
        await client.aclose()
        nursery.cancel_scope.cancel()
    assert streams[0].socket.fileno() == -1
    sock.close()


async def test_sessions_outlive_their_listener() -> None:
    sock = open_socket(LOOPBACK)
    begun, go_on = trio.Event(), trio.Event()

    async def handle(stream: SocketStream, peer: Peer) -> None:
        begun.set()
        await go_on.wait()
        await stream.send_all(b"done")

    async with trio.open_nursery() as sessions:
        async with trio.open_nursery() as listeners:
            listeners.start_soon(serve, [sock], handle, sessions, pytest.fail)
            client = await trio.open_tcp_stream(*sock.getsockname())
            await begun.wait()
            listeners.cancel_scope.cancel()
        go_on.set()
        assert await client.receive_some() == b"done"
        await client.aclose()
    sock.close()


async def test_what_waits_is_taken_before_a_socket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Peer] = []

    async def handle(stream: SocketStream, peer: Peer) -> None:
        served.append(peer)
        await stream.send_all(b"hi")

    def gone_once(sock: socket.socket) -> Peer:
        monkeypatch.setattr("mailgate.net.listener.peer_of", peer_of)
        raise OSError(errno.ENOTCONN, "gone")

    listening = open_socket(LOOPBACK)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listening.getsockname())) for _ in range(3)]
        monkeypatch.setattr("mailgate.net.listener.peer_of", gone_once)
        async with trio.open_nursery() as nursery:
            take_waiting(listening, handle, nursery)
            take_waiting(listening, handle, nursery)
            listening.close()
            take_waiting(listening, handle, nursery)
        assert {peer.port for peer in served} == {client.getsockname()[1] for client in clients[1:]}
        assert [client.recv(10) for client in clients[1:]] == [b"hi", b"hi"]
        assert clients[0].recv(10) == b""

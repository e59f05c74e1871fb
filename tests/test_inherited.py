"""Sockets that were given are used where they fit, once, and others are opened."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mailgate.config import Endpoint
from mailgate.doors import Kind, Place
from mailgate.inherited import Inherited
from mailgate.net.listener import ListenError
from mailgate.workers.handover import HandedSocket
from mailgate.workers.systemd import Activated
from tests.support.servers import free_ports


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def server(stack: ExitStack, host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return stack.enter_context(socket.create_server((host, 0), family=family))


def place(endpoint: str, kind: Kind = "mail") -> Place:
    return Place("bind", kind, Endpoint.parse(endpoint))


def of(sock: socket.socket, host: str = "") -> str:
    name = sock.getsockname()
    return str(Endpoint(host or name[0], name[1]))


def test_one_that_was_handed_over_is_used_by_its_name_and_kind(stack: ExitStack) -> None:
    earlier = server(stack)
    handed = HandedSocket(kind="mail", endpoint=of(earlier), descriptor=earlier.fileno())
    inherited = Inherited([handed])
    with pytest.raises(ListenError, match="something else listens there already"):
        inherited.open(place(of(earlier), "metrics"))
    sock = stack.enter_context(inherited.open(place(of(earlier))))
    assert sock.getsockname() == earlier.getsockname()
    # The earlier descriptor stays as it is for another try.
    assert sock.fileno() != earlier.fileno()
    assert not sock.getblocking()
    inherited.check()
    with pytest.raises(ListenError):
        inherited.open(place(of(earlier)))


@pytest.mark.parametrize(
    ("bound", "host"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0")]
)
def test_one_of_systemds_is_used_by_its_address(stack: ExitStack, bound: str, host: str) -> None:
    given = server(stack, bound)
    inherited = Inherited(activated=[Activated(given, "imaps")])
    assert inherited.open(place(of(given, host))) is given
    assert given.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    inherited.check()


def test_a_unix_socket_of_systemds_is_used_and_not_bound_anew(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    given = stack.enter_context(socket.socket(socket.AF_UNIX))
    given.bind(str(path))
    given.listen()
    inode = path.stat().st_ino
    inherited = Inherited(activated=[Activated(given, "admin")])
    assert inherited.open(place(f"unix:{path}", "admin")) is given
    assert path.stat().st_ino == inode


def test_one_that_nobody_asks_for_is_named(stack: ExitStack, tmp_path: Path) -> None:
    given, other = server(stack), server(stack, "::1")
    inherited = Inherited(activated=[Activated(given, "imaps"), Activated(other, "pop3s")])
    (port,) = free_ports(1)
    stack.enter_context(inherited.open(place(f"127.0.0.1:{port}")))
    with pytest.raises(ListenError) as caught:
        inherited.check()
    assert f"systemd listens on {of(given)} (imaps), {of(other)} (pop3s), which no bind" in str(caught.value)
    inherited.close()
    assert given.fileno() == -1
    inherited.check()


def test_a_host_that_is_not_found_fits_no_socket(stack: ExitStack) -> None:
    inherited = Inherited(activated=[Activated(server(stack), "imaps")])
    with pytest.raises(ListenError, match="cannot listen on nowhere"):
        inherited.open(place("nowhere.invalid:993"))


def test_descriptors_stay_open_where_opening_fails(stack: ExitStack) -> None:
    earlier = server(stack)
    handed = HandedSocket(kind="mail", endpoint=of(earlier), descriptor=earlier.fileno())
    Inherited([handed]).open(place(of(earlier))).close()
    os.fstat(earlier.fileno())

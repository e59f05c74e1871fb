"""What systemd hands over, in good and in bad order, and what it is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mailgate.workers import systemd
from mailgate.workers.systemd import ActivationError, Notifier, activated


def environment(count: object, names: str | None = None, pid: object = None) -> dict[str, str]:
    found = {"LISTEN_PID": str(os.getpid() if pid is None else pid), "LISTEN_FDS": str(count), "HOME": "/"}
    return found if names is None else found | {"LISTEN_FDNAMES": names}


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put sockets, inheritable, where systemd does; the place begins elsewhere, since the test has 3 in use."""
    begin = 700
    monkeypatch.setattr(systemd, "FIRST", begin)
    with ExitStack() as stack:

        def put(*sockets: socket.socket) -> None:
            for number, sock in enumerate(sockets):
                stack.enter_context(sock)
                os.dup2(sock.fileno(), begin + number)

        yield put


def test_sockets_are_taken_once_and_made_ours(first: Callable[..., None], tmp_path: Path) -> None:
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "admin"))
    local.listen()
    servers = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6), local]
    first(*servers)
    variables = environment(3, "imaps:pop3s:admin")
    found = activated(variables)
    assert variables == {"HOME": "/"}
    assert [one.name for one in found] == ["imaps", "pop3s", "admin"]
    for one, server in zip(found, servers, strict=True):
        assert one.socket.getsockname() == server.getsockname()
        assert not one.socket.get_inheritable()
        assert not one.socket.getblocking()
        one.socket.close()
    assert activated(variables) == []


@pytest.mark.parametrize("missing", ["LISTEN_PID", "LISTEN_FDS"])
def test_without_either_nothing_was_handed_over(missing: str) -> None:
    variables = environment(1)
    del variables[missing]
    assert activated(variables) == []
    assert variables == {"HOME": "/"}


def test_those_of_another_process_are_left_alone() -> None:
    assert activated(environment(1, pid=os.getpid() + 1)) == []


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (environment("many"), "must be numbers"),
        (environment(1, pid="me"), "must be numbers"),
        (environment(""), "must be numbers"),
        (environment(-1), "must not be negative"),
        (environment(2, "one"), "has 1 names for 2 sockets"),
        (environment(1, "one:two"), "has 2 names for 1 sockets"),
    ],
)
def test_what_is_malformed_is_told(variables: dict[str, str], told: str) -> None:
    with pytest.raises(ActivationError, match=told):
        activated(variables)


def test_a_descriptor_that_is_not_there_is_told(first: Callable[..., None]) -> None:
    with pytest.raises(ActivationError, match=r"descriptor 700 of systemd \(imaps\) is no socket"):
        activated(environment(1, "imaps"))


def test_a_socket_that_does_not_listen_is_told(first: Callable[..., None]) -> None:
    one, other = socket.socketpair()
    other.close()
    first(one)
    with pytest.raises(ActivationError, match="no Accept=yes"):
        activated(environment(1, ""))


# ---------------------------------------------------------------- telling


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def test_what_is_told_is_one_datagram(ear: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ear.getsockname()})
    assert notifier
    notifier.tell("READY=1", "STATUS=2 sessions")
    assert ear.recv(1000) == b"READY=1\nSTATUS=2 sessions"


def test_an_abstract_socket_is_told() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")
        Notifier({"NOTIFY_SOCKET": "@" + sock.getsockname()[1:].decode()}).tell("STOPPING=1")
        assert sock.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_where_nobody_can_be_told_nothing_is(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert not notifier
    notifier.tell("READY=1")


def test_one_that_hears_no_more_harms_nobody(ear: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ear.getsockname()})
    for _ in range(2000):
        notifier.tell("STATUS=the queue is full at some time")
    (tmp_path / "notify").unlink()
    notifier.tell("READY=1")


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_how_often_the_watchdog_is_to_be_told(variables: dict[str, str], seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x"} | variables).watchdog == seconds

"""Listening sockets, the loop that accepts, and the boundary around each connection."""

from __future__ import annotations

import errno
import functools
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio

from mailgate.config import Endpoint
from mailgate.errors import MailgateError
from mailgate.model import Peer
from mailgate.stream import SocketStream, keep_alive, probe_seconds

BACKLOG: Final = 65_535
"""Connections that the kernel keeps while the gateway is busy; it lowers this to net.core.somaxconn. Where the queue
overflows it answers with SYN cookies, and clients whose cookie it does not take later are reset."""

PAUSE_SECONDS: Final = 0.1
"""How long accepting rests when files or memory ran out: trying at once would only burn CPU."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_GONE: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH}
)

Handler = Callable[[SocketStream, Peer], Awaitable[None]]


class Turns(Protocol):
    """A worker's manners at a queue of connections that it shares with other workers."""

    def pause(self) -> float:
        """Return for how many seconds to leave a connection that waits to the others; 0 is to take it."""

    def took(self, waited: bool) -> None:
        """Note that a connection was accepted, perhaps one that was left to the others in vain."""

    def missed(self) -> None:
        """Note that another took a connection that was left to it."""


class ListenError(MailgateError):
    """An address cannot be listened on; the text says what to do."""


def open_socket(endpoint: Endpoint, *, private: bool = False) -> socket.socket:
    """Return a listening socket; raises ListenError. A ``private`` Unix socket is for its owner alone."""
    try:
        if endpoint.path is not None:
            return _open_unix(str(endpoint.path), private)
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        found = socket.getaddrinfo(endpoint.host, endpoint.port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
        sock = socket.socket(found[0][0], socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Each family has its own entry in the configuration, so "[::]" leaves IPv4 alone.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(found[0][4])
            # What is accepted inherits this, which costs less than to ask for it each time.
            keep_alive(sock)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ListenError(f"cannot listen on {endpoint}: {_advice(error, endpoint)}") from error
    sock.setblocking(False)
    return sock


def _open_unix(path: str, private: bool) -> socket.socket:
    """Listen on a Unix socket, in the place of one that nobody listens on any more."""
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        finally:
            probe.close()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        if private:
            # Nobody can connect before ``listen``, so nobody comes in before the mode is in force.
            os.chmod(path, 0o600)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _advice(error: OSError, endpoint: Endpoint) -> str:
    match error.errno:
        case errno.EACCES if endpoint.path is None:
            return "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
        case errno.EADDRINUSE:
            return "something else listens there already; `ss -ltnp` tells what"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case _:
            return error.strerror or str(error)


def peer_of(sock: socket.socket) -> Peer:
    """Return the far end of an accepted connection, an IPv4 address always in its own form."""
    name = sock.getpeername()
    if not isinstance(name, tuple):
        # Unix sockets have a path, or none.
        return Peer("unix", 0)
    return Peer(_address(name[0]), name[1])


@functools.lru_cache(maxsize=4096)
def _address(host: str) -> str:
    """Return an address as it is shown, one object for all connections of a client that has many."""
    return host.partition("%")[0].removeprefix("::ffff:")


async def serve(
    sockets: Sequence[socket.socket],
    handler: Handler,
    sessions: trio.Nursery,
    on_pause: Callable[[str], None],
    turns: Turns | None = None,
) -> None:
    """Accept connections until cancelled, and run ``handler`` for each in ``sessions``.

    ``handler`` owns its stream until it returns; it is closed behind it in any case. ``on_pause``
    is told when files or memory ran out. Cancelling this leaves the sessions alone. ``turns`` is asked before
    each connection where other processes accept from the same sockets.
    """
    async with trio.open_nursery() as nursery:
        for sock in sockets:
            nursery.start_soon(_accept, sock, handler, sessions, on_pause, turns)


async def _accept(
    listening: socket.socket,
    handler: Handler,
    sessions: trio.Nursery,
    on_pause: Callable[[str], None],
    turns: Turns | None,
) -> None:
    while True:
        # To wait for each one costs less than to ask in vain whether there is another, and is fair to the sessions.
        await trio.lowlevel.wait_readable(listening)
        waited = False
        if turns is not None and (seconds := turns.pause()):
            await trio.sleep(seconds)
            waited = True
        try:
            sock, _ = listening.accept()
        except BlockingIOError:
            # Another listened on the same socket, or the client went.
            if turns is not None and waited:
                turns.missed()
            continue
        except OSError as error:
            if error.errno in _EXHAUSTED:
                on_pause(os.strerror(error.errno or 0))
                await trio.sleep(PAUSE_SECONDS)
                continue
            if error.errno in _GONE:
                continue
            raise
        if turns is not None:
            turns.took(waited)
        _begin(sock, handler, sessions)


def take_waiting(listening: socket.socket, handler: Handler, sessions: trio.Nursery) -> None:
    """Accept what waits in the queue of a socket that is about to be closed, since closing it would refuse them."""
    for _ in range(BACKLOG):
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        _begin(sock, handler, sessions)


def _begin(sock: socket.socket, handler: Handler, sessions: trio.Nursery) -> None:
    try:
        peer = peer_of(sock)
    except OSError:
        # The client went between the kernel's accept and ours.
        sock.close()
    else:
        sessions.start_soon(_own, SocketStream(sock), peer, handler)


async def _own(stream: SocketStream, peer: Peer, handler: Handler) -> None:
    """Run a handler and close its stream behind it, whatever happened."""
    try:
        if peer.port:
            if not stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
                # A listening socket that was not opened here has nothing to inherit.
                keep_alive(stream.socket)
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_seconds(stream.socket))
        await handler(stream, peer)
    except OSError:
        # Setting options fails when the client is gone already; handlers let no OSError out.
        return
    finally:
        stream.abort()

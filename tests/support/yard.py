"""The relay engine alone, between sockets whose far ends a test holds: plain, TCP, TLS, with small buffers."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from mailgate.events import CommandFinished, CrashedSession, Event
from mailgate.model import ALLOW, End, Peer, Protocol, Session, Verdict
from mailgate.policy.access import KNOWN_VERBS
from mailgate.session.engine import Engine
from mailgate.session.relay import Relay, Watch
from mailgate.stream import SocketStream, burst_buffer
from mailgate.wire.relay import RelayCore
from mailgate.wire.relay_imap import ImapRelay
from mailgate.wire.relay_pop3 import Pop3Relay
from tests.support.certificates import contexts

Far = trio.SocketStream | trio.SSLStream[trio.SocketStream]

TRANSPORTS = [("", False), ("", True), ("client upstream", False), ("client upstream", True)]
"""TLS and TCP, or Unix sockets."""

transports = pytest.mark.parametrize(("tls", "tcp"), TRANSPORTS, ids=["unix", "tcp", "tls-unix", "tls-tcp"])

BYE = b"* BYE\r\n"
FLOOD = b"* 1 FETCH (BODY[] {600000}\r\n%b)\r\n" % (b"x" * 600_000)


def bye(reason: str) -> bytes:
    """Say goodbye, whatever the reason."""
    return BYE


def imap_core(decide: Callable[[str], Verdict] = lambda verb: ALLOW) -> ImapRelay:
    """Return a core for IMAP with an upstream that takes all literals."""
    verbs = KNOWN_VERBS[Protocol.IMAP]
    return ImapRelay(decide=decide, visible=list, verbs=verbs, capabilities=frozenset({"LITERAL+"}))


def pop3_core(decide: Callable[[str], Verdict] = lambda verb: ALLOW) -> Pop3Relay:
    """Return a core for POP3."""
    return Pop3Relay(decide=decide, visible=list, verbs=KNOWN_VERBS[Protocol.POP3])


@dataclass(eq=False)
class Link:
    """One relay in the engine, and what a test has of it."""

    session: Session
    client: Far
    upstream: Far
    near: tuple[socket.socket, socket.socket]
    far: tuple[trio.socket.SocketType, trio.socket.SocketType]
    ends: list[End] = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)

    def done(self, end: End) -> None:
        """Stand in the place of whoever counts sessions."""
        assert all(sock.fileno() < 0 for sock in self.near), "told of the end before both sockets were closed"
        self.ends.append(end)
        self.ended.set()


class Yard:
    """An engine with its relays."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.watch = Watch()
        self.engine = Engine(burst_buffer(), self.watch)
        self.links: list[Link] = []
        self.emit: Callable[[Event], None] = self.events.append

    async def link(
        self,
        core: RelayCore,
        *,
        tls: str = "",
        tcp: bool = False,
        small: bool = False,
        farewell: Callable[[str], bytes] = lambda reason: b"",
        linger: float = 5.0,
        early: tuple[bytes, bytes] = (b"", b""),
        before: Callable[[Link], object] = lambda link: None,
        done: Callable[[Link, End], None] = Link.done,
    ) -> Link:
        """Adopt a new pair; ``tls`` names the legs that have it, ``before`` is called just before the adoption."""
        near_client, client = await _connected("client" in tls, tcp, small, near_serves=True)
        near_upstream, upstream = await _connected("upstream" in tls, tcp, small, near_serves=False)
        session = Session(f"s{len(self.links)}", Protocol.IMAP, "test", Peer("192.0.2.1", 1), trio.current_time())
        relay = Relay(core, session, lambda event: self.emit(event), idle=60.0, linger=linger, farewell=farewell)
        link = Link(session, client, upstream, (near_client, near_upstream), (raw_socket(client), raw_socket(upstream)))
        self.links.append(link)
        before(link)
        self.engine.adopt(relay, near_client, near_upstream, lambda end: done(link, end), *early)
        return link

    def relay(self, link: Link) -> Relay:
        """Return the relay of a link, which nothing here keeps."""
        (found,) = (one for one in self.watch._relays if one.session is link.session)
        return found

    @property
    def finished(self) -> list[tuple[str, str, float]]:
        """What commands came to."""
        return [(one.verb, one.result, one.seconds) for one in self.events if isinstance(one, CommandFinished)]

    @property
    def crashes(self) -> list[BaseException]:
        """Errors of the gateway's own that were told."""
        return [one.error for one in self.events if isinstance(one, CrashedSession)]

    def count_turns(self, act: Callable[[int], None] = lambda number: None) -> list[int]:
        """Return how many turns there were in a list of one, which goes on counting; ``act`` comes behind each."""
        turns = [0]
        turn = self.engine._turn

        def counted(ready: list[tuple[int, int]], now: float) -> bool:
            result = turn(ready, now)
            turns[0] += 1
            act(turns[0])
            return result

        self.engine._turn = counted  # type: ignore[method-assign]
        return turns

    def check(self) -> None:
        """Check that nothing is left of any relay, and that each was told to be over once."""
        for link in self.links:
            assert len(link.ends) == 1, (link.session.id, link.ends)
            assert [sock.fileno() for sock in link.near] == [-1, -1]
            for far in link.far:
                far.close()
        assert (len(self.engine), len(self.engine._legs), len(self.watch)) == (0, 0, 0)


@asynccontextmanager
async def serving(*, expect_failure: bool = False) -> AsyncIterator[Yard]:
    """Run an engine around the body; behind it nothing may be left, be it an entry, a socket or a descriptor."""
    before = descriptors()
    yard = Yard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(yard.engine.run)
        await trio.testing.wait_all_tasks_blocked()
        # Trio's own epoll of this run was there before; what its threads need may come.
        yield yard
        nursery.cancel_scope.cancel()
    yard.check()
    assert descriptors() == before


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def raw_socket(far: Far) -> trio.socket.SocketType:
    """Return the socket below a far end."""
    return far.socket if isinstance(far, trio.SocketStream) else far.transport_stream.socket


def reset(far: Far) -> None:
    """Close a far end so that what comes from here is a reset: over TCP at once, over Unix by unread bytes."""
    sock = raw_socket(far)
    if sock.family != socket.AF_UNIX and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def send_at_once(far: Far, data: bytes | None) -> None:
    """Send without waiting, through TLS; its end with ``None``. What comes of it must fit into the socket."""
    assert isinstance(far, trio.SSLStream)
    if data is None:
        with contextlib.suppress(ssl.SSLWantReadError):
            far._ssl_object.unwrap()
    else:
        far._ssl_object.write(data)
    records = far._outgoing.read()
    assert raw_socket(far)._sock.send(records) == len(records)


async def read(far: Far, size: int, *, at_a_time: int = 65536, pause: float = 0.0) -> bytes:
    """Read just so many bytes, at most so many at a time and after a pause each."""
    got = bytearray()
    while len(got) < size:
        if pause:
            await trio.sleep(pause)
        piece = await far.receive_some(min(at_a_time, size - len(got)))
        assert piece, f"the end came after {len(got)} of {size} bytes"
        got += piece
    return bytes(got)


async def command(link: Link, tag: bytes) -> None:
    """Let a command go forth and its answer back."""
    await link.client.send_all(tag + b" NOOP\r\n")
    assert await read(link.upstream, len(tag) + 7) == tag + b" NOOP\r\n"
    await link.upstream.send_all(tag + b" OK done\r\n")
    assert await read(link.client, len(tag) + 10) == tag + b" OK done\r\n"


async def read_all(far: Far) -> bytes:
    """Read until the end, whichever it is."""
    got = bytearray()
    try:
        while piece := await far.receive_some(65536):
            got += piece
    except trio.BrokenResourceError:
        return bytes(got)
    return bytes(got)


def _sockets(tcp: bool) -> tuple[socket.socket, socket.socket]:
    if not tcp:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


async def _connected(tls: bool, tcp: bool, small: bool, *, near_serves: bool) -> tuple[socket.socket, Far]:
    near, far = _sockets(tcp)
    if small:
        # Windows smaller than a segment of the loopback's would make TCP wait for its timers.
        size = 131_072 if tcp else 4096
        for sock in (near, far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    stream = SocketStream(near)
    raw = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    if not tls:
        return stream.release(), raw
    serving, asking = contexts()
    wrapped = trio.SSLStream(
        raw,
        asking if near_serves else serving,
        server_hostname="localhost" if near_serves else None,
        server_side=not near_serves,
        https_compatible=True,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wrapped.do_handshake)
        if near_serves:
            await stream.start_tls(serving, server_side=True)
        else:
            await stream.start_tls(asking, server_side=False, server_hostname="localhost")
    return stream.release(), wrapped

"""Byte streams: a socket with or without TLS, or any Trio stream, behind four calls.

TLS is driven directly on the non-blocking socket through the public ``ssl.SSLSocket``. Compared
with memory BIOs and a lock and a checkpoint for every record, that costs about half the CPU per
relayed byte, and an idle connection keeps about a kibibyte of buffers instead of what its largest
transfer once needed.

The contract that lets one buffer serve every session of a process: ``receive`` takes no checkpoint
between reading the first byte and returning, and ``send_all`` copies what is left before it waits.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from mailgate import timekeeper
from mailgate.model import TlsInfo

Socket = socket.socket

BURST: Final = 256 * 1024
"""Bytes that one ``receive`` takes at most. Larger bursts gain nothing measurable."""

ROUNDS: Final = 8
"""Calls that may succeed at once before a stream lets the other tasks run."""

LONE: Final = 512
"""Bytes up to which what arrives by itself is taken for a lone command or answer, behind which nothing
follows at once. More than that may be a part of a download; real servers send records of odd sizes in it."""

PEEK_SECONDS: Final = 0.01
"""How often a Unix socket is looked at while more than its first bytes is wanted."""


def burst_buffer() -> bytearray:
    """Return a new buffer of the size that a worker shares between its sessions."""
    return bytearray(BURST)


tls_info = functools.lru_cache(maxsize=256)(TlsInfo)
"""Returns what a handshake agreed on, one value for all sessions that agreed on the same."""


PROBE_SECONDS: Final = 120
"""After how much silence a peer is probed."""

PROBE_SPREAD: Final = 30
"""By how many seconds less at most, so that connections that came at once are not all probed at once ever after."""


def probe_seconds(sock: socket.socket) -> int:
    """Return after how much silence this socket's peer is to be probed. Neighbours in number differ."""
    return PROBE_SECONDS - sock.fileno() % (PROBE_SPREAD + 1)


def keep_alive(sock: socket.socket, idle: int = PROBE_SECONDS, interval: int = 30, count: int = 4) -> None:
    """Let a socket send small pieces at once and probe a silent peer; does nothing to a Unix socket.

    After ``idle`` seconds of silence a probe goes out every ``interval`` seconds, which keeps
    the entry in NATs (RFC 5382 lets them forget after two hours, real ones after minutes), and
    after ``count`` unanswered ones the connection is lost. What a listening socket accepts
    inherits all of it on Linux.
    """
    if sock.family == socket.AF_UNIX:
        return
    for level, option, value in _options(idle, interval, count):
        sock.setsockopt(level, option, value)


def acknowledge_at_once(sock: socket.socket) -> None:
    """Have what a socket receives next acknowledged without delay; does nothing to a Unix socket.

    A peer that sends small pieces and follows Nagle's algorithm (RFC 9293 §3.7.4) keeps each back until the one before
    it is acknowledged, and that the kernel puts off for 40 ms where nothing is sent the other way.
    """
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@functools.cache
def _options(idle: int, interval: int, count: int) -> tuple[tuple[int, int, int], ...]:
    return (
        (int(socket.IPPROTO_TCP), socket.TCP_NODELAY, 1),
        (int(socket.SOL_SOCKET), socket.SO_KEEPALIVE, 1),
        (int(socket.IPPROTO_TCP), socket.TCP_KEEPIDLE, idle),
        (int(socket.IPPROTO_TCP), socket.TCP_KEEPINTVL, interval),
        (int(socket.IPPROTO_TCP), socket.TCP_KEEPCNT, count),
    )


class ByteStream(Protocol):
    """One connection, as sessions and upstreams use it.

    Every call raises ``trio.BrokenResourceError`` when the connection was lost and
    ``trio.ClosedResourceError`` after it was closed here. A reset inside TLS may look like the end
    to one who reads, since not every OpenSSL tells them apart.
    """

    tls: TlsInfo | None
    deadline: float
    """The moment, by Trio's clock, from which waiting for the peer raises ``trio.TooSlowError``; infinite at first.

    It may be moved whenever no task waits. A cancel scope for each limit would cost a login more than its TLS records.
    """

    async def receive(self, buffer: memoryview) -> int:
        """Fill ``buffer`` from its start with what has arrived; return how much, 0 at the end."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; what cannot go at once is copied before this waits."""
        ...

    async def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> TlsInfo:
        """Do a TLS handshake; everything after it is inside TLS. Raises ``ssl.SSLError`` if it fails."""
        ...

    async def aclose(self) -> None:
        """Close, even when cancelled, telling a TLS peer so without waiting for it."""
        ...


class SocketStream:
    """A :class:`ByteStream` over a stdlib socket, which it makes non-blocking and owns."""

    __slots__ = (
        "_drained",
        "_failed",
        "_quick_reads",
        "_quick_writes",
        "_sock",
        "_timed",
        "_waiting",
        "deadline",
        "tls",
    )

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock: socket.socket | ssl.SSLSocket = sock
        self._failed: Exception | None = None
        # Whether nothing is known to be there: reading waits first, which cannot be in vain.
        self._drained = True
        self._quick_reads = 0
        self._quick_writes = 0
        self._waiting = 0
        self.tls: TlsInfo | None = None
        self.deadline = math.inf
        # When the timekeeper looks at this stream next.
        self._timed = math.inf

    @property
    def socket(self) -> socket.socket:
        """The socket, for options and addresses."""
        return self._sock

    async def connect(self, address: tuple[str, int] | str) -> None:
        """Connect to a numeric address or a Unix socket's path; raises OSError."""
        error = self._sock.connect_ex(address)
        if error == errno.EINPROGRESS:
            # On the same machine it is done by now, and to ask again costs much less than to wait.
            error = self._sock.connect_ex(address)
        if error == errno.EALREADY:
            await self._wait(trio.lowlevel.wait_writable)
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if error:
            raise OSError(error, os.strerror(error))

    async def receive(self, buffer: memoryview) -> int:
        """See :class:`ByteStream`; a connection cut without TLS's farewell ends like any other."""
        if self._drained:
            self._quick_reads = 0
            await self._wait(trio.lowlevel.wait_readable)
        elif self._quick_reads >= ROUNDS:
            self._quick_reads = 0
            self._check_time()
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            count = self._read(buffer)
            if count is not None:
                self._quick_reads += 1
                return count
            self._quick_reads = 0
            await self._wait(trio.lowlevel.wait_readable)

    def _read(self, buffer: memoryview) -> int | None:
        """Read what is there: ``None`` if nothing is yet, 0 at the end."""
        if self._failed is not None:
            raise self._failed
        sock = self._sock
        filled = 0
        room = len(buffer)
        self._drained = False
        try:
            while filled < room:
                count = sock.recv_into(buffer[filled:])
                if count == 0:
                    break
                lone = not filled and count <= LONE
                filled += count
                if self.tls is None or lone:
                    # A plain read takes all there is and a TLS read all of one record, unless the buffer is full.
                    self._drained = lone and filled < room
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._drained = filled <= LONE
            return filled or None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return filled
        except OSError as error:
            failed = _failure(error)
            if filled:
                # OpenSSL tells of an error once and of the end from then on.
                self._failed = failed
                return filled
            raise failed from error
        return filled

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See :class:`ByteStream`."""
        size = len(data)
        if not size:
            return
        if self._quick_writes >= ROUNDS:
            self._quick_writes = 0
            data = bytes(data)
            self._check_time()
            await trio.lowlevel.checkpoint()
        view = memoryview(data)
        sent = self._write(view)
        if sent == size:
            self._quick_writes += 1
            return
        # Others may read into the buffer behind ``data`` as soon as this task waits.
        view = memoryview(bytes(view[sent:]))
        self._quick_writes = 0
        while len(view):
            await self._wait(trio.lowlevel.wait_writable)
            view = view[self._write(view) :]

    def _write(self, view: memoryview) -> int:
        """Write what fits. OpenSSL takes a piece whole or wants the same one again."""
        try:
            return self._sock.send(view)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise _failure(error) from error

    async def _wait(self, ready: Callable[[int], Awaitable[None]]) -> None:
        """Wait until the socket is ready to be read or written, as ``ready`` says, or the deadline has come."""
        fd = self._fd()
        if self.deadline < self._timed:
            self._keep_time()
        self._waiting += 1
        try:
            await ready(fd)
        except trio.ClosedResourceError:
            self._check_time()
            raise
        finally:
            self._waiting -= 1

    def _check_time(self) -> None:
        if self.deadline <= trio.current_time():
            raise trio.TooSlowError from None

    def _keep_time(self) -> None:
        """Have the wait that begins now ended when the deadline has come."""
        self._check_time()
        self._timed = self.deadline
        timekeeper.watch(self)

    def look_at_time(self, now: float) -> float:
        """End a wait whose deadline has come; return when to look again. For the timekeeper."""
        if self.deadline > now:
            self._timed = self.deadline
        else:
            self._timed = math.inf
            if self._waiting:
                # The same that closing does: who waits looks at the time then.
                trio.lowlevel.notify_closing(self._sock)
        return self._timed

    def _fd(self) -> int:
        fd = self._sock.fileno()
        if fd < 0:
            raise trio.ClosedResourceError("this connection was closed")
        return fd

    async def peek(self, size: int, *, more_than: int = 0) -> bytes:
        """Return up to ``size`` first bytes without taking them, once there are more than ``more_than``.

        Only before TLS. At the end of the stream what there is is returned, however little; on a Unix
        socket that may take until the caller's own time limit.
        """
        self._fd()
        # What a client says first has often come with its connection, and to ask costs less than to wait.
        waits = more_than > 0
        while True:
            try:
                if more_than:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, more_than + 1)
                if waits:
                    await self._wait(trio.lowlevel.wait_readable)
                data = self._sock.recv(size, socket.MSG_PEEK)
                if not 0 < len(data) <= more_than or self._sock.family != socket.AF_UNIX:
                    return data
                # Unix sockets are readable from their first byte on, and do not tell the end before it is taken.
                with trio.fail_at(self.deadline):
                    await trio.sleep(PEEK_SECONDS)
            except BlockingIOError:
                waits = True
            except OSError as error:
                raise _failure(error) from error
            finally:
                if more_than and self._sock.fileno() >= 0:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    async def start_tls(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> TlsInfo:
        """See :class:`ByteStream`; raises ``trio.BrokenResourceError`` if the peer goes in between.

        ``session`` is an earlier connection's, made with the same context, to be resumed if the server agrees.
        """
        self._fd()
        try:
            # A connection that was reset already makes ``wrap_socket`` lose its descriptor.
            self._sock.getpeername()
            self._sock = wrapped = context.wrap_socket(
                self._sock,
                server_side=server_side,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
                server_hostname=server_hostname,
                session=session,
            )
            # Every socket would keep a copy of the name, which is OpenSSL's by now.
            wrapped.server_hostname = server_hostname
            await self._handshake(wrapped)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise trio.BrokenResourceError("the peer went during the TLS handshake") from error
        except ssl.SSLError:
            raise
        except OSError as error:
            raise trio.BrokenResourceError("the peer went during the TLS handshake") from error
        cipher = wrapped.cipher()
        self.tls = tls_info(
            wrapped.version() or "unknown",
            cipher[0] if cipher else "unknown",
            resumed=bool(wrapped.session_reused),
        )
        self._drained = True
        return self.tls

    async def _handshake(self, wrapped: ssl.SSLSocket) -> None:
        while True:
            try:
                return wrapped.do_handshake()
            except ssl.SSLWantReadError:
                await self._wait(trio.lowlevel.wait_readable)
            except ssl.SSLWantWriteError:
                await self._wait(trio.lowlevel.wait_writable)

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER, ``None`` without TLS or where it showed none."""
        return self._sock.getpeercert(binary_form=True) if isinstance(self._sock, ssl.SSLSocket) else None

    @property
    def tls_session(self) -> ssl.SSLSession | None:
        """The TLS session, for a later connection to resume; OpenSSL's is copied, which is dear."""
        return self._sock.session if isinstance(self._sock, ssl.SSLSocket) else None

    async def aclose(self) -> None:
        """See :class:`ByteStream`; a cancellation comes through after the socket was closed."""
        if self._sock is _NO_SOCKET:
            return
        try:
            if isinstance(self._sock, ssl.SSLSocket) and self.tls is not None and self._sock.fileno() >= 0:
                with contextlib.suppress(OSError, ValueError):
                    self._sock.unwrap()
        finally:
            self.abort()
        await trio.lowlevel.checkpoint_if_cancelled()

    def release(self) -> Socket:
        """Hand the socket over to the caller, who owns it from now on; this stream is closed then."""
        sock, self._sock = self._sock, _NO_SOCKET
        self.deadline = math.inf
        return sock

    def abort(self) -> None:
        """Close at once, without a word to a TLS peer; does nothing the second time."""
        if self._sock is _NO_SOCKET:
            return
        fd = self._sock.fileno()
        self.deadline = math.inf
        if fd >= 0:
            if self._waiting:
                # Trio knows of a descriptor only while somebody waits for it.
                trio.lowlevel.notify_closing(fd)
            self._sock.close()


_NO_SOCKET: Final = socket.socket()
_NO_SOCKET.close()


def _failure(error: OSError) -> Exception:
    if isinstance(error, ssl.SSLError):
        return trio.BrokenResourceError(f"TLS: {error.reason or 'error'}")
    if error.errno in (errno.EBADF, errno.ENOTSOCK):
        return trio.ClosedResourceError("this connection was closed")
    return trio.BrokenResourceError(str(error))


class TrioStream:
    """A :class:`ByteStream` over any ``trio.abc.Stream``, such as memory streams and WebSocket."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.tls: TlsInfo | None = None
        self.deadline = math.inf

    async def receive(self, buffer: memoryview) -> int:
        """See :class:`ByteStream`."""
        with trio.fail_at(self.deadline):
            data = await self._stream.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See :class:`ByteStream`."""
        with trio.fail_at(self.deadline):
            await self._stream.send_all(bytes(data))

    async def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> TlsInfo:
        """See :class:`ByteStream`; the TLS of Trio, on memory BIOs."""
        stream = trio.SSLStream(
            self._stream,
            context,
            server_hostname=server_hostname,
            server_side=server_side,
            https_compatible=True,
        )
        with trio.fail_at(self.deadline):
            await stream.do_handshake()
        self._stream = stream
        cipher = stream.cipher()
        self.tls = tls_info(
            stream.version() or "unknown",
            cipher[0] if cipher else "unknown",
            resumed=bool(stream.session_reused),
        )
        return self.tls

    async def aclose(self) -> None:
        """See :class:`ByteStream`."""
        await self._stream.aclose()

"""A TCP forwarder between the gateway and a mail server: it listens in, changes what passes, and cuts."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator


class Forwarder:
    """Threads that copy. What is set here holds for what comes after it."""

    def __init__(self, target: int, context: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.restore()
        threading.Thread(target=self._accept, daemon=True).start()

    def restore(self) -> None:
        """Be transparent, and forget what was said."""
        self.commands = bytearray()
        self.edit: Callable[[bytes], bytes] = bytes
        # Called with what the gateway says; what it returns is passed on.
        self.listen: Callable[[bytes], bytes] = bytes
        self.left: int | None = None
        self.turned_away = False

    def say_nothing_of(self, *names: bytes) -> None:
        """Take names of capabilities out of all that the server says."""

        def edit(data: bytes) -> bytes:
            for name in names:
                data = data.replace(b" " + name, b" X" + name[1:])
            return data

        self.edit = edit

    @property
    def far(self) -> socket.socket:
        """The latest connection to the server."""
        with self._lock:
            return self._pairs[-1][1]

    def cut_after(self, octets: int) -> None:
        """Cut once the server has said so many octets more."""
        self.left = octets

    def cut(self) -> None:
        """Cut all connections now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            if self.turned_away:
                near.close()
                continue
            try:
                if self._context is not None:
                    near = self._context.wrap_socket(near, server_side=True)
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
            threading.Thread(target=self._copy, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if from_server:
                    data = self.edit(data)
                    if self.left is not None:
                        data = data[: self.left]
                        self.left -= len(data)
                else:
                    self.commands += data
                    data = self.listen(data)
                sink.sendall(data)
                if from_server and self.left == 0:
                    break
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if from_server:
            for sock in (source, sink):
                sock.close()


@contextlib.contextmanager
def forwarding(target: int, context: ssl.SSLContext | None = None) -> Iterator[Forwarder]:
    """Forward from a free port to another one until the block ends; with a context its own side is TLS."""
    forwarder = Forwarder(target, context)
    try:
        yield forwarder
    finally:
        forwarder.close()

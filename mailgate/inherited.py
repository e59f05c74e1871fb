"""Listening sockets that this process was given: by the program that it took the place of, or by systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from mailgate.config import Endpoint
from mailgate.doors import Place, open_place
from mailgate.net.listener import ListenError
from mailgate.stream import keep_alive
from mailgate.workers.handover import HandedSocket
from mailgate.workers.systemd import Activated


class Inherited:
    """Gives out each socket once, in place of one that would be opened."""

    def __init__(self, handed: Sequence[HandedSocket] = (), activated: Sequence[Activated] = ()) -> None:
        self._handed = {(one.kind, one.endpoint): one.descriptor for one in handed}
        self._activated = list(activated)

    def open(self, place: Place) -> socket.socket:
        """Return the socket for a place, a new one where none was given for it; raises ListenError."""
        descriptor = self._handed.pop((place.kind, str(place.endpoint)), None)
        if descriptor is not None:
            # The descriptor itself stays open until nothing can fail any more.
            sock = socket.socket(fileno=os.dup(descriptor))
            sock.setblocking(False)
            keep_alive(sock)
            return sock
        for one in self._activated:
            if _listens_on(one.socket, place.endpoint):
                self._activated.remove(one)
                # What systemd has set may be another's taste; what is accepted inherits this.
                keep_alive(one.socket)
                return one.socket
        return open_place(place)

    def check(self) -> None:
        """Raise ListenError when systemd has given a socket that nothing in the configuration asks for.

        Clients could connect to it and would wait in vain.
        """
        if self._activated:
            unused = ", ".join(f"{_shown(one.socket)} ({one.name})" for one in self._activated)
            raise ListenError(
                f"systemd listens on {unused}, which no bind of the configuration names: write the same address in both"
            )

    def close(self) -> None:
        """Close what systemd gave and nobody took."""
        for one in self._activated:
            one.socket.close()
        self._activated.clear()


def _listens_on(sock: socket.socket, endpoint: Endpoint) -> bool:
    """Whether a socket is bound to where an endpoint says, as that would be opened."""
    if endpoint.path is not None:
        return sock.family == socket.AF_UNIX and os.fsdecode(sock.getsockname()) == str(endpoint.path)
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    if sock.family != family:
        return False
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except OSError:
        # Opening it says so.
        return False
    return bool(sock.getsockname()[:2] == found[0][4][:2])


def _shown(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return str(Endpoint(name[0], name[1]))

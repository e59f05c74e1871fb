"""What systemd hands to a service and wants to hear of it: sd_listen_fds(3) and sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

from mailgate.errors import MailgateError

FIRST: Final = 3
"""The first descriptor that is handed over (SD_LISTEN_FDS_START)."""

_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ActivationError(MailgateError):
    """What systemd hands over cannot be used; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Activated:
    """A listening socket of systemd's, and its name there (FileDescriptorName=, or the unit's)."""

    socket: socket.socket
    name: str


def activated(environment: MutableMapping[str, str]) -> list[Activated]:
    """Return the sockets that systemd hands to this process.

    The variables are taken away, so that no other program believes them. The sockets are non-blocking and closed on
    exec. Raises ActivationError.
    """
    said = {name: environment.pop(name, None) for name in _VARIABLES}
    if said["LISTEN_PID"] is None or said["LISTEN_FDS"] is None:
        return []
    try:
        pid, count = int(said["LISTEN_PID"]), int(said["LISTEN_FDS"])
    except ValueError:
        raise ActivationError("LISTEN_PID and LISTEN_FDS must be numbers") from None
    if pid != os.getpid():
        # They are another process's.
        return []
    if count < 0:
        raise ActivationError("LISTEN_FDS must not be negative")
    names = said["LISTEN_FDNAMES"].split(":") if said["LISTEN_FDNAMES"] is not None else [""] * count
    if len(names) != count:
        raise ActivationError(f"LISTEN_FDNAMES has {len(names)} names for {count} sockets")
    return [_activated(FIRST + number, name) for number, name in enumerate(names)]


def _activated(descriptor: int, name: str) -> Activated:
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ActivationError(f"descriptor {descriptor} of systemd ({name}) is no socket: {error.strerror}") from error
    listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or not listens:
        sock.close()
        raise ActivationError(
            f"descriptor {descriptor} of systemd ({name}) does not listen: use ListenStream= and no Accept=yes"
        )
    sock.setblocking(False)
    return Activated(sock, name)


def monotonic_microseconds() -> int:
    """Return the moment as systemd compares it: CLOCK_MONOTONIC in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


class Notifier:
    """Tells systemd how the service is; without NOTIFY_SOCKET nobody is told.

    ``watchdog`` is how often in seconds systemd wants to hear that the service is alive, or None.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog: float | None = None
        with contextlib.suppress(ValueError):
            microseconds = int(environment.get("WATCHDOG_USEC", "0"))
            if microseconds > 0 and environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
                # Twice as often as it must be, as sd_watchdog_enabled(3) advises.
                self.watchdog = microseconds / 2e6

    def __bool__(self) -> bool:
        return self._address.startswith(("/", "@"))

    def tell(self, *assignments: str) -> None:
        """Tell some ``NAME=value`` at once. What cannot be told is lost: mail goes on without systemd."""
        if not self:
            return
        # A name that begins with @ is an abstract one.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode(), address)

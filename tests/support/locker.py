"""Another worker of a register: a process that locks, frees and notes when a test says so."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

from mailgate.ledger import Register
from tests.support.children import child, ended


class Locker:
    """The test's end of it."""

    def __init__(self, register: Register) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def work() -> None:
            self._socket.close()
            while order := theirs.recv(100):
                word, argument = order.split(b" ", 1)
                match word:
                    case b"lock":
                        answer = register.lock(int(argument))
                    case b"unlock":
                        register.unlock(int(argument))
                        answer = True
                    case _:
                        raise ValueError(order)
                theirs.send(b"yes" if answer else b"no")

        self.pid = child(work)
        theirs.close()

    def _asked(self, order: str) -> bool:
        self._socket.send(order.encode())
        answer = self._socket.recv(10)
        assert answer in (b"yes", b"no")
        return answer == b"yes"

    def lock(self, place: int) -> bool:
        return self._asked(f"lock {place}")

    def unlock(self, place: int) -> None:
        self._asked(f"unlock {place}")

    def may_lock(self, place: int) -> bool:
        """Whether nobody else has a lock."""
        if not self.lock(place):
            return False
        self.unlock(place)
        return True

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            assert ended(self.pid) == -signal.SIGKILL
            self.pid = 0

    def close(self) -> None:
        self.kill()
        self._socket.close()


@contextlib.contextmanager
def locker(register: Register) -> Iterator[Locker]:
    other = Locker(register)
    try:
        yield other
    finally:
        other.close()

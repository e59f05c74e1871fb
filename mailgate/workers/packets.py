"""Messages between the supervisor and a worker: JSON over a Unix SOCK_SEQPACKET socket, with descriptors.

A message may be larger than a packet, since a list of sessions has no small bound: it goes as several packets
in a row, the first byte of each of which says whether more follow. Both ends use the same object, which never
blocks: what the socket does not take waits in a queue with a limit.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

PIECE: Final = 32 * 1024
"""Bytes of a message in one packet: far below what the kernel's default buffers of 208 KiB take at once."""

DESCRIPTORS: Final = 200
"""Descriptors in one packet; the kernel allows 253 (SCM_MAX_FD)."""

MESSAGE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a message: the list of 100,000 sessions has some 40 MB."""

QUEUE_LIMIT: Final = 2 * MESSAGE_LIMIT
"""Bytes that wait for an end that does not read; over it messages are refused, since that end hangs."""

_MORE: Final = b"+"
_LAST: Final = b"."

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet, and the descriptors that go with it."""

    data: bytes
    descriptors: Sequence[int] = ()


def packets(message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> Iterator[Packet]:
    """Yield the packets of a message. Raises ValueError when it is larger than MESSAGE_LIMIT."""
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(data) > MESSAGE_LIMIT:
        raise ValueError(f"a message of {len(data)} bytes is too large for the bus")
    count = max(-(-len(data) // PIECE), -(-len(descriptors) // DESCRIPTORS), 1)
    for number in range(count):
        mark = _LAST if number == count - 1 else _MORE
        piece = data[number * PIECE : (number + 1) * PIECE]
        yield Packet(mark + piece, descriptors[number * DESCRIPTORS : (number + 1) * DESCRIPTORS])


@dataclass(slots=True)
class Incoming:
    """The packets of a message that is not whole yet."""

    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)


class Channel:
    """One end of a connection between the supervisor and a worker; owns its socket.

    An end that another program has used before goes on with what that has not sent (``unsent``) and with what it has
    received of a message that was not whole (``incoming``).
    """

    def __init__(self, sock: socket.socket, unsent: Sequence[Packet] = (), incoming: Incoming | None = None) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._queue = deque(unsent)
        self._queued = sum(len(packet.data) for packet in unsent)
        self.incoming = incoming or Incoming()

    @property
    def unsent(self) -> Sequence[Packet]:
        """What waits for the socket to become writable."""
        return tuple(self._queue)

    @property
    def waiting(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return bool(self._queue)

    def put(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> bool:
        """Send a message, as far as that goes now; return False when the other end is gone or hangs.

        Descriptors are duplicated, so the caller may close its own.
        """
        if self._queued > QUEUE_LIMIT:
            return False
        for packet in packets(message, descriptors):
            self._queue.append(Packet(packet.data, tuple(os.dup(one) for one in packet.descriptors)))
            self._queued += len(packet.data)
        return self.flush()

    def flush(self) -> bool:
        """Send what waits, as far as that goes now; return False when the other end is gone."""
        while self._queue:
            packet = self._queue[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", packet.descriptors))]
            try:
                self.socket.sendmsg([packet.data], rights if packet.descriptors else [])
            except BlockingIOError:
                return True
            except OSError:
                self._forget_queue()
                return False
            self._queue.popleft()
            self._queued -= len(packet.data)
            _close(packet.descriptors)
        return True

    def receive(self) -> list[tuple[Message, list[int]]]:
        """Return the messages that have come, each with its descriptors, which are the caller's to close.

        Raises EOFError when the other end is gone; what came before its end has been returned then.
        """
        found: list[tuple[Message, list[int]]] = []
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.socket, PIECE + 1, DESCRIPTORS)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                data, descriptors = b"", []
            if not data:
                if found:
                    return found
                raise EOFError
            self.incoming.data += memoryview(data)[1:]
            self.incoming.descriptors += descriptors
            if data[:1] == _LAST:
                whole, self.incoming = self.incoming, Incoming()
                found.append((json.loads(whole.data), whole.descriptors))

    def _forget_queue(self) -> None:
        for packet in self._queue:
            _close(packet.descriptors)
        self._queue.clear()
        self._queued = 0

    def close(self) -> None:
        """Close the socket, and what was to be sent or not yet whole."""
        self._forget_queue()
        _close(self.incoming.descriptors)
        self.incoming = Incoming()
        self.socket.close()


def _close(descriptors: Sequence[int]) -> None:
    for one in descriptors:
        os.close(one)


def channels() -> tuple[Channel, Channel]:
    """Return both ends of a new connection."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(first), Channel(second)

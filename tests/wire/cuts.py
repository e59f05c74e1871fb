"""The same bytes fed whole and in pieces: what a receiver makes of them must not depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

WHOLE = 1 << 30
STEPS = (WHOLE, 1, 3)


class Receiver(Protocol):
    def receive(self, data: bytes) -> None: ...
    def next(self) -> Any: ...


def pieces(data: bytes, step: int) -> Iterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


def feed(receiver: Receiver, data: bytes, step: int = WHOLE, take: Callable[[], Any] | None = None) -> list[Any]:
    """Feed ``data`` in pieces of ``step`` bytes; return everything that came out, in order."""
    take = take or receiver.next
    found = []
    for piece in pieces(data, step):
        receiver.receive(piece)
        while (item := take()) is not None:
            found.append(item)
    return found


def each_way(make: Callable[[], Receiver], data: bytes, *steps: int) -> list[Any]:
    """Feed ``data`` to fresh receivers, cut in every way; return what came out, which must be the same."""
    whole = feed(make(), data)
    for step in steps or STEPS[1:]:
        assert feed(make(), data, step) == whole, f"in pieces of {step}"
    return whole


def short(value: object) -> str:
    """Name a parameter, which may be a line over the limit, by its beginning."""
    return repr(value)[:40]

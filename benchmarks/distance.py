"""``python -m benchmarks.distance PORT TARGET MS``: makes a server on this machine ``MS`` away, there and back.

Every piece is passed on half of that after it came, whatever else is under way, so that only the round trip is longer
and the throughput stays.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

HELD = 4_096
"""Pieces under way in one direction: far more than a round trip needs."""

PIECE = 65_536


GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


async def passed_on(source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream, seconds: float) -> None:
    """Pass on what one side says, late, and that it says no more; both are closed when either is gone."""
    into, out = trio.open_memory_channel[tuple[float, bytes]](HELD)

    async def late() -> None:
        async with out:
            try:
                async for at, data in out:
                    await trio.sleep_until(at)
                    await sink.send_all(data)
                await sink.send_eof()
            except GONE:
                await source.aclose()

    async with trio.open_nursery() as nursery, into:
        nursery.start_soon(late)
        try:
            while data := await source.receive_some(PIECE):
                await into.send((trio.current_time() + seconds, data))
        except GONE:
            await sink.aclose()


async def serve(port: int, target: int, seconds: float) -> None:
    """Take connections until the program is stopped."""

    async def connected(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", target)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(passed_on, client, server, seconds)
            nursery.start_soon(passed_on, server, client, seconds)

    await trio.serve_tcp(connected, port, host="127.0.0.1")


if __name__ == "__main__":
    trio.run(partial(serve, int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 2000))

"""HTTP on Trio: the listener for metrics and health, and the administration over a Unix socket.

Each has an address of its own, so that whoever may scrape never reaches what administers.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Final

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

Scrape = Callable[[str], tuple[Iterator[bytes], str]]
"""Given an Accept header, returns the metrics, in pieces that take some time each, and their content type."""

Ready = Callable[[], list[str]]
"""Returns what keeps the gateway from serving; empty when it is ready."""

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a request's line and headers; no scraper needs more than a few hundred."""


def metrics_app(scrape: Scrape, ready: Ready) -> Starlette:
    """Return the application behind ``/metrics``, ``/healthz`` and ``/readyz``."""

    async def metrics(request: Request) -> Response:
        pieces, content_type = scrape(request.headers.get("accept", ""))
        text = []
        for piece in pieces:
            text.append(piece)
            # Mail must not wait for the whole.
            await trio.lowlevel.checkpoint()
        return Response(b"".join(text), media_type=None, headers={"content-type": content_type})

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readiness(request: Request) -> Response:
        problems = ready()
        if problems:
            return PlainTextResponse("".join(f"{problem}\n" for problem in problems), 503)
        return PlainTextResponse("ready\n")

    async def elsewhere(request: Request, error: Exception) -> Response:
        return PlainTextResponse("There are /metrics, /healthz and /readyz.\n", 404)

    return Starlette(
        routes=[Route("/metrics", metrics), Route("/healthz", health), Route("/readyz", readiness)],
        exception_handlers={404: elsewhere},
    )


async def serve_http(app: Starlette, sock: socket.socket, gone: trio.Event | None = None) -> None:
    """Serve an application on a listening socket until cancelled; the socket is closed then.

    When ``gone`` is set it accepts no more and ends after the requests that are under way.
    """
    config = HypercornConfig()
    # Hypercorn takes the descriptor over and closes it, so it gets one of its own.
    config.bind = [f"fd://{os.dup(sock.fileno())}"]
    config.accesslog = None
    config.errorlog = logging.getLogger("mailgate.http")
    config.graceful_timeout = 1.0
    config.shutdown_timeout = 1.0
    config.h11_max_incomplete_size = HEAD_LIMIT
    config.include_server_header = False
    stopped = trio.Event() if gone is None else gone
    try:
        await serve(app, config, shutdown_trigger=stopped.wait, mode="asgi")  # type: ignore[arg-type]
    finally:
        sock.close()

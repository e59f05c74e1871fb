"""HTTP on Trio: the listener for metrics and health, and the administration over a Unix socket.

Each has an address of its own, so that whoever may scrape never reaches what administers.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mailgate.config import Endpoint
from mailgate.errors import MailgateError
from mailgate.model import Peer

Scrape = Callable[[str], tuple[bytes, str]]
"""Given an Accept header, returns the metrics and their content type."""

Ready = Callable[[], list[str]]
"""Returns what keeps the gateway from serving; empty when it is ready."""

BODY_LIMIT: Final = 64 * 1024
"""Bytes of a request to the administration; none of its calls needs more than a few hundred."""


class HttpError(MailgateError):
    """An HTTP address cannot be used; the text says which and why."""


def metrics_app(scrape: Scrape, ready: Ready) -> Starlette:
    """Return the application behind ``/metrics``, ``/healthz`` and ``/readyz``."""

    async def metrics(request: Request) -> Response:
        body, content_type = scrape(request.headers.get("accept", ""))
        return Response(body, media_type=None, headers={"content-type": content_type})

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readiness(request: Request) -> Response:
        problems = ready()
        if problems:
            return PlainTextResponse("".join(f"{problem}\n" for problem in problems), 503)
        return PlainTextResponse("ready\n")

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", health), Route("/readyz", readiness)])


def open_socket(endpoint: Endpoint) -> socket.socket:
    """Return a bound TCP socket for ``serve_http``; raises HttpError."""
    if endpoint.path is not None:
        return open_unix_socket(endpoint.path)
    try:
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        found = socket.getaddrinfo(endpoint.host, endpoint.port, family, socket.SOCK_STREAM)
        sock = socket.socket(found[0][0], socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(found[0][4])
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise HttpError(f"cannot serve HTTP on {endpoint}: {error.strerror}") from error
    sock.setblocking(False)
    return sock


def open_unix_socket(path: Path) -> socket.socket:
    """Return a bound Unix socket that only its owner may use; raises HttpError.

    The mode is in force before anybody can connect: it is set before ``listen``.
    """
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
                else:
                    raise HttpError(f"{path}: another mailgate listens there")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            os.chmod(path, 0o600)
            sock.listen(16)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise HttpError(f"cannot serve administration on {path}: {error.strerror}") from error
    sock.setblocking(False)
    return sock


async def serve_http(app: Starlette, sock: socket.socket) -> None:
    """Serve an application on a listening socket until cancelled; the socket is closed then."""
    config = HypercornConfig()
    # Hypercorn takes the descriptor over and closes it, so it gets one of its own.
    config.bind = [f"fd://{os.dup(sock.fileno())}"]
    config.accesslog = None
    config.errorlog = logging.getLogger("mailgate.http")
    config.graceful_timeout = 1.0
    config.shutdown_timeout = 1.0
    config.h11_max_incomplete_size = BODY_LIMIT
    config.include_server_header = False
    stopped = trio.Event()
    try:
        await serve(app, config, shutdown_trigger=stopped.wait, mode="asgi")  # type: ignore[arg-type]
    finally:
        sock.close()


def peer_name(request: Request) -> str:
    """Return who makes a request, for the audit."""
    return str(Peer(*request.client)) if request.client else "local"


__all__ = [
    "HttpError",
    "JSONResponse",
    "metrics_app",
    "open_socket",
    "open_unix_socket",
    "peer_name",
    "serve_http",
]

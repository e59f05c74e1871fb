"""Administration over HTTP on a Unix socket, for ``mailgate trace``, ``reload``, ``upgrade``, ``sessions``, ``kick``.

Whoever may open the socket, which has mode 0600, may do everything here: its owner and root.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mailgate.errors import ConfigError, MailgateError

BODY_LIMIT = 16 * 1024


class Administration(Protocol):
    """What can be administered, in all workers at once."""

    async def start_trace(
        self, *, user: str | None, address: str | None, seconds: float, bodies: bool
    ) -> dict[str, object]:
        """Begin a trace; raises MailgateError with what is wrong."""
        ...

    async def stop_trace(self, name: str) -> bool:
        """End a trace; return whether there was one."""
        ...

    async def traces(self) -> list[dict[str, object]]:
        """Return the traces that run."""
        ...

    async def sessions(self) -> dict[str, object]:
        """Return the open sessions, and which workers did not answer."""
        ...

    async def kick(self, *, session: str | None = None, user: str | None = None) -> dict[str, object]:
        """End a session, or all sessions of a user; return how many, and which workers did not answer."""
        ...

    @property
    def reload(self) -> Callable[[], Awaitable[dict[str, object]]]:
        """Puts the configuration's file into force and tells what that changed.

        It raises ConfigError with all that is wrong with the file, MailgateError when it cannot be done at all.
        """
        ...

    @property
    def upgrade(self) -> Callable[[], Awaitable[dict[str, object]]]:
        """Has new code take over and tells its version; raises MailgateError with what keeps it from that."""
        ...


def admin_app(house: Administration) -> Starlette:
    """Return the application; errors are answered as ``{"error": text}``."""

    async def show(request: Request) -> Response:
        return JSONResponse({"traces": await house.traces()})

    async def start(request: Request) -> Response:
        asked = await _body(request)
        user, address = _text(asked, "user"), _text(asked, "address")
        seconds = asked.get("seconds", 600)
        bodies = asked.get("bodies", False)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not isinstance(bodies, bool):
            raise HTTPException(400, "seconds is a number, bodies true or false")
        try:
            facts = await house.start_trace(user=user, address=address, seconds=seconds, bodies=bodies)
        except MailgateError as error:
            raise HTTPException(409, str(error)) from error
        return JSONResponse(facts, 201)

    async def stop(request: Request) -> Response:
        if not await house.stop_trace(request.path_params["name"]):
            raise HTTPException(404, "there is no such trace")
        return Response(status_code=204)

    async def reload_configuration(request: Request) -> Response:
        try:
            return JSONResponse(await house.reload())
        except ConfigError as error:
            problems = [{"path": one.path, "value": one.value, "message": one.message} for one in error.problems]
            return JSONResponse({"error": "the configuration cannot be used", "problems": problems}, 422)
        except MailgateError as error:
            raise HTTPException(409, str(error)) from error

    async def upgrade_in_place(request: Request) -> Response:
        try:
            return JSONResponse(await house.upgrade())
        except MailgateError as error:
            raise HTTPException(409, str(error)) from error

    async def sessions(request: Request) -> Response:
        return JSONResponse(await house.sessions())

    async def kick_session(request: Request) -> Response:
        told = await house.kick(session=request.path_params["name"])
        if not told["kicked"] and not told["missing"]:
            raise HTTPException(404, "there is no such session")
        return JSONResponse(told)

    async def kick_user(request: Request) -> Response:
        user = _text(await _body(request), "user")
        if not user:
            raise HTTPException(400, "name a user")
        return JSONResponse(await house.kick(user=user))

    async def failed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = error.detail if isinstance(error, HTTPException) else "internal error"
        return JSONResponse({"error": detail}, status)

    handlers: dict[Any, Callable[[Request, Exception], Any]] = {HTTPException: failed, Exception: failed}
    return Starlette(
        routes=[
            Route("/v1/trace", show, methods=["GET"]),
            Route("/v1/trace", start, methods=["POST"]),
            Route("/v1/trace/{name}", stop, methods=["DELETE"]),
            Route("/v1/sessions", sessions, methods=["GET"]),
            Route("/v1/sessions/{name}/kick", kick_session, methods=["POST"]),
            Route("/v1/kick", kick_user, methods=["POST"]),
            Route("/v1/reload", reload_configuration, methods=["POST"]),
            Route("/v1/upgrade", upgrade_in_place, methods=["POST"]),
        ],
        exception_handlers=handlers,
    )


async def _body(request: Request) -> dict[str, object]:
    """Return a request's JSON object; raises HTTPException for anything else."""
    data = b""
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > BODY_LIMIT:
                raise HTTPException(413, "the request is too large")
    try:
        asked = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the request holds no JSON") from error
    if not isinstance(asked, dict):
        raise HTTPException(400, "the request is no JSON object")
    return asked


def _text(asked: dict[str, object], key: str) -> str | None:
    value = asked.get(key)
    if value is None or (isinstance(value, str) and value.isprintable()):
        return value
    raise HTTPException(400, f"{key} is a text without control characters")

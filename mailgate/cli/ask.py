"""How commands talk to a running gateway: HTTP over its administration socket."""

from __future__ import annotations

import contextlib
import socket as sockets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click
import httpx

from mailgate.cli.base import fail, find_config, load_config, printable
from mailgate.errors import ConfigError, ConfigProblem

socket_option = click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The administration socket.  [default: as the configuration says]",
)


def ask(
    socket: Path | None,
    config: Path | None,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    patience: float = 10.0,
) -> dict[str, Any]:
    """Ask the running gateway; leaves with a message when it cannot be reached or says no.

    Raises ConfigError when it says what is wrong with a configuration.
    """
    place = socket or _configured_socket(config)
    # httpx leaks the socket of a connection that fails (seen in httpcore 1.0.9).
    with contextlib.closing(sockets.socket(sockets.AF_UNIX)) as probe:
        try:
            probe.connect(str(place))
        except OSError as error:
            reason = error.strerror or str(error)
            fail(f"nobody answers on {place} ({reason}): is the gateway running, and may you open its socket?")
    transport = httpx.HTTPTransport(uds=str(place))
    try:
        with httpx.Client(transport=transport, base_url="http://mailgate", timeout=patience) as client:
            answer = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        fail(f"the gateway did not answer on {place}: {type(error).__name__}")
    return _read(answer)


def _read(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = answer.json() if answer.content else {}
    except ValueError:
        _odd(answer)
    if not isinstance(content, dict):
        _odd(answer)
    if isinstance(content.get("problems"), list):
        raise ConfigError([_problem(one) for one in content["problems"] if isinstance(one, dict)])
    if answer.is_error:
        fail(f"the gateway refuses: {printable(str(content.get('error', answer.reason_phrase)))}")
    return content


def _problem(told: Mapping[str, Any]) -> ConfigProblem:
    return ConfigProblem(*(printable(str(told.get(key, ""))) for key in ("path", "value", "message")))


def _odd(answer: httpx.Response) -> NoReturn:
    fail(f"what answers on the socket is not mailgate (status {answer.status_code})")


def _configured_socket(config: Path | None) -> Path:
    path = find_config(config)
    try:
        admin = load_config(path).admin
        place = admin.socket if admin is not None else None
    except ConfigError:
        # The gateway may run with what the file said before, and what is wrong now need not be this.
        place = _written_socket(path)
        if place is None:
            raise
    if place is None:
        fail("the configuration has no [admin] with a socket; name one with --socket")
    return place


def _written_socket(config: Path) -> Path | None:
    """Return the socket that a file names which is otherwise wrong."""
    try:
        admin = tomllib.loads(config.read_text("utf-8")).get("admin")
    except (OSError, ValueError, RecursionError):
        return None
    socket = admin.get("socket") if isinstance(admin, dict) else None
    return config.parent / socket if isinstance(socket, str) and socket else None

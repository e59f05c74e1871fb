"""Options that the ``mailgate uidl`` commands share: servers, users and their passwords."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mailgate.cli.base import fail
from mailgate.cli.quickstart import Url
from mailgate.config import Endpoint
from mailgate.model import Protocol, Secret
from mailgate.uidls.places import Place, User

PASSWORD_VARIABLE = "MAILGATE_PASSWORD"  # noqa: S105  (its name, not its value)
OLD_PASSWORD_VARIABLE = "MAILGATE_OLD_PASSWORD"  # noqa: S105

Command = Callable[..., Any]
SHOWN = 5
"""How many messages of a kind are shown as examples."""

_path = click.Path(path_type=Path)


def server_options(name: str, option: str, text: str, *, required: bool) -> Callable[[Command], Command]:
    """Add the options of a POP3 server: ``option`` with its address, and how far it is trusted."""

    def decorate(function: Command) -> Command:
        decorators: list[Callable[[Command], Command]] = [
            click.option(
                f"--{name}-plaintext", is_flag=True, help=f"Let passwords go to the {name} server without TLS."
            ),
            click.option(
                f"--{name}-pin", metavar="SHA256", help=f"The fingerprint of the {name} server's certificate, instead."
            ),
            click.option(
                f"--{name}-ca", type=_path, help=f"Who vouches for the {name} server, PEM.  [default: system]"
            ),
            click.option(option, f"{name}_url", metavar="HOST:PORT", required=required, help=text),
        ]
        for decorator in decorators:
            function = decorator(function)
        return function

    return decorate


def user_options(function: Command) -> Command:
    """Add the options that say whose mail it is, and where passwords are."""
    decorators: list[Callable[[Command], Command]] = [
        click.option(
            "--old-password-file",
            type=_path,
            help=f"A file with the password at the old server.  [default: ${OLD_PASSWORD_VARIABLE}, or the same]",
        ),
        click.option(
            "--password-file",
            type=_path,
            help=f"A file with the password of USER.  [default: ${PASSWORD_VARIABLE}, or it is asked for]",
        ),
        click.option(
            "--users",
            "users_file",
            type=_path,
            help="Many users instead: a CSV file with the columns user, password and, where it differs, old_password.",
        ),
        click.argument("user", required=False),
    ]
    for decorator in decorators:
        function = decorator(function)
    return function


def place_of(url: str, *, plaintext: bool, ca: Path | None, pin: str | None) -> Place:
    """Return the server at ``HOST:PORT`` (995 is TLS from the first byte) or a pop3s:// or pop3:// URL."""
    try:
        if "://" in url:
            parsed = Url.parse(url)
            if parsed.protocol is not Protocol.POP3:
                raise ValueError("a POP3 server is written HOST:PORT, pop3s://HOST or pop3://HOST")
            endpoint, implicit = parsed.endpoint, parsed.implicit
        else:
            endpoint = Endpoint.parse(url)
            implicit = endpoint.port == 995
        if ca is not None and pin is not None:
            raise ValueError("a certificate authority and a pin exclude each other")
        place = Place(endpoint, implicit, plaintext, ca.absolute() if ca is not None else None, pin)
        place.pool()
    except ValueError as error:
        raise click.UsageError(f"{url}: {_first(error)}") from None
    return place


def _first(error: ValueError) -> str:
    """Return what is wrong in one line: pydantic has several."""
    errors = getattr(error, "errors", None)
    return str(errors()[0]["msg"]).removeprefix("Value error, ") if errors is not None else str(error)


def users_of(
    user: str | None, users_file: Path | None, password_file: Path | None, old_password_file: Path | None
) -> list[User]:
    """Return whose mail it is; asks for a password that is nowhere else. Raises OSError."""
    if (user is None) == (users_file is None):
        raise click.UsageError("Give either USER or --users.")
    if users_file is not None:
        if password_file is not None or old_password_file is not None:
            raise click.UsageError("With --users the passwords stand in that file.")
        return _read_users(users_file)
    assert user is not None
    secret = _password(password_file, PASSWORD_VARIABLE)
    if secret is None:
        secret = Secret(os.fsencode(click.prompt(f"Password of {user}", hide_input=True, err=True)))
    return [User(os.fsencode(user), secret, _password(old_password_file, OLD_PASSWORD_VARIABLE) or secret)]


def _password(path: Path | None, variable: str) -> Secret | None:
    if path is not None:
        return Secret(path.read_bytes().removesuffix(b"\n").removesuffix(b"\r"))
    value = os.environ.get(variable)
    return Secret(os.fsencode(value)) if value else None


def _read_users(path: Path) -> list[User]:
    if path.stat().st_mode & stat.S_IROTH:
        fail(f"everyone on this machine can read {path}, which holds passwords: chmod o-r")
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        if not {"user", "password"} <= set(reader.fieldnames or ()):
            fail(f"{path}: its first line must name the columns: user,password or user,password,old_password")
        users = []
        for row in reader:
            name, password, old = (row.get(column) or "" for column in ("user", "password", "old_password"))
            if not name or not password:
                fail(f"{path}: line {reader.line_num} has no user or no password")
            secret = Secret(os.fsencode(password))
            users.append(User(os.fsencode(name), secret, Secret(os.fsencode(old)) if old else secret))
    if not users:
        fail(f"{path}: there is nobody in it")
    return users

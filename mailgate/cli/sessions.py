"""``mailgate sessions`` and ``mailgate kick``: who is connected to a running gateway, and how to end that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from mailgate.cli.ask import ask, socket_option
from mailgate.cli.base import EXIT_FAILED, config_option, print_warnings, printable, reports_failures

COLUMNS: Final = ("id", "worker", "protocol", "state", "listener", "address", "user", "pool", "server", "time", "bytes")


@click.command(short_help="List the sessions of a running gateway.")
@click.option("--user", help="Only those of this user.")
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
@socket_option
@config_option
@reports_failures
def sessions(user: str | None, as_json: bool, socket: Path | None, config: Path | None) -> None:
    """List the sessions of all workers of a running gateway, the oldest first.

    It needs [admin] in the configuration.
    """
    answer = ask(socket, config, "GET", "/v1/sessions")
    found = [
        one
        for one in answer.get("sessions", [])
        if user is None or str(one.get("user") or "").casefold() == user.casefold()
    ]
    _tell_missing(answer)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("There is no session.")
        return
    rows = [COLUMNS, *(_row(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(session: Mapping[str, Any]) -> tuple[str, ...]:
    facts = dict(session)
    facts["time"] = _time(float(session.get("seconds", 0)))
    facts["bytes"] = int(session.get("bytes_in", 0)) + int(session.get("bytes_out", 0))
    return tuple("-" if facts.get(name) is None else printable(str(facts[name])) for name in COLUMNS)


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


@click.command(short_help="End sessions of a running gateway.")
@click.argument("session", metavar="[ID]", required=False)
@click.option("--user", help="End all sessions of this user.")
@socket_option
@config_option
@reports_failures
def kick(session: str | None, user: str | None, socket: Path | None, config: Path | None) -> None:
    """End the session ID, as `mailgate sessions` shows it, or all sessions of a user.

    IMAP clients are told so where they are not in the middle of a response. Mail programs come back by themselves.

    The exit status is 1 when there was no such session.
    """
    if (session is None) == (user is None):
        raise click.UsageError("Give either an ID or --user.")
    if session is not None and not session.isalnum():
        raise click.UsageError("An ID is letters and digits, as `mailgate sessions` shows it.")
    if session is not None:
        answer = ask(socket, config, "POST", f"/v1/sessions/{session}/kick")
    else:
        answer = ask(socket, config, "POST", "/v1/kick", {"user": user})
    _tell_missing(answer)
    kicked = int(answer.get("kicked", 0))
    click.echo(f"Ended {kicked} session{'s' * (kicked != 1)}.")
    raise SystemExit(0 if kicked else EXIT_FAILED)


def _tell_missing(answer: Mapping[str, Any]) -> None:
    missing = answer.get("missing", [])
    print_warnings(f"worker {one.get('worker')} did not answer: {printable(str(one.get('error')))}" for one in missing)

"""``mailgate trace``: talks to a running gateway over its administration socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mailgate.cli.ask import ask, socket_option
from mailgate.cli.base import config_option, printable, reports_failures
from mailgate.config.values import parse_duration


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(float(value) if str(value).isdecimal() else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(short_help="Record what one user or address says and hears.")
def trace() -> None:
    """Record what one user or address says and hears, while the gateway runs.

    Passwords are masked and messages left out. The files are in trace.directory, readable only by
    the gateway's own user.
    """


@trace.command()
@click.option("--user", help="Record sessions of this user.")
@click.option("--address", help="Record sessions from this address.")
@click.option(
    "--for",
    "seconds",
    type=_Duration(),
    default="10m",
    show_default=True,
    help='When it ends by itself: "30s", "10m", "1h".',
)
@click.option("--bodies", is_flag=True, help="Record messages too.")
@socket_option
@config_option
@reports_failures
def start(
    user: str | None,
    address: str | None,
    seconds: float,
    bodies: bool,
    socket: Path | None,
    config: Path | None,
) -> None:
    """Start a trace of a user or an address."""
    if (user is None) == (address is None):
        raise click.UsageError("Give either --user or --address.")
    whom = {"user": user} if user is not None else {"address": address}
    answer = ask(socket, config, "POST", "/v1/trace", {**whom, "seconds": seconds, "bodies": bodies})
    _print_trace(answer)


@trace.command(name="list")
@socket_option
@config_option
@reports_failures
def list_traces(socket: Path | None, config: Path | None) -> None:
    """List the traces that are running."""
    answer = ask(socket, config, "GET", "/v1/trace")
    traces = answer.get("traces", [])
    for each in traces:
        _print_trace(each)
    if not traces:
        click.echo("No trace is running.")


@trace.command()
@click.argument("trace_id", metavar="ID")
@socket_option
@config_option
@reports_failures
def stop(trace_id: str, socket: Path | None, config: Path | None) -> None:
    """Stop the trace ID."""
    if not trace_id.isalnum():
        raise click.UsageError("An ID is letters and digits, as `mailgate trace list` shows it.")
    ask(socket, config, "DELETE", f"/v1/trace/{trace_id}")
    click.echo(f"Stopped {trace_id}.")


def _print_trace(answer: Mapping[str, Any]) -> None:
    whom = f"user {answer['user']}" if answer.get("user") else f"address {answer.get('address')}"
    parts = [f"{answer.get('id')}  {whom}"]
    if "remaining" in answer:
        parts.append(f"{float(answer['remaining']):.0f} s left")
    if answer.get("file") or answer.get("directory"):
        parts.append(str(answer.get("file") or answer["directory"]))
    click.echo(printable(", ".join(parts)))

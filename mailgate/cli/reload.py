"""``mailgate reload``: has a running gateway read its configuration again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from mailgate.cli.ask import ask, socket_option
from mailgate.cli.base import config_option, print_warnings, printable, reports_failures
from mailgate.errors import ConfigError

PATIENCE: Final = 120.0
"""Seconds that a reload may take: thousands of certificates are opened one by one."""


@click.command(short_help="Have a running gateway read its configuration again.")
@socket_option
@config_option
@reports_failures
def reload(socket: Path | None, config: Path | None) -> None:
    """Have a running gateway read its configuration file again, and tell what that changed.

    The file is the one that the gateway was started with. It is checked as a whole: if anything is wrong
    with it, all of that is told and the old configuration stays in force. Sessions that run keep
    what they began with, new ones get the new configuration.

    The exit status is 0 when it is in force, 78 when it was refused. It needs [admin]; SIGHUP does
    the same and leaves its answer in the log.
    """
    try:
        answer = ask(socket, config, "POST", "/v1/reload", patience=PATIENCE)
    except ConfigError:
        click.echo("The old configuration stays in force.", err=True)
        raise
    print_warnings(printable(str(warning)) for warning in answer.get("warnings", []))
    changed = [printable(str(line)) for line in answer.get("changed", [])]
    click.echo("The new configuration is in force:" if changed else "Nothing has changed.")
    for line in changed:
        click.echo(f"  {line}")

"""``mailgate upgrade``: has a running gateway go on as the code that is installed now."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from mailgate.cli.ask import ask, socket_option
from mailgate.cli.base import config_option, printable, reports_failures

PATIENCE: Final = 300.0
"""Seconds that an upgrade may take: the new code makes everything of the configuration twice, and starts workers."""


@click.command(short_help="Have a running gateway go on as the code that is installed now.")
@socket_option
@config_option
@reports_failures
def upgrade(socket: Path | None, config: Path | None) -> None:
    """Have a running gateway execute the code that is installed now, without refusing a connection.

    The new code is tried first, with the configuration's file as it is then: if it cannot run, that is told
    and nothing changes. Sessions that run stay with the workers that have them, for up to [shutdown] upgrade_drain.

    The exit status is 0 when the new code serves, 1 when it was refused. It needs [admin]; SIGUSR2 does the
    same and leaves its answer in the log.
    """
    answer = ask(socket, config, "POST", "/v1/upgrade", patience=PATIENCE)
    version, before = (printable(str(answer.get(key, "?"))) for key in ("version", "before"))
    click.echo(f"mailgate {version} serves; it was {before} before.")
    leaving = answer.get("leaving", 0)
    if isinstance(leaving, int) and leaving:
        click.echo(f"Earlier workers that let their sessions end: {leaving}.")

"""``mailgate uidl``: unique-ids that POP3 clients know, across a migration."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mailgate.cli.base import EXIT_FAILED, printable, reports_failures
from mailgate.cli.uidl_import import export, import_uidls, show
from mailgate.cli.uidl_options import SHOWN, place_of, server_options, user_options, users_of
from mailgate.uidls.comparing import Comparison

if TYPE_CHECKING:
    from mailgate.uidls.survey import Outcome


@click.group()
def uidl() -> None:
    """Compare, bring over and show the unique-ids by which POP3 clients know messages."""


@uidl.command(short_help="Compare an old POP3 server with the gateway, as clients see them.")
@user_options
@server_options("old", "--old", "The POP3 server that clients used so far.", required=True)
@server_options("new", "--new", "The gateway, or any other POP3 server that takes its place.", required=True)
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Users compared at a time.")
@click.option("--all", "show_all", is_flag=True, help=f"Show every message that differs.  [default: {SHOWN} of a kind]")
@reports_failures
def diff(
    user: str | None,
    users_file: Path | None,
    password_file: Path | None,
    old_password_file: Path | None,
    old_url: str,
    old_ca: Path | None,
    old_pin: str | None,
    old_plaintext: bool,
    new_url: str,
    new_ca: Path | None,
    new_pin: str | None,
    new_plaintext: bool,
    jobs: int,
    show_all: bool,
) -> None:
    """Tell whether clients of USER, or of all --users, would download messages again.

    Compares what UIDL and LIST show: unique-ids, sizes and the order. Nothing is changed at either server.

    \b
    mailgate uidl diff anna --old pop.example.org:995 --new gate.example.org:995
    mailgate uidl diff --users users.csv --old pop.example.org:995 --new 127.0.0.1:995

    Port 995 is TLS from the first byte, any other is STLS; pop3s://HOST:PORT and pop3://HOST:PORT say it in other
    cases. Passwords come from a file, a variable or the terminal. The exit status is 0 when there are no differences,
    1 when there are or a user could not be compared.
    """
    import trio

    from mailgate.uidls.servers import Pop3Place
    from mailgate.uidls.survey import survey

    old = Pop3Place(place_of(old_url, plaintext=old_plaintext, ca=old_ca, pin=old_pin))
    new = Pop3Place(place_of(new_url, plaintext=new_plaintext, ca=new_ca, pin=new_pin))
    users = users_of(user, users_file, password_file, old_password_file)
    with click.progressbar(length=len(users), label="Comparing", file=sys.stderr) as bar:
        tell = functools.partial(bar.update, 1)
        outcomes = trio.run(functools.partial(survey, users, old.sign_in, new.sign_in, tell, jobs))
    for outcome in outcomes:
        _print_outcome(outcome, math.inf if show_all else SHOWN, alone=len(users) == 1)
    if len(users) > 1:
        _print_summary(outcomes)
    good = all(outcome.comparison is not None and outcome.comparison.same for outcome in outcomes)
    raise SystemExit(0 if good else EXIT_FAILED)


def _print_outcome(outcome: Outcome, most: float, *, alone: bool) -> None:
    name = click.style(printable(outcome.user.name.decode("utf-8", "backslashreplace")), bold=True)
    comparison = outcome.comparison
    if comparison is None:
        click.echo(f"{name}: {click.style('could not be compared', fg='red')}: {printable(outcome.failure)}")
        return
    if comparison.same:
        if alone:
            click.echo(f"{name}: {click.style(comparison.verdict, fg='green')}")
        return
    click.echo(f"{name}: {click.style(comparison.verdict, fg='red' if comparison.new else 'yellow')}")
    for heading, found in _differences(comparison):
        lines = list(found)
        click.echo(f"  {heading}: {len(lines)}")
        for line in lines[: None if most == math.inf else int(most)]:
            click.echo(f"    {printable(line)}")
        if len(lines) > most:
            click.echo(f"    … and {len(lines) - int(most)} more")


def _differences(comparison: Comparison) -> Iterable[tuple[str, list[str]]]:
    kinds = [
        ("unique-ids at the old server alone", [_text(uidl) for uidl in comparison.gone]),
        ("unique-ids at the new server alone", [_text(uidl) for uidl in comparison.new]),
        ("in another place", [_text(uidl) for uidl in comparison.moved]),
        ("another size", [f"{_text(uidl)}: {old} is {new} octets now" for uidl, old, new in comparison.resized]),
        ("given to several messages", [_text(uidl) for uidl in comparison.repeated]),
    ]
    return [(heading, found) for heading, found in kinds if found]


def _text(uidl: bytes) -> str:
    return uidl.decode("ascii", "backslashreplace")


def _print_summary(outcomes: list[Outcome]) -> None:
    compared = [outcome.comparison for outcome in outcomes if outcome.comparison is not None]
    everything = sum(one.everything for one in compared)
    counts = {
        "without differences": sum(one.same for one in compared),
        "would download everything again": everything,
        "would download some messages again": sum(bool(one.new) for one in compared) - everything,
        "differ otherwise": sum(not one.same and not one.new for one in compared),
        "could not be compared": len(outcomes) - len(compared),
    }
    shown = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    click.echo(f"{len(outcomes)} users: {shown}.")
    if everything:
        click.secho("Do not move clients yet: what they once saw cannot be undone.", fg="red", bold=True)


uidl.add_command(import_uidls)
uidl.add_command(show)
uidl.add_command(export)

"""``mailgate uidl import``, ``show`` and ``export``: what is remembered of users' mailboxes."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mailgate.cli.base import EXIT_FAILED, config_option, load_config, printable, reports_failures
from mailgate.cli.uidl_options import SHOWN, place_of, server_options, user_options, users_of
from mailgate.errors import MailgateError
from mailgate.uidls.places import User
from mailgate.wire.mailbox_name import to_text, to_wire

if TYPE_CHECKING:
    from mailgate.translate.imap_client import ImapClient
    from mailgate.uidls.homes import Homes
    from mailgate.uidls.importing import Imported

folder_option = click.option(
    "--folder", default="INBOX", show_default=True, help="The mailbox that the old server showed."
)
_path = click.Path(path_type=Path)


@click.command("import", short_help="Bring over the unique-ids that clients know from an old server.")
@user_options
@server_options("old", "--from-pop3", "The old POP3 server, which must still answer.", required=False)
@click.option("--from-courier", type=_path, metavar="FILE", help="The courierpop3dsizelist of USER's Maildir.")
@click.option("--from-dovecot", type=_path, metavar="FILE", help="The dovecot-uidlist of USER's Maildir.")
@click.option("--from-csv", type=_path, metavar="FILE", help="A CSV file with the columns uidl and uid, file or size.")
@click.option(
    "--format",
    "template",
    default="dovecot",
    show_default=True,
    help='With --from-dovecot: what pop3_uidl_format was, as in [pop3] uidl, or "filename" for %f.',
)
@click.option(
    "--uids",
    "uid_list",
    type=_path,
    metavar="FILE",
    help="Which Maildir file has which UID: the dovecot-uidlist or courierimapuiddb of the mailbox as it is now.",
)
@folder_option
@click.option("--dry-run", is_flag=True, help="Only tell what would be brought over.")
@click.option("--certain", is_flag=True, help="Bring over what is certain, and leave the rest to [pop3] uidl.")
@config_option
@reports_failures
def import_uidls(
    user: str | None,
    users_file: Path | None,
    password_file: Path | None,
    old_password_file: Path | None,
    old_url: str | None,
    old_ca: Path | None,
    old_pin: str | None,
    old_plaintext: bool,
    from_courier: Path | None,
    from_dovecot: Path | None,
    from_csv: Path | None,
    template: str,
    uid_list: Path | None,
    folder: str,
    dry_run: bool,
    certain: bool,
    config: Path | None,
) -> None:
    """Bring over the unique-ids that USER's clients know, so that they download nothing again.

    Messages of the old server are found again in USER's mailbox, and what the old server called them goes into
    [pop3.store], where it goes before [pop3] uidl. Nothing is guessed: what cannot be told apart is listed, and
    nothing of that mailbox is brought over.

    \b
    mailgate uidl import anna --from-pop3 pop.example.org:995
    mailgate uidl import anna --from-courier Maildir/courierpop3dsizelist --uids Maildir/dovecot-uidlist
    mailgate uidl import --users users.csv --from-pop3 pop.example.org:995 --dry-run

    The exit status is 0 when every mailbox was brought over, else 1. What was there before can be had again only from
    a backup of the store.
    """
    import trio

    from mailgate.uidls.homes import Homes

    if sum(one is not None for one in (old_url, from_courier, from_dovecot, from_csv)) != 1:
        raise click.UsageError("Give one of --from-pop3, --from-courier, --from-dovecot and --from-csv.")
    if users_file is not None and old_url is None:
        raise click.UsageError("A file holds one user's messages: many users come from --from-pop3.")
    if uid_list is not None and (old_url is not None or from_dovecot is not None):
        raise click.UsageError("--uids goes with --from-courier and --from-csv.")
    users = users_of(user, users_file, password_file, old_password_file)
    homes = Homes(load_config(config))
    if old_url is not None:
        source = _from_server(old_url, plaintext=old_plaintext, ca=old_ca, pin=old_pin)
    else:
        source = _from_files(from_courier, from_dovecot, from_csv, template, uid_list, folder)
    good = trio.run(_import_all, homes, users, source, folder, dry_run, certain)
    raise SystemExit(0 if good else EXIT_FAILED)


Tell = Callable[[int], None]
Source = Callable[["ImapClient", User, str, Tell], Awaitable["Imported"]]
"""How one user's messages are matched; told of each message that takes time, of how many."""


def _from_server(url: str, *, plaintext: bool, ca: Path | None, pin: str | None) -> Source:
    from mailgate.uidls.importing import from_pop3
    from mailgate.uidls.servers import Pop3Place

    place = Pop3Place(place_of(url, plaintext=plaintext, ca=ca, pin=pin))

    async def match(client: ImapClient, user: User, folder: str, tell: Tell) -> Imported:
        server = await place.sign_in(user.name, user.old_secret)
        try:
            return await from_pop3(client, to_wire(folder), server, tell)
        finally:
            await server.quit()

    return match


def _from_files(
    courier: Path | None,
    dovecot: Path | None,
    table: Path | None,
    template: str,
    uid_list: Path | None,
    folder: str,
) -> Source:
    from mailgate.uidls import files
    from mailgate.uidls.importing import from_file

    uids = files.read_uid_list(uid_list.read_bytes()) if uid_list is not None else None
    if courier is not None:
        known = files.read_courier(courier.read_bytes())
    elif dovecot is not None:
        known = files.read_dovecot(dovecot.read_bytes(), template)
    else:
        assert table is not None
        known = files.read_csv(table.read_text("utf-8", "surrogateescape"), folder)

    async def match(client: ImapClient, user: User, folder: str, tell: Tell) -> Imported:
        return await from_file(client, to_wire(folder), known, uids)

    return match


async def _import_all(
    homes: Homes, users: list[User], source: Source, folder: str, dry_run: bool, certain: bool
) -> bool:
    from mailgate.uidls.importing import keep

    good = 0
    try:
        with click.progressbar(length=len(users), label="Importing", file=sys.stderr) as bar:

            def tell(messages: int) -> None:
                # One user's messages, or else the users, are what is waited for.
                if len(users) == 1:
                    bar.length = messages + 1
                    bar.update(1)

            for user in users:
                shown = click.style(_name(user.name), bold=True)
                try:
                    async with homes.client(user.name, user.secret) as client:
                        imported = await source(client, user, folder, tell)
                        if imported.matches.ambiguous and not certain:
                            _print_ambiguous(shown, imported)
                            continue
                        await keep(client, homes.memories(user.name), to_wire(folder), imported, dry=dry_run)
                    _print_imported(shown, imported, dry_run=dry_run)
                    good += 1
                except MailgateError as error:
                    click.echo(f"{shown}: {click.style('not brought over', fg='red')}: {printable(str(error))}")
                finally:
                    bar.update(1)
    finally:
        await homes.aclose()
    if len(users) > 1:
        click.echo(f"{len(users)} users: {good} brought over, {len(users) - good} not.")
    return good == len(users)


def _name(user: bytes) -> str:
    return printable(user.decode("utf-8", "backslashreplace"))


def _print_imported(user: str, imported: Imported, *, dry_run: bool) -> None:
    matches = imported.matches
    verb = "would be brought over" if dry_run else "brought over"
    click.echo(
        f"{user}: {len(matches.found)} of {imported.messages} messages matched, "
        f"{imported.changed} unique-ids {verb}; {len(matches.new)} messages are new to clients, "
        f"{len(matches.lost)} of the old server are not in the mailbox"
    )
    for known in matches.lost[:SHOWN]:
        click.echo(f"    not in the mailbox: {printable(str(known))}")
    if matches.ambiguous:
        left = sum(len(known) for known, _ in matches.ambiguous)
        click.echo(f"    left, since nothing tells them apart: {left}")


def _print_ambiguous(user: str, imported: Imported) -> None:
    groups = imported.matches.ambiguous
    click.echo(f"{user}: {click.style('not brought over', fg='red')}: nothing tells these messages apart:")
    for known, uids in groups:
        olds = ", ".join(str(one) for one in known[:SHOWN]) + (" …" if len(known) > SHOWN else "")
        news = ", ".join(str(uid) for uid in uids[:SHOWN]) + (" …" if len(uids) > SHOWN else "")
        click.echo(f"    {printable(olds)} may be UID {news}")
    click.echo("    Import from the POP3 server, name --uids, or bring over the others alone with --certain.")


@click.command(short_help="Tell what is remembered of a user's mailboxes.")
@click.argument("user")
@config_option
@reports_failures
def show(user: str, config: Path | None) -> None:
    """Tell what is remembered of USER's mailboxes: which messages were shown, and what their unique-ids follow."""
    import trio

    from mailgate.uidls.homes import Homes

    homes = Homes(load_config(config))

    async def look() -> None:
        try:
            name = os.fsencode(user)
            mailboxes = await homes.mailboxes(name)
            if not mailboxes:
                click.echo(f"{printable(user)}: nothing is remembered")
            for mailbox in mailboxes:
                memory = await homes.memories(name).load(mailbox)
                if memory is None:
                    continue
                click.echo(f"{printable(to_text(mailbox))}: UIDVALIDITY {memory.uidvalidity}")
                for span in memory.spans:
                    click.echo(f"  UID {span.first} to {span.last}: {printable(span.text)}")
                if len(memory.exceptions):
                    uids = memory.exceptions.uids
                    click.echo(f"  UID {uids[0]} to {uids[-1]}: {len(uids)} unique-ids of their own")
                if memory.window:
                    click.echo(f"  shown from UID {memory.window} on")
        finally:
            await homes.aclose()

    trio.run(look)


@click.command(short_help="Print the unique-ids of a user's messages as CSV.")
@user_options
@folder_option
@config_option
@reports_failures
def export(
    user: str | None,
    users_file: Path | None,
    password_file: Path | None,
    old_password_file: Path | None,
    folder: str,
    config: Path | None,
) -> None:
    """Print the unique-ids that are remembered of the messages in USER's mailbox, as CSV that `import` reads.

    Signs in as USER to learn which messages there are.
    """
    import trio

    from mailgate.uidls.files import write_csv
    from mailgate.uidls.homes import Homes
    from mailgate.uidls.importing import remembered

    if users_file is not None:
        raise click.UsageError("One USER at a time: the rows do not say whose they are.")
    (one,) = users_of(user, users_file, password_file, old_password_file)
    homes = Homes(load_config(config))

    async def look() -> list[tuple[str, int, int, bytes]]:
        try:
            async with homes.client(one.name, one.secret) as client:
                return await remembered(client, homes.memories(one.name), folder)
        finally:
            await homes.aclose()

    for line in write_csv(iter(trio.run(look))):
        click.echo(line, nl=False)

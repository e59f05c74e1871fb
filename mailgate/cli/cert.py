"""``mailgate cert``: certificates for trying out, and a look at those that are there."""

from __future__ import annotations

from pathlib import Path

import click

from mailgate.cli.base import fail, reports_failures


@click.group()
def cert() -> None:
    """Make and look at certificates."""


@cert.command("self-signed", short_help="Make a self-signed certificate and its key.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    default="certificate.pem",
    show_default=True,
    help="Where the certificate is written.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    default="key.pem",
    show_default=True,
    help="Where its key is written, with mode 0600.",
)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it is valid.")
@click.option(
    "--key-type",
    type=click.Choice(["ecdsa", "rsa"]),
    default="ecdsa",
    show_default=True,
    help="rsa for programs that are too old for ecdsa.",
)
@click.option("--force", is_flag=True, help="Write over files that exist.")
@reports_failures
def cert_self_signed(
    names: tuple[str, ...], certificate: Path, key: Path, days: int, key_type: str, force: bool
) -> None:
    """Make a self-signed certificate for the host names and addresses NAME.

    Good for trying out and for networks of your own; mail programs warn about it.
    """
    from mailgate.net import certificate as maker

    for path in (certificate, key):
        if path.exists() and not force:
            fail(f"{path} exists; --force writes over it")
    maker.write(certificate, key, *maker.self_signed(list(names), days=days, key_type=key_type), replace=force)
    click.echo(f"Wrote {certificate} and {key} (mode 0600), for {', '.join(names)}, valid for {days} days.")


@cert.command("show", short_help="Tell what is in a certificate's file.")
@click.argument("file", type=click.Path(path_type=Path))
@reports_failures
def cert_show(file: Path) -> None:
    """Tell what the first certificate in FILE (PEM) is for, who signed it, and when it ends."""
    from mailgate.net import certificate as maker

    click.echo(maker.describe(file))

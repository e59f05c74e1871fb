"""What all commands share: where the configuration is, how failures are told, exit statuses."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NoReturn, ParamSpec, TypeVar

import click

from mailgate import config as configuration
from mailgate.config import Config
from mailgate.errors import ConfigError, MailgateError

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 78
DEFAULT_CONFIG: Final = Path("/etc/mailgate/mailgate.toml")

P = ParamSpec("P")
R = TypeVar("R")

config_argument = click.argument(
    "config",
    required=False,
    envvar="MAILGATE_CONFIG",
    type=click.Path(path_type=Path),
)
config_option = click.option(
    "-c",
    "--config",
    envvar="MAILGATE_CONFIG",
    type=click.Path(path_type=Path),
    help=f"The configuration file.  [default: $MAILGATE_CONFIG or {DEFAULT_CONFIG}]",
)


def fail(message: str, status: int = EXIT_FAILED) -> NoReturn:
    """Say on standard error what went wrong, and leave with ``status``."""
    click.echo(f"{click.style('mailgate:', fg='red', bold=True)} {message}", err=True)
    raise SystemExit(status)


def reports_failures(function: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that an administrator can do something about into a line and a status."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            print_problems(error)
            raise SystemExit(EXIT_CONFIG) from None
        except MailgateError as error:
            fail(str(error))
        except BrokenPipeError:
            # Whoever read the output has seen enough, as `head` does; click leaves without a word.
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}")

    return guarded


def print_problems(error: ConfigError) -> None:
    """Print everything that is wrong with a configuration, a line for each."""
    count = len(error.problems)
    click.secho(f"The configuration has {count} problem{'s' * (count != 1)}:", fg="red", bold=True, err=True)
    for problem in error.problems:
        value = f" = {problem.value}" if problem.value else ""
        click.echo(f"  {click.style(problem.path, bold=True)}{value}: {problem.message}", err=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print what is risky or without effect in a configuration."""
    for warning in warnings:
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {warning}", err=True)


def find_config(path: Path | None) -> Path:
    """Return the absolute path of the configuration: ``path``, or the usual place when none is given."""
    if path is None:
        if not DEFAULT_CONFIG.exists():
            raise click.UsageError(
                f"There is no {DEFAULT_CONFIG}. Name a configuration file, "
                "or see `mailgate run --help` for how to start without one."
            )
        path = DEFAULT_CONFIG
    return path.absolute()


def load_config(path: Path | None) -> Config:
    """Return the configuration in ``path``, or in the usual place when none is given."""
    return configuration.load(find_config(path), os.environ)


def printable(text: str) -> str:
    """Return ``text`` with what a terminal might obey (or cannot show) written as escapes."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

"""The commands that run, check and explain the gateway."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

import mailgate
from mailgate import config as configuration
from mailgate.cli.base import (
    EXIT_FAILED,
    config_argument,
    config_option,
    fail,
    find_config,
    load_config,
    print_warnings,
    printable,
    reports_failures,
)
from mailgate.cli.pairs import exposed_keys, unusable_certificates
from mailgate.cli.places import unusable_store, wrong_templates
from mailgate.cli.quickstart import Quickstart
from mailgate.config import Config, Pool, Pop3Policy, Pop3Settings
from mailgate.config.values import is_host_name
from mailgate.errors import ConfigError
from mailgate.model import Protocol
from mailgate.routing.static import StaticRouter, Step
from mailgate.workers.handover import begun_again

PLACEHOLDERS: Final = "[tls] names files that you still have to put there; `mailgate cert self-signed` makes a pair."


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="New here? `mailgate demo` shows it at work, `mailgate run --upstream imaps://mail.example.org` "
    "puts it in front of your mail server.",
)
@click.version_option(mailgate.__version__, prog_name="mailgate")
@click.pass_context
def main(context: click.Context) -> None:
    """A mail proxy for IMAP and POP3: it stands between mail programs and mail servers.

    It ends TLS, understands the login, finds the right server, and watches what goes through.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


@main.command(short_help="Run the gateway, with a file or in front of --upstream.")
@config_argument
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="URL",
    help="Run without a file, in front of this server: imaps://host[:port], imap:// (STARTTLS, or no TLS "
    "on this machine), pop3s:// or pop3://. May be given once for IMAP and once for POP3.",
)
@click.option(
    "--listen",
    "listen",
    multiple=True,
    metavar="URL",
    help="With --upstream: where clients connect, as imaps://0.0.0.0:993 and the like; may be repeated.  "
    "[default: the usual ports, or 1000 above them when those need rights that you lack]",
)
@click.option("--certificate", type=click.Path(path_type=Path), help="With --upstream: the certificate, PEM.")
@click.option("--key", type=click.Path(path_type=Path), help="With --upstream: its private key, PEM.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    help="With --upstream: the authorities that vouch for the server, PEM.  [default: the system's]",
)
@click.option("--pin", metavar="SHA256", help="With --upstream: the fingerprint of the server's certificate, instead.")
@click.option("--metrics", metavar="HOST:PORT", help="With --upstream: serve metrics and health here.")
@click.option("--print", "only_print", is_flag=True, help="With --upstream: print the configuration; do not run.")
@reports_failures
def run(
    config: Path | None,
    upstreams: tuple[str, ...],
    listen: tuple[str, ...],
    certificate: Path | None,
    key: Path | None,
    ca: Path | None,
    pin: str | None,
    metrics: str | None,
    only_print: bool,
) -> None:
    """Run the gateway with the file CONFIG, or without one in front of --upstream.

    CONFIG is $MAILGATE_CONFIG or /etc/mailgate/mailgate.toml where it is not given.

    \b
    mailgate run /etc/mailgate/mailgate.toml
    mailgate run --upstream imaps://mail.example.org

    Without a certificate of your own the second form makes one on the fly, which mail programs
    warn about. It runs until SIGTERM or Ctrl-C.
    """
    if not upstreams:
        given: dict[str, object] = {"--listen": listen, "--certificate": certificate, "--key": key}
        given |= {"--ca": ca, "--pin": pin, "--metrics": metrics, "--print": only_print}
        for option, value in given.items():
            if value:
                raise click.UsageError(f"{option} goes with --upstream; with a file, write it there.")
        with _signals_wait(), begun_again(lambda said: click.echo(f"mailgate: {said}", err=True)):
            # The file is found once: a reload reads the same one, whatever the environment or the folder is then.
            path = find_config(config)

            def load() -> Config:
                return _usable(load_config(path))

            raise SystemExit(_serve(load(), load))
    if config is not None and not _from_environment("config"):
        raise click.UsageError("Give either a configuration file or --upstream.")
    try:
        plan = Quickstart.of(upstreams, listen, certificate=certificate, key=key, ca=ca, pin=pin, metrics=metrics)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with contextlib.ExitStack() as stack:
        if plan.needs_certificate and not only_print:
            plan = plan.with_certificate(*stack.enter_context(_temporary_certificate()))
        source, base = plan.to_toml(), Path.cwd()
        if only_print:
            click.echo(configuration.parse(source, base=base, environ=os.environ).masked_toml(), nl=False)
            if plan.needs_certificate:
                click.echo(PLACEHOLDERS, err=True)
            return
        built = _usable(configuration.parse(source, base=base, environ=os.environ, files=True))
        for line in plan.notes:
            click.echo(f"{click.style('mailgate:', bold=True)} {line}", err=True)
        raise SystemExit(_serve(built))


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold SIGHUP and SIGUSR2 back until the gateway listens to them.

    By default they end a process, so a reload that is asked for while the gateway starts would stop it for good.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _usable(config: Config) -> Config:
    """Return a configuration whose certificates, keys, store and templates can be used; raises ConfigError."""
    problems = unusable_certificates(config, os.environ) + unusable_store(config) + wrong_templates(config)
    if problems:
        raise ConfigError(problems)
    return config


def _serve(config: Config, load: Callable[[], Config] | None = None) -> int:
    # Everything else on this command line works without loading a server.
    from mailgate.app import main as serve

    return serve(config, load)


def _from_environment(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.ENVIRONMENT


@contextlib.contextmanager
def _temporary_certificate() -> Iterator[tuple[Path, Path]]:
    import socket
    import tempfile

    from mailgate.net import certificate

    with tempfile.TemporaryDirectory(prefix="mailgate-") as folder:
        paths = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        names = [name for name in dict.fromkeys((socket.gethostname(), "localhost")) if is_host_name(name)]
        names += ["127.0.0.1", "::1"]
        certificate.write(*paths, *certificate.self_signed(names, days=30))
        yield paths


@main.command(short_help="Tell everything that is wrong with a configuration.")
@config_argument
@click.option("--print", "print_it", is_flag=True, help="Print the configuration with every default written out.")
@reports_failures
def check(config: Path | None, print_it: bool) -> None:
    """Check the file CONFIG and tell everything that is wrong with it.

    CONFIG is $MAILGATE_CONFIG or /etc/mailgate/mailgate.toml where it is not given. Also opens the
    certificates and keys that it names. Nothing is started and no server is asked.

    The exit status is 0 when the file can be used, 78 when it cannot.
    """
    loaded = _usable(load_config(config))
    print_warnings([*loaded.warnings, *exposed_keys(loaded)])
    if print_it:
        click.echo(loaded.masked_toml(), nl=False)
        return
    click.echo(
        f"The configuration is good: listeners {len(loaded.listener)}, "
        f"pools {len(loaded.pool)}, routes {len(loaded.route)}."
    )


@main.command(short_help="Print the JSON schema of the configuration.")
@click.option("--reference", is_flag=True, help="Print the tables of all options as Markdown instead.")
def schema(reference: bool) -> None:
    """Print the JSON schema of the configuration, by which editors complete and check it."""
    if reference:
        for heading, table in configuration.reference().items():
            click.echo(f"## {heading}\n\n{table}\n")
    else:
        click.echo(json.dumps(configuration.json_schema(), indent=2, ensure_ascii=False))


@main.command(short_help="Tell where a login of USER would go, and why.")
@click.argument("user")
@click.option("--listener", metavar="NAME", help="The listener that the user connects to.  [default: all]")
@click.option(
    "--protocol",
    type=click.Choice([str(p) for p in Protocol]),
    help="What the user's program speaks.  [default: all]",
)
@config_option
@reports_failures
def route(user: str, listener: str | None, protocol: str | None, config: Path | None) -> None:
    """Tell where a login of USER would go, and why: every route that is asked, in order.

    The exit status is 1 when the login would be refused.
    """
    loaded = load_config(config)
    known = [each.name for each in loaded.listener]
    if listener is not None and listener not in known:
        raise click.UsageError(f"There is no listener {listener!r}; there are: {', '.join(known)}.")
    asked = [
        each for each in loaded.listener if listener in (None, each.name) and protocol in (None, str(each.protocol))
    ]
    if not asked:
        raise click.UsageError("No such listener speaks that protocol.")
    router = StaticRouter(loaded.route)
    outcomes: dict[tuple[tuple[Step, ...], bytes | None], list[str]] = {}
    for each in asked:
        # Arguments hold bytes that are no UTF-8 as surrogates, which fsencode turns back.
        name, mailbox = os.fsencode(user), None
        steps = router.explain(name, listener=each.name, protocol=each.protocol)
        if each.protocol is Protocol.POP3 and (found := _with_mailbox(name, loaded)) is not None:
            plain = router.explain(found[0], listener=each.name, protocol=each.protocol)
            if plain and plain[-1].matched and loaded.pool[plain[-1].rule.pool].protocol is Protocol.IMAP:
                steps, mailbox = plain, found[1]
        outcomes.setdefault((tuple(steps), mailbox), []).append(each.name)
    refused = False
    for (outcome, mailbox), names in outcomes.items():
        click.echo(f"{printable(user)} on {', '.join(names)}:")
        for step in outcome:
            mark = click.style("yes", fg="green") if step.matched else click.style("no ", dim=True)
            click.echo(f"  {mark} {step.rule.name}: {printable(step.why)}")
        if outcome and outcome[-1].matched:
            rule = outcome[-1].rule
            pool = loaded.pool[rule.pool]
            _print_target(pool)
            pop3 = any(each.protocol is Protocol.POP3 for each in asked if each.name in names)
            if pop3 and pool.protocol is Protocol.IMAP:
                _print_policy(rule.pop3 or loaded.pop3, loaded.pop3, mailbox)
        else:
            refused = True
            click.secho("  No route takes this login: it would be refused.", fg="red")
    raise SystemExit(EXIT_FAILED if refused else 0)


def _with_mailbox(user: bytes, loaded: Config) -> tuple[bytes, bytes] | None:
    """Return the user and the mailbox that a POP3 client's user name carries, ``None`` where it carries none."""
    if not loaded.pop3.login_folder:
        return None
    from mailgate.translating import split

    return split(user, loaded.pop3.login_folder.encode())


def _print_policy(policy: Pop3Policy, general: Pop3Settings, mailbox: bytes | None) -> None:
    """Tell what of a route's policy decides what a POP3 client sees of an IMAP mailbox, and what it can do to it."""
    folders = ", ".join(policy.folders) if mailbox is None else mailbox.decode("utf-8", "backslashreplace")
    shows = ["messages that were shown once"] if policy.max_age or policy.max_messages else []
    shows += [f"those of the last {policy.max_age / 86400:g} days"] if policy.max_age else []
    shows += [f"at most the newest {policy.max_messages}"] if policy.max_messages else []
    kept = general.store.path or general.store.url if general.store is not None else "nothing"
    click.echo("  POP3 is translated to IMAP:")
    for what, how in {
        "mailbox": folders + (", read-only" if policy.read_only else ""),
        "shown": "; ".join(shows) or "all messages",
        "unique-ids": policy.uidl,
        "deleted": f"{policy.delete}, at QUIT",
        "a second session": policy.lock,
        "between logins": f"{policy.login_delay:g} s" if policy.login_delay else "",
        "remembered in": str(kept),
    }.items():
        if how:
            click.echo(f"    {what}: {printable(how)}")


def _print_target(pool: Pool) -> None:
    tls = "no TLS" if pool.tls.mode == "off" else f"TLS {pool.tls.mode}"
    click.echo(f"  pool {click.style(pool.name, bold=True)} ({pool.protocol}, {tls}), {pool.balance} over:")
    for server in pool.servers:
        address = str(server.address)
        click.echo(f"    {server.name}" + (f" at {address}" if server.name != address else ""))


@main.command(short_help="See it at work: a sample mail server behind the gateway.")
@click.option("--once", is_flag=True, help="Stop after the check; the exit status is 0 only if mail was read.")
@reports_failures
def demo(once: bool) -> None:
    """Start a mail server with sample mail and the gateway in front of it, and read the mail.

    Everything runs on free ports of this machine, without rights, and is gone after Ctrl-C.
    """
    try:
        from mailgate.demo import main as show
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mailgate"):
            raise
        fail(f"the demo needs {error.name}: pip install 'mailgate[demo]'")
    raise SystemExit(show(once))

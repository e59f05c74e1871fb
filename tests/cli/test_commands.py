"""The commands as a user meets them: output, exit statuses, and what reaches the server."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import click
import pytest
import trustme
from click.testing import CliRunner, Result

from mailgate import __version__
from mailgate.cli import commands, main
from mailgate.config import Config
from mailgate.errors import ConfigError

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("MAILGATE_CONFIG", raising=False)

    def invoke(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Stand in for the server: remembers what it was started with, says that it ended well."""
    started: list[Config] = []

    def serve(config: Config, load: Callable[[], Config] | None) -> int:
        if config.tls is not None:
            assert config.tls.certificate.read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
        started.append(config)
        return 0

    app = ModuleType("mailgate.app")
    app.main = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mailgate.app", app)
    return started


@pytest.fixture
def config(tmp_path: Path) -> Path:
    pair = trustme.CA().issue_cert("mail.example.org")
    pair.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    pair.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    path = tmp_path / "mailgate.toml"
    path.write_text(
        """
[tls]
certificate = "certificate.pem"
key = "key.pem"
[[listener]]
name = "imaps"
protocol = "imap"
bind = "0.0.0.0:993"
[[listener]]
name = "pop3s"
protocol = "pop3"
bind = "0.0.0.0:995"
[pool.main]
protocol = "imap"
servers = ["imap.internal:993", { address = "10.0.0.1:993", name = "second" }]
[pool.pop]
protocol = "pop3"
servers = ["127.0.0.1:110"]
tls = "off"
[[route]]
match = { protocol = "pop3", domain = "example.org" }
pool = "pop"
[[route]]
match = { listener = "imaps" }
pool = "main"
"""
    )
    return path


def test_help_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in ("run", "check", "schema", "route", "demo", "cert", "trace", "reload"):
        assert re.search(rf"^  {name} +\S", result.stdout, re.MULTILINE)
        assert run(name, "--help").exit_code == 0


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"mailgate, version {__version__}\n"


def test_check_of_a_good_file(run: Run, config: Path) -> None:
    result = run("check", config)
    assert (result.exit_code, result.stdout) == (
        0,
        "The configuration is good: listeners 2, pools 2, routes 2.\n",
    )
    assert 'warning: listener[1] "pop3s": no route takes everyone' in result.stderr


def test_check_prints_a_file_that_is_good_again(run: Run, config: Path) -> None:
    printed = run("check", "--print", config)
    assert printed.exit_code == 0
    assert 'idle_timeout = "31m"' in printed.stdout
    again = config.with_name("again.toml")
    again.write_text(printed.stdout)
    assert run("check", "--print", again).stdout == printed.stdout


def test_check_of_a_bad_file_tells_all_and_exits_78(run: Run, config: Path) -> None:
    config.write_text(config.read_text().replace('"main"', '"mian"') + "\n[limits]\nsessions = 'x'\nkey = 1")
    result = run("check", config)
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines() == [
        "The configuration has 3 problems:",
        '  limits.sessions = "x": must be a whole number',
        "  limits.key = 1: unknown key; it belongs to [tls], [tls.alternate], "
        "[[tls.sni]], [pool.NAME.tls], [tls.sni.alternate]",
        '  route[1].pool = "mian": there is no such pool; did you mean "main"?',
    ]


def test_check_without_a_file_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mailgate.cli.base.DEFAULT_CONFIG", tmp_path / "none.toml")
    result = run("check")
    assert result.exit_code == 2
    assert "mailgate run --help" in result.stderr
    assert run("check", tmp_path / "none.toml").exit_code == 78


def test_the_file_may_stand_in_the_environment_or_in_the_usual_place(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailgate.cli.base.DEFAULT_CONFIG", config)
    assert run("check").exit_code == 0
    monkeypatch.setenv("MAILGATE_CONFIG", str(config.with_name("other.toml")))
    assert run("check").exit_code == 78


def test_colours_are_for_terminals_that_want_them(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in run("route", "a", "-c", config).stdout
    coloured = CliRunner().invoke(main, ["route", "a", "-c", str(config)], color=True)
    assert "\x1b[" in coloured.stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in CliRunner().invoke(main, ["route", "a", "-c", str(config)], color=True).stdout


def test_schema_is_json_and_the_reference_is_markdown(run: Run) -> None:
    assert json.loads(run("schema").stdout)["title"] == "mailgate configuration"
    assert "\n## [limits]\n\n" in run("schema", "--reference").stdout


def test_route_explains_each_listener(run: Run, config: Path) -> None:
    result = run("route", "alice@example.org", "--config", config)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "alice@example.org on imaps:",
        "  no  route[0]: the protocol is imap",
        "  yes route[1]: listener matches",
        "  pool main (imap, TLS implicit), round-robin over:",
        "    imap.internal:993",
        "    second at 10.0.0.1:993",
        "alice@example.org on pop3s:",
        "  yes route[0]: domain and protocol match",
        "  pool pop (pop3, no TLS), round-robin over:",
        "    127.0.0.1:110",
    ]


POLICY = """
[pop3]
login_folder = "+"
max_age = "30d"
store = { path = "pop3.sqlite" }
[[route]]
match = { protocol = "pop3", domain = "example.net" }
pool = "main"
pop3 = { folders = ["INBOX", "Spam"], delete = "trash", read_only = true, max_messages = 500, login_delay = "1m" }
"""


def test_route_tells_what_a_pop3_client_gets_of_an_imap_server(run: Run, config: Path) -> None:
    config.write_text(config.read_text() + POLICY)
    result = run("route", "alice@example.net", "--protocol", "pop3", "--config", config)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[-9:] == [
        "    second at 10.0.0.1:993",
        "  POP3 is translated to IMAP:",
        "    mailbox: INBOX, Spam, read-only",
        "    shown: messages that were shown once; those of the last 30 days; at most the newest 500",
        "    unique-ids: dovecot",
        "    deleted: trash, at QUIT",
        "    a second session: wait",
        "    between logins: 60 s",
        f"    remembered in: {config.with_name('pop3.sqlite')}",
    ]
    lines = run("route", "alice+Archive@example.net", "--protocol", "pop3", "-c", config).stdout.splitlines()
    assert "    mailbox: Archive, read-only" in lines
    # A route to a server that speaks POP3 has the whole name.
    assert "translated" not in run("route", "alice+Archive@example.org", "--protocol", "pop3", "-c", config).stdout


def test_route_where_nothing_is_configured_for_pop3(run: Run, config: Path) -> None:
    config.write_text(config.read_text().replace('match = { listener = "imaps" }\n', ""))
    lines = run("route", "alice@example.com", "-c", config).stdout.splitlines()
    assert lines[-7:] == [
        "  POP3 is translated to IMAP:",
        "    mailbox: INBOX",
        "    shown: all messages",
        "    unique-ids: dovecot",
        "    deleted: expunge, at QUIT",
        "    a second session: wait",
        "    remembered in: nothing",
    ]


def test_route_of_a_login_that_is_refused(run: Run, config: Path) -> None:
    result = run("route", "alice", "--protocol", "pop3", "--config", config)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "alice on pop3s:",
        "  no  route[0]: the user name has no domain",
        "  no  route[1]: the listener is pop3s",
        "  No route takes this login: it would be refused.",
    ]


def test_route_asks_for_what_is_there(run: Run, config: Path) -> None:
    result = run("route", "a", "--listener", "smtp", "-c", config)
    assert result.exit_code == 2
    assert "there are: imaps, pop3s" in result.stderr
    result = run("route", "a", "--listener", "imaps", "--protocol", "pop3", "-c", config)
    assert result.exit_code == 2
    only = run("route", "a", "--listener", "imaps", "-c", config)
    assert only.exit_code == 0
    assert "translated" not in only.stdout


def test_route_groups_listeners_and_escapes_control_characters(run: Run, config: Path) -> None:
    config.write_text(config.read_text().replace('match = { listener = "imaps" }\n', "").replace("example.org", "x.y"))
    text = config.read_text().replace('protocol = "pop3"\nbind', 'protocol = "imap"\nbind')
    config.write_text(
        text.replace('match = { protocol = "pop3", domain', "match = { domain").replace('"pop"\n', '"main"\n')
    )
    result = run("route", "a\x1b[2J", "-c", config)
    assert result.stdout.splitlines()[0] == "a\\x1b[2J on imaps, pop3s:"


def test_run_starts_the_server_with_the_file(run: Run, config: Path, served: list[Config]) -> None:
    assert run("run", config).exit_code == 0
    assert [listener.name for listener in served[0].listener] == ["imaps", "pop3s"]


def test_run_of_a_bad_file_starts_nothing(run: Run, config: Path, served: list[Config]) -> None:
    config.write_text("x")
    assert run("run", config).exit_code == 78
    assert served == []


def test_a_key_that_does_not_fit_is_found_by_check_and_run(run: Run, config: Path, served: list[Config]) -> None:
    trustme.CA().issue_cert("a.example").private_key_pem.write_to_path(str(config.with_name("key.pem")))
    for command in ("check", "run"):
        result = run(command, config)
        assert result.exit_code == 78
        assert "tls.key" in result.stderr
    assert served == []


def test_a_reload_reads_the_same_file_and_checks_it_whole(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = ModuleType("mailgate.app")
    loads: list[Callable[[], Config] | None] = []

    def serve(config: Config, load: Callable[[], Config] | None) -> int:
        loads.append(load)
        return 0

    app.main = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mailgate.app", app)
    monkeypatch.chdir(config.parent)
    assert run("run", config.name).exit_code == 0
    monkeypatch.chdir("/")
    (load,) = loads
    assert load is not None
    assert load().hostname != "new.example.org"
    config.write_text('hostname = "new.example.org"\n' + config.read_text())
    assert load().hostname == "new.example.org"
    config.with_name("key.pem").write_text("nothing")
    with pytest.raises(ConfigError, match=r"tls\.certificate"):
        load()


def test_a_reload_that_is_asked_for_too_early_waits(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = ModuleType("mailgate.app")
    heard: list[int] = []

    def serve(config: Config, load: object) -> int:
        signal.raise_signal(signal.SIGHUP)
        assert (signal.sigpending(), heard) == ({signal.SIGHUP}, [])
        return 0

    app.main = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mailgate.app", app)
    before = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        assert run("run", config).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGHUP]
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_run_tells_of_failures_in_a_line(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = ModuleType("mailgate.app")

    def fails(config: Config, load: object) -> int:
        raise OSError(98, "Address already in use", "0.0.0.0:993")

    app.main = fails  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mailgate.app", app)
    result = run("run", config)
    assert (result.exit_code, result.stderr) == (1, "mailgate: 0.0.0.0:993: Address already in use\n")


def test_run_in_front_of_an_upstream(run: Run, config: Path, served: list[Config]) -> None:
    folder = config.parent
    result = run(
        "run", "--upstream", "imaps://mail.example.org", "--listen", "imaps://127.0.0.1:1993",
        "--certificate", folder / "certificate.pem", "--key", folder / "key.pem",
        "--metrics", "127.0.0.1:9930", "--pin", "00" * 32,
    )  # fmt: skip
    assert result.exit_code == 0
    (built,) = served
    assert [(listener.name, str(listener.bind[0]), listener.tls) for listener in built.listener] == [
        ("imaps", "127.0.0.1:1993", "implicit")
    ]
    assert built.pool["imap"].tls.pin == ("00" * 32,)
    assert built.metrics is not None
    assert built.warnings == ()
    assert "Mail programs connect to imaps on 127.0.0.1:1993." in result.stderr


def test_run_makes_a_certificate_on_the_fly_and_takes_it_away(run: Run, served: list[Config]) -> None:
    pytest.importorskip("mailgate.net.certificate")
    result = run("run", "--upstream", "imap://localhost:1143", "--listen", "imaps://127.0.0.1:1993")
    assert result.exit_code == 0
    assert "certificate made on the fly" in result.stderr
    assert served[0].tls is not None
    assert not served[0].tls.certificate.exists()


def test_run_prints_what_it_would_run(run: Run, served: list[Config], tmp_path: Path) -> None:
    result = run("run", "--upstream", "pop3s://mail.example.org", "--listen", "pop3s://[::1]:1995", "--print")
    assert result.exit_code == 0
    assert served == []
    assert 'bind = ["[::1]:1995"]' in result.stdout
    assert result.stderr == f"{commands.PLACEHOLDERS}\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--ca", "missing.pem"), "pool.imap.tls.ca"),
        (("--ca", "key.pem"), "holds no certificates of authorities in PEM form"),
        (("--certificate", "missing.pem", "--key", "key.pem"), "tls.certificate"),
        (("--certificate", "certificate.pem", "--key", "missing.pem"), "tls.key.file"),
        (("--certificate", "certificate.pem", "--key", "certificate.pem"), "both must be PEM"),
    ],
)
def test_run_in_front_of_an_upstream_wants_files_that_can_be_used(
    run: Run, config: Path, served: list[Config], monkeypatch: pytest.MonkeyPatch, options: Sequence[str], problem: str
) -> None:
    monkeypatch.chdir(config.parent)
    result = run("run", "--upstream", "imaps://mail.example.org", "--listen", "imaps://127.0.0.1:1993", *options)
    assert (result.exit_code, served) == (78, [])
    assert "The configuration has 1 problem:" in result.stderr
    assert problem in result.stderr


def test_output_that_nobody_reads_any_more_is_no_failure(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(click, "echo", broken)
    result = run("check", config)
    assert (result.exit_code, result.stderr) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.toml", "--upstream", "imaps://a"], "either a configuration file or --upstream"),
        (["x.toml", "--listen", "imaps://a"], "--listen goes with --upstream"),
        (["x.toml", "--print"], "--print goes with --upstream"),
        (["--upstream", "http://a"], "--upstream: a server is written"),
        (["--upstream", "imaps://a", "--certificate", "x"], "--certificate and --key go together"),
        (["--nonsense"], "No such option"),
    ],
)
def test_run_with_a_wrong_command_line(run: Run, served: list[Config], arguments: list[str], message: str) -> None:
    result = run("run", *arguments)
    assert (result.exit_code, served) == (2, [])
    assert message in " ".join(result.stderr.split())


def test_run_with_options_that_make_a_bad_configuration(run: Run, served: list[Config]) -> None:
    listen = ("--listen", "imaps://127.0.0.1:1993", "--print")
    result = run("run", "--upstream", "imaps://a", *listen, "--metrics", "127.0.0.1:1993")
    assert result.exit_code == 78
    assert "metrics.bind" in result.stderr
    assert run("run", "--upstream", "imaps://a", *listen, "--pin", "12").exit_code == 78


def test_demo_runs_the_demo_or_says_what_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    module = ModuleType("mailgate.demo")
    module.main = lambda once: asked.append(once) or 3  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "mailgate.demo", module)
    assert run("demo").exit_code == 3
    assert run("demo", "--once").exit_code == 3
    assert asked == [False, True]


def test_demo_without_its_server_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, *rest: object) -> None:
            if name == "mailgate.demo":
                raise ModuleNotFoundError("No module named 'pymap'", name="pymap")

    monkeypatch.delitem(sys.modules, "mailgate.demo", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    result = run("demo")
    assert (result.exit_code, result.stderr) == (
        1,
        "mailgate: the demo needs pymap: pip install 'mailgate[demo]'\n",
    )


def test_the_module_is_the_command() -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    result = subprocess.run(
        [sys.executable, "-m", "mailgate", "--version"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert result.stdout == f"mailgate, version {__version__}\n"

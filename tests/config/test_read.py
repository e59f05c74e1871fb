"""From text to a configuration or to all of its problems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.config import Config, load, parse
from mailgate.errors import ConfigError
from mailgate.model import Protocol
from tests.config.samples import IMAPS, MAIN, SMALLEST, TLS, problems, read


def test_the_smallest_file_is_read() -> None:
    config = read(SMALLEST)
    assert config.listener[0].protocol is Protocol.IMAP
    assert config.tls is not None
    assert config.tls.certificate == Path("/etc/mailgate/fullchain.pem")
    assert config.tls.key.file == Path("/etc/mailgate/privkey.pem")
    assert config.pool["main"].name == "main"
    assert config.route[0].pool == "main"
    assert config.warnings == ()


def test_absolute_paths_stay() -> None:
    config = read(SMALLEST.replace('"privkey.pem"', '"/run/key.pem"'))
    assert config.tls is not None
    assert config.tls.key.file == Path("/run/key.pem")


def test_all_problems_are_told_at_once() -> None:
    assert problems(
        """
hostnme = "mail.example.org"
[tls]
certificate = "a.pem"
profile = "moderm"
[[listener]]
name = "imaps"
protocol = "imap"
bind = ["0.0.0.0:99999", "[::]:993"]
profil = "legacy"
[[listener]]
name = "other"
protocol = "pop3"
bind = "0.0.0.0:1234"
idle_timeout = "3 fortnights"
[[listener]]
name = "third"
protocol = "imap"
bind = "0.0.0.0:1143"
[pool.legacy]
protocol = "imap"
servers = ["a:993", { address = "b:993", weight = 3 }]
[pool.modern]
protocol = "imap"
servers = ["imap.example.com:1430"]
[[route]]
match = { regex = "(a" }
pool = "legcy"
[limits]
sessions = "many"
failure_delay = "1h"
half_open = 0
"""
    ) == [
        'listener[0].bind[0] = "0.0.0.0:99999": the port must be a number from 1 to 65535',
        'listener[0].profil = "legacy": unknown key; did you mean "profile"?',
        'listener[1].idle_timeout = "3 fortnights": a duration is a number of seconds or text such as '
        '"30s", "31m" or "1h30m"',
        "tls.key: is missing. The private key, PEM: a path, or { file, password } when it is encrypted.",
        'tls.profile = "moderm": must be "modern", "intermediate" or "legacy"; did you mean "modern"?',
        "pool.legacy.servers[1].weight = 3: unknown key; known here: address, name",
        'route[0].match.regex = "(a": a ( without its ) (at character 3 of the pattern)',
        'limits.sessions = "many": must be a whole number',
        "limits.half_open = 0: must be at least 1",
        'limits.failure_delay = "1h": must be at most 5m',
        'hostnme = "mail.example.org": unknown key; did you mean "hostname"?',
        "listener[2].tls: these ports do not tell: write implicit, starttls, starttls-optional or off",
        "pool.modern.tls: these ports do not tell: write implicit, starttls or off",
        'route[0].pool = "legcy": there is no such pool; did you mean "legacy"?',
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "listener: is missing. Where mail clients connect."),
        ("listener = 3", "listener = 3: must be an array"),
        ("listener = []", "listener: must not be empty"),
        ("listener = [3]", "listener[0] = 3: must be a table"),
        ("pool = 3", "pool = 3: must be a table"),
        ("pool = {}", "pool: must not be empty"),
        ('pool = { "a b" = {} }', 'pool."a b".protocol: is missing. What the servers speak.'),
        ("pool = { a = 3 }", "pool.a = 3: must be a table"),
        ('hostname = "not a host"', 'hostname = "not a host": not a host name'),
        ("hostname = 3", "hostname = 3: must be a string"),
        ("log = { level = 'inf' }", 'did you mean "info"?'),
        ("log = { level = 7 }", 'must be "debug", "info", "warning" or "error"'),
        ("limits = { sessions = true }", "limits.sessions = true: must be a whole number"),
        ("limits = { sessions = 1.5 }", "limits.sessions = 1.5: must be a whole number"),
        ("limits = { line = '1 KB' }", 'limits.line = "1 KB": a size is'),
        ("limits = { line = 1 }", "limits.line = 1: must be at least 8 KiB"),
        ("limits = { sessions = 0 }", "limits.sessions = 0: must be at least 1"),
        ("limits = { failure_delay = -1 }", "limits.failure_delay = -1: must be at least 0s"),
        ("limits = { failure_delay = inf }", "limits.failure_delay = inf: a duration is"),
        (
            "certificate = 'x'",
            'certificate = "x": unknown key; it belongs to [tls], [tls.alternate], [[tls.sni]], [pool.NAME.tls]',
        ),
        ("metrics = { bind = 9930 }", "metrics.bind = 9930: an endpoint is a string"),
        ("metrics = {}", "metrics.bind: is missing."),
        ("admin = { socket = 1 }", "admin.socket = 1: must be a string: the path of a file"),
        ("admin = { socket = '' }", 'admin.socket = "": not the path of a file'),
        ("hostname = 2024-01-01", "hostname = 2024-01-01: must be a string"),
        ("[[route]]\npool = 'x'\nname = 'a b'", 'route[0].name = "a b": must start with a letter or digit'),
        ("[[listener]]\nname = 'a b'", 'listener[0].name = "a b": must start with a letter or digit'),
        ("[[listener]]\nbind = 143", "listener[0].bind = 143: an endpoint is a string"),
        ("[[listener]]\nbind = '*:993'", 'to listen on every address, write "0.0.0.0" or "[::]"'),
        ("[[listener]]\ntrusted = '10.0.0.1/8'", "the part behind the prefix must be zero"),
        ("[[listener]]\ntrusted = {}", "listener[0].trusted: must be an array"),
        ("[listener]\nname = 'imaps'", "listener: must be an array of tables: write [[listener]]"),
        ("[tls.sni]\nnames = 'a'", "tls.sni: must be an array of tables: write [[tls.sni]]"),
        ("[[pool]]\nprotocol = 'imap'", "pool: must be tables with a name each: write [pool.NAME]"),
        ("pool = { a = { servers = 'a' } }", "the port is missing"),
        ("pool = { a = { servers = [5] } }", 'pool.a.servers[0] = 5: a server is "host:port" or {'),
        (
            "pool = { a = { servers = [{ address = 'a:1', name = 'ü' }] } }",
            'pool.a.servers[0].name = "ü": must be printable ASCII',
        ),
        ("log = { level = 'INFO' }", 'did you mean "info"?'),
        ("[[route]]\nmatch = { user = '*x' }\npool = 'x'", "for patterns there are domain and regex"),
        ("[[route]]\nmatch = { domain = '@x' }\npool = 'x'", "is not a domain"),
        ("[[route]]\nmatch = 3\npool = 'x'", "route[0].match = 3: must be a table"),
        ("pool = { a = { tls = { pin = ['00'] } } }", "pool.a.tls.pin: a pin is a SHA-256 fingerprint"),
        ("pool = { a = { tls = { ca = 3 } } }", 'pool.a.tls.ca = 3: must be "system", or must be a string'),
        ("pool = { a = { tls = { name = 'a b' } } }", 'pool.a.tls.name = "a b": not a host name'),
        ("pool = { a = { name = 'b' } }", "pool.a.name: unknown key; a pool's name is its key, here a"),
        ("pool = { a = { balance = 'sticky' } }", 'pool.a.balance = "sticky": must be "round-robin"'),
        ("[[listener]]\ntrusted = ['10.0.0.1/8']", "the part behind the prefix must be zero"),
        ("[[listener]]\ntrusted = [3]", 'a network is a string such as "10.0.0.0/8"'),
        ("[[listener]]\nallow_plaintext_auth = 'yes'", 'allow_plaintext_auth = "yes": must be true or false'),
        ("[[listener]]\nbind = ['\\u001b[31m']", 'bind[0] = "\\\\u001b[31m"'),
        (f"hostname = '{'x' * 100}'", f'hostname = "{"x" * 58}…: not a host name'),
        ('[pop3]\nlogin_folder = "x"', 'pop3.login_folder = "x": must be one of + % / = # -'),
    ],
)
def test_each_mistake_is_told_in_words(source: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(source)), problems(source)


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("a = \n", "line 1, column 5", "not valid TOML: invalid value"),
        ("a = 1\na = 2\n", "line 2, column 6", "not valid TOML: cannot overwrite a value"),
        ("\n[tls", "end of file", "not valid TOML: expected ']'"),
        ("a = " + "[" * 20000, "file", "is nested too deeply"),
        (f"a = {'9' * 5000}", "file", "not valid TOML"),
    ],
)
def test_a_text_that_is_not_toml_is_told_with_its_line(source: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(source)
    (problem,) = caught.value.problems
    assert problem.path == path
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    "source",
    [
        'password = "canary-7f3a"',
        '[tls]\nkey = { file = "k", password = "canary-7f3a" }',
        '[tls]\nkey = { file = "k", password = { literal = "canary-7f3a" } }',
        '[tls]\nkey = { file = "k", password = ["canary-7f3a"] }',
        '[tls]\nkey = { file = "k", passwort = "canary-7f3a" }',
        '[pool.a]\nsecret_token = { x = "canary-7f3a" }',
        '[pool.a]\nservers = ["imaps://user:canary-7f3a@host"]',
        '[admin]\ntoken = "canary-7f3a"',
    ],
)
def test_what_may_be_a_secret_is_not_shown(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(source)
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(caught.value.problems)
    assert caught.value.__cause__ is None


def test_variables_of_secrets_must_be_set() -> None:
    source = SMALLEST.replace('"privkey.pem"', '{ file = "k", password = { env = "KEY_WORD" } }')
    assert read(source, {"KEY_WORD": "x"}).tls is not None
    assert problems(source) == ['tls.key.password.env = "KEY_WORD": this environment variable is not set']
    # A mistake elsewhere does not hide it.
    assert len(problems(source + "\n[log]\nlevel = 1")) == 2


def test_a_secret_in_a_list_of_tables_is_found() -> None:
    source = (
        SMALLEST
        + """
[[tls.sni]]
names = "a.example"
certificate = "c.pem"
key = { file = "k", password = { env = "W" } }
"""
    )
    assert problems(source) == ['tls.sni[0].key.password.env = "W": this environment variable is not set']


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "tls", "bind", "servers", "pool", "match", "x y"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_toml(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" if not 0xD800 <= ord(c) < 0xE000 else "?" for c in value) + '"'
    if value is None:
        return '""'
    return str(value).lower()


@given(st.dictionaries(st.sampled_from([*Config.model_fields, "other"]), _values, max_size=4))
def test_only_config_error_leaves_whatever_the_file_holds(tables: dict[str, object]) -> None:
    source = "\n".join(f"{name} = {_toml(value)}" for name, value in tables.items())
    with pytest.raises(ConfigError) as caught:
        read(source)
    assert caught.value.problems
    assert all(problem.path and problem.message for problem in caught.value.problems)


@given(st.text(max_size=60))
def test_only_config_error_leaves_whatever_the_text_is(source: str) -> None:
    with pytest.raises(ConfigError):
        read(source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("fullchain.pem", "privkey.pem"):
        tmp_path.joinpath(name).write_text("content")
    return tmp_path


def test_load_reads_a_file_and_finds_what_it_names(folder: Path) -> None:
    path = folder / "mailgate.toml"
    path.write_text(SMALLEST)
    config = load(path, {})
    assert config == parse(SMALLEST, base=folder, environ={})


def test_load_tells_of_every_missing_file(folder: Path) -> None:
    path = folder / "mailgate.toml"
    path.write_text(
        TLS.replace("privkey", "other")
        + IMAPS
        + MAIN
        + 'tls = { ca = "ca.pem" }\n[admin]\nsocket = "run/a.sock"'
        + '\n[trace]\ndirectory = "traces"\n[log]\nlevl = "x"'
    )
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert [(problem.path, problem.message) for problem in caught.value.problems] == [
        ("log.levl", 'unknown key; did you mean "level"?'),
        ("tls.key.file", "cannot be read: No such file or directory"),
        ("pool.main.tls.ca", "cannot be read: No such file or directory"),
        ("admin.socket", f"there is no folder {folder / 'run'}"),
    ]


def test_load_tells_of_a_folder_in_the_place_of_a_file(folder: Path) -> None:
    folder.joinpath("privkey.pem").unlink()
    folder.joinpath("privkey.pem").mkdir()
    path = folder / "mailgate.toml"
    path.write_text(SMALLEST)
    with pytest.raises(ConfigError, match=r"tls\.key\.file.*cannot be read: Is a directory"):
        load(path, {})


def test_load_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read: No such file or directory"):
        load(tmp_path / "nothing.toml", {})


def test_load_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mailgate.toml"
    path.write_bytes(b"# fine\nhostname = '\xff'")
    with pytest.raises(ConfigError, match="line 2: a TOML file must be UTF-8"):
        load(path, {})


def test_relative_paths_count_from_the_files_own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.joinpath("mailgate.toml").write_text(SMALLEST)
    monkeypatch.chdir(folder.parent)
    config = load(Path(os.path.relpath(folder / "mailgate.toml")), {})
    assert config.tls is not None
    assert config.tls.certificate == folder / "fullchain.pem"

"""A migration as an administrator does it: ``import`` or a template, and ``diff`` of the old server and the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main
from tests.support.servers import free_ports, mailgate
from tests.support.stores import Maildirs, Store

pytestmark = pytest.mark.real

CONFIG = """
workers = 2
[[listener]]
name = "pop3"
protocol = "pop3"
bind = "127.0.0.1:{port}"
tls = "off"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:{imap}"]
tls = "off"
[pop3]
uidl = "{template}"
store.path = "{folder}/pop3.sqlite"
"""
USERS = 6


def message(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <%d@example.org>\r\n\r\n%b\r\n" % (number, number, b"x" * number)


@pytest.fixture
def users(store: Store, tmp_path: Path) -> Path:
    """A table of users with some mail each, of which the server's POP3 has been asked before."""
    lines = ["user,password"]
    for count in range(USERS):
        user = store.new_user()
        lines.append(f"{user},{store.users[user]}")
        for number in range(count * 5):
            store.deliver(user, message(number % 7))
    path = tmp_path / "users.csv"
    path.write_text("\n".join([*lines, ""]))
    path.chmod(0o600)
    return path


def run(store: Store, folder: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(main, ["uidl", *arguments], env={"MAILGATE_CONFIG": str(folder / "mailgate.toml")})
    assert not any(secret in result.output for secret in store.users.values())
    return result


def test_clients_notice_nothing_of_a_migration_with_an_import(store: Store, users: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = CONFIG.format(port=port, imap=store.imap, template="cyrus", folder=tmp_path)
    places = ["--old", f"127.0.0.1:{store.pop3}", "--new", f"127.0.0.1:{port}"]
    (tmp_path / "mailgate.toml").write_text(config)
    done = run(store, tmp_path, "import", "--users", str(users), "--from-pop3", f"127.0.0.1:{store.pop3}")
    assert done.exit_code == 0, done.output
    with mailgate(tmp_path, config, [port]):
        same = run(store, tmp_path, "diff", "--users", str(users), *places)
    assert same.stdout == f"{USERS} users: {USERS} without differences.\n"
    assert same.exit_code == 0


def test_the_wrong_template_is_told_clearly(store: Store, users: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = CONFIG.format(port=port, imap=store.imap, template="cyrus", folder=tmp_path)
    places = ["--old", f"127.0.0.1:{store.pop3}", "--new", f"127.0.0.1:{port}"]
    with mailgate(tmp_path, config, [port]):
        found = run(store, tmp_path, "diff", "--users", str(users), *places)
        assert found.exit_code == 1
        assert "clients would download everything again: 25 messages" in found.stdout
        # One of them has no mail, so that nothing differs.
        summary = f"{USERS} users: 1 without differences, {USERS - 1} would download everything again."
        assert summary in found.stdout
        assert "Do not move clients yet" in found.stdout


def test_the_right_template_or_the_servers_files_are_enough(store: Store, users: Path, tmp_path: Path) -> None:
    assert isinstance(store, Maildirs)
    (port,) = free_ports(1)
    config = CONFIG.format(port=port, imap=store.imap, template="dovecot", folder=tmp_path)
    (tmp_path / "mailgate.toml").write_text(config)
    old = f"127.0.0.1:{store.pop3}"
    if store.name == "courier":
        # No template makes its numbers, which are its own: they stand in files once clients have been there.
        run(store, tmp_path, "diff", "--users", str(users), "--old", old, "--new", old)
        for line in users.read_text().splitlines()[1:]:
            user, password = line.split(",")
            store.contents(user)
            maildir = store.maildir(user)
            files = ["--from-courier", str(maildir / "courierpop3dsizelist")]
            if not Path(files[1]).exists():
                # Nothing was ever shown to this user's clients.
                continue
            (tmp_path / "password").write_text(password)
            files += ["--uids", str(maildir / "courierimapuiddb"), "--password-file", str(tmp_path / "password")]
            done = run(store, tmp_path, "import", user, *files)
            assert done.exit_code == 0, done.output
    with mailgate(tmp_path, config, [port]):
        same = run(store, tmp_path, "diff", "--users", str(users), "--old", old, "--new", f"127.0.0.1:{port}")
    assert same.stdout == f"{USERS} users: {USERS} without differences.\n"

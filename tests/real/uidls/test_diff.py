"""``mailgate uidl diff`` between real POP3 servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main
from tests.support.servers import Dovecot
from tests.support.stores import Store

pytestmark = pytest.mark.real


def diff(store: Store, *arguments: str, users: str = "") -> Result:
    place = f"127.0.0.1:{store.pop3}"
    return CliRunner().invoke(
        main,
        ["uidl", "diff", "--old", place, "--new", place, *arguments],
        env={"MAILGATE_PASSWORD": store.users.get(users, "")},
    )


def message(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <%d@example.org>\r\n\r\nbody\r\n" % (number, number)


def test_a_server_is_as_it_is(store: Store, user: str) -> None:
    for number in range(20):
        store.deliver(user, message(number))
    shown = diff(store, user, users=user)
    assert shown.stdout == f"{user}: no differences: 20 messages\n"
    assert shown.exit_code == 0
    assert store.users[user] not in shown.output


def test_who_cannot_sign_in_is_told_and_the_others_are_compared(store: Store, server: Dovecot, tmp_path: Path) -> None:
    user = store.new_user()
    other, password = next(iter(server.users.items()))
    for number in range(8):
        store.deliver(user, message(number))
    users = tmp_path / "users.csv"
    third = store.new_user()
    lines = [f"{other},{password},", f"{user},{store.users[user]},x", f"{third},{store.users[third]},"]
    users.write_text("\n".join(["user,password,old_password", *lines, ""]))
    users.chmod(0o600)
    shown = diff(store, "--users", str(users))
    assert f"{other}: could not be compared: the old server: " in shown.stdout
    assert f"{user}: could not be compared: the old server: " in shown.stdout
    assert "3 users: 1 without differences, 2 could not be compared." in shown.stdout
    assert shown.exit_code == 1
    for secret in (password, store.users[user]):
        assert secret not in shown.output


def test_over_tls_the_certificate_is_checked(server: Dovecot, authority: Path) -> None:
    user, password = next(iter(server.users.items()))
    for port, mode in ((server.pop3s, "pop3s"), (server.pop3, "pop3")):
        place = f"{mode}://localhost:{port}"
        arguments = ["uidl", "diff", user, "--old", place, "--new", place]
        env = {"MAILGATE_PASSWORD": password}
        good = CliRunner().invoke(main, [*arguments, "--old-ca", str(authority), "--new-ca", str(authority)], env=env)
        assert (good.exit_code, good.stdout) == (0, f"{user}: no differences: 0 messages\n")
        if mode == "pop3s":
            bad = CliRunner().invoke(main, arguments, env=env)
            assert bad.exit_code == 1
            assert "could not be compared: the old server: tls" in bad.stdout

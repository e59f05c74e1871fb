"""The options of ``mailgate uidl``: servers, users, passwords, and how differences are shown."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main
from mailgate.cli.uidl import _print_outcome, _print_summary
from mailgate.cli.uidl_options import place_of, users_of
from mailgate.model import Secret
from mailgate.uidls.comparing import Listing, compare
from mailgate.uidls.places import User
from mailgate.uidls.survey import Outcome

ANNA = User(b"anna", Secret(b"x"), Secret(b"x"))


def uidl(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["uidl", *arguments], env={"MAILGATE_PASSWORD": "", **(env or {})})


@pytest.mark.parametrize(
    ("url", "endpoint", "mode"),
    [
        ("pop.example.org:995", "pop.example.org:995", "implicit"),
        ("pop.example.org:110", "pop.example.org:110", "starttls"),
        ("pop3s://pop.example.org", "pop.example.org:995", "implicit"),
        ("pop3s://pop.example.org:1995", "pop.example.org:1995", "implicit"),
        ("pop3://pop.example.org", "pop.example.org:110", "starttls"),
        ("127.0.0.1:110", "127.0.0.1:110", "off"),
    ],
)
def test_the_port_or_the_scheme_says_how_tls_is_used(url: str, endpoint: str, mode: str) -> None:
    place = place_of(url, plaintext=False, ca=None, pin=None)
    assert str(place.endpoint) == endpoint
    assert place.pool().tls.mode == mode


def test_passwords_go_in_clear_only_by_permission() -> None:
    pool = place_of("pop.example.org:110", plaintext=True, ca=None, pin=None).pool()
    assert (pool.tls.mode, pool.allow_plaintext_auth) == ("off", True)
    pool = place_of("pop.example.org:995", plaintext=True, ca=None, pin=None).pool()
    assert (pool.tls.mode, pool.allow_plaintext_auth) == ("implicit", False)


@pytest.mark.parametrize(
    ("url", "pin", "said"),
    [
        ("pop.example.org", None, "the port is missing"),
        ("imaps://imap.example.org", None, "a POP3 server is written"),
        ("pop.example.org:995", "aa", "a pin is a SHA-256 fingerprint"),
    ],
)
def test_what_is_no_server_is_told(url: str, pin: str | None, said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        place_of(url, plaintext=False, ca=None, pin=pin)
    with pytest.raises(click.UsageError, match="exclude"):
        place_of("a:995", plaintext=False, ca=Path("x"), pin="y")


def test_passwords_come_from_files_variables_or_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"p\xe4ss word\r\n")
    monkeypatch.setenv("MAILGATE_PASSWORD", "from the variable")
    monkeypatch.delenv("MAILGATE_OLD_PASSWORD", raising=False)
    (found,) = users_of("anna", None, None, None)
    assert (found.secret.reveal(), found.old_secret.reveal()) == (b"from the variable", b"from the variable")
    monkeypatch.setenv("MAILGATE_OLD_PASSWORD", "older")
    (found,) = users_of("anna", None, file, None)
    assert (found.secret.reveal(), found.old_secret.reveal()) == (b"p\xe4ss word", b"older")
    (found,) = users_of("anna", None, None, file)
    assert (found.secret.reveal(), found.old_secret.reveal()) == (b"from the variable", b"p\xe4ss word")


def test_a_password_that_is_nowhere_is_asked_for(tmp_path: Path) -> None:
    arguments = ["uidl", "diff", "anna", "--old", "127.0.0.1:1", "--new", "127.0.0.1:1"]
    shown = CliRunner().invoke(main, arguments, input="s3cret\n", env={"MAILGATE_PASSWORD": None})
    assert "Password of anna" in shown.stderr
    assert "s3cret" not in shown.output
    assert "could not be compared" in shown.stdout
    assert shown.exit_code == 1


def test_users_come_from_a_table(tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text('user,password,old_password\nanna,"a,b",old\nbert,c,\n')
    file.chmod(0o600)
    found = users_of(None, file, None, None)
    assert [(one.name, one.secret.reveal(), one.old_secret.reveal()) for one in found] == [
        (b"anna", b"a,b", b"old"),
        (b"bert", b"c", b"c"),
    ]


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("user,password\nanna,x\n", 0o644, "everyone on this machine can read"),
        ("anna,x\n", 0o600, "its first line must name the columns"),
        ("user,password\nanna,\n", 0o600, "line 2 has no user or no password"),
        ("user,password\n", 0o600, "there is nobody in it"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(tmp_path: Path, content: str, mode: int, said: str) -> None:
    file = tmp_path / "users.csv"
    file.write_text(content)
    file.chmod(mode)
    shown = uidl("diff", "--users", str(file), "--old", "127.0.0.1:1", "--new", "127.0.0.1:1")
    assert said in shown.stderr
    assert shown.exit_code == 1


def test_either_a_user_or_many(tmp_path: Path) -> None:
    for arguments in ([], ["anna", "--users", "x"]):
        shown = uidl("diff", *arguments, "--old", "127.0.0.1:1", "--new", "127.0.0.1:1")
        assert "Give either USER or --users." in shown.stderr
    shown = uidl("diff", "--users", "x", "--password-file", "y", "--old", "127.0.0.1:1", "--new", "127.0.0.1:1")
    assert "the passwords stand in that file" in shown.stderr


def test_differences_are_shown_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    before = Listing(tuple(b"a%d" % number for number in range(7)), (100,) * 7)
    after = Listing((*(b"b%d" % number for number in range(6)), b"a0"), (100,) * 6 + (101,))
    outcome = Outcome(ANNA, compare(before, after))
    _print_outcome(outcome, 5, alone=True)
    assert capsys.readouterr().out.splitlines() == [
        "anna: clients would download 6 of 7 messages again",
        "  unique-ids at the old server alone: 6",
        *(f"    a{number}" for number in range(1, 6)),
        "    … and 1 more",
        "  unique-ids at the new server alone: 6",
        *(f"    b{number}" for number in range(5)),
        "    … and 1 more",
        "  another size: 1",
        "    a0: 100 is 101 octets now",
    ]


def test_the_summary_counts_users_by_what_their_clients_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    old = Listing((b"a", b"b"), (1, 2))
    others = [
        old,
        Listing((b"x", b"y"), (1, 2)),
        Listing((b"a", b"b", b"c"), (1, 2, 3)),
        Listing((b"b", b"a"), (2, 1)),
    ]
    _print_summary([*(Outcome(ANNA, compare(old, new)) for new in others), Outcome(ANNA, failure="x")])
    assert capsys.readouterr().out.splitlines() == [
        "5 users: 1 without differences, 1 would download everything again, 1 would download some messages again, "
        "1 differ otherwise, 1 could not be compared.",
        "Do not move clients yet: what they once saw cannot be undone.",
    ]

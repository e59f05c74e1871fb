"""The options of ``mailgate uidl import``, ``show`` and ``export``, and what they say of what they cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main
from mailgate.cli.uidl_import import _print_ambiguous, _print_imported
from mailgate.uidls.files import Known
from mailgate.uidls.importing import Imported
from mailgate.uidls.matching import Matches

CONFIG = """
[[listener]]
name = "pop3"
protocol = "pop3"
bind = "127.0.0.1:1"
tls = "off"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:1"]
tls = "off"
"""


def uidl(folder: Path, *arguments: str, store: bool = True) -> Result:
    path = folder / "mailgate.toml"
    path.write_text(CONFIG + (f'[pop3.store]\npath = "{folder}/pop3.sqlite"\n' if store else ""))
    env = {"MAILGATE_CONFIG": str(path), "MAILGATE_PASSWORD": "x"}
    return CliRunner().invoke(main, ["uidl", *arguments], env=env)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["anna"], "Give one of --from-pop3"),
        (["anna", "--from-csv", "a", "--from-courier", "b"], "Give one of --from-pop3"),
        (["--users", "u", "--from-csv", "a"], "many users come from --from-pop3"),
        (["anna", "--from-pop3", "h:995", "--uids", "a"], "--uids goes with"),
        (["--from-csv", "a"], "Give either USER or --users"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path: Path, arguments: list[str], said: str) -> None:
    shown = uidl(tmp_path, "import", *arguments)
    assert shown.exit_code == 2
    assert said in shown.stderr


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    shown = uidl(tmp_path, "import", "anna", "--from-courier", str(tmp_path / "none"))
    assert "No such file" in shown.stderr
    (tmp_path / "file").write_text("what")
    shown = uidl(tmp_path, "import", "anna", "--from-courier", str(tmp_path / "file"))
    assert "line 1: not a courierpop3dsizelist" in shown.stderr
    shown = uidl(tmp_path, "import", "anna", "--from-dovecot", str(tmp_path / "file"), store=False)
    assert "has no [pop3.store]" in shown.stderr
    assert shown.exit_code == 1


def test_a_server_that_is_not_there_is_told_for_each_user(tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text("user,password\nanna,a\nbert,b\n")
    users.chmod(0o600)
    shown = uidl(tmp_path, "import", "--users", str(users), "--from-pop3", "127.0.0.1:1")
    assert "anna: not brought over: connect" in shown.stdout
    assert "bert: not brought over: connect" in shown.stdout
    assert "2 users: 0 brought over, 2 not." in shown.stdout
    assert shown.exit_code == 1


def test_nothing_is_remembered_of_nobody(tmp_path: Path) -> None:
    assert uidl(tmp_path, "show", "anna").stdout == "anna: nothing is remembered\n"
    assert "has no [pop3.store]" in uidl(tmp_path, "show", "anna", store=False).stderr
    assert "One USER at a time" in uidl(tmp_path, "export", "--users", "x").stderr


def test_what_was_brought_over_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    lost = [Known(b"lost-%d" % number) for number in range(7)]
    matches = Matches({1: b"a", 2: b"b"}, lost, [3], [([Known(b"x", size=5), Known(b"y", size=5)], [4, 5])])
    imported = Imported(matches, 5, changed=1)
    _print_imported("anna", imported, dry_run=False)
    assert capsys.readouterr().out.splitlines() == [
        "anna: 2 of 5 messages matched, 1 unique-ids brought over; 1 messages are new to clients, "
        "7 of the old server are not in the mailbox",
        *(f"    not in the mailbox: lost-{number}" for number in range(5)),
        "    left, since nothing tells them apart: 2",
    ]
    _print_ambiguous("anna", imported)
    assert capsys.readouterr().out.splitlines() == [
        "anna: not brought over: nothing tells these messages apart:",
        "    x (size 5), y (size 5) may be UID 4, 5",
        "    Import from the POP3 server, name --uids, or bring over the others alone with --certain.",
    ]

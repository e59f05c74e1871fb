"""What ``check`` says of a store without opening it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailgate.cli import places
from mailgate.cli.places import unusable_store, wrong_templates
from mailgate.config import Config
from mailgate.translate import store_sqlite
from tests.config.samples import MAIN, POP3S, TLS, read

START = TLS + POP3S + MAIN
SHARED = START + '[pop3.store]\nurl = "mariadb://gate@db.example.org/mail"'


def told(config: Config) -> list[str]:
    return [str(problem) for problem in unusable_store(config)]


def test_without_a_store_there_is_nothing_to_say() -> None:
    assert told(read(START)) == []


def test_a_database_needs_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(read(SHARED)) == []
    monkeypatch.setattr(places, "find_spec", lambda module: None)
    assert told(read(SHARED)) == [
        'pop3.store.url = "mariadb://gate@db.example.org/mail": needs SQLAlchemy and PyMySQL: '
        "pip install 'mailgate[sql]'"
    ]


def test_a_file_needs_a_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read(START + f'[pop3.store]\npath = "{tmp_path}/pop3.sqlite"')
    assert told(config) == []
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(store_sqlite, "file_system", lambda folder: "nfs4")
    assert told(config) == [
        f'pop3.store.path = "{tmp_path}/pop3.sqlite": lies on nfs4, which SQLite\'s log does not work on: '
        "name a file on a local disk, or a url"
    ]


def test_a_wrong_template_is_found_before_anybody_logs_in() -> None:
    assert wrong_templates(read(START)) == []
    wrong = read(START + '[pop3]\nuidl = "{uid:08x}{uidvalidty}"')
    assert [str(problem) for problem in wrong_templates(wrong)] == [
        'pop3.uidl = "{uid:08x}{uidvalidty}": there is no field of this name; known are emailid, folder, gm_msgid, '
        "header_md5, header_sha1, header_sha256, message_id, uid, uidvalidity (at character 10)"
    ]

"""The options of POP3 clients on IMAP servers, each by what it accepts and by what it says otherwise."""

from __future__ import annotations

import pytest

from mailgate.config.pop3 import QUIRKS
from tests.config.samples import MAIN, POP3S, TLS, problems, read

START = TLS + POP3S + MAIN


def test_a_pop3_listener_in_front_of_imap_servers_is_translated() -> None:
    config = read(START)
    assert config.translates(config.listener[0], config.route[0])
    assert config.pop3.uidl == "dovecot"
    assert config.route[0].pop3 is None


def test_a_route_says_what_differs_and_inherits_the_rest() -> None:
    config = read(
        START + '[pop3]\ndelete = "trash"\nlast = true\n[[route]]\npool = "main"\npop3 = { delete = "never" }'
    )
    policy = config.route[0].pop3
    assert policy is not None
    assert (policy.delete, policy.last, config.pop3.delete) == ("never", True, "trash")
    assert read(config.masked_toml()) == config


def test_every_quirk_can_be_named() -> None:
    assert read(START + f"[pop3]\nquirks = {sorted(QUIRKS)}").pop3.quirks == tuple(sorted(QUIRKS))
    assert read(START + '[pop3]\nquirks = "no-examine"').pop3.quirks == ("no-examine",)


def test_mailboxes_are_named_once_and_inbox_in_any_case() -> None:
    assert read(START + '[pop3]\nfolders = ["inbox", "Lists"]').pop3.folders == ("INBOX", "Lists")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('folders = ["INBOX", "inbox"]', "pop3.folders: each mailbox once"),
        ('folders = ["a\\u000db"]', "pop3.folders: a mailbox has a name without control characters"),
        ('trash = "a\\u000ab"', 'pop3.trash = "a\\u000ab": a mailbox has a name without control characters'),
        (
            'keyword = "a b"',
            'pop3.keyword = "a b": a keyword is an IMAP atom such as "$POP3Deleted" (RFC 9051 §2.3.2)',
        ),
        ('quirks = ["no-idea"]', "pop3.quirks: 'no-idea' is none of no-examine, no-pipelining, empty-is-message"),
        ("store = {}", 'pop3.store: give either path = "/file" or url = "postgresql://…"'),
        ('store.url = "postgresql://db/x?options=-cstatement_timeout%3D0"', "options cannot be given"),
        ('store.url = "postgresql://db:65536/x"', "port"),
        ('store.url = "postgresql://db:one/x"', "port"),
        ('store.url = "mysql://db/x"', "a database begins with postgresql:// or mariadb://"),
        (
            'store.url = "postgresql://gate:s3cret@db/x"',
            'pop3.store.url = "postgresql://gate:…@db/x": a secret does not stand in the configuration',
        ),
        ('store.url = "postgresql://gate@db"', "the name of the database is missing"),
        ('store = { path = "a", password = { env = "HOME" } }', "a password has no effect without url"),
        ('delete = "trsh"', 'did you mean "trash"?'),
    ],
)
def test_what_is_wrong_is_told(line: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(START + f"[pop3]\n{line}"))

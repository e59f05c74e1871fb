"""Where a user's mailbox is by the configuration."""

from __future__ import annotations

import pytest

from mailgate.config import Config
from mailgate.errors import MailgateError
from mailgate.uidls.homes import Homes
from tests.config.samples import IMAPS, MAIN, POP3S, TLS, read

STORE = '[pop3]\nuidl = "uw"\nstore.path = "/var/lib/mailgate/pop3.sqlite"\n'
START = TLS + IMAPS + POP3S + MAIN
SECOND = '[pool.second]\nprotocol = "imap"\nservers = ["second.internal:993"]\n'
POP = '[pool.pop]\nprotocol = "pop3"\nservers = ["pop.internal:995"]\n'


def homes(source: str) -> Homes:
    config: Config = read(source)
    return Homes(config)


def test_a_route_says_where_and_how() -> None:
    found = homes(
        START
        + SECOND
        + STORE
        + '[[route]]\nmatch.user = "anna"\npool = "second"\npop3 = { realm = "two" }\n[[route]]\npool = "main"\n'
    )
    anna, bert = found.home(b"Anna"), found.home(b"Bert")
    assert (anna.pool, anna.owner, anna.policy.uidl) == ("second", b"two/anna", "uw")
    assert (bert.pool, bert.owner, bert.policy.uidl) == ("main", b"/bert", "uw")


def test_without_a_store_nothing_could_be_kept() -> None:
    with pytest.raises(MailgateError, match=r"has no \[pop3.store\]"):
        homes(START)


def test_who_is_served_by_pop3_itself_has_nothing_to_remember() -> None:
    found = homes(
        START
        + POP
        + STORE
        + '[[route]]\nmatch = { user = "anna", protocol = "pop3" }\npool = "pop"\n[[route]]\npool = "main"\n'
    )
    assert found.home(b"bert").pool == "main"
    with pytest.raises(MailgateError, match="no route takes this user from a POP3 listener to a pool that speaks imap"):
        found.home(b"anna")


def test_a_user_of_two_mailboxes_is_told() -> None:
    other = POP3S.replace('"pop3s"', '"other"').replace("995", "1995") + 'tls = "implicit"\n'
    found = homes(
        START
        + other
        + SECOND
        + STORE
        + '[[route]]\nmatch.listener = "other"\npool = "second"\n[[route]]\npool = "main"\n'
    )
    with pytest.raises(MailgateError, match="different mailboxes, in the pools main, second"):
        found.home(b"anna")

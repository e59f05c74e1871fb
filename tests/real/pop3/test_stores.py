"""The mail servers that the other tests stand on do what those take for granted."""

from __future__ import annotations

import poplib

import pytest

from tests.support.stores import PATIENCE, Store

pytestmark = pytest.mark.real

MAIL = [b"Subject: %d\r\n\r\nmessage %d\r\n.\r\n..\r\nend\r\n" % (number, number) for number in range(12)]


def test_what_is_delivered_lies_in_its_order(store: Store, user: str) -> None:
    for one in MAIL:
        store.deliver(user, one)
    held = store.contents(user)
    assert [one.data for one in held] == MAIL
    assert [one.uid for one in held] == sorted(one.uid for one in held)
    assert {one.flags for one in held} == {frozenset()}


def test_another_client_appends_flags_and_expunges(store: Store, user: str) -> None:
    store.append(user, MAIL[0])
    store.append(user, MAIL[1], flags="\\Answered")
    store.append(user, MAIL[2])
    first, second, third = store.contents(user)
    assert second.flags == {"\\Answered"}
    store.set_flags(user, [first.uid, second.uid], "\\Flagged")
    store.set_flags(user, [second.uid], "\\Answered \\Flagged", "-")
    store.expunge(user, [third.uid])
    assert store.contents(user) == [first._replace(flags=frozenset({"\\Flagged"})), second._replace(flags=frozenset())]


def test_mail_may_be_large(store: Store, user: str) -> None:
    large = b"Subject: large\r\n\r\n" + b"x" * 98 + b"\r\n" + (b"y" * 98 + b"\r\n") * 40_000
    store.deliver(user, large)
    (held,) = store.contents(user)
    assert held.data == large


def test_those_that_are_lenient_hold_what_no_standard_allows(store: Store, user: str) -> None:
    odd = b"Subject: odd\n\nbare\n.\n\xff\xfe 8 bits, and no end"
    if not store.lenient:
        with pytest.raises(AssertionError, match="NO"):
            store.append(user, odd)
        return
    store.deliver(user, odd)
    (held,) = store.contents(user)
    assert held.data.replace(b"\r\n", b"\n").rstrip(b"\n") == odd


def test_the_pop3_of_those_that_have_one_shows_the_same_mail(store: Store, user: str) -> None:
    if store.pop3 is None:
        assert store.name == "pymap"
        return
    for one in MAIL:
        store.deliver(user, one)
    pop3 = poplib.POP3("127.0.0.1", store.pop3, timeout=PATIENCE)
    pop3.user(user)
    pop3.pass_(store.users[user])
    shown = [b"\r\n".join(pop3.retr(number + 1)[1]) + b"\r\n" for number in range(len(MAIL))]
    pop3.quit()
    assert shown == MAIL


def test_a_wrong_password_opens_nothing(store: Store, user: str) -> None:
    right, store.users[user] = store.users[user], "wrong"
    with pytest.raises(Exception, match=r"(?i)fail|invalid|denied|incorrect"), store.client(user):
        pass
    store.users[user] = right

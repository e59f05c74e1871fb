"""Each defect that was found in another program that serves POP3, by that program's name: mailgate must not have it."""

from __future__ import annotations

import base64
import hashlib

import pytest

from mailgate.config.models import IDLE_DEFAULT
from mailgate.model import Protocol
from tests.real.pop3.conftest import Translated
from tests.support.forwarder import Forwarder
from tests.support.pop3_client import Pop3, numbers

pytestmark = pytest.mark.real

MIB = 1024 * 1024


def mail(number: int, lines: int = 3) -> bytes:
    text = b"".join(b"line %d of message %d\r\n" % (line, number) for line in range(lines))
    return b"From: a@example.org\r\nSubject: message %d\r\n\r\n" % number + text


MAIL = [mail(number, 2 + number) for number in range(1, 6)]


@pytest.fixture
def full(gate: Translated, user: str) -> str:
    """A user with five messages."""
    for one in MAIL:
        gate.store.deliver(user, one)
    return user


def held(gate: Translated, user: str) -> list[bytes]:
    """Return the messages of the INBOX."""
    return [one.data for one in gate.store.contents(user)]


def flagged(gate: Translated, user: str, flag: str) -> list[int]:
    """Return the places of the messages that carry a flag."""
    return [number for number, one in enumerate(gate.store.contents(user), 1) if flag in one.flags]


# stalwart


def test_stalwart_stat_leaves_out_deleted_messages(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        assert client.stat() == (5, sum(map(len, MAIL)))
        client.good(b"DELE 2")
        assert client.stat() == (4, sum(map(len, MAIL)) - len(MAIL[1]))


def test_stalwart_list_leaves_out_deleted_messages(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 2")
        assert numbers(client.fetch(b"LIST").splitlines()) == [1, 3, 4, 5]
        client.bad(b"LIST 2")


def test_stalwart_uidl_leaves_out_deleted_messages(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 5")
        assert [*client.uidls()] == [1, 2, 3, 4]
        client.bad(b"UIDL 5")


def test_stalwart_top_counts_lines_of_the_body_alone(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        assert client.fetch(b"TOP 3 2") == b"".join(MAIL[2].splitlines(keepends=True)[:5])


def test_stalwart_top_0_is_the_header_alone(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        assert client.fetch(b"TOP 3 0") == MAIL[2].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


LARGE = b"Subject: large\r\n\r\n" + (b"z" * 75 + b"\r\n") * (32 * MIB // 77)


def test_stalwart_and_imap2pop_hold_whole_messages_in_memory(gate: Translated, user: str) -> None:
    gate.store.deliver(user, mail(1))
    gate.store.deliver(user, LARGE)
    with gate.login(user) as client:
        # What a first message costs is there afterwards.
        client.fetch(b"RETR 1")
        gate.program.forget_peak()
        before = gate.program.peak()
        assert hashlib.sha256(client.fetch(b"RETR 2")).digest() == hashlib.sha256(LARGE).digest()
        assert gate.program.peak() - before < 8 * MIB


def test_stalwart_continuation_has_a_space(gate: Translated, full: str) -> None:
    with gate.connect() as client:
        client.send(b"AUTH PLAIN")
        assert client.line() == b"+ "
        client.good(base64.b64encode(f"\0{full}\0{gate.store.users[full]}".encode()))
        assert client.stat()[0] == 5


# WildDuck


def test_wildduck_and_courier_renumber_behind_dele(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        sizes, uidls = client.sizes(), client.uidls()
        for number in (1, 3):
            client.good(b"DELE %d" % number)
            del sizes[number], uidls[number]
            assert client.sizes() == sizes
            assert client.uidls() == uidls
        assert client.fetch(b"RETR 4") == MAIL[3]
        assert client.good(b"UIDL 5").split()[:2] == [b"5", uidls[5]]


def test_wildduck_quit_answers_before_the_update(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 1")
        client.good(b"DELE 2")
        client.good(b"QUIT")
        assert held(gate, full) == MAIL[2:]


def test_wildduck_dele_moves_to_the_trash(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 1")
        client.quit()
    with gate.store.client(full, None) as imap:
        names = [line.rpartition(b" ")[2].strip(b'"').decode() for line in imap.list()[1] if line]
        counts = [imap.status(f'"{name}"', "(MESSAGES)")[1][0] for name in names if name.upper() != "INBOX"]
    assert all(b"(MESSAGES 0)" in count for count in counts), counts


# DavMail


def test_davmail_deletes_at_dele(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 1")
        assert client.stat()[0] == 4
        assert held(gate, full) == MAIL
        client.vanish()
    gate.login(full).quit()
    assert held(gate, full) == MAIL


def test_davmail_rset_does_nothing(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        for number in range(1, 6):
            client.good(b"DELE %d" % number)
        assert client.stat() == (0, 0)
        client.good(b"RSET")
        assert client.stat() == (5, sum(map(len, MAIL)))
        client.quit()
    assert held(gate, full) == MAIL


def test_davmail_list_tells_approximate_sizes(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        for number, size in client.sizes().items():
            assert size == len(client.fetch(b"RETR %d" % number))


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_davmail_has_no_auth(gate: Translated, full: str, mechanism: str) -> None:
    password = gate.store.users[full]
    steps = [full, password] if mechanism == "LOGIN" else [f"\0{full}\0{password}"]
    with gate.connect() as client:
        assert any(mechanism.encode() in line.split()[1:] for line in client.capabilities() if line.startswith(b"SASL"))
        client.send(b"AUTH " + mechanism.encode())
        for step in steps:
            assert client.line().startswith(b"+ ")
            client.send(base64.b64encode(step.encode()))
        assert client.status().startswith(b"+OK")
        assert client.stat()[0] == 5


def test_davmail_has_no_stls(gate: Translated, full: str) -> None:
    with Pop3(gate.ports["pop3"]) as client:
        assert b"STLS" in client.capabilities()
        client.stls(gate.context)
        assert b"STLS" not in client.capabilities()
        assert client.login(full, gate.store.users[full]).stat()[0] == 5


# Courier


def test_courier_is_patient_for_five_minutes_only() -> None:
    assert IDLE_DEFAULT[Protocol.POP3] >= 600.0


# imap2pop


def test_imap2pop_takes_sequence_numbers(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        first = gate.store.contents(full)[0]
        gate.store.expunge(full, [first.uid])
        for number in (2, 5, 3, 4):
            assert client.fetch(b"RETR %d" % number) == MAIL[number - 1]
        client.good(b"DELE 2")
        client.quit()
    assert held(gate, full) == MAIL[2:]


def test_imap2pop_and_uw_set_deleted_at_dele(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 1")
        client.good(b"NOOP")
        assert flagged(gate, full, "\\Deleted") == []
        client.vanish()
    assert flagged(gate, full, "\\Deleted") == []


def test_imap2pop_and_uw_expunge_what_others_deleted(gate: Translated, full: str) -> None:
    uids = [one.uid for one in gate.store.contents(full)]
    gate.store.set_flags(full, [uids[4]], "\\Deleted")
    with gate.login(full) as client:
        client.good(b"DELE 1")
        gate.store.set_flags(full, [uids[1]], "\\Deleted")
        client.quit()
    assert held(gate, full) == MAIL[1:]
    assert flagged(gate, full, "\\Deleted") == [1, 4]


def test_imap2pop_stumbles_over_an_empty_mailbox(gate: Translated, user: str) -> None:
    with gate.login(user) as client:
        assert client.stat() == (0, 0)
        assert client.fetch(b"LIST") == b""
        assert client.fetch(b"UIDL") == b""
        for command in (b"LIST 1", b"UIDL 1", b"RETR 1", b"TOP 1 0", b"DELE 1"):
            client.bad(command)
        assert client.quit().startswith(b"+OK")


def test_imap2pop_top_drops_blank_lines(gate: Translated, user: str) -> None:
    body = b"\r\n\r\none\r\n\r\n\r\ntwo\r\n\r\n"
    gate.store.deliver(user, b"Subject: blank\r\n\r\n" + body)
    with gate.login(user) as client:
        for lines in range(8):
            wanted = b"Subject: blank\r\n\r\n" + b"".join(body.splitlines(keepends=True)[:lines])
            assert client.fetch(b"TOP 1 %d" % lines) == wanted


def test_imap2pop_reading_marks_as_seen_by_itself(gate: Translated, full: str) -> None:
    with gate.login(full, "unseen") as client:
        client.fetch(b"RETR 1")
        client.fetch(b"TOP 2 99999999")
        client.quit()
    assert flagged(gate, full, "\\Seen") == []


def test_imap2pop_uidl_is_the_uid_alone(gate: Translated, full: str) -> None:
    with gate.store.client(full) as imap:
        (uidvalidity,) = imap.untagged_responses["UIDVALIDITY"]
    with gate.login(full) as client:
        for one, uidl in zip(gate.store.contents(full), client.uidls().values(), strict=True):
            assert uidl == b"%08x%08x" % (one.uid, int(uidvalidity))


def test_imap2pop_quit_is_always_good(gate: Translated, forwarder: Forwarder, full: str) -> None:
    with gate.login(full, "forwarded") as client:
        client.good(b"DELE 1")
        forwarder.turned_away = True
        forwarder.cut()
        reply = client.quit()
    assert reply.startswith(b"-ERR [SYS/TEMP]"), reply
    assert held(gate, full) == MAIL


def test_imap2pop_verifies_no_certificate(gate: Translated, full: str) -> None:
    with gate.connect("untrusted") as client:
        client.good(b"USER " + full.encode())
        assert client.bad(b"PASS " + gate.store.users[full].encode()).startswith(b"[SYS/")


# imask


def test_imask_refuses_with_plus_err(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        for command in (
            b"XYZZY",
            b"RETR",
            b"RETR 0",
            b"RETR 6",
            b"RETR x",
            b"TOP 1",
            b"DELE -1",
            b"LIST 99",
            b"RPOP joe",
        ):
            client.bad(command)


# gokumail


def test_gokumail_does_not_stuff_dots(gate: Translated, user: str) -> None:
    dots = b"Subject: dots\r\n\r\n.\r\n..\r\n...\r\n.x\r\nx.\r\n.\r\n"
    gate.store.deliver(user, dots)
    with gate.login(user) as client:
        client.send(b"RETR 1")
        client.status()
        stuffed = b"Subject: dots\r\n\r\n..\r\n...\r\n....\r\n..x\r\nx.\r\n..\r\n.\r\n"
        while len(client.unread) < len(stuffed):
            client.more()
        assert client.unread == stuffed


def test_gokumail_refuses_dele(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 1")
        assert client.quit().startswith(b"+OK")
    assert held(gate, full) == MAIL[1:]


# UW


def test_uw_adds_a_status_header(gate: Translated, full: str) -> None:
    for _ in range(2):
        with gate.login(full) as client:
            assert [client.fetch(b"RETR %d" % number) for number in range(1, 6)] == MAIL
            client.quit()
    assert held(gate, full) == MAIL


# Cyrus


def test_cyrus_quit_is_good_though_the_mailbox_was_not_reopened(
    gate: Translated, forwarder: Forwarder, full: str
) -> None:
    with gate.login(full, "forwarded") as client:
        client.good(b"DELE 1")
        # Other mail of the same name: whoever comes back finds another UIDVALIDITY.
        forwarder.edit = lambda data: data.replace(b"[UIDVALIDITY ", b"[UIDVALIDITY 9")
        forwarder.cut()
        reply = client.quit()
    assert reply.startswith(b"-ERR"), reply
    assert held(gate, full) == MAIL


def test_cyrus_a_connection_that_is_lost_is_replaced_at_quit(gate: Translated, forwarder: Forwarder, full: str) -> None:
    with gate.login(full, "forwarded") as client:
        client.good(b"DELE 1")
        forwarder.cut()
        assert client.quit().startswith(b"+OK")
    assert held(gate, full) == MAIL[1:]


# Dovecot's imapc


def test_imapc_expunges_all_where_uidplus_is_missing(gate: Translated, forwarder: Forwarder, full: str) -> None:
    forwarder.say_nothing_of(b"UIDPLUS", b"MOVE")
    uids = [one.uid for one in gate.store.contents(full)]
    gate.store.set_flags(full, [uids[4]], "\\Deleted")
    with gate.login(full, "forwarded") as client:
        assert b"-ERR" in client.ask(b"DELE 1") + client.quit()
    assert held(gate, full) == MAIL
    assert flagged(gate, full, "\\Deleted") == [5]


def test_imapc_without_uidplus_only_flags_where_that_is_wanted(
    gate: Translated, forwarder: Forwarder, full: str
) -> None:
    forwarder.say_nothing_of(b"UIDPLUS", b"MOVE")
    with gate.login(full, "flagging") as client:
        client.good(b"DELE 2")
        assert client.quit().startswith(b"+OK")
    assert held(gate, full) == MAIL
    assert flagged(gate, full, "\\Deleted") == [2]
    assert b"EXPUNGE" not in forwarder.commands


def test_imapc_takes_any_failure_for_an_expunged_message(gate: Translated, forwarder: Forwarder, full: str) -> None:
    with gate.login(full, "forwarded") as client:
        forwarder.turned_away = True
        forwarder.cut()
        assert client.bad(b"RETR 1").startswith(b"[SYS/TEMP]")


def test_imapc_a_message_that_is_gone_is_no_failure(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        gate.store.expunge(full, [gate.store.contents(full)[1].uid])
        # Some servers go on showing it to those who have not heard of it.
        status = client.ask(b"RETR 2")
        if status.startswith(b"+OK"):
            assert client.block() == MAIL[1]
        else:
            assert not status.startswith(b"-ERR [")
            assert not client.bad(b"TOP 2 1").startswith(b"[")
        assert client.fetch(b"RETR 3") == MAIL[2]

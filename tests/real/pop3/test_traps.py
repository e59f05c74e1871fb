"""The traps of POP3 before IMAP that a client can see: sizes, odd messages, other clients, locks, lost connections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.real.conftest import soon
from tests.real.pop3.conftest import LOCK_SECONDS, Translated
from tests.real.pop3.test_defects import MAIL, flagged, held
from tests.support.forwarder import Forwarder
from tests.support.pop3_client import Ended

pytestmark = pytest.mark.real

HEAD = b"From: a@example.org\r\nSubject: odd\r\n\r\n"


@pytest.fixture
def full(gate: Translated, user: str) -> Iterator[str]:
    """A user with five messages."""
    for one in MAIL:
        gate.store.deliver(user, one)
    return user


def lines_end_with_crlf(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


# 1 and 2: sizes, and messages that are none


ODD = {
    "no body": HEAD,
    "no end": HEAD + b"the last line has no end",
    "a dot at the end": HEAD + b"one\r\n.",
    "dots and blanks": HEAD + b"\r\n.\r\n\r\n..\r\n.\r\n\r\n",
    "no header": b"\r\nnothing but a body\r\n",
    "no blank line": b"Subject: never ends\r\nFrom: a@example.org\r\n",
    "8 bits": HEAD + bytes(range(128, 256)) + b"\r\n",
    "long line": HEAD + b"x" * 300_000 + b"\r\n",
}
LENIENT = {
    "bare LF": b"Subject: bare\n\none\n.\n..two\n",
    "bare LF without an end": b"Subject: bare\n\n.\n.one",
}


@pytest.mark.parametrize("kind", ODD | LENIENT)
def test_odd_messages_arrive(gate: Translated, user: str, kind: str) -> None:
    message = (ODD | LENIENT)[kind]
    if kind in LENIENT and not gate.store.lenient:
        pytest.skip(f"{gate.store.name} takes no such message")
    gate.store.deliver(user, message)
    (stored,) = gate.store.contents(user)
    shown = lines_end_with_crlf(stored.data)
    shown += b"" if shown.endswith(b"\r\n") else b"\r\n"
    with gate.login(user) as client:
        assert client.fetch(b"RETR 1") == shown
        # The same stream goes on with what comes next.
        client.good(b"NOOP")
        whole = client.fetch(b"TOP 1 99999999")
        # IMAP's BODY[HEADER] has a blank line at its end, be there one in the message or not (RFC 9051 §6.4.5.1).
        assert whole == (shown + b"\r\n" if kind == "no blank line" else shown)
        client.good(b"NOOP")


def test_nuls_are_replaced(gate: Translated, user: str) -> None:
    if not gate.store.lenient:
        pytest.skip(f"{gate.store.name} takes no such message")
    gate.store.deliver(user, HEAD.replace(b"\r\n", b"\n") + b"a\0b\n\0\n.\0\n" + b"\0" * 5_000 + b"\n")
    with gate.login(user) as client:
        data = client.fetch(b"RETR 1")
        assert data == HEAD + b"a\x80b\r\n\x80\r\n.\x80\r\n" + b"\x80" * 5_000 + b"\r\n"
        assert client.fetch(b"TOP 1 99999999") == data


def test_sizes_can_be_exact(gate: Translated, user: str) -> None:
    for message in (ODD | LENIENT if gate.store.lenient else ODD).values():
        gate.store.deliver(user, message)
    with gate.login(user, "exact") as client:
        sizes = client.sizes()
        assert {number: len(client.fetch(b"RETR %d" % number)) for number in sizes} == sizes
        assert client.stat() == (len(sizes), sum(sizes.values()))


def test_dots_are_stuffed_wherever_a_chunk_ends(gate: Translated, user: str) -> None:
    # Lines of all lengths bring a dot to every place before and behind the end of a chunk.
    body = b"".join(b"." * (number % 7) + b"y" * (number % 89) + b"\r\n" for number in range(30_000))
    gate.store.deliver(user, HEAD + body)
    with gate.login(user) as client:
        assert client.fetch(b"RETR 1") == HEAD + body


# 3: other clients at the same time


def test_new_mail_waits_for_the_next_session(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        gate.store.deliver(full, HEAD + b"new\r\n")
        gate.store.expunge(full, [gate.store.contents(full)[0].uid])
        client.good(b"NOOP")
        assert client.stat() == (5, sum(map(len, MAIL)))
        client.bad(b"RETR 6")
        assert client.fetch(b"RETR 2") == MAIL[1]
        client.quit()
    with gate.login(full) as client:
        assert client.stat()[0] == 5
        assert client.fetch(b"RETR 5") == HEAD + b"new\r\n"


def test_what_is_gone_already_counts_as_removed(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        for number in (1, 2, 3):
            client.good(b"DELE %d" % number)
        gate.store.expunge(full, [gate.store.contents(full)[1].uid])
        assert client.quit().startswith(b"+OK")
    assert held(gate, full) == MAIL[3:]


# 4: UIDs


def test_uidls_stay_the_same_from_session_to_session(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        before = client.uidls()
        client.good(b"DELE 2")
        client.quit()
    gate.store.deliver(full, HEAD + b"new\r\n")
    with gate.login(full) as client:
        after = [*client.uidls().values()]
    assert after[:4] == [before[number] for number in (1, 3, 4, 5)]
    assert after[4] not in before.values()


# 5: messages that carry \Deleted already


def test_messages_that_others_deleted_are_hidden_and_left_alone(gate: Translated, full: str) -> None:
    uids = [one.uid for one in gate.store.contents(full)]
    gate.store.set_flags(full, [uids[0], uids[3]], "\\Deleted")
    with gate.login(full) as client:
        assert client.stat() == (3, sum(len(MAIL[number]) for number in (1, 2, 4)))
        assert client.fetch(b"RETR 1") == MAIL[1]
        assert client.fetch(b"RETR 3") == MAIL[4]
        client.good(b"DELE 1")
        client.quit()
    assert held(gate, full) == [MAIL[number] for number in (0, 2, 3, 4)]
    assert flagged(gate, full, "\\Deleted") == [1, 3]


# 7: many messages


def test_many_messages_are_listed_and_asked_for_one_by_one(gate: Translated, user: str) -> None:
    small = b"Subject: %d\r\n\r\n%d\r\n"
    with gate.store.client(user, None) as imap:
        for number in range(400):
            assert imap.append("INBOX", None, None, small % (number, number))[0] == "OK"  # type: ignore[arg-type]
    with gate.login(user) as client:
        sizes, uidls = client.sizes(), client.uidls()
        assert [*sizes] == [*uidls] == [*range(1, 401)]
        assert len({*uidls.values()}) == 400
        client.send(*(b"%s %d" % (verb, number) for number in sizes for verb in (b"LIST", b"UIDL")))
        for number in sizes:
            assert client.status().split()[1:3] == [b"%d" % number, b"%d" % sizes[number]]
            assert client.status().split()[1:3] == [b"%d" % number, uidls[number]]
        client.send(*(b"RETR %d" % number for number in sizes), b"QUIT")
        for number in range(400):
            assert client.status().startswith(b"+OK")
            assert client.block() == small % (number, number)
        assert client.status().startswith(b"+OK")


# 8: the end without QUIT


@pytest.mark.parametrize("how", ["close", "vanish"])
def test_nothing_is_deleted_without_quit(gate: Translated, full: str, how: str) -> None:
    with gate.login(full) as client:
        client.send(*(b"DELE %d" % number for number in range(1, 6)))
        for _ in range(5):
            client.status()
        if how == "vanish":
            client.vanish()
    # The lock of the maildrop is free again when the session is over.
    with gate.login(full) as client:
        assert client.stat()[0] == 5
    assert held(gate, full) == MAIL


def test_a_client_that_does_not_wait_for_quits_answer_has_its_messages_deleted(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 1")
        client.good(b"DELE 4")
        client.send(b"QUIT")
        client.sock.close()
    soon(lambda: held(gate, full) == [MAIL[1], MAIL[2], MAIL[4]])


# 9: locks


def test_a_second_session_is_refused_while_the_first_is_there(gate: Translated, full: str) -> None:
    with gate.login(full) as first, gate.connect() as second:
        second.good(b"USER " + full.encode())
        began = time.monotonic()
        assert second.bad(b"PASS " + gate.store.users[full].encode()).startswith(b"[IN-USE]")
        assert time.monotonic() - began > LOCK_SECONDS / 2
        assert first.stat()[0] == 5


def test_a_second_session_waits_for_the_first(gate: Translated, full: str) -> None:
    with gate.login(full) as first, gate.connect() as second:
        second.good(b"USER " + full.encode())
        second.send(b"PASS " + gate.store.users[full].encode())
        first.good(b"DELE 1")
        first.quit()
        assert second.status().startswith(b"+OK")
        assert second.stat()[0] == 4


def test_other_users_are_not_kept_waiting(gate: Translated, full: str) -> None:
    other = gate.store.new_user()
    with gate.login(full) as first, gate.login(other) as second:
        assert (first.stat()[0], second.stat()[0]) == (5, 0)


# 10: \Seen


def test_retr_marks_as_seen_and_top_does_not(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.fetch(b"TOP 1 0")
        client.fetch(b"TOP 2 1000")
        client.fetch(b"RETR 3")
        client.fetch(b"RETR 5")
        client.quit()
    assert flagged(gate, full, "\\Seen") == [3, 5]


# 13: UTF-8


def test_utf8_headers_pass(gate: Translated, user: str) -> None:
    message = "Subject: Grüße\r\n\r\nüöä\r\n".encode()
    gate.store.deliver(user, message)
    with gate.login(user) as client:
        assert client.fetch(b"RETR 1") == message
    with gate.connect() as client:
        client.good(b"UTF8")
        client.login(user, gate.store.users[user])
        assert client.fetch(b"RETR 1") == message


# 15: pipelining


def test_a_whole_session_may_come_at_once(gate: Translated, full: str) -> None:
    with gate.connect() as client:
        password = gate.store.users[full].encode()
        client.send(
            b"USER " + full.encode(), b"PASS " + password, b"STAT", b"LIST", b"RETR 1", b"DELE 1", b"TOP 2 0",
            b"RETR 1", b"UIDL", b"NOOP", b"RETR 2", b"DELE 2", b"RSET", b"DELE 5", b"QUIT",
        )  # fmt: skip
        for blocks in (False, False, False, True, True, False, True):
            assert client.status().startswith(b"+OK")
            data = client.block() if blocks else b""
        assert data == MAIL[1].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert client.status().startswith(b"-ERR")
        assert client.status().startswith(b"+OK")
        assert len(client.block().splitlines()) == 4
        assert client.status().startswith(b"+OK")
        assert client.status().startswith(b"+OK")
        assert client.block() == MAIL[1]
        for _ in range(4):
            assert client.status().startswith(b"+OK")
        assert client.ends() == b""
    assert held(gate, full) == MAIL[:4]


def test_a_client_that_sends_much_and_reads_late_loses_nothing(gate: Translated, user: str) -> None:
    message = HEAD + (b"q" * 76 + b"\r\n") * 3_000
    for _ in range(3):
        gate.store.deliver(user, message)
    with gate.login(user) as client:
        client.send(*(b"RETR %d" % (number % 3 + 1) for number in range(60)))
        time.sleep(0.5)
        for _ in range(60):
            assert client.status().startswith(b"+OK")
            assert client.block() == message
        client.good(b"NOOP")


# 17 and the middle of things: the server's connection ends


def test_a_message_that_breaks_off_has_no_final_dot(gate: Translated, forwarder: Forwarder, user: str) -> None:
    message = HEAD + (b"q" * 76 + b"\r\n") * 20_000
    gate.store.deliver(user, message)
    with gate.login(user, "forwarded") as client:
        forwarder.turned_away = True
        forwarder.cut_after(700_000)
        client.send(b"RETR 1")
        with contextlib.suppress(Ended):
            client.status()
        with pytest.raises(Ended):
            client.block()
        assert not client.unread.endswith(b"\r\n.\r\n")
        assert message.startswith(bytes(client.unread))


def test_a_lost_connection_is_replaced_between_commands(gate: Translated, forwarder: Forwarder, full: str) -> None:
    with gate.login(full, "forwarded") as client:
        assert client.fetch(b"RETR 1") == MAIL[0]
        uidls = client.uidls()
        forwarder.cut()
        assert client.fetch(b"RETR 2") == MAIL[1]
        assert client.uidls() == uidls
        forwarder.cut()
        assert client.fetch(b"TOP 3 0") == MAIL[2].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def test_a_server_that_is_away_is_no_empty_maildrop(gate: Translated, forwarder: Forwarder, full: str) -> None:
    forwarder.turned_away = True
    with gate.connect("forwarded") as client:
        client.good(b"USER " + full.encode())
        assert client.bad(b"PASS " + gate.store.users[full].encode()).startswith(b"[SYS/TEMP]")


def test_a_wrong_password_is_told_as_such(gate: Translated, user: str) -> None:
    with gate.connect() as client:
        client.good(b"USER " + user.encode())
        assert client.bad(b"PASS wrong").startswith(b"[AUTH]")
        assert client.login(user, gate.store.users[user]).stat() == (0, 0)

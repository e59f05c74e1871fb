"""What RFC 1939, 2449, 2595, 1734 and 6856 say of a session, row by row."""

from __future__ import annotations

import base64
import contextlib
import re

import pytest

from tests.real.pop3.conftest import Translated
from tests.real.pop3.test_defects import MAIL, held
from tests.support.pop3_client import Ended, Pop3

pytestmark = pytest.mark.real


@pytest.fixture
def full(gate: Translated, user: str) -> str:
    """A user with five messages."""
    for one in MAIL:
        gate.store.deliver(user, one)
    return user


def test_greeting_has_text_and_no_timestamp_without_apop(gate: Translated) -> None:
    with gate.connect() as client:
        assert client.greeting.startswith(b"+OK ")
        assert b"<" not in client.greeting


def test_keywords_are_known_in_any_case(gate: Translated, full: str) -> None:
    with gate.connect() as client:
        client.good(b"uSeR " + full.encode())
        client.good(b"pAsS " + gate.store.users[full].encode())
        assert client.good(b"sTaT").split()[0] == b"5"
        assert client.fetch(b"rEtR 1") == MAIL[0]
        client.good(b"dele 1")
        assert client.fetch(b"uidl").count(b"\n") == 4
        client.good(b"rset")
        client.good(b"noop")


def test_user_tells_nothing_of_who_exists(gate: Translated, full: str) -> None:
    with gate.connect() as client:
        known = client.good(b"USER " + full.encode())
        assert client.good(b"USER nobody-of-that-name") == known


@pytest.mark.parametrize("command", [b"STAT", b"LIST", b"UIDL", b"RETR 1", b"TOP 1 0", b"DELE 1", b"RSET", b"PASS x"])
def test_commands_of_the_transaction_state_wait_for_a_login(gate: Translated, full: str, command: bytes) -> None:
    with gate.connect() as client:
        client.bad(command)
        assert client.login(full, gate.store.users[full]).stat()[0] == 5


def test_commands_of_the_authorization_state_are_over_after_it(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        for command in (b"USER " + full.encode(), b"PASS x", b"STLS", b"AUTH PLAIN", b"APOP joe c4c9334bac560ecc"):
            client.bad(command)
        assert client.stat()[0] == 5


def test_quit_before_login_is_answered(gate: Translated) -> None:
    with gate.connect() as client:
        assert client.quit().startswith(b"+OK")


def test_stat_is_of_one_form(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        assert re.fullmatch(rb"\+OK 5 %d(?: .*)?" % sum(map(len, MAIL)), client.ask(b"STAT"))


def test_list_and_uidl_of_one_message_are_one_line(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        sizes, uidls = client.sizes(), client.uidls()
        for number in range(1, 6):
            assert client.good(b"LIST %d" % number).split()[:2] == [b"%d" % number, b"%d" % sizes[number]]
            assert client.good(b"UIDL %d" % number).split()[:2] == [b"%d" % number, uidls[number]]


def test_uidls_are_of_the_allowed_characters_and_differ(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        uidls = [*client.uidls().values()]
    assert all(re.fullmatch(rb"[\x21-\x7e]{1,70}", uidl) for uidl in uidls)
    assert len({*uidls}) == 5


def test_size_is_that_with_crlf_and_without_stuffing(gate: Translated, user: str) -> None:
    message = b"Subject: size\r\n\r\n.\r\n..\r\nend\r\n"
    gate.store.deliver(user, message)
    with gate.login(user) as client:
        assert client.good(b"LIST 1").split()[:2] == [b"1", b"%d" % len(message)]
        assert client.stat() == (1, len(message))


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 4, 1000, 99999999, 2147483647])
def test_top_counts_from_behind_the_blank_line(gate: Translated, full: str, lines: int) -> None:
    with gate.login(full) as client:
        assert client.fetch(b"TOP 1 %d" % lines) == b"".join(MAIL[0].splitlines(keepends=True)[: 3 + lines])


def test_a_deleted_message_can_be_neither_read_nor_deleted(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.good(b"DELE 2")
        for command in (b"DELE 2", b"RETR 2", b"TOP 2 0", b"LIST 2", b"UIDL 2"):
            client.bad(command)
        client.good(b"RSET")
        assert client.fetch(b"RETR 2") == MAIL[1]


BAD = [
    b"RETR", b"RETR 0", b"RETR 6", b"RETR -1", b"RETR 1x", b"RETR 1 2", b"RETR 99999999999999999999",
    b"TOP 1", b"TOP", b"TOP 1 -1", b"TOP 1 x", b"TOP 0 1", b"DELE", b"DELE 0", b"DELE x", b"LIST 0", b"LIST x",
    b"UIDL 0", b"UIDL x",
]  # fmt: skip


@pytest.mark.parametrize("command", BAD, ids=bytes.decode)
def test_bad_arguments_are_refused_and_change_nothing(gate: Translated, full: str, command: bytes) -> None:
    with gate.login(full) as client:
        client.bad(command)
        assert client.stat() == (5, sum(map(len, MAIL)))
        client.quit()
    assert held(gate, full) == MAIL


def test_capabilities_are_told_in_both_states(gate: Translated, full: str) -> None:
    with gate.connect() as client:
        before = client.capabilities()
        after = client.login(full, gate.store.users[full]).capabilities()
    for wanted in (b"TOP", b"UIDL", b"PIPELINING", b"RESP-CODES", b"AUTH-RESP-CODE"):
        assert wanted in before
        assert wanted in after
    assert any(line.startswith(b"SASL ") and b"PLAIN" in line.split() for line in before)
    assert b"USER" in before
    assert all(len(line) + 2 <= 512 for line in before + after)


def test_capabilities_that_are_told_work(gate: Translated, full: str) -> None:
    with gate.connect() as client:
        told = {line.split()[0] for line in client.capabilities()}
        if b"UTF8" in told:
            client.good(b"UTF8")
        if b"LANG" in told:
            assert client.fetch(b"LANG").startswith(b"i-default")
            client.good(b"LANG *")
        client.login(full, gate.store.users[full])
        assert client.stat()[0] == 5


def test_stls_takes_nothing_that_came_behind_it_in_clear(gate: Translated, full: str) -> None:
    with Pop3(gate.ports["pop3"]) as client:
        # Whoever sits on the wire could have put that there; the connection may as well end.
        client.send(b"STLS", b"USER " + full.encode())
        with contextlib.suppress(Ended, OSError):
            assert client.status().startswith(b"+OK")
            assert not client.unread
            client.sock = gate.context.wrap_socket(client.sock, server_hostname="localhost")
            client.bad(b"PASS " + gate.store.users[full].encode())


def test_no_password_is_taken_in_clear_where_stls_is_there(gate: Translated, full: str) -> None:
    with Pop3(gate.ports["pop3"]) as client:
        assert b"USER" not in client.capabilities()
        if client.ask(b"USER " + full.encode()).startswith(b"+OK"):
            client.bad(b"PASS " + gate.store.users[full].encode())


def test_auth_can_be_given_up_and_tried_again(gate: Translated, full: str) -> None:
    answer = base64.b64encode(f"\0{full}\0{gate.store.users[full]}".encode())
    with gate.connect() as client:
        client.send(b"AUTH PLAIN")
        assert client.line().startswith(b"+ ")
        client.bad(b"*")
        client.send(b"AUTH PLAIN")
        assert client.line().startswith(b"+ ")
        client.bad(b"no base64!")
        client.bad(b"AUTH UNHEARD-OF")
        client.good(b"AUTH PLAIN " + answer)
        assert client.stat()[0] == 5


def test_a_password_is_the_rest_of_the_line(gate: Translated) -> None:
    if gate.store.name == "dovecot":
        pytest.skip("its file of users is read once in a second only, and the others show it as well")
    gate.store.add_user("spaced", " two  words ")
    with gate.login("spaced") as client:
        assert client.stat() == (0, 0)


def test_a_line_without_end_is_refused(gate: Translated, full: str) -> None:
    with gate.login(full) as client:
        client.sock.settimeout(20)
        try:
            client.sock.sendall(b"RETR " + b"1" * 100_000)
            client.sock.sendall(b"\r\nNOOP\r\n")
        except OSError:
            return
        said = bytes(client.unread)
        while b"\n" not in said:
            try:
                data = client.sock.recv(4096)
            except (TimeoutError, ConnectionError):
                break
            if not data:
                break
            said += data
        assert said == b"" or said.startswith(b"-ERR")

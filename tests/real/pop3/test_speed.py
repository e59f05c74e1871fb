"""What POP3 on an IMAP server costs: messages asked for ahead of the client, and memory that mail does not fill."""

from __future__ import annotations

import hashlib
import os
import random
import time

import pytest

from tests.real.pop3.conftest import Translated
from tests.support.forwarder import Forwarder
from tests.support.store_dovecot import DovecotStore

MIB = 1 << 20
MESSAGES = 40
MANY = 100_000

dovecot_alone = pytest.mark.parametrize("store", ["dovecot"], indirect=True)


def mail(number: int) -> bytes:
    lines = b"".join(b"line %d of message %d\r\n" % (line, number) for line in range(number % 7 * 40 + 1))
    return b"From: a@example.org\r\nSubject: message %d\r\n\r\n" % number + lines


MAIL = [mail(number) for number in range(1, MESSAGES + 1)]


class Bursts(bytearray):
    """What the gateway sends, with how often it asked for messages."""

    asking = 0

    def __iadd__(self, data: bytes) -> Bursts:  # type: ignore[override]
        self.asking += b"BODY.PEEK[" in data
        super().__iadd__(data)
        return self


@pytest.fixture
def full(gate: Translated, user: str) -> str:
    """A user with some messages of different sizes."""
    for one in MAIL:
        gate.store.deliver(user, one)
    return user


@pytest.mark.parametrize("command", ["RETR {}", "TOP {} 0"])
def test_messages_taken_one_after_another_are_asked_for_ahead(
    gate: Translated, full: str, forwarder: Forwarder, command: str
) -> None:
    said = forwarder.commands = Bursts()
    with gate.login(full, "forwarded") as client:
        for number in range(1, MESSAGES + 1):
            wanted = MAIL[number - 1]
            if command.startswith("TOP"):
                wanted = wanted.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            assert client.fetch(command.format(number).encode()) == wanted
        client.quit()
    assert said.count(b"BODY.PEEK[") == MESSAGES
    # 2, 3, 5, 9, 17 and the rest of them at a time, for each of which the distance to the server is gone once.
    assert said.asking <= 8


def test_messages_taken_here_and_there_are_not(gate: Translated, full: str, forwarder: Forwarder) -> None:
    said = forwarder.commands = Bursts()
    with gate.login(full, "forwarded") as client:
        for number in (MESSAGES, *range(2, MESSAGES, 2)):
            assert client.fetch(b"RETR %d" % number) == MAIL[number - 1]
        client.quit()
    assert said.count(b"BODY.PEEK[") == said.asking == MESSAGES // 2


@pytest.mark.parametrize("seed", range(3))
def test_a_client_that_changes_its_mind_gets_what_it_asks_for(gate: Translated, full: str, seed: int) -> None:
    chance = random.Random(seed)
    with gate.login(full, "forwarded") as client:
        number = 0
        for turn in range(150):
            if turn in (40, 80, 120):
                gate.forwarder.cut()
            number = number % MESSAGES + 1 if chance.random() < 0.85 else chance.randint(1, MESSAGES)
            wanted = MAIL[number - 1]
            head = wanted.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            match chance.randrange(12):
                case 0:
                    assert client.fetch(b"TOP %d 0" % number) == head
                case 1:
                    assert client.fetch(b"TOP %d 1" % number) == head + wanted[len(head) :].splitlines(True)[0]
                case 2:
                    client.good(b"DELE %d" % number)
                    client.good(b"RSET")
                case _:
                    assert client.fetch(b"RETR %d" % number) == wanted


@dovecot_alone
def test_a_message_of_200_mb_takes_no_memory(gate: Translated, user: str) -> None:
    large = b"Subject: large\r\n\r\n" + (b"z" * 75 + b"\r\n") * (200 * MIB // 77)
    gate.store.deliver(user, mail(1))
    gate.store.deliver(user, large)
    with gate.login(user) as client:
        client.fetch(b"RETR 1")
        gate.program.forget_peak()
        before = gate.program.peak()
        assert hashlib.sha256(client.fetch(b"RETR 2")).digest() == hashlib.sha256(large).digest()
        assert gate.program.peak() - before < 8 * MIB


@dovecot_alone
def test_a_hundred_thousand_messages_take_little(gate: Translated, user: str) -> None:
    store = gate.store
    assert isinstance(store, DovecotStore)
    # A file has 65,000 names at most.
    for number in (1, 2):
        store.deliver(user, mail(number))
    with gate.login(user) as client:
        client.fetch(b"RETR 1")
    cur = store.maildir(user) / "cur"
    laid = [*cur.iterdir()]
    for number in range(2, MANY):
        os.link(laid[number % 2], cur / f"{int(time.time()) + 1}.M{number:06}P1.test:2,")
    gate.program.forget_peak()
    before = gate.program.peak()
    with gate.login(user) as client:
        assert client.stat()[0] == MANY
        assert len(set(client.uidls().values())) == len(client.sizes()) == MANY
        client.quit()
    assert gate.program.peak() - before < 16 * MIB

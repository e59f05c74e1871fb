"""IMAP servers that lie, and POP3 clients that mean ill: bounded memory, a right end, never a wrong byte.

Whatever one of them does, another user at the same worker is served meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hostile import Answer, HostileServer, Talk, body, row
from tests.support.pop3_client import Pop3
from tests.support.pop3_house import House, housed

pytestmark = pytest.mark.real

MIB = 1 << 20
GROWTH = 48 * MIB
"""By how much a worker may grow; some of it is what a first session of any kind costs."""
PATIENT = 3.0
"""Seconds in which an honest user's whole session is served, whatever another one's server does."""


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    running = HostileServer()
    yield running
    running.close()


@pytest.fixture(scope="module")
def house(server: HostileServer, authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("hostile")
    doors = {"expunge": "", "trash": 'delete = "trash", trash = "Trash"'}
    with housed(folder, authority, server.port, doors, {}) as running:
        yield running


@pytest.fixture(autouse=True)
def bounded(house: House, server: HostileServer) -> Iterator[None]:
    server.reset()
    honest(house)
    house.forget_peak()
    before = house.peak()
    yield
    honest(house)
    assert house.peak() - before < GROWTH
    server.reset()
    house.until(lambda: house.metric("mailgate_sessions_open") == 0)


def honest(house: House) -> None:
    """Be served as another user, whose server does nothing wrong, in a reasonable time."""
    began = time.monotonic()
    with house.connect("expunge") as client:
        client.login("honest", "password")
        client.stat()
        assert client.quit().startswith(b"+OK")
    assert time.monotonic() - began < PATIENT


@pytest.fixture
def login(house: House) -> Iterator[Callable[[], Pop3]]:
    clients: list[Pop3] = []

    def login(user: str = "") -> Pop3:
        clients.append(house.connect("expunge"))
        return clients[-1].login(user or f"user{time.monotonic_ns()}", "password")

    yield login
    for client in clients:
        client.sock.close()


# ---------------------------------------------------------------- what a server does at a command

OPENING = ("SELECT", "UID FETCH")


def say(*lines: bytes) -> Answer:
    return lambda talk, _: talk.say(*lines)


def flood(data: bytes) -> Answer:
    return lambda talk, _: talk.flood(data)


def endless(begin: bytes, data: bytes) -> Answer:
    def answer(talk: Talk, arguments: bytes) -> None:
        talk.sock.sendall(begin)
        talk.flood(data)

    return answer


def gone(talk: Talk, arguments: bytes) -> None:
    talk.end()


def rows_for_ever(talk: Talk, arguments: bytes) -> None:
    number = 0
    while True:
        first, number = number, number + 1000
        talk.say(*(row(1 + uid, 10) for uid in range(first, number)))


def rows_with_new_flags(talk: Talk, arguments: bytes) -> None:
    number = 0
    while True:
        number += 1
        talk.say(row(1 + number % 3, 10, flags=b"%d-%b" % (number, b"x" * 200_000)))


def numbers_for_ever(talk: Talk, arguments: bytes) -> None:
    talk.sock.sendall(b"* SEARCH")
    number = 0
    while True:
        first, number = number, number + 10_000
        talk.sock.sendall(b"".join(b" %d" % uid for uid in range(first + 1, number)))


def codes_for_ever(talk: Talk, arguments: bytes) -> None:
    number = 0
    while True:
        number += 1
        talk.say(b"* OK [X-%d %b] x" % (number, b"y" * 100_000))


REFUSED: dict[str, Answer] = {
    "bye": say(b"* BYE gone"),
    "end": gone,
    "a line of 10 MiB": say(b"* OK " + b"x" * 10 * MIB),
    "a literal without end": endless(b"* 1 FETCH (UID 1 FLAGS () BODY[HEADER] {4294967295}\r\n", b"x" * 1000 + b"\r\n"),
    "a literal that is none": say(b"* 1 FETCH (UID 1 BODY[] {99999999999999999999999}"),
    "another tag": say(b"zzz OK done"),
    "no IMAP": say(b"\x00\x01\x02\x03 not IMAP at all", b"* x"),
    "a continuation and the end": lambda talk, _: (talk.say(b"+ go on"), talk.end()),
    "lists in lists": say(b"* 1 FETCH " + b"(" * 100_000),
    "many literals": say(b"* 1 FETCH (" + b"X {0}\r\n " * 20_000),
    "brackets": say(b"* 1 FETCH (" + b"a[ " * 300_000),
    "quotes": say(b"* 1 FETCH (" + b'"\\ ' * 300_000),
    "tagged NO": lambda talk, _: talk.say(talk.tag + b" NO [SERVERBUG] no"),
    "tagged BAD": lambda talk, _: talk.say(talk.tag + b" BAD no"),
}
"""After these a server has nothing that could be believed."""


@pytest.mark.parametrize("verb", OPENING)
@pytest.mark.parametrize("what", [one for one in REFUSED if one != "a literal without end"])
def test_an_opening_that_cannot_be_believed_is_refused(
    house: House, server: HostileServer, verb: str, what: str
) -> None:
    server.answers[verb] = REFUSED[what]
    if what in ("another tag", "no IMAP"):
        server.answers[verb] = lambda talk, arguments: (REFUSED[what](talk, arguments), talk.end())
    with house.connect("expunge") as client:
        client.good(b"USER joe%d" % time.monotonic_ns())
        began = time.monotonic()
        assert client.bad(b"PASS password").startswith(b"[SYS/")
        assert time.monotonic() - began < PATIENT


FLOODS: dict[str, Answer] = {
    "untagged": flood(b"* OK Still here\r\n"),
    "EXISTS": flood(b"* 3 EXISTS\r\n"),
    "EXPUNGE": flood(b"* 1 EXPUNGE\r\n"),
    "VANISHED": flood(b"* VANISHED 1:4294967295\r\n"),
    "CAPABILITY": flood(b"* CAPABILITY IMAP4rev1 UIDPLUS\r\n"),
    "codes": codes_for_ever,
    "flags": rows_with_new_flags,
    "rows": rows_for_ever,
    "the same row": flood(row(1, 10) + b"\r\n"),
    "search": numbers_for_ever,
    "a header without end": REFUSED["a literal without end"],
    "bodies of others": flood(body(77, b"x" * 1000) + b"\r\n"),
}


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        pytest.param(verb, what, marks=() if verb == "UID FETCH" or what == "codes" else pytest.mark.full)
        for verb in OPENING
        for what in FLOODS
    ],
)
def test_a_flood_while_a_maildrop_is_opened_harms_nobody_else(
    house: House, server: HostileServer, verb: str, what: str
) -> None:
    server.answers[verb] = FLOODS[what]
    with house.connect("expunge") as client:
        client.good(b"USER joe%d" % time.monotonic_ns())
        client.send(b"PASS password")
        for _ in range(4):
            time.sleep(0.2)
            honest(house)
        server.reset()
        assert client.status().startswith(b"-ERR [SYS/TEMP]")

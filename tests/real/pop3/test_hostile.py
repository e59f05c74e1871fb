"""IMAP servers that lie, and POP3 clients that mean ill: bounded memory, a right end, never a wrong byte.

Whatever one of them does, another user at the same worker is served meanwhile.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hostile import Answer, HostileServer, Talk, body, fetch, message, row
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
    # Where a server talks without end QUIT has its own time.
    doors = {"expunge": "", "hurried": 'quit_timeout = "2s"'}
    with housed(folder, authority, server.port, doors, {}) as running:
        yield running


@pytest.fixture(autouse=True)
def bounded(house: House, server: HostileServer) -> Iterator[None]:
    server.reset()
    honest(house)
    house.program.forget_peak()
    before = house.program.peak()
    yield
    honest(house)
    assert house.program.peak() - before < GROWTH
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


# ---------------------------------------------------------------- what is listed


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ([(3, 30), (2, 20), (1, 10)], {1: 10, 2: 20, 3: 30}),
        ([(1, 10), (2, 20), (1, 11), (3, 30), (3, 30)], {1: 11, 2: 20, 3: 30}),
        ([(0, 5), (1, 10), (2, 20), (3, 30)], {1: 10, 2: 20, 3: 30}),
        ([(1, 0), (2, 9_999_999_999_999), (4294967295, 1)], {1: 0, 2: 9_999_999_999_999, 4294967295: 1}),
        ([(1, 10), (4294967296, 1), (2, 2)], None),
        ([(1, 10), (99999999999, 1), (2, 2)], None),
    ],
    ids=["descending", "twice", "zero", "extremes", "2^32", "11 digits"],
)
def test_a_list_that_is_odd_is_put_in_order_or_refused(
    house: House, server: HostileServer, told: list[tuple[int, int]], shown: dict[int, int] | None
) -> None:
    server.answers["FETCH"] = server.answers["UID FETCH"] = lambda talk, _: talk.ok(
        *(row(uid, size, number) for number, (uid, size) in enumerate(told, 1))
    )
    with house.connect("expunge") as client:
        client.good(b"USER joe%d" % time.monotonic_ns())
        if shown is None:
            assert client.bad(b"PASS password").startswith(b"[SYS/TEMP]")
            return
        client.good(b"PASS password")
        uidls = client.uidls()
        assert [int(uidl[:8], 16) for uidl in uidls.values()] == sorted(shown)
        assert [*client.sizes().values()] == [shown[uid] for uid in sorted(shown)]
        assert len({*uidls.values()}) == len(shown)
        assert client.quit().startswith(b"+OK")


# ---------------------------------------------------------------- what is retrieved

Login = Callable[[], Pop3]


def bodies(*answers: Answer) -> Answer:
    """Answer commands for messages in turn, the last one for ever, and all others as is right."""
    left = list(answers)

    def answer(talk: Talk, arguments: bytes) -> None:
        if b"BODY" in arguments:
            (left.pop(0) if len(left) > 1 else left[0])(talk, arguments)
        else:
            fetch(talk, arguments)

    return answer


def test_a_size_that_is_a_lie_changes_no_byte(server: HostileServer, login: Login) -> None:
    server.messages = {1: message(1) * 5000, 2: b"x\r\n"}
    server.answers["FETCH"] = server.answers["UID FETCH"] = bodies(fetch)
    server.answers["UID FETCH"] = lambda talk, what: (
        fetch(talk, what) if b"BODY" in what else talk.ok(row(1, 3, 1), row(2, 4_000_000_000, 2))
    )
    client = login()
    assert [client.fetch(b"RETR %d" % number) for number in (1, 2)] == [*server.messages.values()]
    assert client.quit().startswith(b"+OK")


def test_a_message_of_another_uid_is_never_given_out(server: HostileServer, login: Login) -> None:
    server.answers["UID FETCH"] = bodies(lambda talk, _: talk.ok(body(2, b"wrong\r\n", 1)))
    client = login()
    client.bad(b"RETR 1")
    assert client.stat()[0] == 3
    server.answers["UID FETCH"] = bodies(lambda talk, _: talk.ok(body(2, b"wrong\r\n"), body(1, message(1))))
    assert client.fetch(b"RETR 1") == message(1)


def breaks_off(client: Pop3, command: bytes) -> None:
    """Have a message that cannot be had: it is refused or, once it has begun, ends without its dot."""
    client.send(command)
    if client.status().startswith(b"+OK"):
        assert not (b"\r\n" + client.ends()).endswith(b"\r\n.\r\n")


def test_a_message_whose_uid_comes_too_late_to_believe_it_has_no_final_dot(server: HostileServer, login: Login) -> None:
    late = b"* 1 FETCH (BODY[] {7}\r\nwrong\r\n UID 2)"
    server.answers["UID FETCH"] = bodies(lambda talk, _: talk.ok(late))
    client = login()
    breaks_off(client, b"RETR 1")


@pytest.mark.parametrize("status", [b"NO", b"BAD"])
def test_a_message_that_is_taken_back_has_no_final_dot(server: HostileServer, login: Login, status: bytes) -> None:
    server.answers["UID FETCH"] = bodies(lambda talk, _: talk.say(body(1, message(1)), talk.tag + b" %b no" % status))
    client = login()
    breaks_off(client, b"RETR 1")


def test_a_message_that_breaks_off_has_no_final_dot(server: HostileServer, login: Login) -> None:
    begun = b"* 1 FETCH (UID 1 BODY[] {4000000000}\r\n" + b"text\r\n" * 50_000 + b".\r\n"
    server.answers["UID FETCH"] = bodies(lambda talk, _: (talk.sock.sendall(begun), talk.end()))
    client = login()
    breaks_off(client, b"RETR 1")


@pytest.mark.parametrize(
    "what", ["bye", "end", "a line of 10 MiB", "another tag", "many literals", "brackets", "quotes"]
)
def test_a_message_that_cannot_be_had_is_refused_and_the_session_goes_on(
    server: HostileServer, login: Login, what: str
) -> None:
    server.answers["UID FETCH"] = bodies(lambda talk, arguments: (REFUSED[what](talk, arguments), talk.end()))
    client = login()
    began = time.monotonic()
    assert client.bad(b"RETR 1").startswith(b"[SYS/TEMP]")
    assert time.monotonic() - began < PATIENT
    assert server.heard.count("LOGIN") >= 2
    assert client.stat()[0] == 3
    server.answers.clear()
    assert client.fetch(b"RETR 1") == message(1)
    assert client.quit().startswith(b"+OK")


def test_a_part_that_is_the_whole_is_not_asked_for_twice(server: HostileServer, login: Login) -> None:
    whole = b"Subject: 1\r\n\r\n" + b"line\r\n" * 20_000
    server.messages[1] = whole
    client = login()
    assert client.fetch(b"TOP 1 3") == b"Subject: 1\r\n\r\n" + b"line\r\n" * 3
    assert client.fetch(b"TOP 1 19000") == b"Subject: 1\r\n\r\n" + b"line\r\n" * 19_000
    # What an 8 KiB header has pushed behind the first part is asked for as a second one, which is the whole again.
    server.messages[1] = b"X: %b\r\n\r\nbody\r\n" % (b"x" * 8288)
    server.answers["UID FETCH"] = lambda talk, what: talk.ok(
        body(1, server.messages[1][: int(what.rpartition(b".")[2].partition(b">")[0])])
        if b"<0." in what
        else body(1, server.messages[1] * 100)
    )
    breaks_off(client, b"TOP 1 1")


def another(talk: Talk, uidvalidity: int) -> None:
    """Answer SELECT with another mailbox of that name."""
    flags = b"* FLAGS (\\Deleted \\Seen)"
    talk.ok(flags, b"* 3 EXISTS", b"* OK [UIDVALIDITY %d] ok" % uidvalidity, code=b"[READ-WRITE] ")


def test_uidvalidity_that_changes_ends_the_session_and_deletes_nothing(server: HostileServer, login: Login) -> None:
    client = login()
    client.good(b"DELE 1")
    server.answers["SELECT"] = lambda talk, _: another(talk, 8)
    server.drop()
    client.send(b"RETR 2")
    assert client.ends().startswith(b"-ERR")
    second = login()
    second.good(b"DELE 1")
    server.answers["SELECT"] = lambda talk, _: another(talk, 9)
    server.drop()
    assert second.quit() == b"-ERR [SYS/TEMP] some deleted messages not removed"
    assert "UID STORE" not in server.heard
    assert len(server.messages) == 3


# ---------------------------------------------------------------- what QUIT is told

NEVER_TRUE: dict[str, tuple[str, Answer]] = {
    "removed, it says": ("UID EXPUNGE", lambda talk, _: talk.ok(b"* 1 EXPUNGE")),
    "refused": ("UID EXPUNGE", lambda talk, _: talk.say(talk.tag + b" NO [NOPERM] no")),
    "unknown": ("UID EXPUNGE", lambda talk, _: talk.say(b"* CAPABILITY IMAP4rev1", talk.tag + b" BAD unknown")),
    "gone at STORE": ("UID STORE", gone),
    "gone at EXPUNGE": ("UID EXPUNGE", gone),
    "gone at SEARCH": ("UID SEARCH", gone),
    "nothing found, for ever": ("UID SEARCH", flood(b"* SEARCH\r\n")),
    "another's tag": ("UID STORE", say(b"x OK")),
}


@pytest.mark.parametrize("what", NEVER_TRUE)
def test_what_is_not_known_to_be_removed_is_reported(house: House, server: HostileServer, what: str) -> None:
    with house.connect("hurried") as client:
        client.login(f"user{time.monotonic_ns()}", "password")
        client.good(b"DELE 2")
        verb, server.answers[verb] = NEVER_TRUE[what][0], NEVER_TRUE[what][1]
        count = len(house.said("maildrop updated"))
        assert client.quit() == b"-ERR [SYS/TEMP] some deleted messages not removed"
        house.until(lambda: len(house.said("maildrop updated")) > count)
        line = house.said("maildrop updated")[-1]
        assert (line["kept"], line["removed"], line["level"]) == (1, 0, "warning")
        assert line["detail"]


# ---------------------------------------------------------------- clients


def test_a_client_that_never_reads(house: House, server: HostileServer, login: Login) -> None:
    server.messages[1] = message(1) + b"x" * 70 * MIB
    client = login()
    client.send(*[b"RETR 1"] * 1000)
    time.sleep(1)
    honest(house)
    client.vanish()


def test_a_client_that_sends_byte_by_byte(house: House, server: HostileServer) -> None:
    with house.connect("expunge") as client:
        for byte in b"USER slow\r\nPASS password\r\nRETR 2\r\nQUIT\r\n":
            client.sock.sendall(bytes([byte]))
            time.sleep(0.005)
        assert [client.status()[:3] for _ in range(3)] == [b"+OK"] * 3
        assert client.block() == message(2)
        assert client.status().startswith(b"+OK")


def test_a_mebibyte_of_commands_at_once(house: House, server: HostileServer, login: Login) -> None:
    client = login()
    count = MIB // len(b"RETR 1\r\n") // 3
    commands = b"".join(b"RETR %d\r\n" % (1 + number % 3) for number in range(count))
    thread = threading.Thread(target=client.sock.sendall, args=(commands,))
    thread.start()
    for number in range(count):
        assert client.status().startswith(b"+OK")
        assert client.block() == message(1 + number % 3)
        if number % 10_000 == 0:
            honest(house)
    thread.join()
    assert client.quit().startswith(b"+OK")


@pytest.mark.parametrize("command", [b"NOOP", b"UIDL 1", b"STAT", b"LIST", b"RSET"])
def test_floods_of_commands_leave_others_their_turn(house: House, server: HostileServer, command: bytes) -> None:
    stop = threading.Event()

    def send(client: Pop3) -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                client.sock.sendall(b"%b\r\n" % command * 5000)

    def read(client: Pop3) -> None:
        with contextlib.suppress(OSError):
            while client.sock.recv(1 << 18):
                pass

    clients = [house.connect("expunge").login(f"flood{number}", "password") for number in range(3)]
    threads = [threading.Thread(target=work, args=(client,)) for client in clients for work in (send, read)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            honest(house)
    finally:
        stop.set()
        for client in clients:
            client.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for client in clients:
            client.sock.close()


def test_lists_of_a_hundred_thousand_messages(house: House, server: HostileServer, login: Login) -> None:
    server.messages = dict.fromkeys(range(1, 100_001), b"x\r\n")
    reader, idler = login(), login()
    idler.send(*[b"LIST", b"UIDL"] * 1000)
    for _ in range(3):
        assert len(reader.fetch(b"LIST").splitlines()) == len(reader.fetch(b"UIDL").splitlines()) == 100_000
        honest(house)
    idler.vanish()
    assert reader.quit().startswith(b"+OK")


def test_many_sessions_of_one_client(house: House, server: HostileServer, login: Login) -> None:
    clients = [login() for _ in range(150)]
    honest(house)
    assert all(client.stat()[0] == 3 for client in clients)
    for client in clients:
        assert client.quit().startswith(b"+OK")


def test_a_client_that_says_nothing_that_is_a_command(house: House, server: HostileServer, login: Login) -> None:
    client = login()
    client.sock.sendall(b"\x00\xff{9999999999}\r\n" * 1000 + b"x" * MIB)
    with contextlib.suppress(ConnectionError):
        assert client.ends().count(b"-ERR") <= 21

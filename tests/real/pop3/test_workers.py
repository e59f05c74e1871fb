"""POP3 clients on an IMAP server, over two workers: one lock, one delay, one store, and the end of a worker."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import secrets
from tests.support.pop3_client import Ended, Pop3
from tests.support.pop3_house import House, housed
from tests.support.stores import Store

pytestmark = [pytest.mark.real, pytest.mark.parametrize("store", ["dovecot"], indirect=True)]

DOORS = {
    "wait": 'lock = "wait", lock_wait = "3s"',
    "refuse": 'lock = "refuse"',
    "takeover": 'lock = "takeover"',
    "delay": 'lock = "refuse", login_delay = "2s"',
}
COUNT = 4


@pytest.fixture
def house(store: Store, authority: Path, tmp_path: Path) -> Iterator[House]:
    more = '[shutdown]\ndrain = "8s"\n'
    with housed(tmp_path, authority, store.imap, DOORS, store.users, 2, more) as running:
        yield running


@pytest.fixture
def full(store: Store, user: str) -> str:
    """A user with some messages."""
    for number in range(1, COUNT + 1):
        store.deliver(user, b"Subject: %d\r\n\r\nmail\r\n" % number)
    return user


def reach(house: House, door: str, *, other_than: int | None = None) -> tuple[Pop3, int]:
    """Connect to a worker, if need be to another one than that; return its pid as well."""
    clients = []
    try:
        for _ in range(50):
            client = house.connect(door)
            clients.append(client)
            worker = house.serving(client.sock)
            if worker != other_than:
                return clients.pop(), worker
    finally:
        for client in clients:
            client.sock.close()
    raise AssertionError("only one of the workers accepts")


def sign_in(client: Pop3, user: str, store: Store) -> bytes:
    client.good(b"USER " + user.encode())
    return client.ask(b"PASS " + store.users[user].encode())


def left(store: Store, user: str) -> int:
    return len(store.contents(user))


# ---------------------------------------------------------------- one at a time


def test_a_maildrop_has_one_session_over_all_workers(house: House, store: Store, full: str) -> None:
    first, worker = reach(house, "refuse")
    assert sign_in(first, full, store).startswith(b"+OK")
    second, _ = reach(house, "refuse", other_than=worker)
    assert sign_in(second, full, store).startswith(b"-ERR [IN-USE]")
    first.good(b"DELE 1")
    assert first.quit().startswith(b"+OK")
    # Who has the answer to QUIT may come back at once.
    assert sign_in(second, full, store).startswith(b"+OK")
    assert second.stat()[0] == COUNT - 1
    assert second.quit().startswith(b"+OK")


def test_who_waits_for_another_worker_gets_the_maildrop(house: House, store: Store, full: str) -> None:
    first, worker = reach(house, "wait")
    assert sign_in(first, full, store).startswith(b"+OK")
    second, _ = reach(house, "wait", other_than=worker)
    second.good(b"USER " + full.encode())
    second.send(b"PASS " + store.users[full].encode())
    first.good(b"DELE 1")
    time.sleep(0.5)
    assert first.quit().startswith(b"+OK")
    assert second.status().startswith(b"+OK")
    assert second.stat()[0] == COUNT - 1
    third, _ = reach(house, "wait")
    began = time.monotonic()
    assert sign_in(third, full, store).startswith(b"-ERR [IN-USE]")
    assert 2.5 < time.monotonic() - began < 6
    for client in (second, third):
        client.sock.close()


def test_a_takeover_ends_the_session_of_another_worker_and_deletes_nothing(
    house: House, store: Store, full: str
) -> None:
    first, worker = reach(house, "takeover")
    assert sign_in(first, full, store).startswith(b"+OK")
    first.good(b"DELE 1")
    second, _ = reach(house, "takeover", other_than=worker)
    assert sign_in(second, full, store).startswith(b"+OK")
    assert second.stat()[0] == COUNT
    with pytest.raises((Ended, ConnectionError, AssertionError)):
        first.good(b"QUIT")
    assert second.quit().startswith(b"+OK")
    assert left(store, full) == COUNT
    first.sock.close()


def test_the_delay_between_logins_is_that_of_all_workers(house: House, store: Store, full: str) -> None:
    first, worker = reach(house, "delay")
    assert sign_in(first, full, store).startswith(b"+OK")
    assert first.quit().startswith(b"+OK")
    second, _ = reach(house, "delay", other_than=worker)
    assert sign_in(second, full, store).startswith(b"-ERR [LOGIN-DELAY]")
    time.sleep(2.1)
    assert sign_in(second, full, store).startswith(b"+OK")
    assert second.quit().startswith(b"+OK")


# ---------------------------------------------------------------- what is shared


def test_both_workers_show_the_same_and_count_together(house: House, store: Store, full: str) -> None:
    shown = []
    worker: int | None = None
    for number in (1, 2):
        client, worker = reach(house, "refuse", other_than=worker)
        assert sign_in(client, full, store).startswith(b"+OK")
        shown.append([*client.uidls().values()])
        assert client.good(b"DELE 1")
        if number == 2:
            client.good(b"DELE 2")
        assert client.quit().startswith(b"+OK")
    assert shown[1] == shown[0][1:]
    for name, labels, value in (
        ("mailgate_maildrop_updates_total", {"policy": "expunge", "result": "ok"}, 2),
        ("mailgate_maildrop_deletions_total", {"policy": "expunge", "result": "removed"}, 3),
        ("mailgate_maildrop_update_duration_seconds_count", {}, 2),
    ):
        assert house.metric(name, **labels) == value
    assert left(store, full) == COUNT - 3


def test_a_session_is_kicked_in_whichever_worker_it_is(house: House, store: Store, full: str) -> None:
    worker: int | None = None
    for _ in range(2):
        client, worker = reach(house, "refuse", other_than=worker)
        assert sign_in(client, full, store).startswith(b"+OK")
        client.good(b"DELE 1")
        found: Any = house.administer("GET", "/v1/sessions")
        (mine,) = (one for one in found["sessions"] if one["user"] == full)
        assert mine["protocol"] == "pop3"
        assert house.administer("POST", f"/v1/sessions/{mine['id']}/kick") == {"kicked": 1, "missing": []}
        client.ends()
        client.sock.close()
        house.until(lambda: house.metric("mailgate_sessions_open", state="relay") == 0)
    assert left(store, full) == COUNT


# ---------------------------------------------------------------- reload, upgrade, stop


def test_a_reload_leaves_sessions_what_they_were(house: House, store: Store, full: str) -> None:
    old, worker = reach(house, "refuse")
    assert sign_in(old, full, store).startswith(b"+OK")
    old.good(b"DELE 1")
    house.reconfigure('lock = "refuse"', 'lock = "refuse", delete = "never"')
    new, _ = reach(house, "refuse", other_than=worker)
    assert sign_in(new, full, store).startswith(b"-ERR [IN-USE]")
    assert old.quit().startswith(b"+OK")
    assert left(store, full) == COUNT - 1
    assert sign_in(new, full, store).startswith(b"+OK")
    new.good(b"DELE 1")
    assert new.quit().startswith(b"+OK")
    assert left(store, full) == COUNT - 1


def test_an_upgrade_leaves_sessions_in_their_workers_until_quit(house: House, store: Store, full: str) -> None:
    old, worker = reach(house, "refuse")
    assert sign_in(old, full, store).startswith(b"+OK")
    before = old.uidls()
    old.good(b"DELE 1")
    command = [sys.executable, "-m", "mailgate", "upgrade", "-c", str(house.folder / "mailgate.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    new, other = reach(house, "refuse")
    assert other != worker
    assert sign_in(new, full, store).startswith(b"-ERR [IN-USE]")
    assert old.fetch(b"RETR 2").startswith(b"Subject: 2\r\n")
    assert old.quit().startswith(b"+OK")
    assert left(store, full) == COUNT - 1
    assert sign_in(new, full, store).startswith(b"+OK")
    assert [*new.uidls().values()] == [*before.values()][1:]
    assert new.quit().startswith(b"+OK")
    house.until(lambda: worker not in house.program.workers())


def test_a_stop_lets_sessions_reach_quit(house: House, store: Store, full: str) -> None:
    client, _ = reach(house, "refuse")
    assert sign_in(client, full, store).startswith(b"+OK")
    client.good(b"DELE 1")
    house.program.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    client.good(b"DELE 2")
    assert client.quit().startswith(b"+OK")
    assert house.program.process.wait(10) == 0
    assert left(store, full) == COUNT - 2
    house.stop()
    house.start()


# ---------------------------------------------------------------- passwords


def test_no_password_is_written_anywhere(house: House, store: Store, full: str) -> None:
    """What is looked through when the gateway has stopped: log, traces with bodies, metrics, the store's file."""
    house.administer("POST", "/v1/trace", {"address": "127.0.0.1", "seconds": 600, "bodies": True})
    wrong = [secrets.nasty_canary(), *(secrets.canary() for _ in range(4))]
    house.secrets += wrong
    name, password = full.encode(), store.users[full].encode()
    for secret in wrong[:2]:
        with house.connect("refuse") as client:
            client.good(b"USER " + name)
            client.bad(b"PASS " + secret.encode())
    plain = base64.b64encode(b"\0%b\0%b" % (name, wrong[2].encode()))
    with house.connect("refuse") as client:
        client.bad(b"AUTH PLAIN " + plain)
        client.send(b"AUTH LOGIN")
        assert client.line().startswith(b"+")
        client.send(base64.b64encode(name))
        assert client.line().startswith(b"+")
        client.bad(base64.b64encode(wrong[3].encode()))
    with house.connect("refuse") as client:
        client.good(b"AUTH PLAIN " + base64.b64encode(b"\0%b\0%b" % (name, password)))
        # In the wrong place it is an unknown command's argument.
        client.bad(b"PASS " + wrong[4].encode())
        client.bad(wrong[4].encode())
        assert client.fetch(b"RETR 1").startswith(b"Subject: 1\r\n")
        client.fetch(b"TOP 2 1")
        client.good(b"DELE 1")
        assert client.quit().startswith(b"+OK")
    written = house.everything_written()
    assert b"Subject: 1" in written

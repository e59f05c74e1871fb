"""All kinds of stores keep records alike: SQLite in a file, PostgreSQL and MariaDB as they come from Debian."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from pytest_trio import trio_fixture

from mailgate.config import Pop3Store, SecretSource
from mailgate.translate.store_backend import FOLDER_BYTES, OWNER_BYTES, Record, StoreBackend
from mailgate.translate.store_sql import SqlBackend
from mailgate.translate.store_sqlite import SqliteBackend
from tests.support.databases import PASSWORD, Database

KINDS = ["sqlite", *(pytest.param(kind, marks=pytest.mark.real) for kind in ("postgresql", "mariadb"))]
_owners = itertools.count()


@pytest.fixture
def owner() -> bytes:
    """Somebody of whom nothing is remembered: the databases are the same for all tests."""
    return b"pool/user%d" % next(_owners)


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], StoreBackend]:
    """Opens the store once more, as another worker or gateway would."""
    kind = request.param
    if kind == "sqlite":
        return lambda: SqliteBackend(tmp_path / "pop3.sqlite")
    database: Database = request.getfixturevalue(f"{kind}_server")
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n", "utf-8")
    settings = Pop3Store(url=database.url, password=SecretSource(file=secret))
    return lambda: SqlBackend(settings)


@trio_fixture
async def backend(make: Callable[[], StoreBackend]) -> AsyncIterator[StoreBackend]:
    made = make()
    yield made
    await made.aclose()


@trio_fixture
async def other(make: Callable[[], StoreBackend]) -> AsyncIterator[StoreBackend]:
    made = make()
    yield made
    await made.aclose()


async def test_nothing_is_remembered_at_first(backend: StoreBackend, owner: bytes) -> None:
    assert await backend.fetch(owner, b"INBOX") is None
    assert await backend.folders(owner) == []


async def test_what_is_put_is_there_for_others(backend: StoreBackend, other: StoreBackend, owner: bytes) -> None:
    assert await backend.put(owner, b"INBOX", None, b"head", b"rest")
    assert await other.fetch(owner, b"INBOX") == Record(1, b"head", b"rest")
    assert await other.fetch(owner, b"Inbox") is None
    assert await other.fetch(owner + b"x", b"INBOX") is None


async def test_the_rest_may_stay_as_it_is(backend: StoreBackend, owner: bytes) -> None:
    await backend.put(owner, b"INBOX", None, b"head", b"rest")
    assert await backend.put(owner, b"INBOX", 1, b"changed", None)
    assert await backend.fetch(owner, b"INBOX") == Record(2, b"changed", b"rest")
    assert await backend.put(owner, b"INBOX", 2, b"again", b"all of it")
    assert await backend.fetch(owner, b"INBOX") == Record(3, b"again", b"all of it")


async def test_nothing_is_put_over_what_was_not_seen(backend: StoreBackend, other: StoreBackend, owner: bytes) -> None:
    assert not await backend.put(owner, b"INBOX", 1, b"head", b"rest")
    assert await backend.put(owner, b"INBOX", None, b"first", b"")
    assert not await other.put(owner, b"INBOX", None, b"second", b"")
    assert await other.put(owner, b"INBOX", 1, b"third", None)
    assert not await backend.put(owner, b"INBOX", 1, b"fourth", b"x")
    assert await backend.fetch(owner, b"INBOX") == Record(2, b"third", b"")


async def test_any_bytes_are_kept(backend: StoreBackend, other: StoreBackend, owner: bytes) -> None:
    everything = bytes(range(256)) * 5
    folder = (b"\0\\'%\xff\"" * FOLDER_BYTES)[:FOLDER_BYTES]
    long = (owner + b"\0\xff\\'" * OWNER_BYTES)[:OWNER_BYTES]
    assert await backend.put(long, folder, None, everything, everything[::-1])
    assert await other.fetch(long, folder) == Record(1, everything, everything[::-1])
    assert await other.folders(long) == [folder]


async def test_names_that_end_in_spaces_are_names_of_their_own(backend: StoreBackend, owner: bytes) -> None:
    for name in (b"Sent", b"Sent ", b"SENT", b"sent"):
        assert await backend.put(owner, name, None, name, b"")
    assert await backend.folders(owner) == sorted([b"Sent", b"Sent ", b"SENT", b"sent"])
    assert await backend.fetch(owner, b"Sent ") == Record(1, b"Sent ", b"")


async def test_a_value_may_be_large(backend: StoreBackend, owner: bytes) -> None:
    large = os.urandom(8_000_000)
    assert await backend.put(owner, b"INBOX", None, b"head", large)
    found = await backend.fetch(owner, b"INBOX")
    assert found is not None
    assert found.rest == large


async def test_the_mailboxes_of_an_owner_come_sorted(backend: StoreBackend, owner: bytes) -> None:
    for folder in (b"b", b"a", b"\xff", b"A"):
        await backend.put(owner, folder, None, b"", b"")
    await backend.put(owner + b"x", b"z", None, b"", b"")
    assert await backend.folders(owner) == [b"A", b"a", b"b", b"\xff"]


async def test_of_many_at_once_each_change_is_made_once(
    backend: StoreBackend, other: StoreBackend, owner: bytes
) -> None:
    await backend.put(owner, b"INBOX", None, b"0", b"")

    async def count(store: StoreBackend, times: int) -> None:
        while times:
            record = await store.fetch(owner, b"INBOX")
            assert record is not None
            times -= await store.put(owner, b"INBOX", record.version, b"%d" % (int(record.head) + 1), None)

    async with trio.open_nursery() as nursery:
        for store in (backend, other) * 3:
            nursery.start_soon(count, store, 10)
    assert await other.fetch(owner, b"INBOX") == Record(61, b"60", b"")


async def test_a_closed_store_opens_again(backend: StoreBackend, owner: bytes) -> None:
    await backend.put(owner, b"INBOX", None, b"head", b"rest")
    await backend.aclose()
    await backend.aclose()
    assert await backend.fetch(owner, b"INBOX") == Record(1, b"head", b"rest")


async def test_a_call_that_is_given_up_leaves_the_store_in_order(backend: StoreBackend, owner: bytes) -> None:
    await backend.put(owner, b"INBOX", None, b"head", b"rest")
    with trio.CancelScope() as scope:
        scope.cancel()
        await backend.put(owner, b"INBOX", 1, b"given up", b"")
    found = await backend.fetch(owner, b"INBOX")
    assert found in (Record(1, b"head", b"rest"), Record(2, b"given up", b""))

"""The store in a shared database: URLs and passwords, limits, and databases that go away."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from pytest_trio import trio_fixture

from mailgate.config import Pop3Store, SecretSource
from mailgate.translate import store_sql
from mailgate.translate.store_backend import Record, StoreFailed
from mailgate.translate.store_sql import SqlBackend, driver
from tests.support.databases import PASSWORD, Database

KINDS = ["postgresql", "mariadb"]


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> Database:
    found = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(found, Database)
    return found


@trio_fixture
async def store(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqlBackend]:
    monkeypatch.setenv("STORE_PASSWORD", PASSWORD)
    made = SqlBackend(Pop3Store(url=database.url, password=SecretSource(env="STORE_PASSWORD")))
    yield made
    await made.aclose()


async def refused(store: SqlBackend) -> str:
    with pytest.raises(StoreFailed) as caught:
        await store.fetch(b"a", b"INBOX")
    return str(caught.value)


def test_the_driver_and_its_limits_follow_from_the_url() -> None:
    url, arguments = driver("postgresql://gate@db.example.org/mail?sslmode=verify-full")
    assert str(url) == "postgresql+psycopg://gate@db.example.org/mail?sslmode=verify-full"
    assert arguments["options"] == "-c statement_timeout=8000"
    url, arguments = driver("mariadb://gate@db.example.org/mail?ssl_ca=/etc/ssl/db.pem")
    assert url.drivername == "mariadb+pymysql"
    assert arguments == {"connect_timeout": 5, "read_timeout": 8, "write_timeout": 8}


@pytest.mark.real
async def test_a_wrong_password_is_told_and_not_shown(
    database: Database, store: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "not the password")
    said = await refused(store)
    assert "mailgate@127.0.0.1" in said
    assert "not the password" not in said
    # The next login may find it right.
    monkeypatch.setenv("STORE_PASSWORD", PASSWORD)
    assert await store.fetch(b"nobody", b"INBOX") is None


async def test_a_password_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_PASSWORD", raising=False)
    url = "postgresql://127.0.0.1:1/x"
    missing = SqlBackend(Pop3Store(url=url, password=SecretSource(env="STORE_PASSWORD")))
    assert "'STORE_PASSWORD' is not set" in await refused(missing)
    gone = SqlBackend(Pop3Store(url=url, password=SecretSource(file=tmp_path / "password")))
    assert f"{tmp_path}/password: No such file" in await refused(gone)
    (tmp_path / "password").write_bytes(b"\xff")
    assert "is not UTF-8" in await refused(gone)


async def test_a_database_that_is_not_there_is_told() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        for kind in KINDS:
            store = SqlBackend(Pop3Store(url=f"{kind}://gate@127.0.0.1:{port}/x"))
            assert "refused" in await refused(store)


async def test_a_database_that_does_not_answer_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_sql, "CALL_SECONDS", 0.1)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        store = SqlBackend(Pop3Store(url=f"mariadb://gate@127.0.0.1:{sock.getsockname()[1]}/x"))
        assert "has not answered for 0 s" in await refused(store)


@pytest.mark.real
async def test_a_database_that_was_started_again_is_found_again(database: Database, store: SqlBackend) -> None:
    owner = f"restart/{database.port}".encode()
    await store.put(owner, b"INBOX", None, b"head", b"rest")
    async with trio.open_nursery() as nursery:
        for _ in range(store_sql.CONNECTIONS):
            nursery.start_soon(store.fetch, owner, b"INBOX")
    database.stop()
    assert "127.0.0.1" in await refused(store)
    database.start()
    assert await store.fetch(owner, b"INBOX") == Record(1, b"head", b"rest")
    database.stop()
    database.start()
    assert await store.put(owner, b"INBOX", 1, b"changed", None)


@pytest.mark.real
async def test_a_newer_layout_is_refused(database: Database, store: SqlBackend) -> None:
    await store.folders(b"")
    await store._call(lambda connection: connection.execute(store_sql.layout.update().values(layout=7)))
    try:
        other = SqlBackend(store._settings)
        assert "was written by a newer mailgate (layout 7, this one knows 1)" in await refused(other)
    finally:
        await store._call(lambda connection: connection.execute(store_sql.layout.update().values(layout=1)))


@pytest.mark.real
async def test_gateways_that_begin_at_once_make_the_tables_once(database: Database, store: SqlBackend) -> None:
    await store.folders(b"")
    await store._call(store_sql.metadata.drop_all)
    others = [SqlBackend(store._settings) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for number, other in enumerate(others):
            nursery.start_soon(other.put, b"begin/%d" % number, b"INBOX", None, b"head", b"")
    for number in range(4):
        assert await store.folders(b"begin/%d" % number) == [b"INBOX"]
    for other in others:
        await other.aclose()


@pytest.mark.real
async def test_a_store_that_was_opened_is_not_used_behind_a_fork(store: SqlBackend) -> None:
    await store.folders(b"")
    store._pid = os.getpid() + 1
    with pytest.raises(RuntimeError, match="before a fork"):
        await store.folders(b"")

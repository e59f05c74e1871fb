"""The store in a SQLite file: several processes on it, files that cannot be used, and what an administrator hears."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
import trio
from pytest_trio import trio_fixture

from mailgate.translate import store_sqlite
from mailgate.translate.store_backend import Record, StoreFailed
from mailgate.translate.store_sqlite import SqliteBackend, file_system
from tests.support.children import child, ended

COUNTING = """
import sys, trio
from pathlib import Path
from mailgate.translate.store_sqlite import SqliteBackend

async def main():
    store = SqliteBackend(Path(sys.argv[1]))
    done = 0
    while done < 25:
        record = await store.fetch(b"a", b"INBOX")
        if record is None:
            done += await store.put(b"a", b"INBOX", None, b"1", b"")
        else:
            done += await store.put(b"a", b"INBOX", record.version, b"%d" % (int(record.head) + 1), None)
    await store.aclose()

trio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pop3.sqlite"


@trio_fixture
async def store(path: Path) -> AsyncIterator[SqliteBackend]:
    made = SqliteBackend(path)
    yield made
    await made.aclose()


def put_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def get_bytes(path: Path) -> bytes:
    return path.read_bytes()


async def refused(store: SqliteBackend) -> str:
    """Return why a store does not answer; it must say so every time."""
    said = []
    for _ in range(2):
        with pytest.raises(StoreFailed) as caught:
            await store.fetch(b"a", b"INBOX")
        said.append(str(caught.value))
    assert said[0] == said[1]
    return said[0]


async def test_the_file_is_for_its_owner_alone_whatever_the_umask(path: Path, store: SqliteBackend) -> None:
    before = os.umask(0)
    try:
        await store.put(b"a", b"INBOX", None, b"head", b"")
    finally:
        os.umask(before)
    made = sorted(path.parent.glob("pop3.sqlite*"))
    assert [file.name for file in made] == ["pop3.sqlite", "pop3.sqlite-shm", "pop3.sqlite-wal"]
    assert {file.stat().st_mode & 0o777 for file in made} == {0o600}


async def test_each_commit_is_synced_to_a_log(path: Path, store: SqliteBackend) -> None:
    await store.put(b"a", b"INBOX", None, b"head", b"")
    pragmas = await store._call(lambda db: (db.pragma("journal_mode"), db.pragma("synchronous")))
    assert pragmas == ("wal", 2)


def test_processes_that_begin_at_once_and_write_together_lose_nothing(path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", COUNTING, str(path)]) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0, 0, 0, 0]
    with contextlib.closing(apsw.Connection(str(path))) as db:
        assert db.execute("SELECT version, head FROM memory").get == (100, b"100")


async def test_a_store_that_was_opened_is_not_used_behind_a_fork(store: SqliteBackend) -> None:
    await store.fetch(b"a", b"INBOX")
    store._pid += 1
    with pytest.raises(RuntimeError, match="before a fork"):
        await store.fetch(b"a", b"INBOX")
    store._pid -= 1


def test_a_store_that_was_only_made_opens_behind_a_fork(path: Path) -> None:
    store = SqliteBackend(path)

    async def use() -> None:
        assert await store.put(b"a", b"INBOX", None, b"head", b"")
        await store.aclose()

    assert ended(child(lambda: trio.run(use))) == 0


async def test_a_missing_folder_is_told_with_what_makes_it(tmp_path: Path) -> None:
    said = await refused(SqliteBackend(tmp_path / "none" / "pop3.sqlite"))
    assert f"`install -d -m 700 -o USER {tmp_path}/none`" in said


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "must own it and its folder" in await refused(SqliteBackend(tmp_path))


async def test_a_text_is_no_database(path: Path, store: SqliteBackend) -> None:
    put_bytes(path, b"This is where UIDLs are kept.\n" * 100)
    assert "is not a SQLite database" in await refused(store)
    assert get_bytes(path).startswith(b"This is")


async def test_a_database_of_another_program_stays_as_it_is(path: Path, store: SqliteBackend) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute("CREATE TABLE cookies (host TEXT)")
    before = get_bytes(path)
    assert "is a database of another program" in await refused(store)
    assert get_bytes(path) == before


async def test_a_newer_layout_is_refused_and_stays_as_it_is(path: Path, store: SqliteBackend) -> None:
    await store.put(b"a", b"INBOX", None, b"head", b"")
    await store.aclose()
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute("PRAGMA user_version = 2")
    assert "was written by a newer mailgate (layout 2, this one knows 1)" in await refused(store)


async def test_damage_is_told_and_is_not_the_same_as_nothing(path: Path, store: SqliteBackend) -> None:
    for number in range(200):
        await store.put(b"user%d" % number, b"INBOX", None, b"head" * 100, b"rest" * 100)
    await store.aclose()
    content = bytearray(get_bytes(path))
    content[4096:] = os.urandom(len(content) - 4096)
    put_bytes(path, content)
    said = await refused(store)
    assert re.search(r"is damaged \(.*\): stop mailgate and restore it from its backup", said)


async def test_a_file_that_was_cut_off_is_damaged(path: Path, store: SqliteBackend) -> None:
    await store.put(b"a", b"INBOX", None, b"head", os.urandom(100_000))
    await store.aclose()
    put_bytes(path, get_bytes(path)[:-50_000])
    assert "is damaged" in await refused(store)


@pytest.mark.parametrize("what", ["removed", "replaced"])
async def test_a_file_that_is_replaced_while_it_is_used_is_told(path: Path, store: SqliteBackend, what: str) -> None:
    await store.put(b"a", b"INBOX", None, b"head", b"")
    os.rename(path, f"{path}-moved")
    if what == "replaced":
        put_bytes(path, b"")
    assert "put it in place while mailgate is stopped" in await refused(store)


async def test_a_file_that_is_locked_is_told(path: Path, store: SqliteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_sqlite, "BUSY_SECONDS", 0.05)
    await store.put(b"a", b"INBOX", None, b"head", b"")
    locker = apsw.Connection(str(path))
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailed, match="has been locked by another program"):
        await store.put(b"a", b"INBOX", 1, b"changed", None)
    # Readers do not mind.
    assert await store.fetch(b"a", b"INBOX") == Record(1, b"head", b"")
    locker.close()
    assert await store.put(b"a", b"INBOX", 1, b"changed", None)


async def test_a_store_that_hangs_is_told(path: Path, store: SqliteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.fetch(b"a", b"INBOX")
    monkeypatch.setattr(store_sqlite, "CALL_SECONDS", 0.05)
    over = threading.Event()
    with pytest.raises(StoreFailed, match="has not answered for"):
        await store._call(lambda db: over.wait(20))
    over.set()
    monkeypatch.undo()
    assert await store.fetch(b"a", b"INBOX") is None


async def test_a_network_file_system_is_refused(
    path: Path, store: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_sqlite, "file_system", lambda folder: "nfs4")
    assert "lies on nfs4" in await refused(store)
    assert os.listdir(path.parent) == []


def test_the_kind_of_a_file_system_is_found() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path("/nowhere")) == ""

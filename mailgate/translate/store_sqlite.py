"""The store of one gateway: a SQLite file that its workers share, through apsw on Trio.

Write-ahead logging lets every worker read while one writes. ``synchronous = FULL`` syncs the log with each commit:
with NORMAL the last commits could be gone after a power failure, among them an import or unique-ids that clients have
seen since, and only sessions that change something pay for it. A connection has a thread of its own (apsw's), in which
each call runs as a whole; it is opened where it is first used, never before a fork.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import apsw
import trio

from mailgate.translate.store_backend import SCHEMA, Record, StoreFailed

APPLICATION: Final = 0x6D677033
"""SQLite's application_id, "mgp3": it tells the store from databases of other programs."""

BUSY_SECONDS: Final = 5.0
"""How long a call waits for other processes. Writes take milliseconds; only a backup program that locks takes long."""

CALL_SECONDS: Final = 10.0
"""How long a call may take in all, the calls of the worker's other sessions before it included: a login waits."""

NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs"})
"""Kinds of file systems that other machines write to. Write-ahead logging needs memory that all who write share."""

TABLES: Final = f"""
CREATE TABLE memory (
    owner BLOB NOT NULL,
    folder BLOB NOT NULL,
    version INTEGER NOT NULL,
    head BLOB NOT NULL,
    rest BLOB NOT NULL,
    PRIMARY KEY (owner, folder)
) STRICT;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
"""
# The table has row ids: without them the large values would stand in the tree that is searched.

T = TypeVar("T")


class SqliteBackend:
    """See :class:`mailgate.translate.store_backend.StoreBackend`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: apsw.AsyncConnection | None = None
        self._pid = 0
        self._inode = (0, 0)
        self._opening = trio.Lock()

    async def fetch(self, owner: bytes, folder: bytes) -> Record | None:
        """See StoreBackend."""

        def read(db: apsw.Connection) -> Record | None:
            query = "SELECT version, head, rest FROM memory WHERE owner = ? AND folder = ?"
            row = db.execute(query, (owner, folder)).fetchone()
            return None if row is None else Record(*row)

        return await self._call(read)

    async def put(self, owner: bytes, folder: bytes, expected: int | None, head: bytes, rest: bytes | None) -> bool:
        """See StoreBackend."""

        def write(db: apsw.Connection) -> bool:
            if expected is None:
                query = "INSERT INTO memory VALUES (?, ?, 1, ?, ?) ON CONFLICT DO NOTHING"
                db.execute(query, (owner, folder, head, rest or b""))
            elif rest is None:
                query = (
                    "UPDATE memory SET version = version + 1, head = ? WHERE owner = ? AND folder = ? AND version = ?"
                )
                db.execute(query, (head, owner, folder, expected))
            else:
                query = (
                    "UPDATE memory SET version = version + 1, head = ?, rest = ? "
                    "WHERE owner = ? AND folder = ? AND version = ?"
                )
                db.execute(query, (head, rest, owner, folder, expected))
            return db.changes() == 1

        return await self._call(write)

    async def folders(self, owner: bytes) -> list[bytes]:
        """See StoreBackend."""
        query = "SELECT folder FROM memory WHERE owner = ? ORDER BY folder"
        return await self._call(lambda db: [row[0] for row in db.execute(query, (owner,))])

    async def aclose(self) -> None:
        """See StoreBackend."""
        db, self._db = self._db, None
        if db is not None:
            with trio.CancelScope(shield=True):
                await db.aclose()

    async def _call(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run ``work`` in the connection's thread, where the connection is an ordinary one."""
        try:
            with trio.fail_after(CALL_SECONDS):
                db = await self._connected()
                return await db.async_run(work, db)  # type: ignore[no-any-return]
        except trio.TooSlowError:
            raise self._failed(f"has not answered for {CALL_SECONDS:.0f} s") from None
        except (apsw.Error, OSError) as error:
            raise self._explained(error) from error

    async def _connected(self) -> apsw.AsyncConnection:
        async with self._opening:
            if self._db is None:
                self._inode = _make(self._path)
                self._db, self._pid = await _open(self._path), os.getpid()
        if self._pid != os.getpid():
            # SQLite's locks belong to a process: a connection that two use destroys the file.
            raise RuntimeError("the store was opened before a fork")
        try:
            same = _identity(self._path) == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise self._failed("was moved or replaced while it was in use: put it in place while mailgate is stopped")
        return self._db

    def _failed(self, what: str) -> StoreFailed:
        return StoreFailed(f"{self._path} {what}")

    def _explained(self, error: apsw.Error | OSError) -> StoreFailed:
        match error:
            case _Unsuitable():
                return self._failed(str(error))
            case apsw.NotADBError():
                return self._failed("is not a SQLite database: name another file, or restore it from its backup")
            case apsw.CorruptError():
                return self._failed(f"is damaged ({error}): stop mailgate and restore it from its backup")
            case apsw.BusyError() | apsw.LockedError():
                return self._failed(f"has been locked by another program for {BUSY_SECONDS:.0f} s")
            case apsw.FullError():
                return self._failed("cannot grow: its disk is full")
            case apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError() | apsw.AuthError():
                return self._failed(f"cannot be written ({error}): mailgate's user must own it and its folder")
            case FileNotFoundError():
                folder = self._path.parent
                return self._failed(
                    f"cannot be made, there is no folder {folder}: `install -d -m 700 -o USER {folder}` makes it, "
                    "with the name of mailgate's user"
                )
            case OSError():
                return self._failed(f"cannot be opened: {error.strerror}; mailgate's user must own it and its folder")
        return self._failed(f"cannot be used: {error}")


class _Unsuitable(apsw.Error):
    """A file that SQLite can read and that is none of ours; the text says why."""


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _make(path: Path) -> tuple[int, int]:
    """Make the file if there is none, for this user alone whatever the umask; return which file it is."""
    kind = file_system(path.parent)
    if kind in NETWORK:
        raise _Unsuitable(f"lies on {kind}, which SQLite's log does not work on: use a local disk, or store.url")
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    return _identity(path)


def file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on, empty where that cannot be told."""
    try:
        device = folder.stat().st_dev
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    # proc(5): the third word is the device; behind " - " comes the kind.
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2] == wanted]
    return kinds[-1] if kinds else ""


async def _open(path: Path) -> apsw.AsyncConnection:
    db = await apsw.Connection.as_async(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        await db.async_run(_prepare, db)
    except BaseException:
        with trio.CancelScope(shield=True):
            await db.aclose()
        raise
    return db


def _prepare(db: apsw.Connection) -> None:
    """Set a new connection up, and make the tables where there are none."""
    db.set_busy_timeout(int(BUSY_SECONDS * 1000))
    # Before anything is written: a file of another program must stay as it is.
    if _is_empty(db):
        db.execute("BEGIN IMMEDIATE")
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: db.in_transaction and db.execute("ROLLBACK"))
            # Another worker may have been faster.
            if _is_empty(db):
                db.execute(TABLES)
            db.execute("COMMIT")
    application, schema = db.pragma("application_id"), db.pragma("user_version")
    if application != APPLICATION:
        raise _Unsuitable("is a database of another program: name another file")
    if schema != SCHEMA:
        raise _Unsuitable(
            f"was written by a newer mailgate (layout {schema}, this one knows {SCHEMA}): "
            "run that version, or restore a backup from before it"
        )
    mode = db.pragma("journal_mode", "wal")
    if mode != "wal":
        raise _Unsuitable(f"cannot have a write-ahead log (it stays {mode}): use a local disk")
    db.pragma("synchronous", "FULL")


def _is_empty(db: apsw.Connection) -> bool:
    tables = db.execute("SELECT count(*) FROM sqlite_schema").get
    return (tables, db.pragma("application_id"), db.pragma("user_version")) == (0, 0, 0)

"""The store that several gateways share: PostgreSQL or MariaDB through SQLAlchemy.

Neither driver runs on Trio, so a few threads carry the calls: as many as there are connections. Each call is a single
statement without a transaction around it, which is one round trip, and may be repeated on another connection when
one was lost. Everything in it has a time limit, in the driver and in the server, since a thread cannot be cancelled; a
login waits for none of them longer than its own limit.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import trio
from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    create_engine,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from mailgate.config import Pop3Store
from mailgate.translate.store_backend import FOLDER_BYTES, OWNER_BYTES, SCHEMA, Record, StoreFailed

CONNECTIONS: Final = 4
"""Connections, and threads, of a worker. A call takes about a millisecond: they serve some thousand logins a second."""

CALL_SECONDS: Final = 10.0
"""How long a call may take in all, waiting for a connection included: a login waits for it."""

CONNECT_SECONDS: Final = 5
STATEMENT_SECONDS: Final = 8
"""Limits of the drivers: together a little more than a call's, so that no thread is lost for long."""

RECYCLE_SECONDS: Final = 1800
"""When an idle connection is no longer used: firewalls forget after an hour, MariaDB closes after eight."""

RACES: Final = 5
RACE_SECONDS: Final = 0.2
"""How often, and after how long, tables are looked for again that others may be making."""

DRIVERS: Final = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}

metadata: Final = MetaData()

_long = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _key(size: int) -> Any:
    # MariaDB indexes values of limited length only.
    return LargeBinary().with_variant(mysql.VARBINARY(size), "mysql", "mariadb")


memory: Final = Table(
    "mailgate_pop3_memory",
    metadata,
    Column("owner", _key(OWNER_BYTES), primary_key=True),
    Column("folder", _key(FOLDER_BYTES), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("head", _long, nullable=False),
    Column("rest", _long, nullable=False),
)
layout: Final = Table(
    "mailgate_pop3_layout",
    metadata,
    Column("layout", Integer, primary_key=True, autoincrement=False),
)

T = TypeVar("T")


class SqlBackend:
    """See :class:`mailgate.translate.store_backend.StoreBackend`; the configuration has checked the URL."""

    def __init__(self, settings: Pop3Store) -> None:
        self._url, self._arguments = driver(settings.url or "")
        self._settings = settings
        self._name = self._url.render_as_string(hide_password=True)
        self._engine: Engine | None = None
        self._pid = 0
        self._making = threading.Lock()
        self._threads = trio.CapacityLimiter(CONNECTIONS)

    async def fetch(self, owner: bytes, folder: bytes) -> Record | None:
        """See StoreBackend."""
        query = select(memory.c.version, memory.c.head, memory.c.rest)
        query = query.where(memory.c.owner == owner, memory.c.folder == folder)

        def read(connection: Connection) -> Record | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else Record(row.version, bytes(row.head), bytes(row.rest))

        return await self._call(read)

    async def put(self, owner: bytes, folder: bytes, expected: int | None, head: bytes, rest: bytes | None) -> bool:
        """See StoreBackend. A write whose answer was lost counts as not done, which the next look corrects."""
        values: dict[str, Any] = {"head": head} if rest is None else {"head": head, "rest": rest}
        if expected is None:
            row = {"owner": owner, "folder": folder, "version": 1, "rest": b"", **values}

            def add(connection: Connection) -> bool:
                try:
                    connection.execute(insert(memory).values(row))
                except IntegrityError:
                    return False
                return True

            return await self._call(add)
        change = update(memory).values(version=expected + 1, **values)
        change = change.where(memory.c.owner == owner, memory.c.folder == folder, memory.c.version == expected)
        return await self._call(lambda connection: connection.execute(change).rowcount == 1)

    async def folders(self, owner: bytes) -> list[bytes]:
        """See StoreBackend."""
        query = select(memory.c.folder).where(memory.c.owner == owner).order_by(memory.c.folder)
        return await self._call(lambda connection: [bytes(row.folder) for row in connection.execute(query)])

    async def aclose(self) -> None:
        """See StoreBackend."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(engine.dispose)

    async def _call(self, work: Callable[[Connection], T]) -> T:
        if self._engine is not None and self._pid != os.getpid():
            # Two processes would write into one connection.
            raise RuntimeError("the store was opened before a fork")
        try:
            with trio.fail_after(CALL_SECONDS):
                # A thread that is left behind keeps its place until the driver's limit ends it.
                return await trio.to_thread.run_sync(self._work, work, abandon_on_cancel=True, limiter=self._threads)
        except trio.TooSlowError:
            raise StoreFailed(f"{self._name} has not answered for {CALL_SECONDS:.0f} s") from None

    def _work(self, work: Callable[[Connection], T]) -> T:
        try:
            engine = self._opened()
            try:
                with engine.connect() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            # The server was started again since the connection was last used; all old ones are dropped by now.
            with engine.connect() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise StoreFailed(f"{self._name}: {_reason(error)}") from None

    def _opened(self) -> Engine:
        with self._making:
            if self._engine is None:
                engine = create_engine(
                    self._url.set(password=self._secret()),
                    connect_args=self._arguments,
                    pool_size=CONNECTIONS,
                    max_overflow=0,
                    pool_timeout=CONNECT_SECONDS,
                    pool_recycle=RECYCLE_SECONDS,
                    # Nothing is open when a statement ends, so that there is nothing to roll back.
                    isolation_level="AUTOCOMMIT",
                    pool_reset_on_return=None,
                    hide_parameters=True,
                )
                try:
                    _prepare(engine, self._name)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine, self._pid = engine, os.getpid()
            return self._engine

    def _secret(self) -> str | None:
        if self._settings.password is None:
            return None
        try:
            return self._settings.password.read().reveal().decode("utf-8")
        except OSError as error:
            raise StoreFailed(f"the database's password, {error.filename}: {error.strerror}") from None
        except KeyError as error:
            raise StoreFailed(f"the database's password: the variable {error} is not set") from None
        except UnicodeDecodeError:
            raise StoreFailed("the database's password is not UTF-8") from None


def driver(url: str) -> tuple[URL, dict[str, Any]]:
    """Return SQLAlchemy's URL, with the driver that is used, and the arguments that limit its time."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        arguments: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "options": f"-c statement_timeout={STATEMENT_SECONDS * 1000}",
            # Milliseconds after which what was sent and not acknowledged ends the connection (libpq).
            "tcp_user_timeout": STATEMENT_SECONDS * 1000,
            "keepalives_idle": STATEMENT_SECONDS,
            "keepalives_interval": 1,
            "keepalives_count": 3,
        }
    else:
        arguments = dict.fromkeys(("read_timeout", "write_timeout"), STATEMENT_SECONDS)
        arguments["connect_timeout"] = CONNECT_SECONDS
    return parsed.set(drivername=DRIVERS[parsed.drivername]), arguments


def _prepare(engine: Engine, name: str) -> None:
    """Make the tables where there are none; raise StoreFailed for those of a newer version."""
    reason = ""
    for _ in range(RACES):
        with engine.connect() as connection:
            found = _layouts(connection)
            if found == [SCHEMA]:
                return
            if found:
                raise StoreFailed(
                    f"{name} was written by a newer mailgate (layout {max(found)}, this one knows {SCHEMA}): "
                    "run that version on every gateway"
                )
            try:
                metadata.create_all(connection)
                connection.execute(insert(layout).values(layout=SCHEMA))
            except DBAPIError as error:
                # Another worker or gateway may have been faster by a moment.
                reason = _reason(error)
                time.sleep(RACE_SECONDS)
            else:
                return
    raise StoreFailed(f"{name}: the tables cannot be made: {reason}")


def _layouts(connection: Connection) -> list[int]:
    if not inspect(connection).has_table(layout.name):
        return []
    return [row.layout for row in connection.execute(select(layout.c.layout))]


def _reason(error: SQLAlchemyError) -> str:
    """Return what the database said, on one line, without statement and values."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(said).split())

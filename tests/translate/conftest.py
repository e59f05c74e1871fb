"""The databases that stores are tested on, one of each for all tests of this folder; sizes of bursts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needed
from tests.support.databases import Database, mariadb, postgres_program, postgresql
from tests.translate.imap import SIZES


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Database]:
    binary = postgres_program() or needed("postgres")
    with (
        tempfile.TemporaryDirectory(prefix="mailgate-postgresql-") as folder,
        postgresql(binary, Path(folder)) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Database]:
    with (
        tempfile.TemporaryDirectory(prefix="mailgate-mariadb-") as folder,
        mariadb(needed("mariadbd"), Path(folder)) as running,
    ):
        yield running


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    """Of the buffer that bursts are read into."""
    return int(request.param)

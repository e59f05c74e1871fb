"""Mail servers that speak POP3 themselves: what clients see there is what a migration must keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import stores
from tests.support.stores import Store

WITH_POP3 = ("dovecot", "courier")


@pytest.fixture(scope="session", params=WITH_POP3)
def store(request: pytest.FixtureRequest, authority: Path) -> Iterator[Store]:
    """A real mail server with IMAP and POP3; every test runs with each of them."""
    with stores.running(request.param, authority, authority.with_name("key.pem")) as running:
        assert running.pop3 is not None
        yield running


@pytest.fixture
def user(store: Store) -> str:  # type: ignore[override]
    """A new user with an empty mailbox."""
    return store.new_user()

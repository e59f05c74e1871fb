"""Mail servers behind IMAP, each with a gateway before it that speaks POP3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import stores
from tests.support.stores import Store


@pytest.fixture(scope="session", params=stores.NAMES)
def store(request: pytest.FixtureRequest, authority: Path) -> Iterator[Store]:
    """A real mail server; every test runs with each of them."""
    with stores.running(request.param, authority, authority.with_name("key.pem")) as running:
        yield running


@pytest.fixture
def user(store: Store) -> str:  # type: ignore[override]
    """A new user with an empty mailbox."""
    return store.new_user()

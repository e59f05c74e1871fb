"""Whether the store of POP3 clients' memories can be used: what ``check`` finds before the first login would."""

from __future__ import annotations

from importlib.util import find_spec

from mailgate.config import Config
from mailgate.config.checks import text
from mailgate.errors import ConfigProblem

MODULES = {
    "postgresql": {"sqlalchemy": "SQLAlchemy", "psycopg": "psycopg"},
    "mariadb": {"sqlalchemy": "SQLAlchemy", "pymysql": "PyMySQL"},
}


def unusable_store(config: Config) -> list[ConfigProblem]:
    """Return a problem for a store that no login could use. Nothing is opened and no database is asked."""
    store = config.pop3.store
    if store is None:
        return []
    if store.url is not None:
        wanted = MODULES[store.url.partition(":")[0]]
        missing = [name for module, name in wanted.items() if find_spec(module) is None]
        if not missing:
            return []
        message = f"needs {' and '.join(missing)}: pip install 'mailgate[sql]'"
        return [ConfigProblem("pop3.store.url", text(store.url), message)]
    assert store.path is not None
    from mailgate.translate.store_sqlite import NETWORK, file_system

    kind = file_system(store.path.parent)
    if kind not in NETWORK:
        return []
    message = f"lies on {kind}, which SQLite's log does not work on: name a file on a local disk, or a url"
    return [ConfigProblem("pop3.store.path", text(store.path), message)]

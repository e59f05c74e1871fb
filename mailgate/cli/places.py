"""Whether POP3 clients can be served from IMAP: their store and the templates of UIDLs, before the first login."""

from __future__ import annotations

from importlib.util import find_spec

from mailgate.config import Config
from mailgate.config.checks import text
from mailgate.errors import ConfigProblem
from mailgate.translate.uidl import Template, TemplateError

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


def wrong_templates(config: Config) -> list[ConfigProblem]:
    """Return a problem for each ``uidl`` that is neither the name of a format nor a template."""
    given = {"pop3.uidl": config.pop3.uidl}
    for index, route in enumerate(config.route):
        if route.pop3 is not None and "uidl" in route.pop3.model_fields_set:
            given[f"route[{index}].pop3.uidl"] = route.pop3.uidl
    found: list[ConfigProblem] = []
    for path, template in given.items():
        try:
            Template.parse(template)
        except TemplateError as error:
            found.append(ConfigProblem(path, text(template), str(error)))
    return found

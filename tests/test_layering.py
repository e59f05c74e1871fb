"""Imports go one way, as the table in docs/ARCHITECTURE.md says; the table itself is what is tested."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mailgate"
WORDS = {"model": set(), "errors": {"model"}, "events": {"model", "errors"}}


def table() -> dict[str, set[str]]:
    """Return what each room may import by the document's table, beside the shared words."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {
        room: set(re.findall(r"`(\w+)`", allowed))
        for rooms, _, allowed in rows
        for room in re.findall(r"`(\w+)/?`", rooms)
    }


MAY_IMPORT = {room: allowed | WORDS.keys() for room, allowed in table().items()} | WORDS
COMPOSES = {
    "app",
    "administration",
    "supervisor",
    "forking",
    "heritage",
    "upgrade",
    "service",
    "lockwatch",
    "reloading",
    "orders",
    "notices",
    "inherited",
    "garbage",
    "generation",
    "translating",
    "doors",
    "reception",
    "drain",
    "cli",
    "demo",
    "__main__",
    "__init__",
}
PURE = {"wire", "policy", "balance", "model", "errors", "events"}
PURE_MODULES = {"translate/maildrop.py", "translate/uidl.py", "translate/memory.py", "translate/columns.py"}
"""Modules that are pure in a room that is not: beside the shared words they import pure rooms and each other."""
PURE_LIBRARY = set(sys.stdlib_module_names) - {"socket", "ssl", "time", "asyncio", "select", "threading", "subprocess"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names):
                assert module is not None, f"{path}: relative import"
                yield from (f"{module}.{name.name}" for name in names)


@pytest.mark.parametrize(("room", "path"), list(modules()), ids=lambda value: str(value).removeprefix(str(PACKAGE)))
def test_a_module_imports_only_what_its_room_may(room: str, path: Path) -> None:
    if room in COMPOSES:
        return
    pure = room in PURE or path.relative_to(PACKAGE).as_posix() in PURE_MODULES
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mailgate":
            target = parts[1] if len(parts) > 1 else "__version__"
            allowed = MAY_IMPORT[room] | {room}
            assert target in allowed | {"__version__"}, f"{room} imports {name}"
            if pure and target == room and room not in PURE:
                assert "/".join(parts[1:3]) + ".py" in PURE_MODULES, f"{path.name} is pure and imports {name}"
            elif pure:
                assert target in PURE, f"{path.name} is pure and imports {name}"
        elif pure:
            assert parts[0] in PURE_LIBRARY, f"{path.name} is pure and imports {name}"


def test_only_one_module_knows_the_metrics_library() -> None:
    found = {path.name for _, path in modules() if any(name.startswith("prometheus_client.") for name in imports(path))}
    assert found == {"exposition.py"}


def test_every_room_is_in_the_document() -> None:
    assert {room for room, _ in modules()} - {"__init__", "__main__"} == table().keys()


def test_what_a_room_may_import_it_does() -> None:
    found: dict[str, set[str]] = {}
    for room, path in modules():
        names = {name.split(".")[1] for name in imports(path) if name.startswith("mailgate.")}
        found.setdefault(room, set()).update(names - {room, *WORDS, "__version__"})
    assert {room: found[room] for room in table() if room not in COMPOSES | WORDS.keys()} == {
        room: allowed for room, allowed in table().items() if room not in COMPOSES | WORDS.keys()
    }

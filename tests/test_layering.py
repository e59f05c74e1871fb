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
WORDS = {"model", "errors", "events"}
MAY_IMPORT = {
    "model": set(),
    "errors": {"model"},
    "events": {"model", "errors"},
    "wire": {"model", "errors"},
    "policy": {"model", "errors"},
    "balance": {"model", "errors"},
    "config": {"model", "errors", "wire"},
    "stream": {"model", "errors"},
    "session": WORDS | {"wire", "policy", "config", "stream"},
    "routing": WORDS | {"config"},
    "upstream": WORDS | {"wire", "config", "stream", "balance"},
    "net": WORDS | {"wire", "config", "stream"},
    "observe": WORDS,
    "web": {"model", "config", "errors", "observe"},
}
COMPOSES = {"app", "cli", "demo", "__main__", "__init__"}
PURE = {"wire", "policy", "balance", "model", "errors", "events"}
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
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mailgate":
            target = parts[1] if len(parts) > 1 else "__version__"
            allowed = MAY_IMPORT[room] | {room}
            assert target in allowed | {"__version__"}, f"{room} imports {name}"
        elif room in PURE:
            assert parts[0] in PURE_LIBRARY, f"{room} is pure and imports {name}"


def test_only_one_module_knows_the_metrics_library() -> None:
    found = {path.name for _, path in modules() if any(name.startswith("prometheus_client.") for name in imports(path))}
    assert found == {"metrics.py"}


def test_every_room_is_in_the_document() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    described = set(re.findall(r"`(\w+)/?`", "\n".join(line for line in text.splitlines() if line.startswith("| `"))))
    rooms = {room for room, _ in modules()} - {"__init__", "__main__"}
    assert rooms - described == set()

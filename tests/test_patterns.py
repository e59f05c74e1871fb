"""Regular expressions that every Python from 3.11 on understands alike."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mailgate"
BROKEN = re.compile(r"(?<!\\)\)(?:[*+?]|\{[0-9,%d]*\})\+|\(\?>")


def test_no_group_is_possessive_or_atomic() -> None:
    """Python before 3.11.5, Debian 12's among them, goes on in the middle of what such a group did not match.

    https://github.com/python/cpython/issues/106052; a class of characters (``[0-9]*+``) is not concerned.
    """
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
        if BROKEN.search(node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
    ]
    assert found == []

"""Changes ``mailgate/wire`` in small ways, one at a time, and counts which changes the tests notice.

A change that no test notices is a line whose meaning nobody checks. Each mutant lives in the memory
of a child process only: the child changes the syntax tree, lets the import system find the changed
module instead of the file, and runs the tests of that module until one fails. The work tree stays
as it is.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mailgate.wire"
SOURCES = ROOT / "mailgate" / "wire"
WANTED = 90.0

MORE_TESTS = {
    "framing": ("imap", "pop3"),
    "relay": ("relay_imap", "relay_pop3"),
    "relay_imap": ("relay_imap_edges",),
    "relay_pop3": ("relay_pop3_edges",),
}
"""Modules whose own tests are not all that tests them."""

ALLOWED = {
    ("framing", "if self.skip_line(0) is None:", "0 -> -1"): "both keep nothing",
    (
        "imap",
        "if self._bad is None and len(self._buffer) < self._left:",
        "len(self._buffer) < self._left -> len(self._buffer) <= self._left",
    ): "a line follows a literal, so that one byte more must come in any case",
    (
        "imap_response",
        "if len(self._buffer) < self._left:",
        "len(self._buffer) < self._left -> len(self._buffer) <= self._left",
    ): "a line follows a literal, so that one byte more must come in any case",
    ("imap", 'self._parts.append(b"")', "b'' -> b'x'"): "only that there is a part counts, it is dropped unread",
    (
        "imap_response",
        'return words is not None and (words[2] or b"").decode("latin-1").upper() in STATUSES',
        "b'' -> b'x'",
    ): "neither is a status",
    (
        "sasl",
        "super().__init__(reason)",
        "super().__init__(reason) -> deleted",
    ): "exceptions keep their arguments anyway",
    (
        "relay_imap",
        "_ANNOUNCEMENT_ROOM: Final = 32",
        "32 -> 33",
    ): "room to spare: the longest announcement has 25 octets",
    (
        "relay_imap",
        "_ANNOUNCEMENT_ROOM: Final = 32",
        "32 -> 31",
    ): "room to spare: the longest announcement has 25 octets",
    ("relay_imap", 'self._tag = b""', "self._tag = b'' -> deleted"): "set before it is read",
    ("relay_imap", 'self._tag = b""', "b'' -> b'x'"): "set before it is read",
    (
        "relay_imap",
        "self._long = False / self._long_human = False",
        "self._long_human = False -> deleted",
    ): "set before it is read",
    ("relay_imap", "self._long = False / self._long_human = False", "False -> True"): "set before it is read",
    (
        "relay_imap",
        'self.fatal = "Literal too large" / return',
        "return -> deleted",
    ): "nothing is taken from the client after a fatal error",
    ("relay_imap", "at += step / continue", "continue -> deleted"): "a literal or the burst has ended there",
    ("relay_pop3", 'self._edge = b""', "self._edge = b'' -> deleted"): "set before it is read",
    ("relay_pop3", 'self._edge = b""', "b'' -> b'x'"): "set before it is read",
    (
        "relay_pop3",
        "self._listing: bytes | None = None",
        "self._listing: bytes | None = None -> deleted",
    ): "set before it is read",
    (
        "relay_pop3",
        "self._in_flight.append(_Pending(verb, False, now, reply))",
        "False -> True",
    ): "the gateway's own reply has no lines behind it",
    ("relay_pop3", "self._answer_refused() / continue", "continue -> deleted"): "a block or the burst has ended there",
    (
        "relay_pop3",
        "line = self._tail + bytes(view[at : newline + 1])",
        "1 -> 2",
    ): "only the first three octets are read",
    (
        "relay_pop3",
        "line = self._tail + bytes(view[at : newline + 1])",
        "1 -> 0",
    ): "only the first three octets are read",
    ("relay_pop3", "if at < end:", "at < end -> at <= end"): "nothing is kept of nothing",
    ("relay_pop3", "if at < end:", "at < end -> True"): "nothing is kept of nothing",
    ("relay_pop3", 'self._edge = b"\\n"', "b'\\n' -> b'x\\n'"): "only the line end is looked for",
    ("relay_pop3", "joined = edge + bytes(data[at : min(end, at + 3)])", "3 -> 4"): "more than enough is enough",
    (
        "relay_pop3",
        "self._edge = (edge + bytes(data[max(at, end - 3) : end]))[-3:]",
        "3 -> 4",
    ): "more than enough is enough",
}
"""Changes that change nothing, with the reason: (module, the source line, the change).

Where the line alone is not enough to know it by, it stands behind the line before it and `` / ``.
"""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
DELETABLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Return, ast.Delete, ast.Continue)
BLOCKS = {"body", "orelse", "finalbody"}
GIGABYTE = 1 << 30
NO_MUTANT = 71
"""A child's exit code when the change cannot even be compiled, which no test should be praised for."""


@dataclass
class Mutant:
    """One change: where it is, what it is, and how to make it in the module's tree."""

    module: str
    line: int
    change: str
    apply: Callable[[], None]


# -------------------------------------------------------------------- finding what can be changed


class _Finder:
    """Walks a module's tree and lists the changes."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.tree = ast.parse((SOURCES / f"{module}.py").read_text())
        self.mutants: list[Mutant] = []
        self._walk(self.tree, inside=False)

    def _walk(self, node: ast.AST, *, inside: bool) -> None:
        inside = inside or isinstance(node, ast.FunctionDef)
        for field, value in ast.iter_fields(node):
            # Types and decorators say nothing that a test could notice at run time.
            if field in {"annotation", "returns", "decorator_list"}:
                continue
            for holder, key, child in _children(node, field, value):
                if _is_documentation(child) or _is_type(child):
                    continue
                for text, new in _changes(node, field, child, inside=inside):
                    self._add(child, text, holder, key, new)
                self._walk(child, inside=inside)

    def _add(self, old: ast.AST, text: str, holder: Any, key: Any, new: ast.AST) -> None:
        def apply() -> None:
            if isinstance(holder, list):
                holder[key] = new
            else:
                setattr(holder, key, new)

        ast.copy_location(new, old)
        self.mutants.append(Mutant(self.module, getattr(old, "lineno", 0), text, apply))


def _children(node: ast.AST, field: str, value: object) -> Iterator[tuple[Any, Any, ast.AST]]:
    if isinstance(value, ast.AST):
        yield node, field, value
    elif isinstance(value, list):
        for index, child in enumerate(value):
            if isinstance(child, ast.AST):
                yield value, index, child


def _is_documentation(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_type(node: ast.AST) -> bool:
    """Whether a node is only there for the type checker, or names slots."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name):
        return node.annotation.id == "TypeAlias"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id == "__slots__"
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal"


def _changes(parent: ast.AST, field: str, node: ast.AST, *, inside: bool) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may stand in a node's place, with a description."""
    for new in _replacements(parent, field, node):
        yield f"{_text(node)} -> {_text(new)}", new
    if field == "test" and isinstance(parent, ast.If | ast.IfExp | ast.While):
        for value in (True, False):
            if not (value and isinstance(parent, ast.While)) and not isinstance(node, ast.Constant):
                yield f"{_text(node)} -> {value}", ast.Constant(value)
    last = isinstance(parent, ast.FunctionDef) and node is parent.body[-1]
    if inside and isinstance(node, DELETABLE) and field in BLOCKS and not (last and _text(node) == "return None"):
        yield f"{_text(node)} -> deleted", ast.Pass()


def _replacements(parent: ast.AST, field: str, node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left=left, ops=[op, *ops], comparators=comparators):
            yield ast.Compare(left, [COMPARISONS[type(op)](), *ops], comparators)
        case ast.BoolOp(op=operator, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield ast.BinOp(left, ast.Sub(), right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            yield ast.BinOp(left, ast.Add(), right)
        case ast.AugAssign(target=target, op=ast.Add(), value=value):
            yield ast.AugAssign(target, ast.Sub(), value)
        case ast.AugAssign(target=target, op=ast.Sub(), value=value):
            yield ast.AugAssign(target, ast.Add(), value)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Constant(value=str() as value):
            yield ast.Constant("x" + value)
        case ast.Constant(value=bytes() as value):
            yield ast.Constant(b"x" + value)
        # None and False are the same to every question that is asked of them.
        case ast.Return(value=ast.expr() as value) if _text(value) not in {"None", "False"}:
            yield ast.Return(ast.Constant(None))
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())


# -------------------------------------------------------------------- testing one


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets one module be imported from a tree in memory; raises what the compiler has against the tree."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self._name = name
        self._code = compile(ast.fix_missing_locations(tree), f"<changed {name}>", "exec")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Claim the one module."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed tree."""
        exec(self._code, module.__dict__)  # noqa: S102


class _Settings:
    """A pytest plugin: properties take the same few examples each time and do not shrink them."""

    def pytest_configure(self) -> None:
        """Replace the profile that ``tests/conftest.py`` has chosen."""
        from hypothesis import HealthCheck, Phase, settings

        settings.register_profile(
            "mutate",
            max_examples=25,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        settings.load_profile("mutate")


def _tests_of(module: str) -> list[str]:
    names = (module, *MORE_TESTS.get(module, ()))
    return [path for name in names if (ROOT / (path := f"tests/wire/test_{name}.py")).exists()]


def _run_tests(finder: _Finder, mutant: Mutant | None, cpu_seconds: int) -> int:
    """In a child process: test the module, changed or not; return pytest's exit code."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (2 * GIGABYTE, 2 * GIGABYTE))
    signal.alarm(20 * cpu_seconds)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    gc.disable()
    if mutant is not None:
        mutant.apply()
    try:
        sys.meta_path.insert(0, _Importer(f"{PACKAGE}.{finder.module}", finder.tree))
    except (SyntaxError, ValueError, TypeError):
        return NO_MUTANT
    plugins = ["-p", "_hypothesis_pytestplugin", "-p", "pytest_trio.plugin", "-p", "no:cacheprovider"]
    return pytest.main(
        ["-x", "-q", "--tb=no", "--assert=plain", *plugins, *_tests_of(finder.module)], plugins=[_Settings()]
    )


def _fork(finder: _Finder, mutant: Mutant | None, cpu_seconds: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = _run_tests(finder, mutant, cpu_seconds)
    finally:
        os._exit(code)


def _baseline(finder: _Finder) -> int:
    """Test the unchanged module; return the CPU seconds that a changed one may take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = _fork(finder, None, 600)
    status = os.waitpid(child, 0)[1]
    if status:
        sys.exit(f"{finder.module}: its tests fail without any change (status {status})")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 2 + int(2 * used)


def _survivors(finder: _Finder, mutants: Sequence[Mutant], workers: int) -> list[Mutant]:
    """Test mutants, several at a time; return those that no test noticed."""
    limit = _baseline(finder)
    waiting = list(reversed(mutants))
    running: dict[int, Mutant] = {}
    survived = []
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            running[_fork(finder, mutant, limit)] = mutant
        child, status = os.waitpid(-1, 0)
        mutant = running.pop(child)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == NO_MUTANT:
            sys.exit(f"{mutant.module}.py:{mutant.line}: not compilable: {mutant.change}")
        if status == 0:
            survived.append(mutant)
    # Somebody may have saved a file meanwhile: then the tests failed for another reason than the changes.
    _baseline(finder)
    return sorted(survived, key=lambda one: one.line)


# -------------------------------------------------------------------- telling


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _changes_nothing(mutant: Mutant) -> bool:
    lines = (SOURCES / f"{mutant.module}.py").read_text().splitlines()
    before, line = lines[mutant.line - 2].strip(), lines[mutant.line - 1].strip()
    return any((mutant.module, known, mutant.change) in ALLOWED for known in (line, f"{before} / {line}"))


def main() -> int:
    """Run the mutants that the arguments ask for; return 1 if too many survive."""
    modules = sorted(path.stem for path in SOURCES.glob("*.py") if path.stem != "__init__")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", choices=modules, help="only this module (may be repeated)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of all changes, the same ones each time")
    parser.add_argument("--jobs", type=int, metavar="N", default=os.cpu_count() or 1, help="processes at a time")
    arguments = parser.parse_args()

    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = True
    # What every child needs is imported once, before the first fork; the modules under test never are.
    for name in (
        "pytest",
        "hypothesis.strategies",
        "trio.testing",
        "imap_codec",
        "ssl",
        "mailgate.model",
        "mailgate.errors",
    ):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    if any(name.startswith(f"{PACKAGE}.") for name in sys.modules):
        sys.exit(f"{PACKAGE} was imported too early")

    finders = {module: _Finder(module) for module in arguments.module or modules}
    chosen = [mutant for finder in finders.values() for mutant in finder.mutants]
    if arguments.sample is not None and arguments.sample < len(chosen):
        chosen = random.Random(2026).sample(chosen, arguments.sample)  # noqa: S311
    judged = [mutant for mutant in chosen if not _changes_nothing(mutant)]
    alive = 0
    for module, finder in finders.items():
        mine = [mutant for mutant in judged if mutant.module == module]
        if not mine:
            continue
        begun = time.monotonic()
        survivors = _survivors(finder, mine, max(1, arguments.jobs))
        for mutant in survivors:
            _say(f"mailgate/wire/{module}.py:{mutant.line}: {mutant.change}")
        alive += len(survivors)
        _say(_figures(module, len(mine), len(survivors)) + f" in {time.monotonic() - begun:.0f} s")
    _say(_figures("all", len(judged), alive) + f", {len(chosen) - len(judged)} changes that change nothing left out")
    return int(_percentage(len(judged), alive) < WANTED)


def _percentage(mutants: int, alive: int) -> float:
    return 100.0 * (mutants - alive) / mutants if mutants else 100.0


def _figures(name: str, mutants: int, alive: int) -> str:
    return f"{name}: {_percentage(mutants, alive):.1f} % of {mutants} changes noticed, {alive} not"


if __name__ == "__main__":
    sys.exit(main())

"""How all tests run: hypothesis' depth, the long ones only when asked, and missing servers never in silence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

FULL = bool(os.environ.get("MAILGATE_FULL"))
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# A busy machine must not make a slow example look like a wrong one.
settings.register_profile("fast", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", settings.get_profile("fast"), max_examples=2000)
settings.load_profile("deep" if FULL else "fast")

_missing: dict[str, int] = {}


def needed(program: str) -> str:
    """Return a program's path; without it the test fails in CI and is skipped, and counted, elsewhere."""
    path = shutil.which(program, path=SBIN)
    if path is None:
        if IN_CI:
            pytest.fail(f"{program} is not installed", pytrace=False)
        _missing[program] = _missing.get(program, 0) + 1
        pytest.skip(f"{program} is not installed")
    return path


def needed_folder(path: Path) -> Path:
    """Return a folder into which scripts/test unpacked something; without it as :func:`needed`."""
    if not (path / ".complete").exists():
        if IN_CI:
            pytest.fail(f"{path.name} is not unpacked", pytrace=False)
        _missing[path.name] = _missing.get(path.name, 0) + 1
        pytest.skip(f"{path.name} is not unpacked: scripts/test does that")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("full") and not FULL:
            item.add_marker(pytest.mark.skip(reason="long: runs with ./scripts/test --full"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for program, count in sorted(_missing.items()):
        terminalreporter.write_line(f"NOT TESTED: {count} times something was skipped, {program} is missing", red=True)

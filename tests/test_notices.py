"""What the log says of a configuration that is in force."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from mailgate import notices
from mailgate.config import parse

SOURCE = """
[[listener]]
name = "pop3"
protocol = "pop3"
bind = "127.0.0.1:1"
tls = "off"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:2"]
tls = "off"
[pop3.store]
path = "pop3.sqlite"
"""


def warned(folder: Path) -> list[str]:
    capture = LogCapture()
    logger = structlog.wrap_logger(structlog.PrintLogger(), processors=[capture])
    notices.warn(parse(SOURCE, base=folder, environ={}), None, logger)
    return [entry["event"] for entry in capture.entries if entry["path"] == str(folder / "pop3.sqlite")]


@pytest.mark.parametrize("content", [None, b""])
def test_a_store_that_is_not_there_may_be_a_lost_one(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "pop3.sqlite").write_bytes(content)
    assert warned(tmp_path) == ["the store of POP3 clients' unique-ids will be made anew"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o600, []), (0o640, ["others may read or change the store of POP3 clients' unique-ids"])],
)
def test_a_store_that_others_may_read(tmp_path: Path, mode: int, expected: list[str]) -> None:
    store = tmp_path / "pop3.sqlite"
    store.write_bytes(b"x")
    store.chmod(mode)
    assert warned(tmp_path) == expected

"""Configurations that the tests of this folder begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mailgate.config import Config, parse
from mailgate.errors import ConfigError

BASE = Path("/etc/mailgate")

TLS = """
[tls]
certificate = "fullchain.pem"
key = "privkey.pem"
"""
IMAPS = """
[[listener]]
name = "imaps"
protocol = "imap"
bind = "0.0.0.0:993"
"""
POP3S = """
[[listener]]
name = "pop3s"
protocol = "pop3"
bind = "0.0.0.0:995"
"""
MAIN = """
[pool.main]
protocol = "imap"
servers = ["imap.internal:993"]
"""
SMALLEST = TLS + IMAPS + MAIN


def read(source: str, environ: Mapping[str, str] | None = None) -> Config:
    return parse(source, base=BASE, environ=environ or {})


def problems(source: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return what is wrong with ``source``, which must not be valid."""
    with pytest.raises(ConfigError) as caught:
        read(source, environ)
    return [str(problem) for problem in caught.value.problems]

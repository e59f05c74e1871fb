"""mailgate: one worker with every command inspected, with the login only, and two workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.site import HOST, PROTOCOLS, Site, Way
from tests.support.servers import free_ports, mailgate

HEAD = """
hostname = "{host}"
workers = {workers}

[tls]
certificate = "{site.certificate}"
key = "{site.key}"
profile = "modern"

[limits]
sessions_per_address = 20000
half_open = {half_open}
half_open_per_address = {half_open}
"""

PROTOCOL = """
[[listener]]
name = "{protocol}"
protocol = "{protocol}"
bind = "127.0.0.1:{port}"
tls = "implicit"
inspect = "{inspect}"
handshake_timeout = {handshake_seconds}

[pool.{protocol}]
protocol = "{protocol}"
servers = ["127.0.0.1:{upstream}"]
tls = {tls}

[[route]]
match = {{ protocol = "{protocol}" }}
pool = "{protocol}"
"""


@contextlib.contextmanager
def start(
    folder: Path,
    site: Site,
    upstream: str,
    inspect: str,
    name: str,
    workers: int = 1,
    half_open: int = 2000,
    handshake_seconds: float = 10.0,
) -> Iterator[Way]:
    ports = free_ports(2)
    verified = f'{{ mode = "implicit", ca = "{site.authority}", name = "{HOST}" }}'
    config = HEAD.format(host=HOST, site=site, workers=workers, half_open=half_open)
    for protocol, port in zip(PROTOCOLS, ports, strict=True):
        config += PROTOCOL.format(
            protocol=protocol,
            port=port,
            inspect=inspect,
            handshake_seconds=handshake_seconds,
            upstream=site.ports[upstream][protocol],
            tls=verified if upstream == "tls" else '"off"',
        )
    with mailgate(folder, config, ports) as program:
        yield Way(name, upstream, dict(zip(PROTOCOLS, ports, strict=True)), (program.pid,))


def commands(folder: Path, site: Site, upstream: str) -> contextlib.AbstractContextManager[Way]:
    return start(folder, site, upstream, "commands", "mailgate")


def two_workers(folder: Path, site: Site, upstream: str) -> contextlib.AbstractContextManager[Way]:
    return start(folder, site, upstream, "commands", "two-workers", workers=2)


def login(folder: Path, site: Site, upstream: str) -> contextlib.AbstractContextManager[Way]:
    return start(folder, site, upstream, "login", "login-only")

"""stunnel, a thread per session: it ends TLS and understands nothing; TLS on both sides would need two in a row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.site import PROTOCOLS, Site, Way, find, running
from tests.support.servers import free_ports

CONFIG = """
foreground = yes
pid =
debug = notice
sslVersionMin = TLSv1.3
"""

PROTOCOL = """
[{protocol}]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{upstream}
cert = {site.certificate}
key = {site.key}
"""


@contextlib.contextmanager
def start(folder: Path, site: Site, upstream: str) -> Iterator[Way]:
    ports = dict(zip(PROTOCOLS, free_ports(2), strict=True))
    config = CONFIG
    for protocol, port in ports.items():
        config += PROTOCOL.format(protocol=protocol, port=port, upstream=site.ports[upstream][protocol], site=site)
    path = folder / "stunnel.conf"
    path.write_text(config, encoding="utf-8")
    with running([find("stunnel"), str(path)], folder, "stunnel", list(ports.values())) as program:
        yield Way("stunnel", upstream, ports, (program.pid,))

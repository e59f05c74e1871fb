"""HAProxy, one thread: it ends TLS and passes bytes on, and understands nothing of mail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.site import HOST, PROTOCOLS, Site, Way, find, running
from tests.support.servers import free_ports

CONFIG = """
global
  nbthread 1
  maxconn 9800
  log stdout format raw daemon
defaults
  mode tcp
  log global
  option tcplog
  backlog 4096
  timeout connect 10s
  timeout client 1h
  timeout server 1h
"""

PROTOCOL = """
listen {protocol}
  bind 127.0.0.1:{port} ssl crt {site.both} ssl-min-ver TLSv1.3
  server upstream 127.0.0.1:{upstream} {tls}
"""


@contextlib.contextmanager
def start(folder: Path, site: Site, upstream: str) -> Iterator[Way]:
    ports = dict(zip(PROTOCOLS, free_ports(2), strict=True))
    verified = f"ssl verify required ca-file {site.authority} sni str({HOST})"
    config = CONFIG
    for protocol, port in ports.items():
        config += PROTOCOL.format(
            protocol=protocol,
            port=port,
            site=site,
            upstream=site.ports[upstream][protocol],
            tls=verified if upstream == "tls" else "",
        )
    path = folder / "haproxy.cfg"
    path.write_text(config, encoding="utf-8")
    with running([find("haproxy"), "-db", "-f", str(path)], folder, "haproxy", list(ports.values())) as program:
        yield Way("haproxy", upstream, ports, (program.pid,))

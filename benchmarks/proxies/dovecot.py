"""Dovecot's login proxy in its high-performance mode: one login process of each protocol for all sessions."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from benchmarks.site import HOST, PROTOCOLS, Site, Way, find, running
from tests.support.servers import free_ports

CONFIG = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap pop3
listen = 127.0.0.1
ssl = required
ssl_cert = <{site.certificate}
ssl_key = <{site.key}
ssl_ca = <{site.authority}
ssl_require_crl = no
ssl_min_protocol = TLSv1.3
auth_mechanisms = plain login
default_client_limit = 9800
default_vsz_limit = 8G
passdb {{
  driver = static
  args = proxy=y host={host} hostip=127.0.0.1 port=%{{if;%s;eq;imap;{imap};{pop3}}} nopassword=y {tls}
}}
{unprivileged}
"""

PROTOCOL = """
service {protocol}-login {{
  service_count = 0
  process_min_avail = 1
  process_limit = 1
  {chroot}
  inet_listener {protocol} {{
    port = 0
  }}
  inet_listener {protocol}s {{
    port = {port}
    ssl = yes
  }}
}}
"""


@contextlib.contextmanager
def start(folder: Path, site: Site, upstream: str) -> Iterator[Way]:
    folder.chmod(0o755)
    ports = free_ports(2)
    unprivileged = chroot = ""
    if os.getuid():
        me = pwd.getpwuid(os.getuid()).pw_name
        unprivileged = (
            f"default_internal_user = {me}\ndefault_login_user = {me}\ndefault_internal_group = {os.getgid()}"
        )
        unprivileged += "\nservice anvil {\n  chroot =\n}"
        chroot = "chroot ="
    config = CONFIG.format(
        folder=folder,
        site=site,
        host=HOST,
        tls="ssl=yes" if upstream == "tls" else "",
        unprivileged=unprivileged,
        **site.ports[upstream],
    )
    for protocol, port in zip(PROTOCOLS, ports, strict=True):
        config += PROTOCOL.format(protocol=protocol, port=port, chroot=chroot)
    path = folder / "dovecot.conf"
    path.write_text(config, encoding="utf-8")
    with running([find("dovecot"), "-F", "-c", str(path)], folder, "dovecot", ports) as program:
        yield Way("dovecot", upstream, dict(zip(PROTOCOLS, ports, strict=True)), (program.pid,))

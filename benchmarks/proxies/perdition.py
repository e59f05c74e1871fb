"""Perdition, a process per session and a program per protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.site import PROTOCOLS, Site, Way, find, running
from tests.support.servers import free_ports

NAMES = {"imap": "IMAP4S", "pop3": "POP3S"}


@contextlib.contextmanager
def start(folder: Path, site: Site, upstream: str) -> Iterator[Way]:
    ports = dict(zip(PROTOCOLS, free_ports(2), strict=True))
    with contextlib.ExitStack() as stack:
        programs = []
        for protocol, port in ports.items():
            options = {
                "protocol": NAMES[protocol],
                "bind_address": "127.0.0.1",
                "listen_port": port,
                "outgoing_server": "127.0.0.1",
                "outgoing_port": site.ports[upstream][protocol],
                "ssl_mode": "ssl_all" if upstream == "tls" else "ssl_listen",
                "ssl_cert_file": site.certificate,
                "ssl_key_file": site.key,
                "ssl_ca_file": site.authority,
                "map_library": "",
                "pid_file": "",
                "log_facility": "+",
                "config_file": "/dev/null",
            }
            command = [find("perdition"), "--no_daemon", "--no_lookup", "--ssl_no_cn_verify"]
            for name, value in options.items():
                command += [f"--{name}", str(value)]
            programs.append(stack.enter_context(running(command, folder, f"perdition-{protocol}", [port])))
        yield Way("perdition", upstream, ports, tuple(program.pid for program in programs))

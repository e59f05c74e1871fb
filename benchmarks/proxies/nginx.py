"""nginx's mail proxy, one worker process. It asks by HTTP where a login goes; who answers is not accounted."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.site import PROTOCOLS, Missing, Site, Way, find, running
from tests.support.servers import free_ports

MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")

CONFIG = """
load_module {module};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log info;
worker_processes 1;
events {{ worker_connections 19500; }}
mail {{
  auth_http 127.0.0.1:{auth}/;
  ssl_certificate {site.certificate};
  ssl_certificate_key {site.key};
  ssl_protocols TLSv1.3;
  server {{ listen 127.0.0.1:{imap} ssl backlog=4096; protocol imap; }}
  server {{ listen 127.0.0.1:{pop3} ssl backlog=4096; protocol pop3; }}
}}
"""


@contextlib.contextmanager
def start(folder: Path, site: Site, upstream: str) -> Iterator[Way]:
    if not MODULE.exists():
        raise Missing(f"{MODULE} is not installed")
    ports = dict(zip(PROTOCOLS, free_ports(2), strict=True))
    with _responder(site.ports[upstream]) as auth:
        path = folder / "nginx.conf"
        path.write_text(CONFIG.format(module=MODULE, folder=folder, auth=auth, site=site, **ports), encoding="utf-8")
        command = [find("nginx"), "-c", str(path), "-e", str(folder / "nginx.log")]
        with running(command, folder, "nginx", list(ports.values())) as program:
            yield Way("nginx", upstream, ports, (program.pid,))


@contextlib.contextmanager
def _responder(ports: dict[str, int]) -> Iterator[int]:
    """Answer the question where a login goes, on a thread of the harness, with the one server there is."""

    def answer(connection: socket.socket) -> None:
        question = b""
        while b"\r\n\r\n" not in question and (data := connection.recv(4096)):
            question += data
        if asked := re.search(rb"Auth-Protocol: (\w+)", question):
            port = ports[asked[1].decode()]
            head = "HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\n"
            connection.sendall(f"{head}Auth-Port: {port}\r\n\r\n".encode())

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                answer(connection)

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)

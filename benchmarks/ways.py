"""The ways to one mail server that are compared: directly, through mailgate, Dovecot's login proxy and nginx."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.support.servers import Dovecot, Program, dovecot, free_ports, mailgate

SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The server must not be what is measured: mail is stored as it is sent, so that no line end is converted, and
# processes are kept for further sessions.
STORE_AS_SENT = "mail_save_crlf = yes\n"
KEEP_PROCESSES = STORE_AS_SENT + "service imap {\n  service_count = 1000\n  process_min_avail = 8\n}\n"

# One process for all sessions, as the others have it ("high-performance mode" in Dovecot's documentation).
LOGIN_PROXY = """
passdb {{
  driver = static
  args = proxy=y host=127.0.0.1 port={port} nopassword=y
}}
ssl_min_protocol = TLSv1.3
service imap-login {{
  process_limit = 1
  client_limit = 8000
}}
"""

NGINX = """
load_module {module};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log info;
worker_processes 1;
worker_rlimit_nofile 16384;
events {{ worker_connections 16000; }}
mail {{
  auth_http 127.0.0.1:{auth}/;
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.3;
  server {{ listen 127.0.0.1:{tls} ssl; protocol imap; }}
  server {{ listen 127.0.0.1:{plain}; protocol imap; }}
}}
"""

MAILGATE = """
hostname = "mail.example.org"

[tls]
certificate = "{certificate}"
key = "{key}"
profile = "modern"

[[listener]]
name = "imaps"
protocol = "imap"
bind = "127.0.0.1:{tls}"
tls = "implicit"

[[listener]]
name = "imap"
protocol = "imap"
bind = "127.0.0.1:{plain}"
tls = "off"

[pool.main]
protocol = "imap"
servers = ["127.0.0.1:{backend}"]
tls = "off"

[limits]
sessions_per_address = 8000
half_open_per_address = 2000
"""

DIRECT = "direct"


class Missing(Exception):
    """A program that is measured is not installed."""


@dataclass(frozen=True)
class Way:
    """One way to the mail server: its ports, and the program whose tree is accounted (none when direct)."""

    name: str
    tls: int
    plain: int
    pid: int | None

    def port(self, mode: str) -> int:
        return self.tls if mode == "tls" else self.plain


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def find(program: str) -> str:
    """Return a program's path; raises Missing."""
    path = shutil.which(program, path=SBIN)
    if path is None:
        raise Missing(f"{program} is not installed")
    return path


def issue_pair(folder: Path) -> Pair:
    """Make an ECDSA P-256 certificate for everybody who serves TLS."""
    issued = trustme.CA().issue_cert("mail.example.org")
    pair = Pair(folder / "certificate.pem", folder / "key.pem")
    pair.certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    pair.key.write_bytes(issued.private_key_pem.bytes())
    return pair


@contextlib.contextmanager
def backend(folder: Path, pair: Pair, users: dict[str, str], settings: str) -> Iterator[Dovecot]:
    """Run the mail server."""
    folder.mkdir()
    with dovecot(find("dovecot"), folder, pair.certificate, pair.key, settings) as server:
        for name, password in users.items():
            server.add_user(name, password)
        yield server


@contextlib.contextmanager
def through_mailgate(folder: Path, pair: Pair, port: int) -> Iterator[Way]:
    folder.mkdir()
    tls, plain = free_ports(2)
    config = MAILGATE.format(certificate=pair.certificate, key=pair.key, tls=tls, plain=plain, backend=port)
    with mailgate(folder, config, (tls, plain)) as program:
        yield Way("mailgate", tls, plain, program.pid)


@contextlib.contextmanager
def through_dovecot(folder: Path, pair: Pair, port: int) -> Iterator[Way]:
    folder.mkdir()
    with dovecot(find("dovecot"), folder, pair.certificate, pair.key, LOGIN_PROXY.format(port=port)) as proxy:
        yield Way("dovecot", proxy.imaps, proxy.imap, proxy.program.pid)


@contextlib.contextmanager
def through_nginx(folder: Path, pair: Pair, port: int) -> Iterator[Way]:
    folder.mkdir()
    tls, plain = free_ports(2)
    module = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
    if not module.exists():
        raise Missing(f"{module} is not installed")
    with _auth_responder(port) as auth:
        config = folder / "nginx.conf"
        config.write_text(
            NGINX.format(
                module=module,
                folder=folder,
                auth=auth,
                certificate=pair.certificate,
                key=pair.key,
                tls=tls,
                plain=plain,
            )
        )
        log = folder / "nginx.log"
        program = Program([find("nginx"), "-c", str(config), "-e", str(log)], folder, "nginx")
        try:
            program.wait_for((tls, plain))
            yield Way("nginx", tls, plain, program.pid)
        finally:
            program.stop()


@contextlib.contextmanager
def _auth_responder(port: int) -> Iterator[int]:
    """Answer nginx's question where a login goes, on a thread of the harness, with the one server there is."""
    answer = f"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n\r\n".encode()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                question = b""
                while b"\r\n\r\n" not in question and (data := connection.recv(4096)):
                    question += data
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


PROXIES: dict[str, Callable[[Path, Pair, int], contextlib.AbstractContextManager[Way]]] = {
    "mailgate": through_mailgate,
    "dovecot": through_dovecot,
    "nginx": through_nginx,
}

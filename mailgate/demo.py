"""``mailgate demo``: a sample mail server and the gateway in front of it, shown at work.

The mail server is pymap, which speaks IMAP alone, run as a child process on loopback; the gateway runs in this process
with a configuration as a user would write it. The check is a mail client's: TLS with the certificate verified, login,
and every message read, with IMAP and with POP3.
"""

from __future__ import annotations

import contextlib
import imaplib
import importlib.metadata
import poplib
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email import message_from_bytes, policy
from pathlib import Path
from typing import Final

import click
import trio

from mailgate.app import Gateway, run_alone
from mailgate.config import Config, parse
from mailgate.errors import MailgateError
from mailgate.net import certificate
from mailgate.observe import log

PYMAP_VERSION: Final = importlib.metadata.version("pymap")

USER: Final = "demouser"
PASSWORD: Final = "demopass"  # noqa: S105
"""What the sample mailbox is opened with: it is pymap's own, and no secret."""

START_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 30.0

CONFIG: Final = """\
hostname = "localhost"

[[listener]]
name = "imaps"
protocol = "imap"
bind = ["127.0.0.1:{imaps}"]
tls = "implicit"

[[listener]]
name = "imap"
protocol = "imap"
bind = ["127.0.0.1:{imap}"]
tls = "starttls"

# The sample server has no POP3: these clients are translated for.
[[listener]]
name = "pop3s"
protocol = "pop3"
bind = ["127.0.0.1:{pop3s}"]
tls = "implicit"

[tls]
certificate = "certificate.pem"
key = "key.pem"

[pool.sample]
protocol = "imap"
servers = ["127.0.0.1:{upstream}"]
tls = "off"

[metrics]
bind = "127.0.0.1:{metrics}"
"""


class DemoError(MailgateError):
    """The demo cannot show what it is to show; the text says why."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where everything of the demo listens on loopback."""

    upstream: int
    imaps: int
    imap: int
    pop3s: int
    metrics: int


def choose_ports(wanted: tuple[int, ...] = (0, 1993, 1143, 1995, 9393)) -> Ports:
    """Return free ports, the wanted ones where nobody has them."""
    with contextlib.ExitStack() as stack:
        found = []
        for port in wanted:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                sock.bind(("127.0.0.1", 0))
            found.append(int(sock.getsockname()[1]))
    return Ports(*found)


@contextlib.contextmanager
def sample_server(port: int, folder: Path) -> Iterator[None]:
    """Run pymap with its sample mail on ``port`` until the block ends; raises DemoError."""
    output = folder / "pymap.log"
    command = [sys.executable, "-c", "from pymap.main import main; main()"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-tls"]
    command += ["--no-service", "admin", "--no-service", "managesieve", "dict", "--demo-data"]
    with output.open("wb") as file:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder)  # noqa: S603
    try:
        if not trio.run(_answers, port, child):
            said = output.read_text("utf-8", "replace").strip()
            raise DemoError(f"the sample mail server does not start: {said.rpartition(chr(10))[2] or 'no answer'}")
        yield
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


async def _answers(port: int, child: subprocess.Popen[bytes]) -> bool:
    """Wait until a child process serves its port; return whether it does."""
    with trio.move_on_after(START_SECONDS):
        while child.poll() is None:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.1)
            else:
                await stream.aclose()
                return True
    return False


def read_mail(port: int, authority: Path) -> list[str]:
    """Read the inbox through the gateway as a mail client does; return a line for each message.

    Raises DemoError when no mail could be read.
    """
    context = ssl.create_default_context(cafile=authority)
    lines = []
    with _telling("IMAP"), imaplib.IMAP4_SSL("localhost", port, ssl_context=context, timeout=CHECK_SECONDS) as client:
        client.login(USER, PASSWORD)
        client.select("INBOX", readonly=True)
        _, found = client.search(None, "ALL")
        for number in found[0].decode("ascii").split():
            _, parts = client.fetch(number, "(BODY.PEEK[])")
            lines.append(_line(number, next(part[1] for part in parts if isinstance(part, tuple))))
    return _some(lines)


def read_pop3(port: int, authority: Path) -> list[str]:
    """Read the inbox as :func:`read_mail` does, with POP3: the gateway translates."""
    context = ssl.create_default_context(cafile=authority)
    lines = []
    with _telling("POP3"), contextlib.closing(_pop3(port, context)) as client:
        client.user(USER)
        client.pass_(PASSWORD)
        unique_ids = [line.decode("ascii").split()[1] for line in client.uidl()[1]]
        for number, unique_id in enumerate(unique_ids, 1):
            data = b"\r\n".join(client.retr(number)[1]) + b"\r\n"
            lines.append(f"{_line(str(number), data)}, unique-id {unique_id}")
        client.quit()
    return _some(lines)


def _pop3(port: int, context: ssl.SSLContext) -> poplib.POP3_SSL:
    return poplib.POP3_SSL("localhost", port, context=context, timeout=CHECK_SECONDS)


@contextlib.contextmanager
def _telling(protocol: str) -> Iterator[None]:
    try:
        yield
    except (OSError, imaplib.IMAP4.error, poplib.error_proto, StopIteration) as error:
        raise DemoError(f"reading mail through the gateway with {protocol} failed: {error}") from error


def _line(number: str, data: bytes) -> str:
    message = message_from_bytes(data, policy=policy.default)
    return f"{number}. {message['subject']!s} (from {message['from']!s}, {len(data)} bytes)"


def _some(lines: list[str]) -> list[str]:
    if not lines:
        raise DemoError("the gateway works, but the sample mailbox is empty")
    return lines


async def _show(config: Config, folder: Path, ports: Ports, once: bool) -> None:
    """Run the gateway, read mail through it and tell what was seen."""
    gateway = Gateway(config, log.configure("text", "warning" if once else "info"))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        for name, read, port in (("IMAP", read_mail, ports.imaps), ("POP3", read_pop3, ports.pop3s)):
            lines = await trio.to_thread.run_sync(read, port, folder / "certificate.pem")
            click.secho(f"\nRead {len(lines)} messages through the gateway, with {name} over TLS:", bold=True)
            click.echo("\n".join(f"  {line}" for line in lines))
        if once:
            nursery.cancel_scope.cancel()
            return
        click.echo(_invitation(folder, ports))


def _invitation(folder: Path, ports: Ports) -> str:
    """Return what a newcomer may try next."""
    authority = folder / "certificate.pem"
    return f"""
Try it yourself (user {USER}, password {PASSWORD}):

  curl --cacert {authority} --user {USER}:{PASSWORD} imaps://localhost:{ports.imaps}/INBOX
  curl --cacert {authority} --user {USER}:{PASSWORD} 'imaps://localhost:{ports.imaps}/INBOX;MAILINDEX=1'
  curl --cacert {authority} --user {USER}:{PASSWORD} pop3s://localhost:{ports.pop3s}/
  curl --cacert {authority} --user {USER}:{PASSWORD} pop3s://localhost:{ports.pop3s}/1
  openssl s_client -quiet -crlf -connect localhost:{ports.imaps}
  openssl s_client -quiet -crlf -starttls imap -connect localhost:{ports.imap}
  curl -s http://localhost:{ports.metrics}/metrics | grep ^mailgate_logins

A mail program: server localhost, IMAP, port {ports.imaps} (TLS) or {ports.imap} (STARTTLS), or POP3, port
{ports.pop3s} (TLS), though the sample server speaks IMAP alone; it will warn of the self-signed certificate.
The configuration that runs: {folder / "mailgate.toml"}

Ctrl-C stops everything and removes it."""


def main(once: bool) -> int:
    """Show the demo; return the exit status, 0 only if mail was read. Raises MailgateError or OSError."""
    with tempfile.TemporaryDirectory(prefix="mailgate-demo-") as name:
        folder = Path(name)
        ports = choose_ports()
        pair = certificate.self_signed(["localhost", "127.0.0.1"], days=30)
        certificate.write(folder / "certificate.pem", folder / "key.pem", *pair)
        source = CONFIG.format(**asdict(ports))
        (folder / "mailgate.toml").write_text(source, "utf-8")
        config = parse(source, base=folder, environ={})
        click.echo(f"Starting a sample mail server (pymap {PYMAP_VERSION}) and mailgate in front of it …")
        with sample_server(ports.upstream, folder):
            run_alone(_show, config, folder, ports, once)
    return 0

"""Where everything runs: the mail server that all ways lead to, the certificate of all who serve TLS, the ways."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.support.servers import Program, free_ports

HOST = "mail.example.org"
SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOT = Path(__file__).parents[1]
PROTOCOLS = ("imap", "pop3")
UPSTREAMS = ("plain", "tls")


class Missing(Exception):
    """A program that is measured is not installed."""


def find(program: str) -> str:
    """Return a program's path; raises Missing."""
    path = shutil.which(program, path=SBIN)
    if path is None:
        raise Missing(f"{program} is not installed")
    return path


@dataclass(frozen=True)
class Site:
    """The certificate with its key and its authority as files, and the mail server with its ports."""

    folder: Path
    certificate: Path
    key: Path
    both: Path
    authority: Path
    ports: dict[str, dict[str, int]]
    """By upstream, plain or tls, and protocol."""
    pid: int


@dataclass(frozen=True)
class Way:
    """One way to the mail server: its ports by protocol, and the programs that are accounted (none when direct)."""

    name: str
    upstream: str
    ports: dict[str, int]
    pids: tuple[int, ...]


@contextlib.contextmanager
def site(folder: Path, size: int) -> Iterator[Site]:
    """Make an ECDSA P-256 certificate and run the mail server, whose big message has ``size`` bytes."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    certificate, key, both, root = (folder / name for name in ("chain.pem", "key.pem", "both.pem", "root.pem"))
    chain = b"".join(one.bytes() for one in issued.cert_chain_pems)
    certificate.write_bytes(chain)
    key.write_bytes(issued.private_key_pem.bytes())
    both.write_bytes(chain + issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(root))
    ports = free_ports(4)
    command = [sys.executable, "-m", "benchmarks.upstream", str(certificate), str(key), str(size), *map(str, ports)]
    program = Program(command, folder, "upstream", {"PYTHONPATH": str(ROOT)})
    by_upstream = {
        "plain": dict(zip(PROTOCOLS, ports[::2], strict=True)),
        "tls": dict(zip(PROTOCOLS, ports[1::2], strict=True)),
    }
    try:
        program.wait_for(ports)
        yield Site(folder, certificate, key, both, root, by_upstream, program.pid)
    finally:
        program.stop()


@contextlib.contextmanager
def running(command: list[str], folder: Path, name: str, ports: list[int]) -> Iterator[Program]:
    """Run a proxy until the block ends."""
    program = Program(command, folder, name)
    try:
        program.wait_for(ports)
        yield program
    finally:
        program.stop()

"""``python -m benchmarks.translate``: POP3 clients on one Maildir, by three ways.

Dovecot's own POP3 (``dovecot``), mailgate's proxy in front of it (``proxy``), and mailgate that speaks POP3 to the
client and IMAP to Dovecot (``translated``). Three things are measured, the ways in turn in every round: opening a
mailbox of many messages, which is login, STAT, UIDL, LIST and QUIT, by a gateway without and by one with a store that
remembers the mailbox; RETR of large messages; and RETR of many small ones with a server some way off, once in order,
so that the next ones can be asked for ahead, and once out of order. All connections are without TLS, which would cost
every way the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trustme

from benchmarks import usage
from benchmarks.mails import message
from benchmarks.measure import SETTLE
from benchmarks.ratios import Samples, median, ratio
from benchmarks.report import machine
from benchmarks.site import HOST, ROOT, Missing, find
from tests.support.servers import Dovecot, Program, dovecot, free_ports, mailgate

SILENCE = 120.0
"""Seconds after which a silent server is given up: the first opening of a huge mailbox takes some."""

WORD = "word"
MANY, LARGE, SMALL = "many@example.org", "large@example.org", "small@example.org"
PLAIN = "plain@example.org"
SMALL_SIZE = 2_048
OPENED_SIZE = 600
WAYS = ("dovecot", "proxy", "translated")

CONFIG = """
hostname = "mail.example.org"
workers = 1
"""

WAY = """
[[listener]]
name = "{name}"
protocol = "pop3"
bind = "127.0.0.1:{port}"
tls = "off"

[pool.{name}]
protocol = "{protocol}"
servers = ["127.0.0.1:{server}"]
tls = "off"

[[route]]
match.listener = ["{name}"]
pool = "{name}"
"""


@dataclass(frozen=True)
class Amounts:
    """How much is done in each round."""

    messages: int = 100_000
    large_octets: int = 32_000_000
    large: int = 8
    small: int = 200
    milliseconds: float = 20.0
    rounds: int = 7


class Failed(Exception):
    """A way did not do what was asked; says what."""


class Client:
    """A POP3 client with little between it and the socket."""

    def __init__(self, port: int, user: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), SILENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(262_144)
        self._line()
        self.ask(f"USER {user}")
        self.ask(f"PASS {WORD}")

    def ask(self, command: str) -> bytes:
        """Send a command and return the line that answers it."""
        self._socket.sendall(command.encode() + b"\r\n")
        return self._line()

    def listing(self, command: str) -> int:
        """Send a command that a block answers, and return the block's size."""
        self._socket.sendall(command.encode() + b"\r\n")
        view, tail, total = memoryview(self._buffer), b"", 0
        while not tail.endswith(b"\r\n.\r\n"):
            count = self._socket.recv_into(view)
            if not count:
                raise Failed(f"{command}: closed in the middle")
            total += count
            tail = (tail + bytes(view[max(0, count - 5) : count]))[-5:]
            if total == count and view[:3] != b"+OK":
                raise Failed(f"{command}: {bytes(view[: min(count, 100)])!r}")
        return total

    def close(self) -> None:
        self._socket.close()

    def _line(self) -> bytes:
        data = b""
        while not data.endswith(b"\r\n"):
            piece = self._socket.recv(4096)
            if not piece:
                raise Failed("the server closed the connection")
            data += piece
        if not data.startswith(b"+OK"):
            raise Failed(data.decode("ascii", "replace").strip())
        return data


def opened(port: int, amounts: Amounts) -> int:
    """Open the mailbox of many messages as a client does that has them all; return how many it was told of."""
    client = Client(port, MANY)
    count = int(client.ask("STAT").split()[1])
    if count != amounts.messages:
        raise Failed(f"STAT tells of {count} messages")
    client.listing("UIDL")
    client.listing("LIST")
    client.ask("QUIT")
    client.close()
    return count


def retrieved(port: int, amounts: Amounts, user: str = LARGE) -> int:
    """Retrieve large messages one after the other and return the octets."""
    client = Client(port, user)
    octets = sum(client.listing(f"RETR {number + 1}") for number in range(amounts.large))
    client.ask("QUIT")
    client.close()
    return octets


def walked(port: int, amounts: Amounts, *, in_order: bool) -> int:
    """Retrieve all small messages and return how many they are."""
    client = Client(port, SMALL)
    numbers = list(range(1, amounts.small + 1))
    if not in_order:
        random.Random(1).shuffle(numbers)
    for number in numbers:
        client.listing(f"RETR {number}")
    client.ask("QUIT")
    client.close()
    return len(numbers)


Place = Literal["near", "far", "kept"]
"""Whether the server is near or far, or near and what was in the mailbox is remembered."""


@dataclass(frozen=True)
class Job:
    """Something that is measured: what a client does, by which gateway and how far a server, how figures are told."""

    title: str
    run: Callable[[int, Amounts], int]
    place: Place
    unit: float
    """What the client returns is divided by it; CPU is told for one of these."""
    cpu: str
    rate: str


JOBS = {
    "open": Job("Opening, and QUIT", opened, "near", 0.0, "CPU-ms of {}", "seconds"),
    "again": Job("Opening what is remembered, and QUIT", opened, "kept", 0.0, "CPU-ms of {}", "seconds"),
    "retr": Job("RETR of large messages", retrieved, "near", 1e9, "CPU-s of {} per GB", "MB/s"),
    "plain": Job(
        "RETR of large messages of plain text",
        lambda port, amounts: retrieved(port, amounts, PLAIN),
        "near",
        1e9,
        "CPU-s of {} per GB",
        "MB/s",
    ),
    "ahead": Job(
        "RETR 1, 2, 3 …, far", lambda p, a: walked(p, a, in_order=True), "far", 1.0, "CPU-ms of {} each", "ms each"
    ),
    "jumping": Job(
        "RETR out of order, far", lambda p, a: walked(p, a, in_order=False), "far", 1.0, "CPU-ms of {} each", "ms each"
    ),
}


@dataclass(frozen=True)
class Yard:
    """What runs: Dovecot, and for each place mailgate and the ports of all ways."""

    server: Dovecot
    gateways: dict[Place, Program]
    ports: dict[Place, dict[str, int]]


def fill(server: Dovecot, user: str, count: int, mail: bytes) -> None:
    """Lay as many equal messages into somebody's Maildir, named as Dovecot's own delivery names them."""
    home = server.folder / "mail" / user
    maildir = home / "Maildir"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{1_700_000_000 + number}.M{number:06}P1.bench,S={len(mail)},W={len(mail)}:2,"
        (maildir / "cur" / name).write_bytes(mail)
    owner = (server.folder / "mail").stat()
    for folder, _, files in os.walk(home):
        os.chown(folder, owner.st_uid, owner.st_gid)
        for name in files:
            os.chown(Path(folder) / name, owner.st_uid, owner.st_gid)
    server.add_user(user, WORD)


def plain_text(size: int) -> bytes:
    """Return a message of words in lines of all lengths, as people write them."""
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlu,.", k=chance.randint(1, 9))) for _ in range(3000)]
    lines = [b"Subject: plain text", b""]
    octets = sum(map(len, lines))
    while octets < size:
        lines.append(" ".join(chance.choices(words, k=chance.randint(2, 13))).lstrip(".").encode())
        octets += len(lines[-1]) + 2
    return b"\r\n".join((*lines, b""))


@contextlib.contextmanager
def yard(folder: Path, amounts: Amounts) -> Iterator[Yard]:
    """Run everything, with the three mailboxes filled."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    certificate, key = folder / "chain.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    with contextlib.ExitStack() as stack:
        below = folder / "dovecot"
        below.mkdir()
        server = stack.enter_context(dovecot(find("dovecot"), below, certificate, key))
        fill(server, MANY, amounts.messages, message(OPENED_SIZE))
        fill(server, LARGE, amounts.large, message(amounts.large_octets))
        fill(server, PLAIN, amounts.large, plain_text(amounts.large_octets))
        fill(server, SMALL, amounts.small, message(SMALL_SIZE))
        # Dovecot looks at the file of users once in a second.
        time.sleep(1.1)
        distant = {}
        for protocol, target in (("imap", server.imap), ("pop3", server.pop3)):
            (distant[protocol],) = free_ports(1)
            command = [sys.executable, "-m", "benchmarks.distance", *map(str, (distant[protocol], target))]
            program = Program(
                [*command, str(amounts.milliseconds)], folder, f"distance-{protocol}", {"PYTHONPATH": str(ROOT)}
            )
            stack.callback(program.stop)
            program.wait_for([distant[protocol]])
        servers = {
            "proxy": ("pop3", server.pop3),
            "translated": ("imap", server.imap),
            "far-proxy": ("pop3", distant["pop3"]),
            "far-translated": ("imap", distant["imap"]),
        }
        ports = dict(zip(servers, free_ports(len(servers)), strict=True))
        config = CONFIG + "".join(
            WAY.format(name=name, port=ports[name], protocol=protocol, server=port)
            for name, (protocol, port) in servers.items()
        )
        gateway = stack.enter_context(mailgate(folder, config, list(ports.values())))
        remembering = folder / "remembering"
        remembering.mkdir()
        kept = free_ports(2)
        config = f'{CONFIG}[pop3.store]\npath = "{remembering}/pop3.sqlite"\n' + "".join(
            WAY.format(name=name, port=port, protocol=servers[name][0], server=servers[name][1])
            for name, port in zip(("proxy", "translated"), kept, strict=True)
        )
        keeper = stack.enter_context(mailgate(remembering, config, kept))
        yield Yard(
            server,
            {"near": gateway, "far": gateway, "kept": keeper},
            {
                "near": {"dovecot": server.pop3, "proxy": ports["proxy"], "translated": ports["translated"]},
                "far": {"dovecot": distant["pop3"], "proxy": ports["far-proxy"], "translated": ports["far-translated"]},
                "kept": {"dovecot": server.pop3, "proxy": kept[0], "translated": kept[1]},
            },
        )


Raw = dict[str, dict[str, list[float | None]]]
"""By job, then by ``way.figure``."""


def measured(amounts: Amounts, jobs: Sequence[str], ways: Sequence[str] = WAYS) -> tuple[Raw, list[str]]:
    """Measure these jobs of these ways in turn; return the figures of every round, and what failed."""
    raw: Raw = {name: {} for name in jobs}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mailgate-translate-") as made:
        folder = Path(made)
        folder.chmod(0o711)
        with yard(folder, amounts) as where:
            # The first time, Dovecot makes its index, and everybody takes the memory that is needed.
            for number in range(amounts.rounds + 1):
                for name in jobs:
                    for way in ways[:: -1 if number % 2 else 1]:
                        print(f"round {number} of {amounts.rounds}, {name}, {way}", file=sys.stderr, flush=True)
                        try:
                            figures = one(where, JOBS[name], way, amounts)
                        except (Failed, OSError) as failed:
                            failures.append(f"{name}, {way}: {failed}")
                            figures = {}
                        if number:
                            for figure in ("seconds", "gateway_cpu", "server_cpu"):
                                raw[name].setdefault(f"{way}.{figure}", []).append(figures.get(figure))
    return raw, sorted(set(failures))


def one(where: Yard, job: Job, way: str, amounts: Amounts) -> dict[str, float]:
    """Do a job once by one way: seconds of the clock, and of the CPU of mailgate and of Dovecot, for one unit."""
    pids = where.gateways[job.place].pid, where.server.program.pid
    before = [usage.cpu_seconds(pid) for pid in pids]
    began = time.perf_counter()
    done = job.run(where.ports[job.place][way], amounts)
    seconds = time.perf_counter() - began
    time.sleep(SETTLE)
    units = done / job.unit if job.unit else 1.0
    gateway, server = ((usage.cpu_seconds(pid) - earlier) / units for pid, earlier in zip(pids, before, strict=True))
    return {"seconds": seconds / units, "gateway_cpu": gateway, "server_cpu": server}


def markdown(raw: Raw, amounts: Amounts) -> str:
    """Return a table of the medians for each job, with the ratios that matter."""
    lines = []
    for name, figures in raw.items():
        job = JOBS[name]
        lines += [
            f"### {job.title}",
            "",
            "| | " + " | ".join(WAYS) + " | translated to dovecot | translated to proxy |",
        ]
        lines.append("|---|" + "---:|" * (len(WAYS) + 2))
        scale = 1.0 if job.unit == 1e9 else 1000.0
        rows = {
            job.rate: ("seconds", scale if job.unit else 1.0),
            job.cpu.format("mailgate"): ("gateway_cpu", scale),
            job.cpu.format("Dovecot"): ("server_cpu", scale),
        }
        for title, (figure, factor) in rows.items():
            values = [median(figures.get(f"{way}.{figure}", ())) for way in WAYS]
            if title == "MB/s":
                values = [1000 / value if value else None for value in values]
            else:
                values = [value * factor if value is not None else None for value in values]
            shown = [_shown(value) for value in values]
            if figure == "gateway_cpu":
                shown[0] = "–"
            ratios = [_ratio(figures, figure, peer, inverse=title == "MB/s") for peer in ("dovecot", "proxy")]
            lines.append(f"| {title} | " + " | ".join(shown + ratios) + " |")
        both = {way: _sum(figures, way) for way in WAYS}
        shown = [_shown(value * scale if (value := median(both[way])) is not None else None) for way in WAYS]
        ratios = [_told(both["translated"], both[peer]) for peer in ("dovecot", "proxy")]
        lines += [f"| {job.cpu.format('both')} | " + " | ".join(shown + ratios) + " |", ""]
    lines.append(
        f"Opened: {amounts.messages:,} messages; large: {amounts.large} of {amounts.large_octets / 1e6:.0f} MB; small: "
        f"{amounts.small} of {SMALL_SIZE} octets, {amounts.milliseconds:g} ms there and back; {amounts.rounds} rounds."
    )
    return "\n".join(lines)


def _sum(figures: dict[str, list[float | None]], way: str) -> list[float | None]:
    pairs = zip(figures.get(f"{way}.gateway_cpu", ()), figures.get(f"{way}.server_cpu", ()), strict=True)
    return [ours + theirs if ours is not None and theirs is not None else None for ours, theirs in pairs]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(figures: dict[str, list[float | None]], figure: str, peer: str, *, inverse: bool) -> str:
    if figure == "gateway_cpu" and peer == "dovecot":
        return "–"
    ours, theirs = figures.get(f"translated.{figure}", []), figures.get(f"{peer}.{figure}", [])
    return _told(theirs, ours) if inverse else _told(ours, theirs)


def _told(ours: Samples, theirs: Samples) -> str:
    found = ratio(ours, theirs)
    return "–" if found is None else f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    usual = Amounts()
    parser = argparse.ArgumentParser(prog="translate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=usual.rounds, metavar="N")
    parser.add_argument(
        "--messages", type=int, default=usual.messages, metavar="N", help="in the mailbox that is opened"
    )
    parser.add_argument(
        "--megabytes", type=float, default=usual.large_octets / 1e6, metavar="N", help="of a large message"
    )
    parser.add_argument("--large", type=int, default=usual.large, metavar="N", help="large messages")
    parser.add_argument("--small", type=int, default=usual.small, metavar="N", help="small messages")
    parser.add_argument(
        "--distance", type=float, default=usual.milliseconds, metavar="MS", help="round trip to the server"
    )
    parser.add_argument("--jobs", default=",".join(JOBS), metavar="NAMES", help="only these: " + ", ".join(JOBS))
    parser.add_argument("--ways", default=",".join(WAYS), metavar="NAMES", help="only these: " + ", ".join(WAYS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all rounds there")
    options = parser.parse_args(arguments)
    jobs, ways = options.jobs.split(","), options.ways.split(",")
    if unknown := (set(jobs) - set(JOBS)) | (set(ways) - set(WAYS)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if min(options.rounds, options.messages, options.large, options.small) < 1:
        parser.error("all amounts must be 1 or more")
    amounts = Amounts(
        options.messages, int(options.megabytes * 1e6), options.large, options.small, options.distance, options.rounds
    )
    others = usage.Others()
    try:
        raw, failures = measured(amounts, jobs, ways)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(
            json.dumps({"amounts": vars(amounts), "raw": raw, "failures": failures}) + "\n", "utf-8"
        )
    print(markdown(raw, amounts))
    print(f"Other programs took {others.share():.0%} of the machine's CPU.")
    print(", ".join(f"{name} {value}" for name, value in machine({}).items()))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

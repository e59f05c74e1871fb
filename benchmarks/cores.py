"""``python -m benchmarks.cores``: what a relay core costs per command, and in memory per idle session.

No sockets: each figure is the CPU of the pure core and the command gate alone. Bursts are written into a shared buffer
as the sockets would read them, tags change, and what the core left is dropped after each call. The time
of the loop around it is taken off.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.mails import SMALL_SIZE, message
from mailgate.model import Protocol, Verdict
from mailgate.policy.access import KNOWN_VERBS, filter_capabilities, filter_pop3_capabilities
from mailgate.policy.gate import Gate, GateSettings
from mailgate.wire.relay import RelayCore
from mailgate.wire.relay_imap import ImapRelay
from mailgate.wire.relay_pop3 import Pop3Relay

BUFFER: Final = 256 * 1024
TAGS: Final = 100
"""Different tags in turn; a round of the loop is as many commands."""

Exchange = tuple[bytes, bytes]
"""What the client sends in one burst, and what the upstream answers in one; either may be empty."""


@dataclass(frozen=True, slots=True)
class Case:
    """A figure: its name, and its exchange for each of the tags."""

    name: str
    protocol: Protocol
    exchanges: tuple[Exchange, ...]


def imap(name: str, sent: bytes, answered: bytes) -> Case:
    """Return a case of IMAP; ``TAG`` stands for the tag."""
    tags = [b"A%03d" % number for number in range(TAGS)]
    return Case(
        name,
        Protocol.IMAP,
        tuple((sent.replace(b"TAG", tag), answered.replace(b"TAG", tag)) for tag in tags),
    )


def pop3(name: str, sent: bytes, answered: bytes) -> Case:
    """Return a case of POP3."""
    return Case(name, Protocol.POP3, ((sent, answered),) * TAGS)


def cases() -> tuple[Case, ...]:
    """Return all cases in the order of the table."""
    mail = message(SMALL_SIZE)
    pipelined = [b"TAG%d NOOP\r\n" % number for number in range(10)]
    completed = [b"TAG%d OK NOOP completed.\r\n" % number for number in range(10)]
    flags = b"".join(b"* %d FETCH (UID %d FLAGS (\\Seen))\r\n" % (number, number) for number in range(1, 501))
    return (
        imap("IMAP NOOP", b"TAG NOOP\r\n", b"TAG OK NOOP completed (0.001 + 0.000 secs).\r\n"),
        imap("IMAP ten NOOPs in one burst", b"".join(pipelined), b"".join(completed)),
        imap(
            "IMAP UID FETCH of 4 KB",
            b"TAG UID FETCH 1 (UID BODY.PEEK[])\r\n",
            b"* 1 FETCH (UID 1 BODY[] {%d}\r\n%b)\r\nTAG OK Fetch completed (0.001 secs).\r\n" % (len(mail), mail),
        ),
        imap("IMAP FETCH of 500 FLAGS", b"TAG FETCH 1:* (UID FLAGS)\r\n", flags + b"TAG OK Fetch completed.\r\n"),
        imap(
            "IMAP SELECT, quoted",
            b'TAG SELECT "INBOX"\r\n',
            b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n"
            b"* OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft \\*)] Flags permitted.\r\n"
            b"* 2 EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] UIDs valid\r\n* OK [UIDNEXT 3] Predicted next UID\r\n"
            b"TAG OK [READ-WRITE] Select completed.\r\n",
        ),
        imap("IMAP untagged EXISTS", b"", b"* 5 EXISTS\r\n"),
        pop3("POP3 NOOP", b"NOOP\r\n", b"+OK\r\n"),
        pop3("POP3 RETR of 4 KB", b"RETR 1\r\n", b"+OK %d octets\r\n%b.\r\n" % (len(mail), mail)),
    )


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks the gate for the core, as a session's dialogue does."""

    gate: Gate
    protocol: Protocol

    def decide(self, verb: str) -> Verdict:
        """Ask for a command."""
        return self.gate.command(self.protocol, verb)


def core_for(asker: Asker) -> RelayCore:
    """Return a core as a session makes it."""
    protocol, decide = asker.protocol, asker.decide
    if protocol is Protocol.POP3:
        return Pop3Relay(decide=decide, visible=filter_pop3_capabilities, verbs=KNOWN_VERBS[protocol])
    return ImapRelay(
        decide=decide, visible=filter_capabilities, verbs=KNOWN_VERBS[protocol], capabilities=frozenset({"LITERAL+"})
    )


class Nothing:
    """Stands in for a core to measure the loop alone."""

    def __init__(self) -> None:
        self.to_upstream: list[bytes] = []
        self.to_client: list[bytes] = []
        self.finished: list[object] = []

    def client_sent(self, data: bytearray, end: int, now: float) -> int:
        """Take nothing."""
        return end

    def upstream_sent(self, data: bytearray, end: int, now: float) -> None:
        """Take nothing."""


def one_round(core: RelayCore | Nothing, exchanges: tuple[Exchange, ...], buffer: bytearray) -> None:
    """Run each exchange once."""
    view = memoryview(buffer)
    for sent, answered in exchanges:
        if sent:
            count = len(sent)
            view[:count] = sent
            core.client_sent(buffer, count, 1.0)
            core.to_upstream.clear()
        count = len(answered)
        view[:count] = answered
        core.upstream_sent(buffer, count, 1.25)
        core.to_client.clear()
        core.finished.clear()


def microseconds(run: Callable[[], None], rounds: int, repeats: int) -> float:
    """Return the CPU time of one exchange, the least of some repetitions."""
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        for _ in range(rounds):
            run()
        best = min(best, time.process_time() - began)
    return best / rounds / TAGS * 1e6


def measured(case: Case, rounds: int, repeats: int) -> float:
    """Return the microseconds of one exchange of a case."""
    buffer = bytearray(BUFFER)
    core = core_for(Asker(Gate(GateSettings()), case.protocol))
    empty = Nothing()
    whole = microseconds(lambda: one_round(core, case.exchanges, buffer), rounds, repeats)
    return whole - microseconds(lambda: one_round(empty, case.exchanges, buffer), rounds, repeats)


def idle_bytes(protocol: Protocol, count: int = 1000) -> float:
    """Return the memory of a core that has worked before and now waits: IMAP in an IDLE, POP3 after a command."""
    asker = Asker(Gate(GateSettings()), protocol)
    buffer = bytearray(BUFFER)
    worked: tuple[Exchange, ...] = (
        ((b"A001 NOOP\r\n", b"A001 OK\r\n"), (b"A002 IDLE\r\n", b"+ idling\r\n"), (b"", b"* 5 EXISTS\r\n"))
        if protocol is Protocol.IMAP
        else ((b"STAT\r\n", b"+OK 0 0\r\n"), (b"NOOP\r\n", b"+OK\r\n"))
    )
    core_for(asker)
    tracemalloc.start()
    cores: list[RelayCore | None] = [None] * count
    before, _ = tracemalloc.get_traced_memory()
    for index in range(count):
        core = core_for(asker)
        one_round(core, worked, buffer)
        cores[index] = core
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / count


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="cores", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help=f"how often {TAGS} commands are sent")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="of how many tries the least counts")
    options = parser.parse_args(arguments)
    for case in cases():
        print(f"{case.name:<30} {measured(case, options.rounds, options.repeats):8.2f} µs")
    for protocol in Protocol:
        print(f"{f'{protocol.upper()} idle core':<30} {idle_bytes(protocol):8.0f} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

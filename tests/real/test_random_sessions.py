"""The same random sessions through the gateway and past it: both mailboxes' answers must be the same bytes.

Two users with the same mail get the same commands at the same time, one through the gateway and one
straight from Dovecot. ``--full`` plays a thousand sessions of each protocol.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import FULL
from tests.real.conftest import Gateway
from tests.real.test_clients import message
from tests.support.servers import Dovecot

pytestmark = pytest.mark.real

WAIT = b"\0"
SESSIONS = 1_000 if FULL else 20

# What differs between two mailboxes, and between two moments.
DIFFERS = re.compile(
    rb" ?\(\d+\.\d+ \+ [^)]*secs\)|UIDVALIDITY \d+|APPENDUID \d+|COPYUID \d+|MODSEQ \(?\d+\)?"
    rb"| \\(?:Un)?Marked|(?<=^\d [0-9a-f]{8})[0-9a-f]{8}|(?<=^\d\d [0-9a-f]{8})[0-9a-f]{8}"
    # A unique-id ends with the mailbox's UIDVALIDITY: the second in which it was made.
    rb"|(?<=^\+OK \d [0-9a-f]{8})[0-9a-f]{8}",
    re.MULTILINE,
)


# Only these are sent several at a time: when Dovecot tells of changes that others of them made depends on how
# the commands arrive.
CHANGES_NOTHING = re.compile(rb"(?:UID )?(?:FETCH|SEARCH|SORT|LIST|ID|NAMESPACE|XYZZY|GETQUOTAROOT) ?")


class Talk:
    """A client that sends what it is told and reads whole answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unread = b""

    def _more(self) -> None:
        data = self.sock.recv(262_144)
        assert data, f"the connection ended behind {self.unread[-200:]!r}"
        self.unread += data

    def line(self) -> bytes:
        while b"\n" not in self.unread:
            self._more()
        line, _, self.unread = self.unread.partition(b"\n")
        return line + b"\n"

    def exactly(self, size: int) -> bytes:
        while len(self.unread) < size:
            self._more()
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    def imap(self, *tags: bytes) -> list[bytes]:
        """Read responses until each tag, or a continuation, was seen."""
        responses = []
        left = set(tags)
        while left:
            response = line = self.line()
            while line.startswith(b"* ") and (literal := re.search(rb"\{(\d+)\}\r\n\Z", line)) is not None:
                response += self.exactly(int(literal[1]))
                rest = self.line()
                response += rest
                line = b"* " + rest
            responses.append(response)
            if line.startswith(b"+ "):
                break
            left.discard(line.split(b" ")[0])
        return responses

    def pop3(self, block: bool) -> list[bytes]:
        """Read a reply, with its lines where it is to have some."""
        lines = [self.line()]
        while block and lines[0].startswith(b"+OK") and lines[-1] != b".\r\n":
            lines.append(self.line())
        return lines


def different(first: bytes, second: bytes) -> str:
    """Show the lines in which two answers differ."""
    lines = difflib.unified_diff(repr_lines(first), repr_lines(second), "through", "past", n=0, lineterm="")
    return "\n".join(line[:200] for line in itertools.islice(lines, 30))


def repr_lines(data: bytes) -> list[str]:
    return [repr(line) for line in data.splitlines()]


class Pair:
    """The same session twice: through the gateway, and straight."""

    def __init__(self, gateway: Gateway, server: Dovecot, protocol: str, names: tuple[str, str]) -> None:
        context = gateway.context
        through = socket.create_connection(("127.0.0.1", gateway.port(protocol, "implicit", "off")), 10)
        straight = socket.create_connection(("127.0.0.1", server.imap if protocol == "imap" else server.pop3), 10)
        self.talks = (Talk(context.wrap_socket(through, server_hostname="localhost")), Talk(straight))
        for talk, name in zip(self.talks, names, strict=True):
            talk.line()
            password = server.users[name]
            if protocol == "imap":
                talk.sock.sendall(f"login LOGIN {name} {password}\r\n".encode())
                assert talk.imap(b"login")[-1].startswith(b"login OK")
            else:
                talk.sock.sendall(f"USER {name}\r\nPASS {password}\r\n".encode())
                assert talk.line().startswith(b"+OK")
                assert talk.line().startswith(b"+OK")

    def same(self, data: bytes, read: Callable[[Talk], list[bytes]], *, ordered: bool = True) -> bytes:
        """Send to both, and compare what both answer; return it."""
        for talk in self.talks:
            talk.sock.sendall(data)
        try:
            answers = ([DIFFERS.sub(b"", one) for one in read(talk)] for talk in self.talks)
            first, second = (b"".join(one if ordered else sorted(one)) for one in answers)
        except TimeoutError as error:
            heard = [talk.unread[-200:] for talk in self.talks]
            error.add_note(f"behind {data[-300:]!r}, with {heard} unread")
            raise
        assert first == second, f"behind {data[:300]!r}: {different(first, second)}"
        return first

    def close(self) -> None:
        for talk in self.talks:
            talk.sock.close()


def imap_commands(source: random.Random) -> Iterator[bytes]:
    """Commands of every shape, literals included; WAIT stands where a continuation is to be awaited."""
    numbers = ("1", "1:*", "2:4", "*", "1,3", "7")
    items = (
        "FLAGS",
        "(UID FLAGS RFC822.SIZE)",
        "BODY.PEEK[]",
        "BODY.PEEK[HEADER.FIELDS (Subject From)]",
        "BODY.PEEK[TEXT]<0.500>",
        "(ENVELOPE BODYSTRUCTURE)",
        "BODY.PEEK[1]",
        "(BODY.PEEK[HEADER] BODY.PEEK[TEXT])",
        "BINARY.PEEK[1]",
        "RFC822.HEADER",
    )
    flags = ("\\Seen", "\\Deleted", "\\Flagged", "$Junk", "\\Answered \\Draft")
    for _ in range(source.randint(5, 25)):
        prefix = source.choice(("", "UID "))
        number = source.choice(numbers)
        mail = message(source.choice((100, 1_000, 40_000)), seed=source.randrange(1 << 30))
        plus = source.choice(("+", ""))

        def literal(data: bytes, plus: str = plus) -> bytes:
            return b"{%d%b}\r\n%b%b" % (len(data), plus.encode(), b"" if plus else WAIT, data)

        yield source.choice(
            (
                f"{prefix}FETCH {number} {source.choice(items)}".encode(),
                f"{prefix}FETCH {number} {source.choice(items)}".encode(),
                f"{prefix}STORE {number} {source.choice('+-')}FLAGS ({source.choice(flags)})".encode(),
                f"{prefix}SEARCH {source.choice(('ALL', 'DELETED', 'UNSEEN', 'LARGER 500', 'NOT FLAGGED'))}".encode(),
                b"SEARCH TEXT " + literal(b"101"),
                f"{prefix}COPY {number} Trash".encode(),
                f"{prefix}MOVE {number} ".encode() + literal(b"Trash"),
                b"APPEND INBOX (\\Seen) " + literal(mail),
                b"APPEND INBOX (\\Seen) " + literal(mail),
                b"APPEND nowhere " + literal(b"x\r\n"),
                b"EXPUNGE",
                b"NOOP",
                b"CHECK",
                b"SELECT " + source.choice((b"INBOX", b"Trash", b"nowhere", literal(b"INBOX"))),
                f"STATUS {source.choice(('Trash', 'nowhere'))} (MESSAGES UNSEEN UIDNEXT)".encode(),
                b'LIST "" "*"',
                b'LIST "" (% *) RETURN (CHILDREN)',
                b"CREATE Trash",
                b'ID ("name" "x" "version" NIL)',
                b"NAMESPACE",
                b"ENABLE CONDSTORE",
                f"SORT ({source.choice(('SUBJECT', 'REVERSE SIZE'))}) UTF-8 ALL".encode(),
                b"XYZZY",
                b"FETCH (",
                b"UID FETCH 1 (FLAGS) (CHANGEDSINCE 1)",
                b"GETQUOTAROOT INBOX",
                b"UNSELECT",
            )
        )


def play_imap(pair: Pair, source: random.Random) -> None:
    number = 0
    pair.same(b"c0 CREATE Trash\r\n", lambda talk: talk.imap(b"c0"))
    pair.same(b"s0 SELECT INBOX\r\n", lambda talk: talk.imap(b"s0"))
    pipelined: list[tuple[bytes, bytes]] = []

    def flush() -> None:
        tags = [tag for tag, _ in pipelined]
        data = b"".join(data for _, data in pipelined)
        pipelined.clear()
        if tags:
            # Dovecot answers what it cannot parse before a search that it was asked for earlier.
            pair.same(data, lambda talk: talk.imap(*tags), ordered=False)

    for command in imap_commands(source):
        number += 1
        tag = b"t%d" % number
        waits = command.split(WAIT)
        if CHANGES_NOTHING.match(command) and len(waits) == 1 and source.random() < 0.7:
            pipelined.append((tag, tag + b" " + command + b"\r\n"))
            continue
        flush()
        answer = b"+ "
        for place, piece in enumerate(waits):
            data = (tag + b" " if place == 0 else b"") + piece + (b"\r\n" if place == len(waits) - 1 else b"")
            answer = pair.same(data, lambda talk, tag=tag: talk.imap(tag))
            if not re.search(rb"^\+ ", answer, re.MULTILINE):
                break
    flush()
    if source.random() < 0.3:
        assert pair.same(b"i IDLE\r\n", lambda talk: talk.imap(b"i")).startswith((b"+ ", b"* "))
        pair.same(b"DONE\r\n", lambda talk: talk.imap(b"i"))
    pair.same(b"bye LOGOUT\r\n", lambda talk: talk.imap(b"bye"))


def play_pop3(pair: Pair, source: random.Random) -> None:
    blocks = (b"LIST", b"UIDL", b"RETR", b"TOP")
    commands = [b"STAT", b"LIST", b"UIDL", b"LIST 1", b"UIDL 2", b"RETR 1", b"RETR 3", b"TOP 1 3", b"TOP 2 0", b"NOOP"]
    commands += [b"RETR 99", b"DELE 2", b"RSET", b"XYZZY", b"LIST x", b"DELE 1", b"LAST"]
    for _ in range(source.randint(3, 15)):
        batch = source.choices(commands, k=source.choice((1, 1, 2, 6)))
        expects = [one in (b"LIST", b"UIDL") or one[:4].rstrip() in (b"RETR", b"TOP") for one in batch]
        assert all(not block or one.startswith(blocks) for one, block in zip(batch, expects, strict=True))
        pair.same(
            b"".join(one + b"\r\n" for one in batch),
            lambda talk, expects=expects: [line for block in expects for line in talk.pop3(block)],
        )
        # Dovecot hangs up after twenty failures in a row.
        pair.same(b"NOOP\r\n", lambda talk: talk.pop3(False))
    if source.random() < 0.95:
        pair.same(b"RSET\r\n", lambda talk: talk.pop3(False))
    pair.same(b"QUIT\r\n", lambda talk: talk.pop3(False))


def fill(server: Dovecot, *names: str) -> None:
    """Give each user the same six messages, and nothing else: what sessions copy grows without end."""
    for name in names:
        with socket.create_connection(("127.0.0.1", server.imap), 30) as sock:
            talk = Talk(sock)
            talk.line()
            sock.sendall(f"a LOGIN {name} {server.users[name]}\r\n".encode())
            talk.imap(b"a")
            sock.sendall(b"s SELECT INBOX\r\nf STORE 1:* +FLAGS.SILENT (\\Deleted)\r\ne EXPUNGE\r\nd DELETE Trash\r\n")
            talk.imap(b"s", b"f", b"e", b"d")
            for number in range(6):
                mail = message(200 + 3_000 * number, seed=number)
                sock.sendall(b"b APPEND INBOX {%d+}\r\n%b\r\n" % (len(mail), mail))
                assert talk.imap(b"b")[-1].startswith(b"b OK")


@pytest.mark.parametrize(("protocol", "play"), [("imap", play_imap), ("pop3", play_pop3)])
def test_random_sessions_are_the_same_through_the_gateway_and_past_it(
    gateway: Gateway,
    server: Dovecot,
    user: tuple[str, str],
    other: tuple[str, str],
    protocol: str,
    play: Callable[[Pair, random.Random], None],
) -> None:
    names = user[0], other[0]
    seed = random.SystemRandom().randrange(1 << 32)
    for number in range(SESSIONS):
        if number % 20 == 0:
            fill(server, *names)
        source = random.Random(seed + number)
        pair = Pair(gateway, server, protocol, names)
        try:
            play(pair, source)
        except (AssertionError, OSError) as error:
            error.add_note(f"in the session with seed {seed + number}")
            raise
        finally:
            pair.close()

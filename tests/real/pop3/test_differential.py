"""The same random POP3 sessions with Dovecot's own POP3, and with the gateway before Dovecot's IMAP.

Two users have copies of one Maildir, with the same UIDs and the same UIDVALIDITY. Replies, lists, unique-ids and
messages must be the same bytes, and both mailboxes afterwards; what may differ is named in the two tables below.
``--full`` plays a thousand sessions.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import FULL, needed
from tests.support import secrets, store_dovecot
from tests.support.pop3_client import Pop3
from tests.support.servers import free_ports, mailgate
from tests.support.store_dovecot import DovecotStore

pytestmark = pytest.mark.real

SESSIONS_EACH = 4
EXAMPLES = 250 if FULL else 10

DOVECOT = """
mail_max_userip_connections = 10000
# 1. mailgate replaces NULs by default, Dovecot when it is asked to.
pop3_client_workarounds = outlook-no-nuls
"""
POLICY = """
# 2. mailgate hides by default what others have marked as deleted; Dovecot shows it.
show_deleted = true
"""
# 3. Dovecot sets \\Seen when a client is gone without QUIT, mailgate need not: \\Seen of what was retrieved in such
#    a session is not compared, and is set for both afterwards.
# 4. Dovecot's RSET forgets as well what was retrieved, RFC 1939 speaks of what was deleted only: the same is done.
# 5. A message that is a header without the blank line behind it: TOP of the gateway shows one, since IMAP's
#    BODY[HEADER] has one always (RFC 9051 §6.4.5.1).
# 6. Dovecot ends a session with 20 refused commands in a row, so that NOOPs are said in between.
# 7. The text behind +OK and -ERR is anybody's, but for response codes and the numbers of STAT, LIST n and UIDL n.

HEAD = b"From: a@example.org\nSubject: differential\n"
MESSAGES = {
    "plain": HEAD + b"\none\ntwo\nthree\n",
    "crlf": (HEAD + b"\none\ntwo\n").replace(b"\n", b"\r\n"),
    "mixed line ends": HEAD + b"\r\none\r\ntwo\nthree\r\n\nfive\n",
    "bare CR": HEAD + b"\none\rtwo\r\rthree\n\r\n",
    "ends with CR": HEAD + b"\none\r",
    "dots": HEAD + b"\n.\n..\n...\n.one\n\n.\n",
    "dot and no end": HEAD + b"\none\n.",
    "no end": HEAD + b"\none\ntwo",
    "empty body": HEAD + b"\n",
    "no blank line": HEAD,
    "header without end": b"Subject: differential",
    "no header": b"\nno header at all\n",
    "line end alone": b"\n",
    "NUL": HEAD + b"\none\0two\n\0\n.\0\n\0",
    "8 bits": HEAD + b"\n" + bytes(range(128, 256)) + b"\n",
    "UTF-8 header": "Subject: Grüße\n\nüöä\n".encode(),
    "long line": HEAD + b"\n" + b"x" * 100_000 + b"\n." + b"y" * 70_000,
    "long header": b"X-Long: " + b"h" * 20_000 + b"\n" + HEAD + b"\nbody\n",
    "folded header": b"Subject: one\n two\n\tthree\n\nbody\n.\n",
    "many blank lines": HEAD + b"\n" * 50 + b"end",
    "many dots": HEAD + b"\n" + b".\n..\nx\n" * 20_000,
    "large": HEAD + b"\n" + (b"z" * 76 + b"\n") * 13_618,
}

SINGLE = b"LIST", b"UIDL"


def commands(count: int) -> st.SearchStrategy[bytes]:
    """Return commands for a maildrop of so many messages; some numbers are of none."""
    number = st.integers(1, count + 1).map(lambda one: b"%d" % one)
    odd = st.sampled_from([b"0", b"-1", b"x", b"1x", b"99999999999999999999", b"", b"4294967297"])
    lines = st.sampled_from([b"0", b"1", b"2", b"5", b"100", b"99999999", b"-1", b"x", b""])
    with_number = st.builds(b"%b %b".__mod__, st.tuples(st.sampled_from([b"LIST", b"UIDL", b"RETR", b"DELE"]), number))
    with_odd = st.builds(
        b"%b %b".__mod__, st.tuples(st.sampled_from([b"LIST", b"UIDL", b"RETR", b"DELE", b"TOP"]), odd)
    )
    top = st.builds(b"TOP %b %b".__mod__, st.tuples(number, lines))
    alone = st.sampled_from([b"STAT", b"LIST", b"UIDL", b"NOOP", b"RSET", b"stat", b"XYZZY", b"RETR", b"DELE", b"TOP"])
    return st.one_of(with_number, with_number, with_number, top, alone, alone, with_odd)


@st.composite
def bursts(draw: st.DrawFn, count: int) -> list[list[bytes]]:
    """Return what one session says: commands one by one, and several at once."""
    return draw(st.lists(st.lists(commands(count), min_size=1, max_size=6), max_size=8))


OTHERS = st.sampled_from(["append", "expunge", "seen", "unseen", "flagged", "deleted", "undeleted"])


@dataclass
class Play:
    """A mailbox and some sessions with it: what each says, how it ends, and what another client does then."""

    messages: list[str]
    sessions: list[tuple[list[list[bytes]], str, list[tuple[str, int]]]] = field(default_factory=list)


@st.composite
def plays(draw: st.DrawFn) -> Play:
    messages = draw(st.lists(st.sampled_from([*MESSAGES]), max_size=8))
    other = st.lists(st.tuples(OTHERS, st.integers(0, 20)), max_size=3)
    end = st.sampled_from(["quit", "quit", "quit", "close", "vanish"])
    return Play(
        messages,
        [(draw(bursts(len(messages))), draw(end), draw(other)) for _ in range(SESSIONS_EACH)],
    )


@dataclass
class Sides:
    """Dovecot, its POP3, and the gateway's."""

    store: DovecotStore
    ports: tuple[int, int]
    users: Iterator[str]

    def pair(self, messages: list[bytes]) -> tuple[str, str]:
        """Return two users with copies of the same Maildir."""
        first, *others = (next(self.users) for _ in range(3))
        for one in messages:
            self.store.deliver(first, one)
        with self.store.client(first):
            pass
        source = self.store.maildir(first)
        for other in others:
            target = self.store.maildir(other)
            # Indexes are made anew by each; the list of UIDs is what makes them the same.
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("dovecot.index*", "dovecot-uidvalidity*"))
            for place in (target.parent, target, *target.rglob("*")):
                shutil.chown(place, *self.store.owner)
        return others[0], others[1]


@pytest.fixture(scope="module")
def sides(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    with tempfile.TemporaryDirectory(prefix="mailgate-differential-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        key = authority.with_name("key.pem")
        with store_dovecot.run(needed("dovecot"), folder, authority, key, DOVECOT) as store:
            (port,) = free_ports(1)
            config = f"""\
hostname = "gate.example.org"
[[listener]]
name = "pop3"
protocol = "pop3"
bind = ["127.0.0.1:{port}"]
tls = "off"
[[route]]
match.listener = ["pop3"]
pool = "store"
[pool.store]
protocol = "imap"
servers = ["127.0.0.1:{store.imap}"]
tls = "off"
[limits]
sessions_per_address = 1000
half_open_per_address = 500
[pop3]
{POLICY}
"""
            with mailgate(tmp_path_factory.mktemp("differential"), config, [port]) as program:
                assert store.pop3 is not None
                users = iter(store.new_user, None)
                yield Sides(store, (store.pop3, port), users)
            written = program.output().encode()
        assert secrets.leaks(written, set(store.users.values())) == []
        assert b"Traceback" not in written


def shows_a_block(command: bytes) -> bool:
    verb, *rest = command.split()
    return verb.upper() in (b"RETR", b"TOP") or (verb.upper() in SINGLE and not rest)


def reply(client: Pop3, command: bytes) -> tuple[bytes, bytes]:
    """Read a reply; return what must be the same of its first line, and its further lines."""
    status = client.status()
    if status.startswith(b"-ERR"):
        text = status[5:]
        return b"-ERR " + (text.partition(b"]")[0] if text.startswith(b"[") else b""), b""
    if shows_a_block(command):
        return b"+OK", client.block()
    if command.split()[0].upper() in (b"STAT", *SINGLE):
        return b" ".join(status.split()[:3]), b""
    return b"+OK", b""


def without_blank_line(message: bytes) -> bool:
    return bool(message) and not message.startswith(b"\r\n") and b"\r\n\r\n" not in message


def same(first: object, second: object, where: object) -> None:
    assert first == second, f"{where}: Dovecot says {repr(first)[:300]}, mailgate {repr(second)[:300]}"


def play_session(sides: Sides, pair: tuple[str, str], said: list[list[bytes]], end: str) -> set[int]:
    """Play one session with both sides; return the UIDs of what was retrieved without a QUIT, or before a RSET."""
    retrieved: set[int] = set()
    forgotten: set[int] = set()
    clients = [Pop3(port).login(user, sides.store.users[user]) for port, user in zip(sides.ports, pair, strict=True)]
    try:
        # The maildrop is that of the login; Dovecot looks at it when it is first asked.
        for burst in ([b"STAT"], [b"UIDL"], *itertools.chain.from_iterable((one, [b"NOOP"]) for one in said)):
            for client in clients:
                client.send(*burst)
            for command in burst:
                first, second = (reply(client, command) for client in clients)
                if command.startswith(b"TOP") and without_blank_line(first[1]) and second[1] == first[1] + b"\r\n":
                    continue
                same(first, second, command)
                if command == b"UIDL" and burst == [b"UIDL"]:
                    uids = [int(line.split()[1][:8], 16) for line in first[1].splitlines()]
                if command.startswith(b"RETR") and first[0] == b"+OK":
                    retrieved.add(uids[int(command.split()[1]) - 1])
                elif command == b"RSET":
                    forgotten |= retrieved
        if end == "quit":
            same(*(client.quit()[:3] for client in clients), "QUIT")
            return forgotten
        for client in clients:
            client.vanish() if end == "vanish" else client.sock.close()
        return retrieved
    finally:
        for client in clients:
            client.sock.close()


def play_other(sides: Sides, pair: tuple[str, str], what: str, which: int) -> None:
    """Let another client change both mailboxes in the same way."""
    if what == "append":
        message = [*MESSAGES.values()][which % 6].replace(b"\r\n", b"\n").replace(b"\r", b"").replace(b"\n", b"\r\n")
        for user in pair:
            sides.store.append(user, message, flags="\\Flagged" if which % 2 else "")
        return
    uids = [one.uid for one in sides.store.contents(pair[0])]
    if not uids:
        return
    uid = uids[which % len(uids)]
    for user in pair:
        if what == "expunge":
            sides.store.expunge(user, [uid])
        else:
            sign = "-" if what.startswith("un") else "+"
            sides.store.set_flags(user, [uid], "\\" + what.removeprefix("un").capitalize(), sign)


def compare_stores(sides: Sides, pair: tuple[str, str], but_seen: set[int]) -> None:
    first, second = (
        [
            one._replace(flags=one.flags - {"\\Seen"}) if one.uid in but_seen else one
            for one in sides.store.contents(user)
        ]
        for user in pair
    )
    for one, other in itertools.zip_longest(first, second):
        same(one, other, "the mailbox afterwards")


@given(play=plays())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not FULL,
    phases=[Phase.explicit, Phase.generate] if not FULL else [Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[*HealthCheck],
)
def test_random_sessions_are_the_same(sides: Sides, play: Play) -> None:
    pair = sides.pair([MESSAGES[name] for name in play.messages])
    compare_stores(sides, pair, set())
    for said, end, others in play.sessions:
        retrieved = play_session(sides, pair, said, end)
        compare_stores(sides, pair, retrieved)
        left = {one.uid for one in sides.store.contents(pair[0])} & retrieved
        if left:
            for user in pair:
                sides.store.set_flags(user, sorted(left), "\\Seen")
        for what, which in others:
            play_other(sides, pair, what, which)
        compare_stores(sides, pair, set())


@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_is_the_same(sides: Sides, name: str) -> None:
    pair = sides.pair([MESSAGES[name]])
    tops = [b"TOP 1 %d" % lines for lines in (0, 1, 2, 3, 49, 50, 51, 13_618, 60_000, 99_999_999)]
    play_session(sides, pair, [[b"LIST"], [b"RETR 1"], tops, [b"RETR 1", b"DELE 1", b"RETR 1"]], "quit")
    compare_stores(sides, pair, set())
    assert sides.store.contents(pair[1]) == []

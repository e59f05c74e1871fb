"""Traces: what is in them and what never is, their files, and how they end."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from mailgate.model import Peer, Protocol, Session
from mailgate.observe import trace
from mailgate.observe.trace import LINE_LIMIT, LONGEST, TRACES, Trace, TraceError, Tracer


class World:
    """A tracer with a clock that is set by hand."""

    def __init__(self, folder: Path | None) -> None:
        self.now = 1000.0
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.tracer = Tracer(folder, lambda: self.now, lambda action, facts: self.audited.append((action, facts)))

    def start(self, **asked: Any) -> dict[str, object]:
        return self.tracer.start(
            **{"user": "joe@example.org", "address": None, "seconds": 60, "by": "admin"} | asked  # type: ignore[arg-type]
        )

    def session(
        self, protocol: Protocol = Protocol.IMAP, user: bytes | None = b"joe@example.org", address: str = "192.0.2.1"
    ) -> Session:
        return Session("5e5510", protocol, "imaps", Peer(address, 4711), 0.0, user=user)

    def lines(self) -> list[str]:
        """Return the lines of all files without their times."""
        found = []
        for path in sorted(self.tracer.directory.glob("*.trace")):  # type: ignore[union-attr]
            for line in path.read_text("utf-8").splitlines():
                assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 5e5510 [CS]: ", line)
                found.append(line.split(" ", 2)[2])
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "traces")
    yield made  # type: ignore[misc]
    made.tracer.close()


def play(tracing: Trace | None, dialogue: list[tuple[str, bytes]], step: int) -> None:
    assert tracing is not None
    for who, data in dialogue:
        feed = tracing.client if who == "C" else tracing.upstream
        for at in range(0, len(data), step):
            feed(data[at : at + step])


IMAP, POP3 = Protocol.IMAP, Protocol.POP3


@pytest.mark.parametrize("step", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("protocol", "dialogue", "shown"),
    [
        pytest.param(
            IMAP,
            [("C", b"a1 NOOP\r\n"), ("S", b"* 3 EXISTS\r\na1 OK done\r\n")],
            ["C: a1 NOOP", "S: * 3 EXISTS", "S: a1 OK done"],
            id="lines",
        ),
        pytest.param(
            IMAP,
            [("S", b"* 1 FETCH (BODY[] {13}\r\nSubject: x\r\n\r FLAGS ())\r\n")],
            ["S: * 1 FETCH (BODY[] {13} <13 bytes>", "S:  FLAGS ())"],
            id="a message",
        ),
        pytest.param(
            IMAP,
            [("C", b"a APPEND x {5+}\r\nhello\r\n"), ("C", b"b SEARCH TEXT {3}\r\nfoo {2}\r\nxy\r\n")],
            ["C: a APPEND x {5+} <5 bytes>", "C: ", "C: b SEARCH TEXT {3} <3 bytes>", "C:  {2} <2 bytes>", "C: "],
            id="literals of a client",
        ),
        pytest.param(
            IMAP,
            [("S", b"* OK see {5}\r\n+ go {3}\r\na OK {9}\r\n* 2 EXISTS\r\n")],
            ["S: * OK see {5}", "S: + go {3}", "S: a OK {9}", "S: * 2 EXISTS"],
            id="what only looks like a literal",
        ),
        pytest.param(
            IMAP,
            [
                ("C", b"a LOGIN joe hunter2\r\n"),
                ("C", b"b login {3}\r\njoe {7}\r\nhunter2\r\n"),
                ("C", b"c AUTHENTICATE PLAIN AGh1bnRlcjI=\r\n"),
                ("C", b" d  LOGIN joe hunter2\r\n"),
                ("C", b"e\tLOGIN\tjoe hunter2\r\n"),
                ("C", b"LOGIN joe hunter2\r\n"),
                ("C", b"f NOOP\r\n"),
            ],
            [
                "C: a LOGIN <hidden>",
                "C: b login <hidden> <3 bytes>",
                "C: <hidden> <7 bytes>",
                "C: <hidden>",
                "C: c AUTHENTICATE <hidden>",
                "C:  d  LOGIN <hidden>",
                r"C: e\tLOGIN <hidden>",
                "C: LOGIN <hidden>",
                "C: f NOOP",
            ],
            id="credentials in IMAP",
        ),
        pytest.param(
            IMAP,
            [("C", b"a LOGIN joe " + b"hunter2 " * 1000 + b"\r\n"), ("C", b"b NOOP\r\n")],
            ["C: a LOGIN <hidden>", "C: b NOOP"],
            id="a credential without end in IMAP",
        ),
        pytest.param(
            POP3,
            [
                ("C", b"RETR 1\r\nTOP 2 0\r\nNOOP\r\nRETR 9\r\n"),
                ("S", b"+OK 15 octets\r\nSubject: x\r\n\r\n..\r\n.\r\n+OK\r\nHello\r\n.\r\n+OK\r\n-ERR no such\r\n"),
            ],
            [
                *("C: RETR 1", "C: TOP 2 0", "C: NOOP", "C: RETR 9"),
                *("S: +OK 15 octets", "S: <18 bytes>", "S: .", "S: +OK", "S: <7 bytes>", "S: .", "S: +OK"),
                "S: -ERR no such",
            ],
            id="messages in POP3",
        ),
        pytest.param(
            POP3,
            [("C", b"UIDL\r\n"), ("S", b"+OK\r\n1 abc\r\n.\r\n")],
            ["C: UIDL", "S: +OK", "S: 1 abc", "S: ."],
            id="a list in POP3",
        ),
        pytest.param(
            POP3,
            [
                (
                    "C",
                    b"pass hunter2\r\nAUTH PLAIN AGh1bnRlcjI=\r\nAPOP joe hunter2\r\nPASS "
                    + b"hunter2 " * 1000
                    + b"\r\n",
                )
            ],
            ["C: pass <hidden>", "C: AUTH <hidden>", "C: APOP <hidden>", "C: PASS <hidden>"],
            id="credentials in POP3",
        ),
        pytest.param(
            IMAP,
            [("C", b"a AUTHENTICATE PLAIN\r\n"), ("S", b"a NO\r\n"), ("C", b"AGh1bnRlcjI=\r\nDone\r\n\r\nb NOOP\r\n")],
            ["C: a AUTHENTICATE <hidden>", "S: a NO", "C: <hidden>", "C: Done", "C: ", "C: b NOOP"],
            id="a response that comes too late in IMAP",
        ),
        pytest.param(
            POP3,
            [("C", b"AUTH PLAIN\r\n"), ("S", b"-ERR\r\n"), ("C", b"AGh1bnRlcjI=\r\nNOOP\r\n")],
            ["C: AUTH <hidden>", "S: -ERR", "C: <hidden>", "C: NOOP"],
            id="a response that comes too late in POP3",
        ),
        pytest.param(
            POP3,
            [("C", b"RETR 1\r\n"), ("S", b"+OK\r\n" + b"x" * 10_000 + b"\r\n.\r\n")],
            ["C: RETR 1", "S: +OK", "S: <10002 bytes>", "S: ."],
            id="a long line of a message in POP3",
        ),
        pytest.param(
            IMAP,
            [("C", b"a \x1b[2Jx\xff\xc3\xa4\r\n")],
            [r"C: a \x1b[2Jx\\xff\xe4"],
            id="control characters",
        ),
    ],
)
def test_what_a_trace_shows(
    protocol: Protocol, dialogue: list[tuple[str, bytes]], shown: list[str], step: int, world: World
) -> None:
    world.start()
    play(world.tracer.for_session(world.session(protocol)), dialogue, step)
    assert world.lines() == shown
    assert "hunter2" not in "".join(world.lines())


@pytest.mark.parametrize(
    ("protocol", "dialogue", "shown"),
    [
        (
            IMAP,
            [("S", b"* 1 FETCH (BODY[] {5}\r\nhello)\r\n"), ("C", b"a LOGIN {7}\r\nhunter2 x\r\n")],
            ["S: * 1 FETCH (BODY[] {5}", "S: hello", "S: )", "C: a LOGIN <hidden>", "C: <hidden>"],
        ),
        (
            POP3,
            [("C", b"RETR 1\r\n"), ("S", b"+OK\r\nSubject: x\r\n.\r\n")],
            ["C: RETR 1", "S: +OK", "S: Subject: x", "S: ."],
        ),
    ],
)
def test_bodies_are_shown_when_asked_for(
    protocol: Protocol, dialogue: list[tuple[str, bytes]], shown: list[str], world: World
) -> None:
    assert world.start(bodies=True)["bodies"] is True
    play(world.tracer.for_session(world.session(protocol)), dialogue, 1 << 20)
    assert world.lines() == shown


def test_a_line_without_end_costs_nothing(world: World) -> None:
    world.start()
    for protocol in Protocol:
        tracing = world.tracer.for_session(world.session(protocol))
        assert tracing is not None
        for _ in range(100):
            tracing.client(b"x" * 10_000)
            tracing.upstream(b"y" * 10_000)
        tracing.client(b"\r\n")
        tracing.upstream(b"\r\n")
    assert len(world.lines()) == 4
    assert max(map(len, world.lines())) <= LINE_LIMIT + 3


# ---------------------------------------------------------------- whom it is of


@pytest.mark.parametrize(
    ("asked", "session", "traced"),
    [
        ({"user": "joe@example.org"}, {}, True),
        ({"user": "JOE@Example.ORG"}, {"user": b"joe@EXAMPLE.org"}, True),
        ({"user": "joe"}, {}, False),
        ({"user": "joe@example.org"}, {"user": None}, False),
        ({"user": "j\\xffe"}, {"user": b"j\xffe"}, True),
        ({"user": None, "address": "192.0.2.1"}, {"user": None}, True),
        ({"user": None, "address": "192.0.2.1"}, {"address": "192.0.2.10"}, False),
        ({"user": None, "address": "::ffff:192.0.2.1"}, {}, True),
        ({"user": None, "address": "2001:DB8:0::1"}, {"address": "2001:db8::1"}, True),
        ({"user": None, "address": "unix"}, {"address": "unix"}, True),
    ],
)
def test_whose_sessions_are_traced(asked: Any, session: Any, traced: bool, world: World) -> None:
    assert world.tracer.for_session(world.session(**session)) is None
    world.start(**asked)
    assert (world.tracer.for_session(world.session(**session)) is not None) is traced


# ---------------------------------------------------------------- files


def test_files_are_for_their_owner_alone(tmp_path: Path, world: World) -> None:
    (tmp_path / "traces").mkdir(mode=0o755)
    facts = world.start()
    path = Path(str(facts["file"]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{12}\.trace", path.name)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"user": None}, "name a user or an address"),
        ({"address": "192.0.2.1"}, "name a user or an address"),
        (
            {"user": None, "address": "192.0.2.300"},
            "not an IP address; connections over Unix sockets have the address unix",
        ),
        ({"seconds": 0}, "a trace runs from 1 to 86400 seconds"),
        ({"seconds": LONGEST + 1}, "a trace runs from 1 to 86400 seconds"),
        ({"seconds": float("nan")}, "a trace runs from 1 to 86400 seconds"),
    ],
)
def test_what_cannot_be_traced(asked: Any, problem: str, world: World) -> None:
    with pytest.raises(TraceError) as caught:
        world.start(**asked)
    assert str(caught.value) == problem
    assert world.audited == []


def test_traces_that_are_off_or_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"traces are off: set trace\.directory"):
        World(None).start()
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match=r"File exists|Not a directory"):
        World(tmp_path / "file").start()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"user": "joe@example.org"}, {"user": "Joe@Example.org"}),
        ({"user": None, "address": "2001:db8::1"}, {"user": None, "address": "2001:DB8::0:1"}),
    ],
)
def test_nobody_is_traced_twice_at_a_time(first: Any, second: Any, world: World) -> None:
    running = world.start(**first)["id"]
    with pytest.raises(TraceError, match=f"this is traced already: {running}"):
        world.start(**second)
    world.now += 61
    assert world.start(**second)["id"] != running


def test_so_many_traces_at_a_time(world: World) -> None:
    for number in range(TRACES):
        world.start(user=f"joe{number}")
    with pytest.raises(TraceError, match="16 traces run already; stop one first"):
        world.start()
    world.now += 61
    world.start()
    assert len(world.tracer.list()) == 1


# ---------------------------------------------------------------- how it ends


def test_a_trace_ends_by_itself(world: World) -> None:
    facts = world.start(seconds=60)
    assert (facts["remaining"], facts["by"], facts["user"], facts["address"]) == (60, "admin", "joe@example.org", None)
    tracing = world.tracer.for_session(world.session())
    assert tracing is not None
    world.now += 59.5
    tracing.client(b"a NOOP\r\n")
    assert [one["remaining"] for one in world.tracer.list()] == [0]
    world.now += 0.5
    tracing.client(b"b NOOP\r\n")
    tracing.client(b"c NOOP\r\n")
    assert world.lines() == ["C: a NOOP"]
    assert world.tracer.list() == []
    assert [action for action, _ in world.audited] == ["trace started", "trace stopped"]
    assert world.audited[1][1]["stopped_by"] == "time limit"


def test_an_old_trace_is_not_for_new_sessions(world: World) -> None:
    world.start(seconds=60)
    world.now += 60
    assert world.tracer.for_session(world.session()) is None
    assert world.audited[-1][1]["stopped_by"] == "time limit"


def test_a_trace_is_stopped_by_hand(world: World) -> None:
    name = str(world.start()["id"])
    tracing = world.tracer.for_session(world.session())
    assert tracing is not None
    assert world.tracer.stop("unknown", "admin") is False
    assert world.tracer.stop(name, "admin") is True
    assert world.tracer.stop(name, "admin") is False
    tracing.client(b"a NOOP\r\n")
    assert world.lines() == []
    world.start()
    world.tracer.close()
    assert [facts.get("stopped_by") for _, facts in world.audited] == [None, "admin", None, "shutdown"]


def test_a_trace_that_grows_too_large(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "FILE_LIMIT", 200)
    world.start()
    tracing = world.tracer.for_session(world.session())
    assert tracing is not None
    for _ in range(10):
        tracing.client(b"a NOOP\r\n")
    assert 1 <= len(world.lines()) <= 4
    assert world.audited[-1][1]["stopped_by"] == "size limit"


def test_a_full_disk_ends_the_trace_and_nothing_else(world: World) -> None:
    world.start()
    tracing = world.tracer.for_session(world.session())
    assert tracing is not None

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            pass

    active = next(iter(world.tracer._active.values()))
    active.file.close()
    active.file = Full()  # type: ignore[assignment]
    tracing.client(b"a NOOP\r\n")
    tracing.client(b"b NOOP\r\n")
    assert world.audited[-1][1]["stopped_by"] == "No space left on device"
    assert world.tracer.list() == []


# ---------------------------------------------------------------- several workers


def joined(world: World, facts: dict[str, object], **changes: Any) -> World:
    """Return the world of another worker that takes part in a trace."""
    other = World(world.tracer.directory)
    known: dict[str, Any] = {key: facts[key] for key in ("user", "address", "bodies", "by")}
    known |= {"name": facts["id"], "seconds": facts["remaining"], "path": Path(str(facts["file"]))}
    other.tracer.join(**known | changes)
    return other


def test_two_workers_write_whole_lines_to_one_file(world: World) -> None:
    facts = world.start()
    other = joined(world, facts)
    assert other.tracer.list() == [facts]
    assert str(facts["id"]) in other.tracer
    for number in range(3):
        for one in (world, other):
            tracing = one.tracer.for_session(one.session())
            assert tracing is not None
            tracing.client(b"a%d NOOP\r\n" % number)
    assert world.lines() == [f"C: a{number} NOOP" for number in range(3) for _ in range(2)]
    assert other.tracer.stop(str(facts["id"]), "admin", silent=True)
    assert other.audited == []
    other.tracer.close()


def test_who_began_a_trace_does_not_join_it(world: World) -> None:
    facts = world.start()
    before = len(os.listdir("/proc/self/fd"))
    world.tracer.join(
        name=str(facts["id"]), user=None, address=None, seconds=1, bodies=True, by="", path=Path(str(facts["file"]))
    )
    assert world.tracer.list() == [facts]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", ["list", "write", "close"])
def test_the_end_of_its_time_is_told_by_who_began_it(how: str, world: World) -> None:
    other = joined(world, world.start())
    tracing = other.tracer.for_session(other.session())
    assert tracing is not None
    if how == "close":
        other.tracer.close()
    else:
        other.now += 60
        assert tracing.client(b"a NOOP\r\n") is None if how == "write" else other.tracer.list() == []
    assert other.audited == []
    assert other.tracer.list() == []


def test_what_only_one_of_them_meets_is_told_by_that_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "FILE_LIMIT", 10)
    other = joined(world, world.start())
    tracing = other.tracer.for_session(other.session())
    assert tracing is not None
    tracing.client(b"a NOOP\r\n")
    assert other.audited[-1][1]["stopped_by"] == "size limit"


def test_a_file_that_is_gone_or_no_file_is_not_joined(world: World, tmp_path: Path) -> None:
    facts = world.start()
    with pytest.raises(TraceError, match="No such file"):
        joined(world, facts, path=tmp_path / "absent")
    (tmp_path / "link").symlink_to(str(facts["file"]))
    with pytest.raises(TraceError):
        joined(world, facts, path=tmp_path / "link")

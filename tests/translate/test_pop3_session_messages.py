"""Messages on their way from an IMAP server to a POP3 client: whole, their tops, and never half of one."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mailgate.model import End, Side
from mailgate.translate import pop3_message
from tests.translate.sessions import World, leaving, on_stage, played, whole

# -------------------------------------------------------------------- messages


async def test_a_message_is_sent_as_pop3_wants_it(autojump_clock: object) -> None:
    await played(f"""
        C: RETR 2
        {whole("A: b^^.dot^..^x@y~end", 12, "m1")}
        S: +OK 40 octets
        S: A: b
        S:
        S: ..dot
        S: ...
        S: x\\x80y
        S: end
        S: .
    """)


async def test_nul_is_kept_where_that_is_wanted(autojump_clock: object) -> None:
    await played(f"C: RETR 2\n{whole('x@y', 12, 'm1')}\nS: +OK <*>\nS: x\\0y\nS: .", World(nul="keep"))


async def test_ok_waits_for_the_message_to_begin(autojump_clock: object) -> None:
    await played("""
        C: RETR 2
        G: m1 UID FETCH 12 (UID BODY.PEEK[])
        U: * 4 EXISTS
        U: * 1 FETCH (FLAGS (\\Seen))
        silent: client
        U: * 1 FETCH (UID 12 BODY[] {6}
        silent: client
        U: a\\r\\n\\
        silent: client
        U: b\\r\\n\\
        S: +OK 40 octets
        S: a
        silent: client
        U: )\\r\\nm1 OK done
        S: b
        S: .
    """)


@pytest.mark.parametrize(
    "answer",
    [
        "m1 OK done",
        "* 1 FETCH (UID 12 BODY[] NIL)\\r\\nm1 OK done",
        '* 1 FETCH (UID 12 BODY[] "")\\r\\nm1 OK done',
        "* 1 EXPUNGE\\r\\nm1 OK done",
        "m1 NO gone",
        "m1 NO [EXPUNGEISSUED] gone",
    ],
)
@pytest.mark.parametrize("command", ["RETR 2", "TOP 2 0", "TOP 2 9"])
async def test_a_message_that_another_client_removed(autojump_clock: object, answer: str, command: str) -> None:
    section = {"RETR 2": "BODY.PEEK[]", "TOP 2 0": "BODY.PEEK[HEADER]"}.get(command, "BODY.PEEK[]<0.9092>")
    answer = answer.replace("BODY[]", section.replace(".PEEK", "").replace(".9092", ""))
    world = await played(f"""
        C: {command}
        G: m1 UID FETCH 12 (UID {section})
        U: {answer}
        S: -ERR This message was removed by another client.
        C: STAT
        S: +OK 3 120
        C: DELE 2
        S: +OK <*>
    """)
    assert world.finished[0].endswith("err")


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("NO [UNAVAILABLE] x", "[SYS/TEMP] The mailbox is not available at the moment."),
        ("NO [LIMIT] x", "[SYS/TEMP] Too much was asked of the mail server, wait."),
        ("NO [NOPERM] x", "[SYS/PERM] The mailbox may not be opened."),
        ("NO [INUSE] x", "[IN-USE] The mailbox is in use by another session."),
        ("BAD x", "[SYS/TEMP] The mailbox is not available at the moment."),
    ],
)
async def test_a_server_that_refuses_a_message(autojump_clock: object, answer: str, reply: str) -> None:
    await played(f"""
        C: RETR 2
        G: m1 UID FETCH 12 (UID BODY.PEEK[])
        U: m1 {answer}
        S: -ERR {reply}
        C: RETR 2
        {whole("a~", 12, "m2")}
        S: +OK 40 octets
        S: a
        S: .
    """)


BODY = b"* 1 FETCH (UID 12 BODY[] {12}\r\nfirst\r\nlast.)\r\nm1 OK done\r\n"
BEGINS = BODY.index(b"first")


@pytest.mark.parametrize("cut", range(len(BODY) - 1))
@pytest.mark.parametrize("lost", ["close", "reset"])
@pytest.mark.parametrize("step", [1, len(BODY)])
async def test_a_server_that_goes_within_a_message_leaves_no_whole_one(
    autojump_clock: object, cut: int, lost: str, step: int
) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play("C: RETR 2\nG: m1 UID FETCH 12 (UID BODY.PEEK[])")
        assert world.stage.upstream is not None
        for start in range(0, cut, step):
            await world.stage.upstream.stream.send_all(BODY[start : min(start + step, cut)])
            await trio.testing.wait_all_tasks_blocked()
        if cut >= BEGINS + 2 and step == 1:
            # Some of the message went out: only the end of the connection says that it is not whole.
            await world.stage.play(f"S: +OK 40 octets\n{lost}: upstream")
            heard = bytes(world.stage.client.unread)
            while data := await world.stage.client.stream.receive_some():
                heard += data
            world.stage.client.unread.clear()
            assert b"first\r\nlast"[: len(heard)] == heard
        elif cut >= BEGINS:
            await world.stage.play(f"{lost}: upstream\nS: -ERR [SYS/TEMP] <*>\nC: NOOP\nS: +OK <*>")
        else:
            await world.stage.play(f"""
                {lost}: upstream
                login: joe COMMAND
                G: m1 SELECT "INBOX"
                U: * 3 EXISTS\\r\\n* OK [UIDVALIDITY 7] x\\r\\nm1 OK x
                {whole("a~", 12, "m2")}
                S: +OK 40 octets
                S: a
                S: .
            """)
            return
    assert not world.drop.seen()
    assert world.finished[0] == "RETR err"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("* 1 EXISTS\\r\\nm1 NO [SERVERBUG] x", "mailbox_refused"),
        ("m1 BAD x", "mailbox_refused"),
        ("* BYE x", "proxy_dest_remote_failure"),
        ("rubbish", "proxy_dest_protocol_failure"),
        ("* OK [UIDVALIDITY 8] x", "mailbox_changed"),
    ],
)
async def test_a_message_that_the_server_takes_back_is_not_ended(
    autojump_clock: object, last: str, reason: str
) -> None:
    world = await played(f"""
        C: RETR 2
        G: m1 UID FETCH 12 (UID BODY.PEEK[])
        U: * 1 FETCH (UID 12 BODY[] {{5}}
        U: a
        silent: client
        U: b\\
        S: +OK 40 octets
        S: a
        U: \\n)
        S: b\\
        U: {last}
        closed: client
    """)
    assert world.end == End(Side.SERVER, reason)


@pytest.mark.parametrize("last", ["m1 NO [SERVERBUG] x", "m1 BAD x", "* BYE x", "rubbish"])
async def test_a_short_message_that_the_server_takes_back_is_refused(autojump_clock: object, last: str) -> None:
    world = await played(f"""
        C: STAT\\r\\nRETR 2
        G: m1 UID FETCH 12 (UID BODY.PEEK[])
        U: * 1 FETCH (UID 12 BODY[] {{3}}\\r\\na\\r\\n)
        U: {last}
        S: +OK 3 120
        S: -ERR [SYS/TEMP] The mailbox is not available at the moment.
        C: NOOP
        S: +OK <*>
    """)
    assert not world.drop.seen()


async def test_a_server_that_falls_silent_within_a_message(autojump_clock: object) -> None:
    world = await played("""
        C: RETR 2
        G: m1 UID FETCH 12 (UID BODY.PEEK[])
        U: * 1 FETCH (UID 12 BODY[] {9}
        U: a
        silent: client
        U: b
        S: +OK 40 octets
        S: a
        wait: 61
        closed: client
    """)
    assert world.end == End(Side.SERVER, "proxy_dest_remote_failure")


async def test_a_size_that_was_told_wrong_does_no_harm(autojump_clock: object) -> None:
    world = World(size="cache")
    await played(
        f"""
        C: RETR 2
        {whole("a^b^", 12, "m1")}
        S: +OK 40 octets
        S: a
        S: b
        S: .
        C: LIST 2
        S: +OK 2 40
        {leaving("m2")}
        """,
        world,
    )
    memory = await world.memories.load(b"INBOX")
    assert memory is not None
    assert memory.measured.get(12) == 6


@pytest.mark.parametrize("size", ["trust", "exact"])
async def test_sizes_are_learnt_where_that_is_wanted(autojump_clock: object, size: str) -> None:
    world = World(size=size)
    await played(f"C: RETR 2\n{whole('a', 12, 'm1')}\nS: +OK 40 octets\nS: a\nS: .\n{leaving('m2')}", world)
    assert not world.memories.records


@pytest.mark.parametrize("fails", [False, True])
async def test_what_was_learnt_is_kept_without_quit(autojump_clock: object, fails: bool) -> None:
    world = World(size="cache")
    world.memories.fails = fails
    await played(f"C: RETR 2\n{whole('a~', 12, 'm1')}\nS: +OK 40 octets\nS: a\nS: .\nclose: client", world)
    assert bool(world.memories.records) is not fails


# -------------------------------------------------------------------- TOP


async def test_no_lines_are_the_header(autojump_clock: object) -> None:
    world = await played(f"""
        C: TOP 2 0
        {whole("A: b~~", 12, "m1", section="HEADER")}
        S: +OK Top of message
        S: A: b
        S:
        S: .
    """)
    assert not world.drop.seen()


async def test_lines_behind_the_header(autojump_clock: object) -> None:
    await played("""
        C: TOP 2 1
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.8292>)
        U: * 1 FETCH (UID 12 BODY[]<0> {20}\\r\\nA: b\\r\\n\\r\\n1\\r\\n\\r\\n2\\r\\n3\\r\\n)
        U: m1 OK done
        S: +OK Top of message
        S: A: b
        S:
        S: 1
        S: .
    """)


async def test_what_comes_behind_the_lines_is_dropped(autojump_clock: object) -> None:
    await played("""
        C: TOP 2 1
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.8292>)
        U: * 1 FETCH (UID 12 BODY[]<0> {8}\\r\\n\\r\\n1
        silent: client
        U: 2\\r\\n)
        U: m1 OK done
        S: +OK Top of message
        S:
        S: 1
        S: .
    """)


async def test_more_lines_than_there_are(autojump_clock: object) -> None:
    await played("""
        C: TOP 2 99999999
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.104865792>)
        U: * 1 FETCH (UID 12 BODY[]<0> {11}\\r\\nA: b\\r\\n\\r\\n1\\r\\n)
        U: m1 OK done
        S: +OK Top of message
        S: A: b
        S:
        S: 1
        S: .
    """)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests of TOP be small."""
    monkeypatch.setattr(pop3_message, "TOP_BEGINS", 4)
    monkeypatch.setattr(pop3_message, "TOP_LINE", 2)


@pytest.mark.usefixtures("short")
async def test_a_header_that_is_longer_than_what_is_asked_first(autojump_clock: object) -> None:
    await played("""
        C: TOP 2 1
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.6>)
        U: * 1 FETCH (UID 12 BODY[]<0> {6}\\r\\nA: lon)
        U: m1 OK done
        G: m2 UID FETCH 12 (UID BODY.PEEK[]<6.12>)
        U: * 1 FETCH (UID 12 BODY[]<6> {12}\\r\\ng\\r\\n\\r\\n1\\r\\n.2\\r)
        U: m2 OK done
        S: +OK Top of message
        S: A: long
        S:
        S: 1
        S: .
    """)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("empty", ['* 1 FETCH (UID 12 BODY[]<6> "")', "* 1 FETCH (UID 12 BODY[]<6> {0}\\r\\n)"])
async def test_a_message_that_ends_where_a_request_ends(autojump_clock: object, empty: str) -> None:
    await played(f"""
        C: TOP 2 1
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.6>)
        U: * 1 FETCH (UID 12 BODY[]<0> {{6}}\\r\\n\\r\\n12\\r\\n)
        U: m1 OK done
        S: +OK Top of message
        S:
        S: 12
        S: .
        C: TOP 2 2
        G: m2 UID FETCH 12 (UID BODY.PEEK[]<0.8>)
        U: * 1 FETCH (UID 12 BODY[]<0> {{8}}\\r\\n\\r\\n1234\\r\\n)
        U: m2 OK done
        G: m3 UID FETCH 12 (UID BODY.PEEK[]<8.16>)
        U: {empty.replace("<6>", "<8>")}
        U: m3 OK done
        S: +OK Top of message
        S:
        S: 1234
        S: .
    """)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("answer", "reply", "end"),
    [
        ("m2 OK done", "-ERR This message was removed by another client.", ""),
        ("m2 NO [SERVERBUG] x", "-ERR [SYS/TEMP] <*>", ""),
        ("* BYE", "-ERR [SYS/TEMP] <*>", ""),
        ("* OK [UIDVALIDITY 8] x", "-ERR [SYS/TEMP] <*>", "closed: client"),
    ],
)
async def test_a_message_that_goes_between_two_requests(
    autojump_clock: object, answer: str, reply: str, end: str
) -> None:
    await played(f"""
        C: STAT\\r\\nTOP 2 1
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.6>)
        U: * 1 FETCH (UID 12 BODY[]<0> {{6}}\\r\\nA: lon)
        U: m1 OK done
        G: m2 UID FETCH 12 (UID BODY.PEEK[]<6.12>)
        U: {answer}
        S: +OK 3 120
        S: {reply}
        {end}
    """)


@pytest.mark.usefixtures("short")
async def test_a_message_that_goes_between_later_requests_is_not_ended(autojump_clock: object) -> None:
    world = await played("""
        C: TOP 2 1
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.6>)
        U: * 1 FETCH (UID 12 BODY[]<0> {6}\\r\\nA: lon)
        U: m1 OK done
        G: m2 UID FETCH 12 (UID BODY.PEEK[]<6.12>)
        U: * 1 FETCH (UID 12 BODY[]<6> {12}\\r\\ng\\r\\nB: long\\r\\n)
        U: m2 OK done
        S: +OK Top of message
        S: A: lon\\
        G: m3 UID FETCH 12 (UID BODY.PEEK[]<18.12>)
        U: m3 NO [SERVERBUG] x
        closed: client
    """)
    assert world.end == End(Side.SERVER, "mailbox_refused")


@pytest.mark.usefixtures("short")
async def test_a_server_that_gives_more_than_the_part_that_was_asked_for(autojump_clock: object) -> None:
    await played("""
        C: TOP 2 1
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.6>)
        U: * 1 FETCH (UID 12 BODY[]<0> {6}\\r\\nA: lon)
        U: m1 OK done
        G: m2 UID FETCH 12 (UID BODY.PEEK[]<6.12>)
        U: * 1 FETCH (UID 12 BODY[] {19}\\r\\nA: long\\r\\n\\r\\n1234567\\n)
        S: -ERR [SYS/TEMP] <*>
    """)


@pytest.mark.usefixtures("short")
async def test_a_server_that_gives_all_where_a_part_was_asked_for(autojump_clock: object) -> None:
    await played("""
        C: TOP 2 9
        G: m1 UID FETCH 12 (UID BODY.PEEK[]<0.22>)
        U: * 1 FETCH (UID 12 BODY[] {25}\\r\\nA: long\\r\\n\\r\\n1\\n2\\n3\\n1234567\\n)
        U: m1 OK done
        S: +OK Top of message
        S: A: long
        S:
        S: 1
        S: 2
        S: 3
        S: 1234567
        S: .
    """)

"""The TRANSACTION state on an IMAP server: every command, what is none, and what is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from mailgate.model import End, Protocol, Side
from mailgate.observe.trace import Tracer
from mailgate.translate.pop3_client import REPLIES_HELD
from mailgate.translate.pop3_session import BAD_COMMANDS
from tests.session.conftest import TraceDouble
from tests.translate.sessions import World, on_stage, played, whole

# -------------------------------------------------------------------- what the maildrop answers


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("STAT", "+OK 3 120"),
        ("stat", "+OK 3 120"),
        ("LIST", "+OK 3 messages (120 octets)\n1 30\n2 40\n3 50\n."),
        ("LIST ", "+OK 3 messages (120 octets)\n1 30\n2 40\n3 50\n."),
        ("LIST 2", "+OK 2 40"),
        ("LIST  2 ", "+OK 2 40"),
        ("LIST 0", "-ERR There is no such message"),
        ("LIST 4", "-ERR There is no such message"),
        ("LIST 4294967297", "-ERR There is no such message"),
        ("LIST 99999999999", "-ERR The number of a message is missing"),
        ("LIST -1", "-ERR The number of a message is missing"),
        ("LIST 1 2", "-ERR The number of a message is missing"),
        ("LIST ١", "-ERR The number of a message is missing"),
        ("UIDL", "+OK Unique-id listing follows\n1 u11\n2 u12\n3 u13\n."),
        ("UIDL 3", "+OK 3 u13"),
        ("UIDL 4", "-ERR There is no such message"),
        ("RETR", "-ERR The number of a message is missing"),
        ("RETR 4", "-ERR There is no such message"),
        ("RETR x", "-ERR The number of a message is missing"),
        ("TOP 1", "-ERR TOP takes the number of a message and a number of lines"),
        ("TOP 1 -1", "-ERR TOP takes the number of a message and a number of lines"),
        ("TOP 4 1", "-ERR There is no such message"),
        ("DELE", "-ERR The number of a message is missing"),
        ("DELE 4", "-ERR There is no such message"),
        ("RSET", "+OK 3 messages (120 octets)"),
        ("NOOP", "+OK Nothing done"),
        ("LAST", "-ERR Unknown command"),
        ("CAPA", "+OK Capability list follows\nTOP\nUIDL\nIMPLEMENTATION mailgate\n."),
        ("UTF8", "+OK UTF8 enabled"),
        ("UTF8 x", "-ERR UTF8 takes no argument"),
        ("LANG", "+OK Language list follows\ni-default Default language\n."),
        ("LANG *", "+OK i-default Default language"),
        ("LANG i-default", "+OK i-default Default language"),
        ("LANG de", "-ERR This language is not spoken here"),
        ("RPOP joe", "-ERR Unknown command"),
        ("XTND XMIT", "-ERR Unknown command"),
        ("", "-ERR Malformed command"),
        ("ST\\rAT", "-ERR Malformed command"),
        ("NOOP " + "x" * 249, "-ERR Line too long"),
        ("NOOP " + "x" * 248, "+OK Nothing done"),
    ],
)
async def test_commands_that_need_no_server(autojump_clock: object, said: str, heard: str) -> None:
    lines = "\n".join(f"S: {line}" for line in heard.split("\n"))
    world = await played(f"C: {said}\n{lines}\nC: STAT\nS: +OK 3 120\nsilent: upstream")
    result = "ok" if heard.startswith("+") else "err"
    verb = said.split(" ")[0].upper()
    known = verb if verb.isalnum() and verb not in ("RPOP", "XTND") and "too long" not in heard else "other"
    assert world.finished == [f"{known} {result}", "STAT ok"]
    assert world.session.commands == 2
    assert world.end == End(Side.CLIENT, "closed")


@pytest.mark.parametrize("said", ["USER joe", "PASS secret", "APOP joe x", "AUTH PLAIN AGpvZQB4", "STLS", "XCLIENT x"])
async def test_nobody_signs_in_twice(autojump_clock: object, said: str) -> None:
    world = await played(f"C: {said}\nS: -ERR [SYS/PERM] This command is not available here.\nC: NOOP\nS: +OK <*>")
    assert world.finished == [f"{said.split(' ')[0]} refused", "NOOP ok"]


async def test_numbers_never_shift(autojump_clock: object) -> None:
    world = await played("""
        C: DELE 2
        S: +OK Marked to be deleted
        C: STAT
        S: +OK 2 80
        C: LIST
        S: +OK 2 messages (80 octets)
        S: 1 30
        S: 3 50
        S: .
        C: UIDL
        S: +OK <*>
        S: 1 u11
        S: 3 u13
        S: .
        C: UIDL 3
        S: +OK 3 u13
        C: UIDL 2
        S: -ERR This message is deleted
        C: LIST 2
        S: -ERR This message is deleted
        C: RETR 2
        S: -ERR This message is deleted
        C: TOP 2 0
        S: -ERR This message is deleted
        C: DELE 2
        S: -ERR This message is deleted
        C: RSET
        S: +OK 3 messages (120 octets)
        C: LIST 2
        S: +OK 2 40
        silent: upstream
    """)
    assert not world.drop.marked()


async def test_an_empty_maildrop(autojump_clock: object) -> None:
    await played(
        """
        C: STAT
        S: +OK 0 0
        C: LIST
        S: +OK 0 messages (0 octets)
        S: .
        C: UIDL
        S: +OK <*>
        S: .
        C: LIST 1
        S: -ERR There is no such message
        """,
        World(sizes=()),
    )


async def test_last_where_it_is_wanted(autojump_clock: object) -> None:
    await played(
        f"""
        C: LAST
        S: +OK 0
        C: RETR 2
        {whole("a~", 12, "m1")}
        S: +OK 40 octets
        S: a
        S: .
        C: LAST
        S: +OK 2
        C: DELE 3
        S: +OK <*>
        C: LAST
        S: +OK 3
        C: RSET
        S: +OK <*>
        C: LAST
        S: +OK 0
        """,
        World(last=True),
    )


async def test_a_single_number_does_not_look_at_the_others(autojump_clock: object) -> None:
    world = World(sizes=[1] * 100_000)
    async with on_stage(world):
        began = trio.current_time()
        for command in ("LIST", "UIDL"):
            await world.stage.play("".join(f"C: {command} {n}\nS: +OK {n} <*>\n" for n in (1, 50_000, 100_000)))
        assert trio.current_time() == began


async def test_a_large_listing_is_sent_in_blocks_that_the_client_has_to_take(autojump_clock: object) -> None:
    world = World(sizes=[7] * 5_000)
    async with on_stage(world):
        await world.stage.client.stream.send_all(b"LIST\r\nNOOP\r\n")
        await world.stage.play("S: +OK 5000 messages (35000 octets)")
        for number in range(1, 5_001):
            assert await world.stage.client.line() == b"%d 7" % number
        await world.stage.play("S: .\nS: +OK Nothing done")


# -------------------------------------------------------------------- what is no command


async def test_a_client_that_is_caught_in_a_loop(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play("C: FOO\nS: -ERR Unknown command\n" * (BAD_COMMANDS - 1))
        await world.stage.play("C: NOOP\nS: +OK <*>")
        await world.stage.play("C: RETR 9\nS: -ERR <*>\nC: FOO\nS: -ERR <*>\n" * (BAD_COMMANDS // 2))
        await world.stage.play("S: -ERR Too many invalid commands.\nclosed: client")
    assert world.end == End(Side.PROXY, "too_many_bad_commands")


async def test_what_a_policy_refuses_is_not_the_clients_mistake(autojump_clock: object) -> None:
    world = World(read_only=True)
    async with on_stage(world):
        refusal = "S: -ERR [SYS/PERM] Messages cannot be deleted, the maildrop is read-only.\n"
        await world.stage.play(f"C: DELE 1\n{refusal}" * (2 * BAD_COMMANDS))


async def test_a_client_that_asks_again_and_again_for_what_is_gone(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        for number in range(1, BAD_COMMANDS + 2):
            await world.stage.play(f"""
                C: RETR 2
                G: m{number} UID FETCH 12 (UID BODY.PEEK[])
                U: m{number} OK done
                S: -ERR This message was removed by another client.
            """)
        await world.stage.play("S: -ERR Too many invalid commands.\nclosed: client")


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("GET / HTTP/1.1", "-ERR HTTP is not spoken here"),
        ("NO\\0OP", "-ERR NUL is not allowed"),
        ("\\x16\\x03\\x01", "-ERR TLS is not spoken here"),
    ],
)
async def test_what_was_never_meant_for_pop3_ends_the_session(autojump_clock: object, said: str, heard: str) -> None:
    world = await played(f"C: {said}\nS: {heard}\nclosed: client")
    assert world.end == End(Side.CLIENT, "protocol")
    assert world.finished == ["other err"]


async def test_a_line_without_end_is_dropped(autojump_clock: object) -> None:
    async with on_stage() as world:
        await world.stage.client.stream.send_all(b"x" * 20_000 + b"\r\nNOOP\r\n")
        await world.stage.play("S: -ERR Line too long\nS: +OK Nothing done")


# -------------------------------------------------------------------- sent ahead


async def test_commands_are_answered_in_their_order_and_at_once(autojump_clock: object) -> None:
    async with on_stage() as world:
        await world.stage.client.stream.send_all(b"STAT\r\nLIST 1\r\nFOO\r\nUIDL 2\r\nNO")
        await trio.testing.wait_all_tasks_blocked()
        heard = await world.stage.client.stream.receive_some()
        assert heard == b"+OK 3 120\r\n+OK 1 30\r\n-ERR Unknown command\r\n+OK 2 u12\r\n"
        await world.stage.play("C: OP\nS: +OK Nothing done")


async def test_what_came_behind_the_login_is_answered(autojump_clock: object) -> None:
    world = World()
    world.early = b"STAT\r\nNOOP\r\nLIST "
    world.session.bytes_in = len(world.early)
    world.session.bytes_out = 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.serve)
        await world.stage.play("S: +OK 3 120\nS: +OK Nothing done\nC: 2\nS: +OK 2 40")
        await world.stage.client.say_no_more()
    # What was said before this session is counted by then.
    assert [(one.received, one.sent) for one in world.stage.relayed] == [
        (3, len("+OK 3 120..+OK Nothing done..+OK 2 40.."))
    ]


async def test_many_replies_do_not_pile_up(autojump_clock: object) -> None:
    async with on_stage() as world:
        count = 2 * REPLIES_HELD // len("+OK 3 120\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.stage.client.stream.send_all, b"STAT\r\n" * count)
            for _ in range(count):
                assert await world.stage.client.line() == b"+OK 3 120"


async def test_a_burst_that_reads_deletes_and_quits(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.client.stream.send_all(b"RETR 3\r\nDELE 3\r\nDELE 1\r\nQUIT\r\n")
        await world.stage.play(f"""
            {whole("c~", 13, "m1")}
            S: +OK 50 octets
            S: c
            S: .
            G: m2 NOOP
            U: m2 OK
            G: m3 UID STORE 11,13 +FLAGS.SILENT (\\Deleted)
            U: m3 OK
            G: m4 UID EXPUNGE 11,13
            U: m4 OK
            G: m5 UID SEARCH UID 11,13
            U: * SEARCH
            U: m5 OK
            S: +OK Marked to be deleted
            S: +OK Marked to be deleted
            S: +OK Bye
            G: m6 LOGOUT
            U: * BYE
            closed: client
        """)
    assert world.end == End(Side.CLIENT, "logged_out")
    assert world.finished == ["RETR ok", "DELE ok", "DELE ok", "QUIT ok"]
    assert (world.held.kept, world.held.released) == (True, 2)


# -------------------------------------------------------------------- what is told


async def test_bytes_are_told_while_the_session_lasts(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play("C: STAT\nS: +OK 3 120")
        world.served.sweep(0.0)
        world.served.sweep(0.0)
        assert [(one.received, one.sent) for one in world.stage.relayed] == [(6, 11)]


async def test_a_trace_hides_what_is_no_command(autojump_clock: object) -> None:
    world = World()
    world.trace = TraceDouble()
    await played("C: STAT\nS: +OK <*>\nC: " + "x" * 300 + "\nS: -ERR <*>\nC: QUIT\nS: +OK Bye\nclose: upstream", world)
    assert world.trace.lines == [
        ("C", b"STAT\r\n"),
        ("S", b"+OK 3 120\r\n"),
        ("C", b"<hidden>\r\n"),
        ("S", b"-ERR Line too long\r\n"),
        ("C", b"QUIT\r\n"),
        ("S", b"+OK Bye\r\n"),
    ]


def written(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.iterdir())


@pytest.mark.parametrize("bodies", [False, True])
async def test_a_real_trace_shows_bodies_only_where_asked(autojump_clock: object, tmp_path: Path, bodies: bool) -> None:
    tracer = Tracer(tmp_path, trio.current_time, lambda what, facts: None)
    tracer.start(user="joe", address=None, seconds=600, by="test", bodies=bodies)
    world = World()
    world.trace = tracer.for_session(world.session)
    await played(
        f"""
        C: PASS canary
        S: -ERR <*>
        C: RETR 2
        {whole("inside the message~", 12, "m1")}
        S: +OK 40 octets
        S: inside the message
        S: .
        C: STAT
        S: +OK 3 120
        """,
        world,
    )
    tracer.close()
    text = written(tmp_path)
    assert "canary" not in text
    assert ("inside the message" in text) is bodies
    assert "RETR 2" in text
    assert "+OK 3 120" in text


def test_what_a_watch_sees_of_a_session() -> None:
    world = World()

    async def main() -> None:
        served = world.begin()
        assert (served.protocol, served.ended, served.quiet, served.translated) == (Protocol.POP3, False, False, True)
        await served.aclose()

    trio.run(main)

"""The relay as scripts: two pumps around the real cores, with every way in which a side can end."""

from __future__ import annotations

import dataclasses

import pytest
import trio
import trio.testing

from tests.session.conftest import TraceDouble, World, on_stage
from tests.support.dialogue import Stage

IMAP = """
    S: * OK <*>
    C: a LOGIN alice secret
    S: a OK <*>
    events: SessionEstablished
"""
POP3 = """
    S: +OK POP3 mail.example.org ready
    C: USER alice
    S: +OK Send the password
    C: PASS secret
    S: +OK Logged in
    events: SessionEstablished
"""


@pytest.fixture(autouse=True, params=["streams", "engine", "engine-tls"])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let each script be played with both shells: two pumps over memory streams, the engine over sockets, and TLS."""
    monkeypatch.setattr(Stage, "sockets", request.param != "streams")
    monkeypatch.setattr(Stage, "tls", request.param == "engine-tls")
    return str(request.param)


# -------------------------------------------------------------------- commands


async def test_commands_are_passed_and_counted(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b SELECT inbox\\r\\nc UID FETCH 1:* (FLAGS)\\r\\nd XFROB\\r\\n\\
            G: b SELECT inbox
            G: c UID FETCH 1:* (FLAGS)
            G: d XFROB
            U: * 3 EXISTS\\r\\nb OK [READ-WRITE] done\\r\\n* 1 FETCH (UID 9 FLAGS ())\\r\\nc NO failed
            S: * 3 EXISTS
            S: b OK [READ-WRITE] done
            S: * 1 FETCH (UID 9 FLAGS ())
            S: c NO failed
            U: d BAD what
            S: d BAD what
            events: CommandFinished(SELECT ok) CommandFinished(UID FETCH no) CommandFinished(other bad)
        """)
    assert world.session is not None
    assert world.session.commands == 3


async def test_idle_and_done(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b IDLE
            G: b IDLE
            U: + idling
            S: + idling
            wait: 1700
            U: * 4 EXISTS
            S: * 4 EXISTS
            wait: 1700
            C: DONE
            G: DONE
            U: b OK done
            S: b OK done
            events: CommandFinished(IDLE ok)
        """)


async def test_literals_of_both_kinds(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(
            f"""
            {IMAP}
            C: b APPEND inbox {{11}}
            G: b APPEND inbox {{11}}
            U: + go on
            S: + go on
            C: c LOGIN x\\ny
            G: c LOGIN x
            G: y
            U: b OK done
            S: b OK done
            C: c APPEND inbox {{12+}}\\r\\nd LOGOUT\\r\\n\\r\\n\\r\\ne NOOP
            G: c APPEND inbox {{12}}
            U: + go on
            G: d LOGOUT
            G:\\x20
            G:\\x20
            G: e NOOP
        """.replace("G:\\x20", "G: ")
        )


async def test_a_command_waits_for_the_one_that_may_ask(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b XFROB\\r\\nc IDLE\\r\\n\\
            G: b XFROB
            silent: upstream
            U: b OK done
            S: b OK done
            G: c IDLE
        """)


async def test_bytes_behind_a_literal_that_waits_are_held(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b APPEND inbox {{4}}\\r\\nabcd\\r\\nc NOOP
            G: b APPEND inbox {{4}}
            silent: upstream
            U: + go on
            S: + go on
            G: abcd
            G: c NOOP
        """)


@pytest.mark.parametrize("verb", ["COMPRESS DEFLATE", "STARTTLS", "AUTHENTICATE PLAIN", "LOGIN a b", "UNAUTHENTICATE"])
async def test_a_refused_command_leaves_the_session_sound(autojump_clock: object, verb: str) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b NOOP\\r\\nc {verb}\\r\\nd NOOP
            G: b NOOP
            G: d NOOP
            S: c NO [CANNOT] This command is not available here.
            U: b OK done\\r\\nd OK done
            S: b OK done
            S: d OK done
            events: CommandFinished({verb.split()[0]} refused) CommandFinished(NOOP ok) CommandFinished(NOOP ok)
        """)


async def test_a_refusal_never_lands_inside_a_literal(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b FETCH 1 BODY[]
            G: b FETCH 1 BODY[]
            U: * 1 FETCH (BODY[] {{6}}\\r\\nabc\\
            S: * 1 FETCH (BODY[] {{6}}
            C: c COMPRESS DEFLATE
            wait: 1
            U: def)
            S: abcdef)
            S: c NO [CANNOT] This command is not available here.
            U: b OK done
            S: b OK done
        """)


async def test_a_refused_pop3_command_is_answered_in_its_turn(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {POP3}
            C: RETR 1\\r\\nUSER mallory\\r\\nSTAT
            G: RETR 1
            G: STAT
            silent: client
            U: +OK\\r\\nSubject: x\\r\\n\\r\\nbody\\r\\n.\\r\\n+OK 1 2
            S: +OK
            S: Subject: x
            S:
            S: body
            S: .
            S: -ERR [SYS/PERM] This command is not available here.
            S: +OK 1 2
            events: CommandFinished(USER refused) CommandFinished(RETR ok) CommandFinished(STAT ok)
        """)


async def test_capabilities_are_filtered_in_the_relay_too(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b CAPABILITY
            G: b CAPABILITY
            U: * CAPABILITY IMAP4rev1 COMPRESS=DEFLATE IDLE AUTH=PLAIN STARTTLS\\r\\nb OK done
            S: * CAPABILITY IMAP4rev1 IDLE
            S: b OK done
        """)


# -------------------------------------------------------------------- ends


async def test_logout(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b LOGOUT
            G: b LOGOUT
            U: * BYE see you\\r\\nb OK done
            close: upstream
            S: * BYE see you
            S: b OK done
            closed: client
            events: CommandFinished(LOGOUT ok) SessionClosed(client logged_out)
        """)


async def test_a_client_that_says_no_more_still_gets_its_answers(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b NOOP\\r\\nc NOOP
            half-close: client
            G: b NOOP
            G: c NOOP
            U: b OK done
            S: b OK done
            wait: 4
            U: c OK done
            S: c OK done
            closed: client
            events: CommandFinished(NOOP ok) CommandFinished(NOOP ok) SessionClosed(client closed)
        """)


@pytest.mark.parametrize("script", ["", "C: b IDLE\nG: b IDLE", "C: b APPEND inbox {5}\nG: b APPEND inbox {5}"])
async def test_nothing_is_awaited_for_a_client_that_went_without_asking(autojump_clock: object, script: str) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(IMAP + script)
        began = trio.current_time()
        await world.stage.play("close: client\nclosed: upstream\nevents: SessionClosed(client closed)")
        assert trio.current_time() == began


async def test_an_answer_that_does_not_come_is_not_awaited_for_ever(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"{IMAP}\nC: b NOOP\nclose: client\nG: b NOOP")
        began = trio.current_time()
        await world.stage.play("closed: upstream\nevents: SessionClosed(client closed)")
        assert trio.current_time() - began == 5.0


async def test_quit_and_close_keeps_the_update(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {POP3}
            C: DELE 1\\r\\nQUIT
            close: client
            G: DELE 1
            G: QUIT
            wait: 3
            U: +OK\\r\\n+OK
            closed: upstream
            events: CommandFinished(DELE ok) CommandFinished(QUIT ok) SessionClosed(client logged_out)
        """)


async def test_what_the_upstream_said_before_its_end_arrives(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b NOOP
            G: b NOOP
            U: * 1 EXISTS\\r\\n* BYE going down
            close: upstream
            S: * 1 EXISTS
            S: * BYE going down
            closed: client
            events: SessionClosed(server closed)
        """)


async def test_an_upstream_that_ends_inside_a_literal(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b FETCH 1 BODY[]
            G: b FETCH 1 BODY[]
            U: * 1 FETCH (BODY[] {{100}}\\r\\nhalf a line\\r\\n\\
            close: upstream
            S: * 1 FETCH (BODY[] {{100}}
            S: half a line
            closed: client
            events: SessionClosed(server closed)
        """)


async def test_a_client_that_ends_inside_a_literal(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b APPEND inbox {{100+}}\\r\\nhalf a line
            close: client
            G: b APPEND inbox {{100}}
            U: + go on
            G: half a line
            closed: upstream
            events: SessionClosed(client closed)
        """)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_connection_that_is_reset(autojump_clock: object, side: str, shell: str) -> None:
    world = World(Stage())
    async with on_stage("imap", world):
        await world.stage.play(f"""
            {IMAP}
            reset: {"client" if side == "client" else "upstream"}
            closed: {"upstream" if side == "client" else "client"}
        """)
        await world.ended.wait()
    assert world.end is not None
    assert world.end.side == side
    # Not every OpenSSL tells a reset from an end.
    assert world.end.reason == "reset" or (shell == "engine-tls" and world.end.reason == "closed")


async def test_a_client_that_vanishes_while_it_is_sent_something(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b NOOP\\r\\nc NOOP
            G: b NOOP
            G: c NOOP
            deaf: client
            U: b OK done
            wait: 2
            U: c OK done
            closed: upstream
            events: CommandFinished(NOOP ok) CommandFinished(NOOP ok) SessionClosed(client reset)
        """)


async def test_an_upstream_that_does_not_listen_may_still_have_said_why(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            deaf: upstream
            C: b NOOP
            wait: 1
            U: * BYE going down
            S: * BYE going down
            close: upstream
            closed: client
            events: SessionClosed(server closed)
        """)


async def test_an_upstream_that_does_not_listen_is_left_in_the_end(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"{IMAP}\ndeaf: upstream")
        began = trio.current_time()
        await world.stage.play("""
            C: b NOOP
            closed: client
            events: SessionClosed(server reset)
        """)
        assert trio.current_time() - began == 5.0


async def test_half_of_a_command_that_nobody_can_take_back(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b APPEND inbox {{4+}}\\r\\nabcd "\\r\\n\\
            G: b APPEND inbox {{4}}
            U: + go on
            S: * BYE Protocol error.
            closed: client
            G: abcd\\
            events: SessionClosed(proxy protocol)
        """)


async def test_a_reply_without_an_end(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {POP3}
            C: STAT
            G: STAT
            U: +OK {"x" * 9000}\\
            closed: client
            events: SessionClosed(proxy protocol)
        """)


# -------------------------------------------------------------------- idle limit and drain


async def test_silence_ends_a_session(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            wait: 1800
            C: b NOOP
            G: b NOOP
            U: b OK done
            S: b OK done
            wait: 1859
            silent: client
            S: * BYE Disconnected for inactivity.
            closed: client
            closed: upstream
            events: CommandFinished(NOOP ok) SessionClosed(proxy idle)
        """)


async def test_silence_inside_a_literal_ends_without_a_word(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b FETCH 1 BODY[]
            G: b FETCH 1 BODY[]
            U: * 1 FETCH (BODY[] {{100}}\\r\\nhalf\\r\\n\\
            S: * 1 FETCH (BODY[] {{100}}
            S: half
            wait: 1870
            closed: client
            events: SessionClosed(proxy idle)
        """)


async def test_silence_in_pop3_ends_without_a_word(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"{POP3}\nwait: 610\nclosed: client\nevents: SessionClosed(proxy idle)")


async def test_a_drain_ends_what_has_nothing_under_way(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"{IMAP}\nC: b NOOP\nG: b NOOP")
        assert world.watch.end_idle("shutting_down") == 1
        await world.stage.play("U: b OK done\nS: b OK done\nevents: CommandFinished(NOOP ok)")
        assert world.watch.end_idle("shutting_down") == 0
        await world.stage.play("""
            S: * BYE [UNAVAILABLE] The server is shutting down.
            closed: client
            closed: upstream
            events: SessionClosed(proxy shutting_down)
        """)


@pytest.mark.parametrize(
    ("protocol", "begun", "done"),
    [
        (
            "imap",
            f"{IMAP}\nC: b APPEND inbox {{8+}}\\r\\nhalf\\",
            "C: more\nG: b APPEND inbox {8}\nU: + go on\nG: halfmore\nU: b OK appended\nS: b OK appended",
        ),
        ("pop3", f"{POP3}\nC: DELE 1", "G: DELE 1\nU: +OK deleted\nS: +OK deleted"),
    ],
    ids=["an upload", "a deletion"],
)
async def test_a_drain_waits_for_what_is_under_way(
    autojump_clock: object, protocol: str, begun: str, done: str
) -> None:
    async with on_stage(protocol) as world:
        await world.stage.play(begun)
        await trio.testing.wait_all_tasks_blocked()
        assert world.watch.end_idle("shutting_down") == 1
        await world.stage.play(done)
        assert world.watch.end_idle("shutting_down") == 0
        await world.stage.play("S: * BYE <*>" if protocol == "imap" else "closed: client")


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("U: * 1 EXISTS\nS: * 1 EXISTS", "S: * BYE Disconnected by the administrator."),
        ("U: * 1 FETCH (BODY[] {100}\nS: * 1 FETCH (BODY[] {100}", ""),
    ],
    ids=["at the end of a response", "inside a literal"],
)
async def test_one_session_is_ended_by_hand(autojump_clock: object, said: str, heard: str) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"{IMAP}\nC: b FETCH 1 BODY[]\nG: b FETCH 1 BODY[]\n{said}")
        session = world.session
        assert session is not None
        assert not world.watch.end(dataclasses.replace(session), "kicked")
        assert world.watch.end(session, "kicked")
        await world.stage.play(f"{heard}\nclosed: client\nclosed: upstream\nevents: SessionClosed(proxy kicked)")
        assert not world.watch.end(session, "kicked")


async def test_a_drain_ends_an_idle(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"{IMAP}\nC: b IDLE\nG: b IDLE\nU: + idling\nS: + idling")
        assert world.watch.end_idle("shutting_down") == 0
        assert world.watch.end_idle("shutting_down") == 0
        await world.stage.play("S: * BYE [UNAVAILABLE] The server is shutting down.\nclosed: client")


async def test_a_drain_waits_for_silence_where_commands_are_not_seen(autojump_clock: object) -> None:
    async with on_stage("imap", inspect="login") as world:
        await world.stage.play(f"{IMAP}\nC: b NOOP\nG: b NOOP")
        assert world.watch.end_idle("shutting_down") == 1
        await world.stage.play("wait: 2.5")
        assert world.watch.end_idle("shutting_down") == 0
        await world.stage.play("closed: client\nevents: SessionClosed(proxy shutting_down)")


# -------------------------------------------------------------------- copying, traces, bytes


async def test_a_copied_session_is_not_understood(autojump_clock: object) -> None:
    async with on_stage("imap", inspect="login") as world:
        await world.stage.play(f"""
            {IMAP}
            C: b COMPRESS DEFLATE\\r\\n\\0\\xff"\\
            G: b COMPRESS DEFLATE
            U: * CAPABILITY AUTH=PLAIN\\r\\nb OK done
            S: * CAPABILITY AUTH=PLAIN
            S: b OK done
            C: x
            G: \\0\\xff"x
            events:
            close: upstream
            closed: client
            events: SessionClosed(server closed)
        """)


async def test_a_trace_sees_both_directions_and_the_farewell(autojump_clock: object) -> None:
    trace = TraceDouble()
    async with on_stage("imap", World(Stage(), trace=trace)) as world:
        await world.stage.play(f"{IMAP}\nC: b NOOP\nG: b NOOP\nU: b OK done\nS: b OK done")
        world.watch.end_idle("shutting_down")
        await world.stage.play("S: * BYE <*>\nclosed: client")
    assert trace.lines[-3:] == [
        ("C", b"b NOOP\r\n"),
        ("S", b"b OK done\r\n"),
        ("S", b"* BYE [UNAVAILABLE] The server is shutting down.\r\n"),
    ]


async def test_bytes_are_told_while_they_flow_and_in_all(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(IMAP)
        assert world.session is not None
        before = (world.session.bytes_in, world.session.bytes_out)
        assert [(told.received, told.sent) for told in world.stage.relayed] == [before]
        await world.stage.play("C: b NOOP\nG: b NOOP\nwait: 6\nU: b OK done\nS: b OK done\nwait: 12")
        assert [(told.received, told.sent) for told in world.stage.relayed[1:]] == [(8, 0), (0, 11)]
        world.watch.end_idle("shutting_down")
        await world.stage.play("S: * BYE <*>\nclosed: client")
    told = world.stage.relayed
    assert sum(one.received for one in told) == world.session.bytes_in
    assert sum(one.sent for one in told) == world.session.bytes_out

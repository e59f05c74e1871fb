"""How a POP3 session on an IMAP server ends: by time, by its client, by QUIT, from outside."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from mailgate.model import End, Side
from mailgate.translate.pop3_client import KEEP_ALIVE_SECONDS
from tests.translate.sessions import SELECTED, World, on_stage, played, whole

# -------------------------------------------------------------------- time


async def test_an_idle_client_is_left_without_a_word(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play("C: DELE 1\nS: +OK <*>\nwait: 500\nC: NOOP\nS: +OK <*>\nwait: 599\nsilent: client")
        await world.stage.play("wait: 2\nclosed: client\nclosed: upstream")
    assert world.end == End(Side.PROXY, "idle")
    assert not world.held.kept


async def test_the_server_hears_of_a_silent_client(autojump_clock: object) -> None:
    world = World()
    world.idle = 3 * KEEP_ALIVE_SECONDS
    async with on_stage(world):
        await world.stage.play(f"""
            wait: {KEEP_ALIVE_SECONDS - 1}
            silent: upstream
            wait: 2
            G: m1 NOOP
            U: m1 OK
            wait: {KEEP_ALIVE_SECONDS}
            G: m2 NOOP
            close: upstream
            wait: {KEEP_ALIVE_SECONDS - 10}
            C: STAT
            S: +OK <*>
            wait: {3 * KEEP_ALIVE_SECONDS + 1}
            closed: client
        """)


async def test_the_server_hears_of_a_client_that_wants_nothing_of_it(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        for _ in range(3):
            await world.stage.play("wait: 500\nC: NOOP\nS: +OK <*>")
        await world.stage.play("G: m1 NOOP\nU: m1 OK\nC: STAT\nS: +OK <*>")


async def test_what_the_server_is_asked_for_is_life_enough(autojump_clock: object) -> None:
    world = World()
    world.idle = 3 * KEEP_ALIVE_SECONDS
    async with on_stage(world):
        await world.stage.play(f"""
            wait: {KEEP_ALIVE_SECONDS - 10}
            C: RETR 2
            {whole("a~", 12, "m1")}
            S: +OK <*>
            S: a
            S: .
            wait: {KEEP_ALIVE_SECONDS - 10}
            silent: upstream
        """)


@pytest.mark.parametrize("command", ["STAT", "RETR 2"])
async def test_a_client_that_does_not_read(autojump_clock: object, command: str) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play(f"stall: client\nC: {command}")
        if command == "RETR 2":
            await world.stage.play(whole("a~", 12, "m1"))
        await world.stage.play("wait: 599")
        assert not world.stage.near_client.closed
        await world.stage.play("wait: 2\nclosed: upstream")
    assert world.end == End(Side.PROXY, "idle")


# -------------------------------------------------------------------- the end


@pytest.mark.parametrize(("lost", "reason"), [("close: client", "closed"), ("reset: client", "reset")])
async def test_a_client_that_goes_deletes_nothing(autojump_clock: object, lost: str, reason: str) -> None:
    world = await played(f"C: DELE 1\nS: +OK <*>\n{lost}\nclosed: upstream")
    assert world.end == End(Side.CLIENT, reason)
    assert not world.held.kept


async def test_a_client_that_goes_within_a_message_deletes_nothing(autojump_clock: object) -> None:
    world = await played(f"deaf: client\nC: DELE 1\\r\\nRETR 2\\r\\nQUIT\n{whole('a~', 12, 'm1')}\nclosed: upstream")
    assert world.end == End(Side.CLIENT, "reset")
    assert world.finished == ["DELE ok", "RETR err"]
    assert not world.held.kept


DELETES = r"""
    G: m1 NOOP
    U: m1 OK
    G: m2 UID STORE 11 +FLAGS.SILENT (\Deleted)
    U: m2 OK
    G: m3 UID EXPUNGE 11
    U: m3 OK
    G: m4 UID SEARCH UID 11
    U: * SEARCH
    U: m4 OK
"""
LEAVES = "G: m5 LOGOUT\nU: * BYE"


@pytest.mark.parametrize("lost", ["close: client", "deaf: client", "reset: client"])
async def test_quit_needs_no_client_any_more(autojump_clock: object, lost: str) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play(
            f"C: DELE 1\\r\\nQUIT\nG: m1 NOOP\n{lost}\n{DELETES.replace('G: m1 NOOP', '')}\n{LEAVES}"
        )
    assert world.end == End(Side.CLIENT, "logged_out")
    assert world.finished == ["DELE ok", "QUIT ok"]


async def test_quit_before_the_clients_end_is_quit(autojump_clock: object) -> None:
    world = await played(f"C: DELE 1\\r\\nQUIT\nclose: client\n{DELETES}\n{LEAVES}")
    assert world.end == End(Side.CLIENT, "logged_out")


async def test_the_answer_of_quit_does_not_wait_for_the_servers_farewell(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play("C: QUIT\nS: +OK Bye\nG: m1 LOGOUT")
        assert (world.held.kept, world.held.released) == (True, 1)
        await world.stage.play("wait: 6\nclosed: client\nclosed: upstream")


async def test_quit_tells_what_was_kept(autojump_clock: object) -> None:
    world = World()
    await played(
        f"""
        C: DELE 1\\r\\nQUIT
        {DELETES.replace("* SEARCH", "* SEARCH 11")}
        G: m5 UID STORE 11 -FLAGS.SILENT (\\Deleted)
        U: m5 OK
        S: +OK <*>
        S: -ERR [SYS/TEMP] some deleted messages not removed
        G: m6 LOGOUT
        U: * BYE
        events: CommandFinished(DELE ok) MaildropClosed CommandFinished(QUIT err)
        closed: client
        """,
        world,
    )
    assert world.memories.records


async def test_quit_where_the_mailbox_is_another_one_deletes_nothing(autojump_clock: object) -> None:
    await played(f"""
        C: DELE 1
        S: +OK <*>
        close: upstream
        C: QUIT
        login: joe COMMAND
        {SELECTED.format(uidvalidity=8)}
        S: -ERR [SYS/TEMP] some deleted messages not removed
        G: m2 LOGOUT
        U: * BYE
    """)


async def test_seen_is_set_at_quit(autojump_clock: object) -> None:
    await played(
        f"""
        C: RETR 2
        {whole("a~", 12, "m1")}
        S: +OK <*>
        S: a
        S: .
        C: QUIT
        G: m2 NOOP
        U: m2 OK
        G: m3 UID STORE 12 +FLAGS.SILENT (\\Seen)
        U: m3 OK
        S: +OK Bye
        G: m4 LOGOUT
        U: * BYE
        """,
        World(mark_seen="retr"),
    )


# -------------------------------------------------------------------- ended from outside


@pytest.mark.parametrize("script", ["", "C: DELE 1\nS: +OK <*>", "C: RETR 2\nG: m1 UID FETCH 12 (UID BODY.PEEK[])"])
async def test_a_session_that_is_kicked_deletes_nothing(autojump_clock: object, script: str) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play(script)
        assert world.watch.end(world.session, "kicked")
        assert world.served.ended
        await world.stage.play("closed: client\nclosed: upstream")
    assert world.end == End(Side.PROXY, "kicked")
    assert not world.held.kept


async def test_a_drain_ends_a_session_while_nothing_is_under_way(autojump_clock: object) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play("C: RETR 2\nG: m1 UID FETCH 12 (UID BODY.PEEK[])")
        assert world.watch.end_idle("shutting_down") == 1
        answer = "U: * 1 FETCH (UID 12 BODY[] {3}\\r\\na\\r\\n)\\r\\nm1 OK done"
        await world.stage.play(f"{answer}\nS: +OK 40 octets\nS: a\nS: .\nsilent: client")
        assert world.watch.end_idle("shutting_down") == 0
        await world.stage.play("closed: client")
    assert world.end == End(Side.PROXY, "shutting_down")


@pytest.mark.parametrize("reads", [True, False])
async def test_a_session_that_is_kicked_while_it_deletes_does_so_to_the_end(
    autojump_clock: object, reads: bool
) -> None:
    world = World()
    async with on_stage(world):
        await world.stage.play("C: DELE 1\\r\\nQUIT\nG: m1 NOOP")
        if not reads:
            await world.stage.play("stall: client")
        world.served.end(Side.PROXY, "kicked")
        await world.stage.play(DELETES.replace("G: m1 NOOP", ""))
        if reads:
            await world.stage.play("S: +OK <*>\nS: +OK Bye")
        await world.stage.play(f"{LEAVES}\nclosed: client")
    assert world.end == End(Side.CLIENT, "logged_out")
    assert world.finished == ["DELE ok", "QUIT ok"]


async def test_a_session_that_was_ended_before_it_read_quit_deletes_nothing(autojump_clock: object) -> None:
    world = World()
    world.early = b"DELE 1\r\nQUIT\r\n"
    async with trio.open_nursery() as nursery:
        began = world.begin

        def ended() -> Any:
            served = began()
            served.end(Side.PROXY, "taken_over")
            return served

        world.begin = ended  # type: ignore[method-assign]
        nursery.start_soon(world.serve)
        await world.ended.wait()
    assert world.end == End(Side.PROXY, "taken_over")
    assert not world.held.kept
    assert world.finished == ["DELE ok", "QUIT err"]


async def test_a_cancelled_task_closes_everything(autojump_clock: object) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.serve)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert world.stage.near_client.closed
    assert world.stage.near_upstream is not None
    assert world.stage.near_upstream.closed
    assert world.held.released

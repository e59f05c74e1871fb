"""A POP3 session and its IMAP server: what is asked ahead, UTF-8, and another connection in the place of a lost one."""

from __future__ import annotations

import pytest

from mailgate.model import End, Failure, Side
from mailgate.translate.pop3_session import AHEAD_LIMIT
from tests.translate.sessions import SELECTED, World, leaving, on_stage, played, whole

# -------------------------------------------------------------------- asked for ahead


def begun(uid: int, tag: str, body: str = "a~") -> str:
    """The server's side of a body that was asked for before."""
    return "\n".join(whole(body, uid, tag).splitlines()[2:])


async def test_a_client_that_retrieves_in_a_row_waits_for_no_round_trip(autojump_clock: object) -> None:
    await played(f"""
        C: RETR 1
        G: m1 UID FETCH 11 (UID BODY.PEEK[])
        U: * 1 FETCH (UID 11 BODY[] {{3}}\\r\\na\\r\\n)\\r\\nm1 OK done
        S: +OK 30 octets
        S: a
        S: .
        G: m2 UID FETCH 12 (UID BODY.PEEK[])
        {begun(12, "m2", "b~")}
        C: RETR 2
        G: m3 UID FETCH 13 (UID BODY.PEEK[])
        S: +OK 40 octets
        S: b
        S: .
        {begun(13, "m3", "c~")}
        C: RETR 3
        S: +OK 50 octets
        S: c
        S: .
        silent: upstream
        {leaving("m4")}
    """)


async def test_what_was_asked_ahead_is_dropped_when_the_client_wants_something_else(autojump_clock: object) -> None:
    world = World(delete="trash")
    await played(
        f"""
        C: RETR 1
        {whole("a~", 11, "m1")}
        G: m2 UID FETCH 12 (UID BODY.PEEK[])
        S: +OK 30 octets
        S: a
        S: .
        {begun(12, "m2", "wrong~")}
        C: RETR 3
        {whole("c~", 13, "m3")}
        S: +OK 50 octets
        S: c
        S: .
        C: TOP 2 0
        {whole("h~~", 12, "m4", section="HEADER")}
        S: +OK Top of message
        S: h
        S:
        S: .
        """,
        world,
    )


async def test_delete_between_two_messages_costs_what_was_asked_ahead_once(autojump_clock: object) -> None:
    await played(
        f"""
        C: RETR 1
        {whole("a~", 11, "m1")}
        G: m2 UID FETCH 12 (UID BODY.PEEK[])
        S: +OK 30 octets
        S: a
        S: .
        {begun(12, "m2", "b~")}
        C: DELE 1
        G: m3 LIST "" "*"
        U: * LIST (\\Trash) "/" "Bin"
        U: m3 OK done
        S: +OK <*>
        C: RETR 2
        {whole("b~", 12, "m4")}
        G: m5 UID FETCH 13 (UID BODY.PEEK[])
        S: +OK 40 octets
        S: b
        S: .
        {begun(13, "m5", "c~")}
        C: DELE 2
        S: +OK <*>
        C: RETR 3
        S: +OK 50 octets
        S: c
        S: .
        """,
        World(delete="trash"),
    )


async def test_the_longer_the_row_the_more_is_asked_ahead(autojump_clock: object) -> None:
    world = World(sizes=[10, 10, 10, 10, 10, AHEAD_LIMIT, 10, 10])
    async with on_stage(world):
        play = world.stage.play
        await play(f"C: RETR 1\n{whole('a~', 11, 'm1')}\nG: m2 UID FETCH 12 <*>\nS: +OK <*>\nS: a\nS: .")
        await play("C: RETR 2\nU: * 2 FETCH (UID 12 BODY[] {1}")
        # As many as fit beside each other.
        await play("".join(f"G: m{tag} UID FETCH {tag + 10} <*>\n" for tag in (3, 4, 5)))
        await play("U: b)\\r\\n* 3 FETCH (UID 13 BODY[] {1}\\r\\nc)\nS: +OK <*>\nS: b\nS: .")
        await play("C: RETR 3\nU: * 4 FETCH (UID 14 BODY[] {1}\\r\\nd)\\r\\n* 5 FETCH (UID 15 BODY[] {1}\\r\\ne)")
        await play("S: +OK <*>\nS: c\nS: .\nC: RETR 4\nS: +OK <*>\nS: d\nS: .\nsilent: upstream")
        # The next is not asked for before there is room, and the last of a row ends with what was put off.
        await play("wait: 400\nC: RETR 5\nG: m6 UID FETCH 16 <*>\nsilent: client")
        await play("U: m2 OK\\r\\nm3 OK\\r\\nm4 OK\\r\\nm5 OK\nS: +OK <*>\nS: e\nS: .")


@pytest.mark.parametrize("never", ["large", "deleted", "strict", "another folder"])
async def test_what_is_not_asked_ahead(autojump_clock: object, never: str) -> None:
    world = {
        "large": World(sizes=[10, AHEAD_LIMIT + 1]),
        "deleted": World(),
        "strict": World(utf8="strict"),
        "another folder": World(sizes=[10], folders=(b"INBOX", b"Spam")),
    }[never]
    async with on_stage(world):
        tag = "m1"
        if never == "deleted":
            await world.stage.play("C: DELE 2\nS: +OK <*>")
        elif never == "strict":
            await world.stage.play(f"C: RETR 1\n{whole('h~~', 11, 'm1', section='HEADER')}")
            tag = "m2"
        elif never == "another folder":
            await world.stage.play("""
                C: RETR 1
                G: m1 SELECT "INBOX"
                U: * 1 EXISTS\\r\\n* OK [UIDVALIDITY 7] x\\r\\nm1 OK
            """)
            tag = "m2"
        if never in ("large", "deleted"):
            await world.stage.play("C: RETR 1")
        await world.stage.play(f"{whole('a~', 11, tag)}\nS: +OK <*>\nS: a\nS: .\nsilent: upstream")


async def test_a_message_asked_ahead_that_is_gone(autojump_clock: object) -> None:
    await played(f"""
        C: RETR 1
        {whole("a~", 11, "m1")}
        G: m2 UID FETCH 12 (UID BODY.PEEK[])
        S: +OK 30 octets
        S: a
        S: .
        U: m2 OK done
        C: RETR 2
        S: -ERR This message was removed by another client.
    """)


# -------------------------------------------------------------------- UTF-8


@pytest.mark.parametrize("command", ["RETR 2", "TOP 2 0", "TOP 2 1"])
async def test_utf8_is_for_clients_that_asked_for_it(autojump_clock: object, command: str) -> None:
    await played(
        f"""
        C: {command}
        G: m1 UID FETCH 12 (UID BODY.PEEK[HEADER])
        U: * 1 FETCH (UID 12 BODY[HEADER] {{6}}\\r\\n\\xc3\\xa4\\r\\n\\r\\n)
        U: m1 OK done
        S: -ERR [UTF8] This message needs UTF8 before the login.
        C: UTF8
        S: +OK <*>
        C: RETR 2
        {whole("a~", 12, "m2")}
        S: +OK 40 octets
        S: a
        S: .
        """,
        World(utf8="strict"),
    )


async def test_a_client_that_said_utf8_before_its_login(autojump_clock: object) -> None:
    world = World(utf8="strict")
    world.utf8 = True
    await played(f"C: RETR 2\n{whole('a~', 12, 'm1')}\nS: +OK <*>\nS: a\nS: .", world)


async def test_a_message_in_ascii_is_for_everyone(autojump_clock: object) -> None:
    header = whole("h~~", 12, "m1", section="HEADER")
    await played(f"C: RETR 2\n{header}\n{whole('a~', 12, 'm2')}\nS: +OK <*>\nS: a\nS: .", World(utf8="strict"))


# -------------------------------------------------------------------- another connection


@pytest.mark.parametrize("lost", ["close: upstream", "U: * BYE idle for too long\nclose: upstream", "reset: upstream"])
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("RETR 2", whole("a~", 12, "m2") + "S: +OK 40 octets\nS: a\nS: ."),
        ("TOP 2 0", whole("a~~", 12, "m2", section="HEADER") + "S: +OK <*>\nS: a\nS:\nS: ."),
        ("DELE 2", 'G: m2 LIST "" "*"\nU: * LIST (\\Trash) "/" "Bin"\nU: m2 OK\nS: +OK <*>'),
    ],
)
async def test_a_server_that_goes_while_the_client_is_silent(
    autojump_clock: object, lost: str, command: str, answer: str
) -> None:
    await played(
        f"""
        C: STAT
        S: +OK <*>
        {lost}
        C: STAT
        S: +OK <*>
        C: {command}
        login: joe COMMAND
        {SELECTED.format(uidvalidity=7)}
        {answer}
        """,
        World(delete="trash"),
    )


@pytest.mark.parametrize("command", ["RETR 2", "TOP 2 1", "DELE 2"])
async def test_a_mailbox_that_is_another_one_ends_the_session(autojump_clock: object, command: str) -> None:
    world = World(delete="trash")
    async with on_stage(world):
        world.drop.delete(1)
        await world.stage.play(f"""
            close: upstream
            C: {command}\\r\\nQUIT
            login: joe COMMAND
            {SELECTED.format(uidvalidity=8)}
            S: -ERR [SYS/TEMP] The mailbox has changed, log in again.
            closed: client
            closed: upstream
        """)
    assert world.end == End(Side.SERVER, "mailbox_changed")
    assert not world.held.kept


@pytest.mark.parametrize("command", ["RETR 2", "DELE 2"])
async def test_a_server_that_cannot_be_reached_is_tried_again(autojump_clock: object, command: str) -> None:
    world = World(delete="trash")
    world.dial_fails = [Failure.CONNECT, Failure.AUTH_REJECTED]
    async with on_stage(world):
        await world.stage.play(f"""
            close: upstream
            C: {command}
            S: -ERR [SYS/TEMP] The mail server is not available at the moment.
            C: {command}
            S: -ERR [AUTH] Authentication failed.
            C: STAT
            S: +OK 3 120
            C: RETR 2
            login: joe COMMAND
            {SELECTED.format(uidvalidity=7)}
            {whole("a~", 12, "m2")}
            S: +OK 40 octets
            S: a
            S: .
        """)


async def test_a_server_that_goes_again_and_again_is_not_dialled_without_end(autojump_clock: object) -> None:
    await played("""
        C: RETR 2
        G: m1 UID FETCH 12 (UID BODY.PEEK[])
        close: upstream
        login: joe COMMAND
        G: m1 SELECT "INBOX"
        close: upstream
        S: -ERR [SYS/TEMP] The mailbox is not available at the moment.
        C: NOOP
        S: +OK <*>
    """)


async def test_another_server_of_the_pool_is_asked_how_it_deletes(autojump_clock: object) -> None:
    await played(
        f"""
        C: DELE 2
        G: m1 LIST "" "*"
        U: * LIST (\\Trash) "/" "Bin"\\r\\nm1 OK
        S: +OK <*>
        C: DELE 3
        S: +OK <*>
        close: upstream
        C: RETR 1
        login: joe COMMAND
        {SELECTED.format(uidvalidity=7)}
        {whole("a~", 11, "m2")}
        S: +OK 30 octets
        S: a
        S: .
        C: DELE 1
        G: m3 LIST "" "*"
        U: m3 OK
        S: -ERR [SYS/PERM] The mail server has no trash to move deleted messages to.
        """,
        World(delete="trash"),
    )

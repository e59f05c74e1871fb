"""The connection behind a maildrop: replaced when it is lost, never to another mailbox than the one opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from mailgate.errors import UpstreamFailed
from mailgate.model import Failure
from mailgate.translate.backend import Backend
from mailgate.translate.imap_client import MailboxChanged, Refused, UpstreamLost
from tests.translate.sessions import World

SELECTED = """
    G: {tag} {verb} "{name}"
    U: * 3 EXISTS\\r\\n* OK [UIDVALIDITY {uidvalidity}] x\\r\\n{tag} OK
"""


def selected(name: str = "INBOX", *, tag: str = "m1", uidvalidity: int = 7, verb: str = "SELECT") -> str:
    return SELECTED.format(tag=tag, name=name, uidvalidity=uidvalidity, verb=verb)


async def playing(script: str, use: Callable[[Backend], Awaitable[object]], world: World | None = None) -> World:
    """Play a script against what ``use`` does with a backend, and raise what it raises."""
    world = world or World()
    world.begin()
    failed: list[BaseException] = []

    async def run() -> None:
        try:
            await use(world.backend)
        except Exception as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await world.stage.play(script)
    await world.backend.aclose()
    if failed:
        raise failed[0]
    return world


async def test_the_last_folder_is_selected_already(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        assert await backend.client(1) is backend.current
        assert await backend.client(0) is backend.current
        assert await backend.client(0) is backend.current
        assert await backend.client(1) is backend.current

    script = selected() + selected("Spam", tag="m2") + "silent: upstream"
    await playing(script, use, World(folders=(b"INBOX", b"Spam")))


async def test_read_only_stays_read_only(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        await backend.client(0)

    await playing(selected(verb="EXAMINE"), use, World(folders=(b"INBOX", b"Spam"), read_only=True))


async def test_a_connection_that_was_lost_is_replaced(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        first = backend.current
        first.abort()
        assert await backend.client(0) is not first
        assert await backend.client(0) is backend.current

    world = await playing("closed: upstream\nlogin: joe COMMAND\n" + selected(), use)
    assert world.stage.logins == ["joe COMMAND"] * 2


async def test_a_mailbox_that_is_another_one_is_never_taken_for_it(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        backend.current.abort()
        for _ in range(2):
            with pytest.raises(MailboxChanged):
                await backend.client(0)

    script = selected(uidvalidity=8) + selected(tag="m2", uidvalidity=8)
    await playing(f"closed: upstream\nlogin: joe COMMAND\n{script}", use)


async def test_a_mailbox_whose_uids_do_not_last(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        await backend.client(1)
        await backend.client(0)

    script = selected().replace("m1 OK", "* NO [UIDNOTSTICKY] x\\r\\nm1 OK")
    with pytest.raises(MailboxChanged):
        await playing(script, use, World(folders=(b"INBOX", b"Spam")))


async def test_a_mailbox_that_cannot_be_selected_is_tried_again(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        with pytest.raises(Refused):
            await backend.client(0)
        assert (await backend.client(1)).selected is not None

    script = 'G: m1 SELECT "INBOX"\nU: m1 NO [INUSE] x\n' + selected("Spam", tag="m2")
    await playing(script, use, World(folders=(b"INBOX", b"Spam")))


async def test_where_there_is_no_other_connection(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        backend.current.abort()
        for failure in (Failure.CONNECT, Failure.TIMEOUT):
            with pytest.raises(UpstreamFailed) as caught:
                await backend.client(0)
            assert caught.value.failure is failure
        await backend.client(0)

    world = World()
    world.dial_fails = [Failure.CONNECT, Failure.TIMEOUT]
    await playing("closed: upstream\nlogin: joe COMMAND\n" + selected(), use, world)


async def test_the_server_is_told_that_its_client_is_there(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        await backend.keep_alive()
        assert backend.current.alive
        await backend.keep_alive()
        assert not backend.current.alive
        await backend.keep_alive()

    await playing("G: m1 NOOP\nU: m1 OK\nG: m2 NOOP\nclose: upstream", use)


async def test_leave_is_taken_with_a_word(autojump_clock: object) -> None:
    async def use(backend: Backend) -> None:
        await backend.logout()
        with pytest.raises(UpstreamLost):
            await backend.current.noop()

    await playing("G: m1 LOGOUT\nU: * BYE\nclosed: upstream", use)

"""A whole POP3 session on an IMAP server, from its login to QUIT, cut at every place."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import trio
import trio.testing

from mailgate.events import CommandFinished, MaildropClosed, SessionClosed
from tests.session.conftest import (
    session_for,
)
from tests.support.dialogue import Mismatch
from tests.support.translated import IN, Machine, Translated

SCENE = f"""
    {IN}
    C: RETR 1
    S: +OK <*>
    S: Subject: mail 1
    S:
    S: mail 1
    S: .
    C: DELE 1
    S: +OK <*>
    C: TOP 2 1
    S: +OK <*>
    S: Subject: mail 2
    S:
    S: mail 2
    S: .
    C: DELE 3
    S: +OK <*>
    C: QUIT
    S: +OK Bye
    closed: client
"""


class Cutter(trio.abc.Instrument):
    """Does something to a session after its ``at``-th step."""

    def __init__(self, at: int, action: Callable[[Translated, trio.CancelScope], None], world: Translated) -> None:
        self.at = at
        self.steps = 0
        self.root: trio.lowlevel.Task | None = None
        self.world = world
        self.scope = trio.CancelScope()
        self._action = action

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.root:
            self.steps += 1
            if self.steps == self.at:
                self._action(self.world, self.scope)


def cancel(world: Translated, scope: trio.CancelScope) -> None:
    scope.cancel()


def reset_client(world: Translated, scope: trio.CancelScope) -> None:
    world.stage.near_client.reset()


def reset_server(world: Translated, scope: trio.CancelScope) -> None:
    if world.machine.wires:
        world.machine.wires[-1].reset()


def kick(world: Translated, scope: trio.CancelScope) -> None:
    assert world.session is not None
    world.watch.end(world.session, "kicked")


async def cut(at: int, action: Callable[[Translated, trio.CancelScope], None]) -> Cutter:
    machine = Machine()
    world = machine.world()
    cutter = Cutter(at, action, world)
    serve_client = session_for("pop3", world, {"allow_plaintext_auth": True})

    async def session() -> None:
        cutter.root = trio.lowlevel.current_task()
        with cutter.scope:
            await serve_client()

    async def play() -> None:
        try:
            await world.stage.play(SCENE)
        except (Mismatch, trio.BrokenResourceError, trio.ClosedResourceError):
            if cutter.steps < at:
                raise

    trio.lowlevel.add_instrument(cutter)
    async with trio.open_nursery() as world.nursery:
        world.nursery.start_soon(world.watch.run)
        async with trio.open_nursery() as scene:
            scene.start_soon(session)
            scene.start_soon(play)
            await world.ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            if cutter.steps >= at:
                scene.cancel_scope.cancel()
        world.nursery.cancel_scope.cancel()
    return cutter


@pytest.mark.parametrize("action", [cancel, reset_client, reset_server, kick])
def test_a_session_that_is_cut_anywhere_leaves_nothing_behind(
    action: Callable[[Translated, trio.CancelScope], None],
) -> None:
    for at in itertools.count(1):
        cutter = trio.run(cut, at, action, clock=trio.testing.MockClock(autojump_threshold=0))
        world = cutter.world
        check(world)
        if cutter.steps < at:
            break
    assert at > 40, "the scene has this many places at least"
    assert world.machine.store.inbox.contents() == ["mail 2"]


def check(world: Translated) -> None:
    machine, stage = world.machine, world.stage
    assert stage.near_client.closed
    assert all(wire.closed for wire in machine.wires)
    assert (len(machine.locks), len(world.watch), world.gate.sessions) == (0, 0, 0)
    assert sum(isinstance(event, SessionClosed) for event in stage.events) == 1
    assert isinstance(stage.events[-1], SessionClosed)
    commands = [event for event in stage.events if isinstance(event, CommandFinished)]
    assert not Counter(event.verb for event in commands) - Counter(["RETR", "DELE", "TOP", "DELE", "QUIT"])
    assert world.session is not None
    assert world.session.commands == len(commands)
    assert sum(told.received for told in stage.relayed) == world.session.bytes_in
    assert sum(told.sent for told in stage.relayed) == world.session.bytes_out
    # Without QUIT nothing is deleted, with it all that was marked and nothing else.
    closed = [event for event in stage.events if isinstance(event, MaildropClosed)]
    removed = sorted(content for _, content in machine.store.removed)
    assert removed == (["mail 1", "mail 3"] if closed else [])
    assert [(event.removed, event.kept) for event in closed] == [(2, 0)] * len(closed)
    flags = set().union(*(mail.flags for mail in machine.store.inbox.mails.values()))
    assert not flags

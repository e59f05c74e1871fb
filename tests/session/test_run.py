"""Whole sessions: what is told in which order, and that nothing is left behind, wherever a session is cut."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mailgate.events import SessionClosed, SessionEstablished
from mailgate.model import End, Failure, Side, State
from mailgate.policy.gate import Gate, GateSettings
from tests.session.conftest import World, on_stage, session_for
from tests.support.dialogue import Mismatch, Stage, shown

GREETING = "S: * OK [CAPABILITY <*>] mail.example.org ready\n"


# -------------------------------------------------------------------- what is told


async def test_events_are_told_in_their_order(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), fail=[Failure.AUTH_REJECTED, Failure.CONNECT])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a AUTHENTICATE CRAM-MD5
            S: a NO <*>
            C: b LOGIN alice wrong
            S: b NO <*>
            C: c LOGIN alice secret
            S: c NO <*>
            C: d LOGIN alice secret
            S: d OK <*>
            C: e COMPRESS DEFLATE
            S: e NO <*>
            C: f LOGOUT
            G: f LOGOUT
            U: * BYE\\r\\nf OK
            S: * BYE
            S: f OK
            close: upstream
            closed: client
        """)
    assert [shown(event) for event in world.stage.events] == [
        "LoginRefused(invalid_mech)",
        "LoginRefused(auth_failed)",
        "LimitStruck(failure_delay delay)",
        "LoginRefused(proxy_dest_connect_failed)",
        "SessionEstablished",
        "CommandFinished(COMPRESS refused)",
        "CommandFinished(LOGOUT ok)",
        "SessionClosed(client logged_out)",
    ]


async def test_a_delay_of_nothing_is_not_told(autojump_clock: object) -> None:
    world = World(Stage(), fail=[Failure.AUTH_REJECTED], gate=Gate(GateSettings(failure_delay=0.0)))
    async with on_stage("imap", world):
        await world.stage.play(f"{GREETING}\nC: a LOGIN alice x\nS: a NO <*>\nevents: LoginRefused(auth_failed)")


async def test_the_time_that_a_login_took(autojump_clock: object) -> None:
    world = World(Stage())

    async def slow() -> None:
        await trio.sleep(1.5)

    world.before_open = slow
    async with on_stage("imap", world):
        await world.stage.play(f"{GREETING}\nwait: 7\nC: a LOGIN alice secret\nS: a OK <*>")
    assert [event.seconds for event in world.stage.events if isinstance(event, SessionEstablished)] == [1.5]


async def test_a_session_counts_as_half_open_until_its_login(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(GREETING)
        assert world.session is not None
        assert (world.gate.sessions, world.gate.half_open, world.session.state) == (1, 1, State.LOGIN)
        await world.stage.play("C: a LOGIN alice secret\nS: a OK <*>")
        assert (world.gate.sessions, world.gate.half_open, world.session.state) == (1, 0, State.RELAY)


async def test_a_route_that_cannot_be_decided_now(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), route_fails=Failure.TIMEOUT)) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice secret
            S: a NO [UNAVAILABLE] The mail server is not available at the moment.
            events: LoginRefused(proxy_dest_remote_failure)
        """)


# -------------------------------------------------------------------- clients that do not read


@pytest.mark.parametrize(("wait", "ends"), [(10, 30.0), (29, 34.0)])
async def test_the_news_of_a_login_is_not_offered_for_ever(autojump_clock: object, wait: int, ends: float) -> None:
    world = World(Stage())

    async def stall() -> None:
        world.stage.near_client.stalled = True

    world.before_open = stall
    async with on_stage("imap", world, login_timeout=30):
        began = trio.current_time()
        await world.stage.play(f"""
            {GREETING}
            wait: {wait}
            C: a LOGIN alice secret
            login: alice COMMAND
            closed: upstream
        """)
        assert trio.current_time() - began == ends
        await world.ended.wait()
        # The last words wait for a second.
        assert trio.current_time() - began == ends + 1
    assert world.end == End(Side.PROXY, "auth_waiting_client")


async def test_a_client_that_never_reads(autojump_clock: object) -> None:
    world = World(Stage())
    world.stage.near_client.stalled = True
    async with on_stage("imap", world, login_timeout=30):
        began = trio.current_time()
        await world.ended.wait()
        assert trio.current_time() - began == 31.0
    assert world.end == End(Side.PROXY, "no_auth_attempts")


async def test_a_client_that_is_lost_before_its_last_words(autojump_clock: object) -> None:
    world = World(Stage())
    async with on_stage("imap", world, login_timeout=30):
        await world.stage.play(f"{GREETING}\ndeaf: client\nwait: 31\nevents: SessionClosed(client reset)")


async def test_a_crash_in_opening_an_upstream_is_not_hidden(autojump_clock: object) -> None:
    world = World(Stage())

    async def crash() -> None:
        raise RuntimeError("a bug")

    world.before_open = crash
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug"), flatten_subgroups=True):
        async with on_stage("imap", world):
            await world.stage.play(f"{GREETING}\nC: a LOGIN alice secret\nclosed: client\nwait: 1")
    assert world.gate.sessions == 0


# -------------------------------------------------------------------- anything at all

SAID_BY_CLIENTS = [
    b"a LOGIN alice secret\r\n",
    b"b LOGIN {5}\r\n",
    b"c LOGIN {5+}\r\nalice ",
    b"d AUTHENTICATE PLAIN\r\n",
    b"e AUTHENTICATE XOAUTH2 dXNlcj1hbGljZQFhdXRoPUJlYXJlciB0b2tlbgEB\r\n",
    b'f ID ("name" NIL)\r\n',
    b"g STARTTLS\r\n",
    b"h APPEND inbox {3+}\r\nabc\r\n",
    b"i IDLE\r\n",
    b"DONE\r\n",
    b"j XFROB {4}\r\n",
    b"k LOGOUT\r\n",
    b"alice",
    b"AGFsaWNlAHNlY3JldA==\r\n",
    b"*\r\n",
    b"\r\n",
    b"USER alice\r\n",
    b"PASS secret\r\n",
    b"AUTH PLAIN\r\n",
    b"STLS\r\n",
    b"CAPA\r\n",
    b"LIST\r\nRETR 1\r\n",
    b"XFROB\r\n",
    b"QUIT\r\n",
]
SAID_BY_UPSTREAMS = [
    b"* 1 FETCH (BODY[] {5}\r\nab",
    b"+ go on\r\n",
    b"a OK done\r\n",
    b"i OK done\r\n",
    b"* CAPABILITY IMAP4rev1 COMPRESS=DEFLATE\r\n",
    b"* BYE\r\n",
    b"+OK\r\n",
    b"-ERR\r\n",
    b"x\r\n.\r\n",
]


@given(
    protocol=st.sampled_from(["imap", "pop3"]),
    client=st.lists(st.one_of(st.sampled_from(SAID_BY_CLIENTS), st.binary(max_size=8)), max_size=12),
    upstream=st.lists(st.one_of(st.sampled_from(SAID_BY_UPSTREAMS), st.binary(max_size=8)), max_size=8),
    fails=st.booleans(),
    upstream_ends=st.booleans(),
)
def test_whatever_both_sides_say_the_session_ends_in_good_order(
    protocol: str, client: list[bytes], upstream: list[bytes], fails: bool, upstream_ends: bool
) -> None:
    async def main() -> World:
        world = World(Stage(), fail=[Failure.AUTH_REJECTED] * fails)
        serve = session_for(protocol, world, {"tls": "starttls-optional", "allow_plaintext_auth": True})

        async def says(stream: trio.abc.HalfCloseableStream, pieces: list[bytes], *, ends: bool) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()
                if ends:
                    await stream.send_eof()

        async def upstream_says() -> None:
            await world.stage.login_seen.wait()
            assert world.stage.upstream is not None
            await says(world.stage.upstream.stream, upstream, ends=upstream_ends)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.watch.run)
            nursery.start_soon(upstream_says)
            nursery.start_soon(serve)
            await says(world.stage.client.stream, client, ends=True)
            with trio.fail_after(2000):
                await world.ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return world

    world = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    check_nothing_is_left(world)
    assert world.end is not None
    assert (world.stage.upstream is None) == (len(world.logins) <= fails)


# -------------------------------------------------------------------- cut anywhere

IMAP = (
    GREETING
    + """
    C: a CAPABILITY
    S: * CAPABILITY <*>
    S: a OK <*>
    C: b LOGIN alice {5}
    S: + OK
    C: wrong
    S: b NO <*>
    C: c AUTHENTICATE LOGIN
    S: + <*>
    C: YWxpY2U=
    S: + <*>
    C: c2VjcmV0\\r\\nd NOOP
    S: * CAPABILITY <*>
    S: c OK <*>
    G: d NOOP
    U: d OK done
    S: d OK done
    C: e APPEND inbox {4}\\r\\nabcd\\r\\nf COMPRESS DEFLATE
    G: e APPEND inbox {4}
    U: + go on
    S: + go on
    G: abcd
    S: f NO <*>
    U: * 1 FETCH (BODY[] {5}\\r\\nab\\
    C: g LOGOUT
    G: g LOGOUT
    U: cde)\\r\\ne OK done\\r\\n* BYE\\r\\ng OK done
    S: * 1 FETCH (BODY[] {5}
    S: abcde)
    S: e OK done
    S: * BYE
    S: g OK done
    close: upstream
    closed: client
"""
)
POP3 = """
    S: +OK POP3 mail.example.org ready
    C: STLS
    S: +OK Begin TLS negotiation
    C: USER alice\\r\\nPASS wrong
    S: +OK Send the password
    S: -ERR [AUTH] Authentication failed.
    C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\\r\\nSTAT
    S: +OK Logged in
    G: STAT
    U: +OK 1 2
    S: +OK 1 2
    C: RETR 1\\r\\nQUIT
    half-close: client
    G: RETR 1
    G: QUIT
    U: +OK\\r\\nx\\r\\n.\\r\\n+OK
    S: +OK
    S: x
    S: .
    S: +OK
    closed: upstream
    closed: client
"""
IDLE = (
    GREETING
    + """
    C: a LOGIN alice wrong
    S: a NO <*>
    C: b LOGIN alice secret
    S: b OK <*>
    C: c IDLE
    G: c IDLE
    U: + idling
    S: + idling
    wait: 1860
    S: * BYE Disconnected for inactivity.
    closed: client
"""
)
COPY = (
    GREETING
    + """
    C: a LOGIN alice wrong
    S: a NO <*>
    C: b LOGIN alice secret\\r\\nc NOOP
    S: b OK <*>
    G: c NOOP
    U: c OK done
    S: c OK done
    close: client
    closed: upstream
"""
)
SCENES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "imap": ("imap", IMAP, {}),
    "pop3": ("pop3", POP3, {"tls": "starttls-optional", "allow_plaintext_auth": True}),
    "idle": ("imap", IDLE, {}),
    "copy": ("imap", COPY, {"inspect": "login"}),
}


class Cutter(trio.abc.Instrument):
    """Does something to a session after its ``at``-th step, counted over all of its tasks."""

    def __init__(self, at: int, action: Callable[[World, trio.CancelScope], None]) -> None:
        self.at = at
        self.steps = 0
        self.root: trio.lowlevel.Task | None = None
        self.world = World(Stage())
        self.scope = trio.CancelScope()
        self._action = action

    @property
    def has_cut(self) -> bool:
        return self.steps >= self.at

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        ancestor: trio.lowlevel.Task | None = task
        while ancestor is not None and ancestor is not self.root:
            ancestor = ancestor.parent_nursery.parent_task if ancestor.parent_nursery else None
        if self.root is None or ancestor is None:
            return
        self.steps += 1
        if self.steps == self.at:
            self._action(self.world, self.scope)


def cancel(world: World, scope: trio.CancelScope) -> None:
    scope.cancel()


def reset_client(world: World, scope: trio.CancelScope) -> None:
    world.stage.near_client.reset()


def reset_upstream(world: World, scope: trio.CancelScope) -> None:
    if world.stage.near_upstream is not None:
        world.stage.near_upstream.reset()


def drain(world: World, scope: trio.CancelScope) -> None:
    world.watch.end_idle("shutting_down")


async def cut_scene(cutter: Cutter, protocol: str, script: str, options: dict[str, Any]) -> None:
    """Play a scene whose session is cut on the way."""
    world = cutter.world
    world.fail = [Failure.AUTH_REJECTED]
    world.before_open = trio.lowlevel.checkpoint
    serve = session_for(protocol, world, dict(options))

    async def session() -> None:
        cutter.root = trio.lowlevel.current_task()
        with cutter.scope:
            await serve()
        assert cutter.root.child_nurseries == []

    async def play() -> None:
        try:
            await world.stage.play(script)
        except (Mismatch, trio.BrokenResourceError):
            # A script cannot go on as written behind the cut; before it, and without one, it must.
            if not cutter.has_cut:
                raise

    async with trio.open_nursery() as everything:
        everything.start_soon(world.watch.run)
        everything.start_soon(world.engine.run)
        async with trio.open_nursery() as scene:
            scene.start_soon(session)
            scene.start_soon(play)
            await world.ended.wait()
            if cutter.has_cut:
                await trio.testing.wait_all_tasks_blocked()
                scene.cancel_scope.cancel()
        everything.cancel_scope.cancel()


@pytest.mark.parametrize("action", [cancel, reset_client, reset_upstream, drain])
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_a_session_that_is_cut_anywhere_leaves_nothing_behind(
    scene: str, action: Callable[[World, trio.CancelScope], None]
) -> None:
    async def main(at: int) -> Cutter:
        cutter = Cutter(at, action)
        trio.lowlevel.add_instrument(cutter)
        protocol, script, options = SCENES[scene]
        await cut_scene(cutter, protocol, script, options)
        return cutter

    for at in itertools.count(1):
        cutter = trio.run(main, at, clock=trio.testing.MockClock(autojump_threshold=0))
        check_nothing_is_left(cutter.world)
        if not cutter.has_cut:
            break
    assert at > 20, "the scene has this many places at least"


def check_nothing_is_left(world: World) -> None:
    stage, session = world.stage, world.session
    assert session is not None
    assert stage.near_client.closed
    assert stage.near_upstream is None or stage.near_upstream.closed
    assert (len(world.watch), world.gate.sessions, world.gate.half_open) == (0, 0, 0)
    assert [isinstance(event, SessionClosed) for event in stage.events].index(True) == len(stage.events) - 1
    assert sum(isinstance(event, SessionEstablished) for event in stage.events) <= len(world.logins)
    assert sum(told.received for told in stage.relayed) == session.bytes_in
    assert sum(told.sent for told in stage.relayed) == session.bytes_out

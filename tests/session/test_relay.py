"""The relay: two pumps around the real cores, over memory streams, with every way in which a side can end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mailgate.events import BytesRelayed, CommandFinished, Event
from mailgate.model import ALLOW, Delay, Peer, Protocol, Session, Side, Verdict
from mailgate.policy.access import KNOWN_VERBS
from mailgate.session.relay import End, Relay, Watch
from mailgate.stream import ByteStream, SocketStream, TrioStream, burst_buffer
from mailgate.wire.relay import CopyRelay, RelayCore
from mailgate.wire.relay_imap import ImapRelay
from mailgate.wire.relay_pop3 import Pop3Relay
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
            G: c APPEND inbox {{12+}}
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
            G: b APPEND inbox {{100+}}
            G: half a line
            closed: upstream
            events: SessionClosed(client closed)
        """)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_connection_that_is_reset(autojump_clock: object, side: str) -> None:
    world = World(Stage())
    async with on_stage("imap", world):
        await world.stage.play(f"""
            {IMAP}
            reset: {"client" if side == "client" else "upstream"}
            closed: {"upstream" if side == "client" else "client"}
            events: SessionClosed({side} reset)
        """)


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
            G: b APPEND inbox {{4+}}
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


# -------------------------------------------------------------------- the shell alone: pressure, delays, ends


class Wires:
    """A relay between two far ends, without a dialogue before it."""

    def __init__(self, client: ByteStream, upstream: ByteStream, core: RelayCore, farewell: bytes = b"") -> None:
        self.events: list[Event] = []
        self.watch = Watch()
        self.session = Session("s1", Protocol.IMAP, "test", Peer("192.0.2.1", 1), trio.current_time())
        self.relay = Relay(
            client,
            upstream,
            core,
            self.session,
            self.events.append,
            self.watch,
            buffer=burst_buffer(),
            idle=60.0,
            linger=5.0,
            farewell=lambda reason: farewell,
        )
        self.end: End | None = None
        self.ended = trio.Event()
        self._streams = (client, upstream)

    async def run(self) -> None:
        self.end = await self.relay.run()
        self.ended.set()
        for stream in self._streams:
            await stream.aclose()

    @property
    def finished(self) -> list[tuple[str, str, float]]:
        return [(one.verb, one.result, one.seconds) for one in self.events if isinstance(one, CommandFinished)]


def imap_core(decide: Callable[[str], Verdict] = lambda verb: ALLOW) -> ImapRelay:
    return ImapRelay(
        decide=decide,
        visible=list,
        verbs=KNOWN_VERBS[Protocol.IMAP],
        capabilities=frozenset({"LITERAL+"}),
    )


def pop3_core() -> Pop3Relay:
    return Pop3Relay(decide=lambda verb: ALLOW, visible=list, verbs=KNOWN_VERBS[Protocol.POP3])


def sockets() -> tuple[ByteStream, trio.SocketStream]:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return SocketStream(near), trio.SocketStream(trio.socket.from_stdlib_socket(far))


def lockstep() -> tuple[ByteStream, trio.abc.HalfCloseableStream]:
    near, far = trio.testing.lockstep_stream_pair()
    return TrioStream(near), far


def memory() -> tuple[ByteStream, trio.abc.HalfCloseableStream]:
    near, far = trio.testing.memory_stream_pair()
    return TrioStream(near), far


@asynccontextmanager
async def wired(
    core: RelayCore, pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]] = memory, farewell: bytes = b""
) -> AsyncIterator[tuple[Wires, trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]]:
    near_client, client = pair()
    near_upstream, upstream = pair()
    wires = Wires(near_client, near_upstream, core, farewell)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wires.run)
        yield wires, client, upstream
        await client.aclose()
        await upstream.aclose()


async def read(stream: trio.abc.HalfCloseableStream, size: int, *, at_a_time: int = 65536, pause: float = 0.0) -> bytes:
    got = bytearray()
    while len(got) < size:
        await trio.sleep(pause)
        piece = await stream.receive_some(min(at_a_time, size - len(got)))
        assert piece, f"the end came after {len(got)} of {size} bytes"
        got += piece
    return bytes(got)


BODY = bytes(range(256)) * 4096
UPLOAD = b"a APPEND inbox {%d+}\r\n%b\r\n" % (len(BODY), BODY)
DOWNLOAD = b"* 1 FETCH (BODY[] {%d}\r\n%b)\r\nz OK done\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("make", [imap_core, CopyRelay])
@pytest.mark.parametrize("pair", [memory, lockstep, sockets])
async def test_both_sides_send_much_at_once(
    autojump_clock: object,
    make: Callable[[], RelayCore],
    pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]],
) -> None:
    async with wired(make(), pair) as (_, client, upstream), trio.open_nursery() as nursery:
        got: dict[str, bytes] = {}

        async def take(name: str, stream: trio.abc.HalfCloseableStream, size: int) -> None:
            got[name] = await read(stream, size)

        nursery.start_soon(client.send_all, UPLOAD)
        nursery.start_soon(upstream.send_all, DOWNLOAD)
        nursery.start_soon(take, "client", client, len(DOWNLOAD))
        nursery.start_soon(take, "upstream", upstream, len(UPLOAD))
    assert got == {"client": DOWNLOAD, "upstream": UPLOAD}


@pytest.mark.parametrize("pair", [memory, lockstep])
async def test_writers_of_one_byte_at_a_time(
    autojump_clock: object, pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]]
) -> None:
    asked = b'a FETCH 1 BODY[]\r\nb APPEND "x" {4+}\r\n\r\n\r\n\r\n'
    answer = b"* 1 FETCH (BODY[] {8}\r\na OK no\n)\r\na OK done\r\n* CAPABILITY IDLE\r\nb NO [X] {3}\r\n"

    async def trickle(stream: trio.abc.Stream, data: bytes) -> None:
        for at in range(len(data)):
            await stream.send_all(data[at : at + 1])
            await trio.sleep(0.01)

    async with wired(imap_core(), pair) as (wires, client, upstream):
        for source, sink, data in ((client, upstream, asked), (upstream, client, answer)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle, source, data)
                assert await read(sink, len(data)) == data
        await trio.testing.wait_all_tasks_blocked()
        assert [(verb, result) for verb, result, _ in wires.finished] == [("FETCH", "ok"), ("APPEND", "no")]


@pytest.mark.parametrize("pair", [lockstep, sockets])
async def test_a_slow_reader_holds_the_sender_back_and_loses_nothing(
    autojump_clock: object,
    pair: Callable[[], tuple[ByteStream, trio.abc.HalfCloseableStream]],
) -> None:
    data = DOWNLOAD[:100_000]
    async with wired(imap_core(), pair) as (wires, client, upstream), trio.open_nursery() as nursery:
        nursery.start_soon(upstream.send_all, data)
        assert await read(client, len(data), at_a_time=5000, pause=0.01) == data
        await trio.testing.wait_all_tasks_blocked()
        assert wires.session.bytes_out == len(data)


async def test_answers_of_the_gateway_keep_their_place_beside_a_blocked_send(autojump_clock: object) -> None:
    body = b"* 1 FETCH (BODY[] {200000}\r\n%b)\r\n" % (b"x" * 200_000)
    async with wired(imap_core(), sockets) as (_, client, upstream), trio.open_nursery() as nursery:
        nursery.start_soon(upstream.send_all, body)
        await trio.sleep(0.05)
        refused = b"".join(b"t%d\r\n" % number for number in range(3))
        await client.send_all(refused)
        await trio.sleep(0.05)
        answers = b"* BAD Expected a tag and a command\r\n" * 3
        assert await read(client, len(body) + len(answers)) == body + answers


async def test_both_pumps_take_turns_at_the_client(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep) as (_, client, upstream), trio.open_nursery() as nursery:
        # The first send to the client is not read, so whatever comes behind it must wait in order.
        await upstream.send_all(b"* 1 EXISTS\r\n")
        nursery.start_soon(client.send_all, b"one\r\n")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(upstream.send_all, b"* 2 EXISTS\r\n")
        await trio.testing.wait_all_tasks_blocked()
        expected = b"* 1 EXISTS\r\n* BAD Expected a tag and a command\r\n* 2 EXISTS\r\n"
        assert await read(client, len(expected)) == expected


async def test_a_delay_of_the_gate_holds_a_command_back(autojump_clock: object) -> None:
    def decide(verb: str) -> Verdict:
        return Delay(3.0, "test") if verb == "SELECT" else ALLOW

    async with wired(imap_core(decide)) as (wires, client, upstream):
        began = trio.current_time()
        await client.send_all(b"a SELECT inbox\r\nb NOOP\r\n")
        assert await read(upstream, 16) == b"a SELECT inbox\r\n"
        assert trio.current_time() - began == 3.0
        assert await read(upstream, 8) == b"b NOOP\r\n"
        assert trio.current_time() - began == 3.0
        await upstream.send_all(b"a OK done\r\nb OK done\r\n")
        await read(client, 22)
        assert wires.finished == [("SELECT", "ok", 3.0), ("NOOP", "ok", 0.0)]


@pytest.mark.parametrize("answer", [b"a OK done\r\n", b"a OK done\r\n* 1 EXISTS\r\n"])
async def test_a_slow_client_that_says_no_more_gets_all_of_its_answer(autojump_clock: object, answer: bytes) -> None:
    async with wired(imap_core(), lockstep) as (wires, client, upstream), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"a NOOP\r\n")
        await read(upstream, 8)
        await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()
        nursery.start_soon(upstream.send_all, answer)
        await trio.sleep(4)
        assert await read(client, len(answer)) == answer
    assert wires.end == End(Side.CLIENT, "closed")


async def test_a_client_that_neither_speaks_nor_reads_is_left(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep) as (wires, client, upstream):
        await upstream.send_all(b"* 1 EXISTS\r\n")
        began = trio.current_time()
        await client.send_eof()
        await wires.ended.wait()
        assert trio.current_time() - began == 5.0
    assert wires.end == End(Side.CLIENT, "closed")


async def test_a_client_that_does_not_read_its_farewell_is_left_after_a_moment(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep, farewell=b"* BYE\r\n") as (wires, client, _):
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        wires.watch.end_idle("shutting_down")
        assert await client.receive_some(1) == b"*"
        await wires.ended.wait()
        assert trio.current_time() - began == 1.0
    assert wires.end == End(Side.PROXY, "shutting_down")
    assert wires.session.bytes_out == 0


async def test_a_client_that_is_gone_before_its_farewell(autojump_clock: object) -> None:
    async with wired(imap_core(), memory, farewell=b"* BYE\r\n") as (wires, client, _):
        await trio.testing.wait_all_tasks_blocked()
        wires.relay.end(Side.PROXY, "shutting_down")
        await client.aclose()
    assert wires.end == End(Side.PROXY, "shutting_down")


async def test_a_relay_that_is_sending_is_not_quiet(autojump_clock: object) -> None:
    async with wired(imap_core(), lockstep) as (wires, client, upstream):
        await upstream.send_all(b"* 1 EXISTS\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert not wires.relay.quiet
        await read(client, 12)
        await trio.testing.wait_all_tasks_blocked()
        assert wires.relay.quiet


async def test_the_first_reason_is_the_one_that_counts(autojump_clock: object) -> None:
    async with wired(pop3_core()) as (wires, _, _):
        await trio.testing.wait_all_tasks_blocked()
        wires.relay.end(Side.PROXY, "idle")
        wires.relay.end(Side.SERVER, "closed")
        assert wires.relay.ended
    assert wires.end == End(Side.PROXY, "idle")
    assert len(wires.watch) == 0


@pytest.mark.parametrize("make", [imap_core, pop3_core, CopyRelay])
async def test_what_came_before_the_relay_comes_first(autojump_clock: object, make: Callable[[], RelayCore]) -> None:
    (near_client, client), (near_upstream, upstream) = memory(), memory()
    wires = Wires(near_client, near_upstream, make())
    await client.send_all(b"b NOOP\r\n" if make is imap_core else b"NOOP\r\n")
    await upstream.send_all(b"* 2 EXISTS\r\n" if make is imap_core else b"+OK 2\r\n")
    async with trio.open_nursery() as nursery:
        early = (b"a NOOP\r\n", b"* 1 EXISTS\r\n") if make is imap_core else (b"STAT\r\n", b"+OK 1\r\n")
        nursery.start_soon(wires.relay.run, *early)
        rest = (b"b NOOP\r\n", b"* 2 EXISTS\r\n") if make is imap_core else (b"NOOP\r\n", b"+OK 2\r\n")
        for stream, parts in ((upstream, (early[0], rest[0])), (client, (early[1], rest[1]))):
            assert await read(stream, len(b"".join(parts))) == b"".join(parts)
        nursery.cancel_scope.cancel()
    told = [event for event in wires.events if isinstance(event, BytesRelayed)]
    assert sum(one.sent for one in told) == wires.session.bytes_out > 0

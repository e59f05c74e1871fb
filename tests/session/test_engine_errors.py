"""The relay engine ends relays by itself: farewells, its own end, errors, descriptors, and whatever at any turn."""

from __future__ import annotations

import gc
import select
import socket

import pytest
import trio
import trio.testing

from mailgate.events import CrashedSession
from mailgate.model import End, Peer, Protocol, Session, Side
from mailgate.session.relay import Relay
from mailgate.wire.relay import CopyRelay
from tests.support.yard import (
    BYE,
    Link,
    Yard,
    bye,
    command,
    descriptors,
    imap_core,
    pop3_core,
    raw_socket,
    read,
    read_all,
    reset,
    serving,
    transports,
)

pytestmark = pytest.mark.usefixtures("way")

# -------------------------------------------------------------------- ends from within the gateway


@transports
async def test_a_farewell_stands_at_the_end_of_a_response_alone(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        at_end, within = [await yard.link(imap_core(), tls=tls, tcp=tcp, farewell=bye) for _ in range(2)]
        await within.upstream.send_all(b"* 1 FETCH (BODY[] {9}\r\nabc")
        await read(within.client, 26)
        before = at_end.session.bytes_out
        for link in (at_end, within):
            yard.relay(link).end(Side.PROXY, "idle")
            assert link.ends == [End(Side.PROXY, "idle")]
        assert await read_all(at_end.client) == BYE
        assert await read_all(within.client) == b""
        assert at_end.session.bytes_out - before == len(BYE)


async def test_a_client_that_has_not_taken_all_is_told_nothing(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), small=True, farewell=bye)
        await link.upstream.send_all(b"* 1 EXISTS\r\n" * 1500)
        await trio.sleep(1)
        assert yard.relay(link).sending
        yard.relay(link).end(Side.PROXY, "idle")
        assert BYE not in await read_all(link.client)


async def test_a_farewell_that_does_not_fit_is_not_counted(autojump_clock: object) -> None:
    async with serving() as yard:
        line = b"* BYE %b\r\n" % (b"x" * 50_000)
        link = await yard.link(imap_core(), small=True, farewell=lambda reason: line)
        yard.relay(link).end(Side.PROXY, "idle")
        assert link.session.bytes_out == 0
        assert line.startswith(await read_all(link.client))


async def test_the_first_reason_is_the_one_that_counts(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(pop3_core())
        relay = yard.relay(link)
        relay.end(Side.PROXY, "idle")
        relay.end(Side.SERVER, "closed")
        assert yard.watch.end_idle("shutting_down") == 0
    assert link.ends == [End(Side.PROXY, "idle")]


async def test_a_protocol_error_ends_with_a_farewell(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), farewell=bye)
        await link.client.send_all(b'b APPEND x {4+}\r\nabcd "\r\n')
        await read(link.upstream, 16)
        await link.upstream.send_all(b"+ go\r\n")
        assert await read_all(link.client) == BYE
    assert link.ends == [End(Side.PROXY, "protocol")]


async def test_silence_ends_a_session(autojump_clock: object) -> None:
    async with serving() as yard, trio.open_nursery() as nursery:
        nursery.start_soon(yard.watch.run)
        link = await yard.link(imap_core(), farewell=bye)
        await link.ended.wait()
        assert 60 < trio.current_time() - link.session.started <= 65
        nursery.cancel_scope.cancel()
    assert link.ends == [End(Side.PROXY, "idle")]


async def test_a_relay_that_is_ended_before_its_turn_came(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), early=(b"x\r\n" * 300, b""))
        assert yard.engine._again
        yard.relay(link).end(Side.PROXY, "idle")
        await trio.testing.wait_all_tasks_blocked()
        assert not yard.engine._again
        assert len(await read_all(link.client)) == 36 * 100


# -------------------------------------------------------------------- the engine's own end


async def test_relays_end_with_the_engine(autojump_clock: object) -> None:
    async with serving() as yard:
        first, second = [await yard.link(imap_core(), farewell=bye) for _ in range(2)]
        await second.client.send_all(b"a NOOP\r\n")
        await read(second.upstream, 8)
    assert first.ends == second.ends == [End(Side.PROXY, "shutting_down")]
    yard.engine.close()
    yard.engine.close()


async def test_a_relay_that_comes_too_late_is_over_at_once(autojump_clock: object) -> None:
    yard = Yard()
    yard.engine.close()
    link = await yard.link(imap_core(), early=(b"a NOOP\r\n", b"* 1 EXISTS\r\n"), farewell=bye)
    assert link.ends == [End(Side.PROXY, "shutting_down")]
    assert await read_all(link.client) == BYE
    yard.check()


async def test_an_engine_that_never_ran_is_closed_too(autojump_clock: object) -> None:
    before = descriptors()
    yard = Yard()
    await yard.link(imap_core())
    yard.engine.close()
    yard.check()
    assert descriptors() == before


# -------------------------------------------------------------------- errors of the gateway's own


class Broken(CopyRelay):
    """A core with an error in it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def client_sent(self, data: bytes | bytearray, end: int, now: float) -> int:
        if self.where == "client":
            raise ValueError(self.where)
        return super().client_sent(data, end, now)

    def upstream_sent(self, data: bytes | bytearray, end: int, now: float) -> None:
        if self.where == "upstream":
            raise ValueError(self.where)
        super().upstream_sent(data, end, now)

    @property
    def at_boundary(self) -> bool:
        if self.where == "end":
            raise ValueError(self.where)
        return super().at_boundary


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("where", ["client", "upstream"])
async def test_an_error_in_a_core_ends_its_relay_alone(where: str, early: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        other = await yard.link(imap_core())
        first = (b"x" * early * (where == "client"), b"x" * early * (where == "upstream"))
        broken = await yard.link(Broken(where), early=first)
        if not early:
            await (broken.client if where == "client" else broken.upstream).send_all(b"x")
        await broken.ended.wait()
        await command(other, b"a")
        assert [str(error) for error in yard.crashes] == [where]
        assert broken.ends == [End(Side.PROXY, "internal")]


@pytest.mark.parametrize("how", ["core", "farewell"])
async def test_an_error_at_the_end_does_not_lose_the_end(how: str, autojump_clock: object) -> None:
    def farewell(reason: str) -> bytes:
        raise ValueError("end")

    async with serving() as yard:
        if how == "core":
            link = await yard.link(Broken("end"))
        else:
            link = await yard.link(imap_core(), farewell=farewell)
        yard.relay(link).end(Side.PROXY, "idle")
        assert link.ends == [End(Side.PROXY, "internal")]
        assert [str(error) for error in yard.crashes] == ["end"]


@pytest.mark.parametrize("how", ["client", "drain", "close"])
async def test_an_error_in_done_is_told_and_kept(how: str, autojump_clock: object) -> None:
    def done(link: Link, end: End) -> None:
        link.done(end)
        raise ValueError("done")

    async with serving() as yard:
        links = [await yard.link(imap_core(), done=done) for _ in range(3)]
        other = await yard.link(imap_core())
        if how == "client":
            for link in links:
                await link.client.aclose()
                await link.ended.wait()
        elif how == "drain":
            assert yard.watch.end_idle("shutting_down", at_most=3) == 1
        if how != "close":
            await command(other, b"a")
    assert [str(error) for error in yard.crashes] == ["done"] * 3


@pytest.mark.parametrize("moment", ["delay", "again"])
async def test_an_error_when_a_relay_goes_on_ends_it_alone(moment: str, autojump_clock: object) -> None:
    async with serving() as yard:
        other = await yard.link(imap_core())
        link = await yard.link(imap_core())
        relay = yard.relay(link)
        await link.client.send_all(b"a XFROB\r\nb XFROB\r\n")
        await read(link.upstream, 9)
        if moment == "delay":
            await link.client.send_eof()
            await trio.testing.wait_all_tasks_blocked()
            relay.core.to_upstream = None  # type: ignore[assignment]
            relay._give_up_at = relay._resume_at = trio.current_time()
            yard.engine._arrange(yard.engine._legs[link.near[0].fileno()].pair, trio.current_time())
        else:
            relay.core._carry = None  # type: ignore[attr-defined]
            relay._rest = b"c NOOP\r\n"
            await link.upstream.send_all(b"a OK done\r\n")
        await link.ended.wait()
        await command(other, b"a")
        assert len(yard.crashes) == 1
        del relay


async def test_an_error_of_the_engine_is_not_swallowed(autojump_clock: object) -> None:
    yard = Yard()

    def emit(event: object) -> None:
        if type(event) is CrashedSession:
            raise RuntimeError("nobody to tell")

    yard.emit = emit
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="nobody to tell"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(yard.engine.run)
            link = await yard.link(Broken("client"))
            await link.client.send_all(b"x")
            await trio.sleep(5)
    for far in (link.client, link.upstream):
        raw_socket(far).close()


async def test_sockets_that_are_closed_already(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), before=lambda link: [sock.close() for sock in link.near])
        assert link.ends == [End(Side.PROXY, "internal")]
        assert len(yard.crashes) == 1


# -------------------------------------------------------------------- descriptors and garbage


async def test_a_descriptor_that_is_used_again_is_not_served_with_an_old_event(autojump_clock: object) -> None:
    async with serving() as yard:
        taken: list[socket.socket] = []
        old = await yard.link(imap_core(), done=lambda link, end: (link.done(end), adopt_again()))
        numbers = [sock.fileno() for sock in old.near]
        fresh: list[Relay] = []
        ends: list[End] = []

        def adopt_again() -> None:
            (client, far_client), (upstream, far_upstream) = socket.socketpair(), socket.socketpair()
            taken.extend((far_client, far_upstream))
            assert {client.fileno(), upstream.fileno()} & set(numbers)
            for sock in (client, upstream):
                sock.setblocking(False)
            session = Session("new", Protocol.IMAP, "test", Peer("192.0.2.1", 1), trio.current_time())
            relay = Relay(imap_core(), session, yard.emit, idle=60.0, linger=5.0, farewell=bye)
            fresh.append(relay)
            yard.engine.adopt(relay, client, upstream, ends.append, b"a XFROB\r\nb XFROB\r\nc NOOP\r\n")

        # Both events of the old pair come in one batch, the second when its descriptor is another's.
        raw_socket(old.client).close()
        raw_socket(old.upstream).close()
        await trio.sleep(1)
        assert len(old.ends) == len(fresh) == 1
        assert not ends
        assert not fresh[0].deaf
        taken[1].sendall(b"a OK done\r\n")
        await trio.sleep(1)
        assert taken[1].recv(100) == b"a XFROB\r\nb XFROB\r\nc NOOP\r\n"
        for sock in taken:
            sock.close()
        await trio.sleep(1)
        assert len(ends) == 1
        fresh.clear()


async def test_an_old_event_does_nothing_to_whom_it_is_not_for(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core())
        for sock in link.near:
            old = (sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP)
            assert not yard.engine._turn([old], trio.current_time())
        await command(link, b"a")


@transports
async def test_what_is_over_is_freed_without_a_collection(tls: str, tcp: bool, autojump_clock: object) -> None:
    gc.collect()
    gc.disable()
    try:
        async with serving() as yard:
            links = [await yard.link(imap_core(), tls=tls, tcp=tcp) for _ in range(4)]
            for number, link in enumerate(links):
                await command(link, b"a%d" % number)
            await links[0].client.aclose()
            reset(links[1].client)
            await links[2].upstream.aclose()
            yard.relay(links[3]).end(Side.PROXY, "idle")
            for link in links:
                await link.ended.wait()
            # One turn more, in which the last frame that had to do with them is left.
            await trio.sleep(0.01)
            left = [
                one
                for one in gc.get_objects()
                if isinstance(one, Relay) and any(one.session is link.session for link in links)
            ]
            assert len(left) == 0
    finally:
        gc.enable()


# -------------------------------------------------------------------- whatever happens at whichever turn


async def upload(link: Link) -> None:
    await link.client.send_all(b"a APPEND x {60000}\r\n")
    await read(link.upstream, 20)
    await link.upstream.send_all(b"+ go\r\n")
    await read(link.client, 6)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.client.send_all, b"u" * 60_000 + b"\r\n")
        await read(link.upstream, 60_002)
    await link.upstream.send_all(b"a OK done\r\n")
    await read(link.client, 11)


async def download(link: Link) -> None:
    await link.client.send_all(b"a FETCH 1 BODY[]\r\nb XFROB\r\nc XFROB\r\nx\r\n")
    await read(link.upstream, 27)
    body = b"* 1 FETCH (BODY[] {60000}\r\n%b)\r\na OK done\r\nb OK done\r\n" % (b"x" * 60_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.upstream.send_all, body)
        await read(link.client, len(body), at_a_time=20_000)
    await read(link.upstream, 9)
    await link.upstream.send_all(b"c OK done\r\n")


async def quit_pop3(link: Link) -> None:
    await link.client.send_all(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
    await read(link.upstream, 22)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.upstream.send_all, b"+OK\r\n%b\r\n.\r\n+OK\r\n+OK bye\r\n" % (b"x" * 30_000))
        await read(link.client, 5 + 30_000 + 5 + 5 + 9)
    await link.upstream.aclose()
    await read_all(link.client)


SCENES = {"upload": (imap_core, upload), "download": (imap_core, download), "quit": (pop3_core, quit_pop3)}


@pytest.mark.parametrize("act", ["cancel", "reset client", "reset upstream", "drain", "end"])
@pytest.mark.parametrize("scene", list(SCENES))
@pytest.mark.parametrize(("tls", "tcp"), [("", False), ("client upstream", True)], ids=["unix", "tls-tcp"])
async def test_whatever_happens_at_any_turn(tls: str, tcp: bool, scene: str, act: str, autojump_clock: object) -> None:
    make, play = SCENES[scene]
    # The clock is the virtual one: a scene that has been disturbed is given up after a while.
    for number in range(1, 400):
        async with serving() as yard, trio.open_nursery() as nursery:
            link = await yard.link(make(), tls=tls, tcp=tcp, small=not tcp)
            acted = False

            def disturb(turn: int, link: Link = link, yard: Yard = yard, number: int = number) -> None:
                nonlocal acted
                if turn != number:
                    return
                acted = True
                if act == "cancel":
                    scope.cancel()
                elif act == "drain":
                    yard.watch.end_idle("shutting_down")
                elif act == "end" and not link.ends:
                    yard.relay(link).end(Side.PROXY, "idle")
                elif act.startswith("reset"):
                    reset(link.client if act.endswith("client") else link.upstream)

            turns = yard.count_turns(disturb)
            with trio.move_on_after(20) as scope:
                try:
                    await play(link)
                except* (AssertionError, trio.BrokenResourceError, trio.ClosedResourceError):
                    # It ended before its time, for one of the two who play it.
                    assert acted
            if acted and act.startswith("reset"):
                await trio.sleep(61)
                assert link.ends, "neither noticed nor given up"
            assert turns[0] < 1000
            nursery.cancel_scope.cancel()
        if not acted:
            break
    else:
        pytest.fail("the scene has no end")
    assert number > 3

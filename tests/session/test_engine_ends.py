"""The relay engine and every way in which a connection ends, an error is met, or somebody acts in between."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing

from mailgate.model import End, Side
from mailgate.wire.relay import CopyRelay, RelayCore
from tests.support.yard import (
    BYE,
    FLOOD,
    Link,
    bye,
    command,
    imap_core,
    raw_socket,
    read,
    read_all,
    reset,
    send_at_once,
    serving,
    transports,
)

pytestmark = pytest.mark.usefixtures("way")

# -------------------------------------------------------------------- the client


@transports
async def test_a_client_that_closes_leaves_at_once(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp)
        await command(link, b"a")
        began = trio.current_time()
        await link.client.aclose()
        with trio.fail_after(60):
            await link.ended.wait()
            assert await read_all(link.upstream) == b""
        assert trio.current_time() == began
    assert link.ends == [End(Side.CLIENT, "closed")]


@transports
async def test_a_client_that_says_no_more_gets_its_answers(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp)
        await link.client.send_all(b"a NOOP\r\nb NOOP\r\n")
        if tls:
            send_at_once(link.client, None)
        else:
            raw_socket(link.client)._sock.shutdown(socket.SHUT_WR)
        await read(link.upstream, 16)
        turns = yard.count_turns()
        await trio.sleep(2)
        await link.upstream.send_all(b"a OK done\r\n")
        await trio.sleep(2)
        assert turns[0] < 50
        await link.upstream.send_all(b"b OK done\r\n")
        assert await read(link.client, 22) == b"a OK done\r\nb OK done\r\n"
        await link.ended.wait()
    assert link.ends == [End(Side.CLIENT, "closed")]


@transports
async def test_a_client_that_is_reset(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp)
        await command(link, b"a")
        # Over Unix sockets, what it has not read makes it a reset.
        await link.upstream.send_all(b"* 1 EXISTS\r\n")
        await trio.testing.wait_all_tasks_blocked()
        reset(link.client)
        with trio.fail_after(60):
            await link.ended.wait()
            assert await read_all(link.upstream) == b""
    assert link.ends[0].side is Side.CLIENT
    # OpenSSL may tell a reset like an end.
    assert tls or link.ends == [End(Side.CLIENT, "reset")]


@transports
@pytest.mark.parametrize("make", [imap_core, CopyRelay])
async def test_a_client_that_is_reset_while_it_is_sent_much(
    make: Callable[[], RelayCore], tls: str, tcp: bool, autojump_clock: object
) -> None:
    async with serving() as yard, trio.open_nursery() as nursery:
        link = await yard.link(make(), tls=tls, tcp=tcp, small=True)
        turns = yard.count_turns()

        @nursery.start_soon
        async def flood() -> None:
            # Answers to commands in flight are still awaited for a while, and go nowhere.
            with contextlib.suppress(trio.BrokenResourceError):
                await link.upstream.send_all(FLOOD * 4)

        await read(link.client, 1000)
        await trio.sleep(1)
        assert yard.relay(link).sending
        reset(link.client)
        before = turns[0]
        with trio.fail_after(60):
            await link.ended.wait()
        # What the upstream still sends is taken in bursts as large as its socket holds, no faster than it comes.
        assert turns[0] - before < 2000
    assert link.ends == [End(Side.CLIENT, "reset")]


@transports
async def test_a_client_that_is_reset_while_it_must_wait(tls: str, tcp: bool, autojump_clock: object) -> None:
    """It is not read then: epoll tells of the loss all the same, and must not tell of it for ever."""
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp)
        await link.client.send_all(b"a XFROB\r\nb XFROB\r\nc NOOP\r\n")
        await read(link.upstream, 9)
        await link.upstream.send_all(b"* 1 EXISTS\r\n")
        await trio.testing.wait_all_tasks_blocked()
        reset(link.client)
        turns = yard.count_turns()
        began = trio.current_time()
        with trio.fail_after(60):
            await link.ended.wait()
        assert trio.current_time() - began == 5.0
        assert turns[0] < 50
    assert link.ends == [End(Side.CLIENT, "reset")]


@transports
async def test_a_client_lost_while_it_waits_is_read_to_its_end(tls: str, tcp: bool, autojump_clock: object) -> None:
    """Over Unix sockets a close alone is a loss, and what was said before it is there to be read."""
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp)
        await link.client.send_all(b"a XFROB\r\nb XFROB\r\n")
        await read(link.upstream, 9)
        await link.client.send_all(b"c NOOP\r\n")
        await trio.testing.wait_all_tasks_blocked()
        raw_socket(link.client).close()
        await trio.sleep(1)
        await link.upstream.send_all(b"a OK done\r\n")
        assert await read(link.upstream, 17) == b"b XFROB\r\nc NOOP\r\n"
        await link.upstream.send_all(b"b OK done\r\nc OK done\r\n")
        with trio.fail_after(10):
            await link.ended.wait()
    assert link.ends[0].side is Side.CLIENT


async def test_the_time_for_a_lost_client_begins_anew_with_its_last_word(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core())
        began = trio.current_time()
        await link.client.send_all(b"a XFROB\r\nb XFROB\r\n")
        await read(link.upstream, 9)
        await link.client.aclose()
        await trio.sleep(1)
        await link.upstream.send_all(b"a OK done\r\n")
        await link.ended.wait()
        assert trio.current_time() - began == 6.0
    assert link.ends == [End(Side.CLIENT, "closed")]


@transports
async def test_a_client_that_uploads_and_goes_has_said_it_all(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp, small=True)
        upload = b"a APPEND x {200000}\r\n" + b"u" * 200_000 + b"\r\n"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.client.send_all, upload)
            await read(link.upstream, 21)
            await link.upstream.send_all(b"+ go\r\n")
            assert await read(link.client, 6) == b"+ go\r\n"
            got = await read(link.upstream, 1000, at_a_time=1000)
            await trio.sleep(1)
            got += await read(link.upstream, 200_002 - len(got))
            nursery.start_soon(link.client.aclose)
            await trio.sleep(1)
            await link.upstream.send_all(b"a OK done\r\n")
            await link.ended.wait()
    assert link.ends == [End(Side.CLIENT, "closed")]
    assert [(verb, result) for verb, result, _ in yard.finished] == [("APPEND", "ok")]


# -------------------------------------------------------------------- the upstream


@transports
async def test_what_the_upstream_said_before_its_end_arrives(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp, small=True)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def say_and_go() -> None:
                await link.upstream.send_all(FLOOD)
                await link.upstream.aclose()

            assert await read(link.client, len(FLOOD), at_a_time=20_000, pause=0.01) == FLOOD
            assert await read_all(link.client) == b""
    assert link.ends == [End(Side.SERVER, "closed")]


@transports
async def test_an_upstream_that_is_reset(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, tcp=tcp, farewell=bye)
        await link.client.send_all(b"a NOOP\r\n")
        await trio.testing.wait_all_tasks_blocked()
        reset(link.upstream)
        assert await read_all(link.client) == b""
        await link.ended.wait()
    assert link.ends[0].side is Side.SERVER
    assert tls or link.ends == [End(Side.SERVER, "reset")]


@transports
async def test_an_upstream_that_is_reset_while_it_is_sent_much(tls: str, tcp: bool, autojump_clock: object) -> None:
    async with serving() as yard, trio.open_nursery() as nursery:
        link = await yard.link(CopyRelay(), tls=tls, tcp=tcp, small=True)
        turns = yard.count_turns()

        @nursery.start_soon
        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await link.client.send_all(FLOOD * 10)

        await read(link.upstream, 1000)
        await trio.sleep(1)
        reset(link.upstream)
        with trio.fail_after(60):
            await link.ended.wait()
        assert turns[0] < 500
    assert link.ends[0].side is Side.SERVER


@transports
async def test_an_upstream_lost_while_it_is_not_read(tls: str, tcp: bool, autojump_clock: object) -> None:
    """What it said before is still sent to a slow client, as far as a reset leaves it there."""
    async with serving() as yard:
        link = await yard.link(CopyRelay(), tls=tls, tcp=tcp, small=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.upstream.send_all, FLOOD * 10)
            await trio.sleep(1)
            turns = yard.count_turns()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        reset(link.upstream)
        await trio.sleep(30)
        assert turns[0] < 50
        assert not link.ends
        with trio.fail_after(60):
            got = await read_all(link.client)
            await link.ended.wait()
        assert (FLOOD * 10).startswith(got)
        assert got
    assert link.ends[0].side is Side.SERVER


async def test_an_upstream_that_takes_nothing_may_still_speak_for_a_while(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), small=True)
        raw_socket(link.upstream)._sock.shutdown(socket.SHUT_RD)
        began = trio.current_time()
        await link.client.send_all(b"a NOOP\r\nb NOOP\r\n")
        await link.upstream.send_all(b"* BYE over\r\n")
        assert await read(link.client, 12) == b"* BYE over\r\n"
        await link.ended.wait()
        assert trio.current_time() - began == 5.0
    assert link.ends == [End(Side.SERVER, "reset")]


# -------------------------------------------------------------------- TLS


@pytest.mark.parametrize("size", [0, 8, 2000])
@pytest.mark.parametrize("leg", ["client", "upstream"])
async def test_tls_that_ends_while_its_connection_stays(leg: str, size: int, autojump_clock: object) -> None:
    """The farewell of TLS may come behind bytes, and in one reading with them."""
    async with serving() as yard:
        link = await yard.link(CopyRelay(), tls=leg, linger=1.0)
        near, far = (link.client, link.upstream) if leg == "client" else (link.upstream, link.client)
        if size:
            send_at_once(near, b"n" * size)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def unwrap() -> None:
                assert isinstance(near, trio.SSLStream)
                await near.unwrap()

            with trio.fail_after(5):
                assert await read_all(far) == b"n" * size
                await link.ended.wait()
    assert link.ends == [End(Side.CLIENT if leg == "client" else Side.SERVER, "closed")]


@pytest.mark.parametrize("size", [0, 8, 2000])
@pytest.mark.parametrize("leg", ["client", "upstream"])
async def test_garbage_in_tls(leg: str, size: int, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(CopyRelay(), tls=leg, linger=1.0)
        near, far = (link.client, link.upstream) if leg == "client" else (link.upstream, link.client)
        if size:
            send_at_once(near, b"n" * size)
        raw_socket(near)._sock.send(b"this is no record" * 100)
        with trio.fail_after(5):
            assert await read_all(far) == b"n" * size
            await link.ended.wait()
    assert link.ends == [End(Side.CLIENT if leg == "client" else Side.SERVER, "reset")]


@pytest.mark.parametrize("what", ["end", "garbage"])
async def test_an_end_of_tls_is_not_forgotten_while_its_side_is_not_read(what: str, autojump_clock: object) -> None:
    async with serving() as yard:
        lines = b"b XFROB\r\nc XFROB\r\n" + b"d NOOP\r\n" * 100

        def begin(link: Link) -> None:
            send_at_once(link.client, lines)
            if what == "garbage":
                raw_socket(link.client)._sock.send(b"this is no record" * 100)
            else:
                send_at_once(link.client, None)

        link = await yard.link(imap_core(), tls="client", before=begin)
        await trio.sleep(1)
        await read(link.upstream, 9)
        await link.upstream.send_all(b"b OK done\r\n")
        if what == "end":
            assert await read(link.upstream, len(lines) - 9) == lines[9:]
            await link.upstream.send_all(b"c OK done\r\n" + b"d OK done\r\n" * 100)
        # Whose TLS is broken cannot be answered, so that nothing more is begun for it.
        with trio.fail_after(4):
            await link.ended.wait()
    assert link.ends == [End(Side.CLIENT, "reset" if what == "garbage" else "closed")]


async def test_a_tls_peer_is_told_of_the_end(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls="client upstream", farewell=bye)
        for far in (link.client, link.upstream):
            assert isinstance(far, trio.SSLStream)
            far._https_compatible = False
        yard.watch.end_idle("shutting_down")
        # Without the farewell of TLS this would be an error.
        assert await link.client.receive_some() == BYE
        assert await link.client.receive_some() == b""
        assert await link.upstream.receive_some() == b""

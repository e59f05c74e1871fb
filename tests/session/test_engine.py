"""The relay engine moves bytes: pressure from both sides, records of TLS, delays, what came before the relay."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing

from mailgate.model import ALLOW, Delay, Side, Verdict
from mailgate.stream import BURST
from mailgate.wire.relay import CopyRelay, RelayCore
from tests.support.yard import Far, Link, command, imap_core, pop3_core, raw_socket, read, send_at_once, serving

LEGS = ["", "client", "client upstream"]
"""Which legs have TLS."""


pytestmark = pytest.mark.usefixtures("way")


# -------------------------------------------------------------------- pressure

BODY = random.Random(7).randbytes(700_001)
UPLOAD = b"a APPEND inbox {%d}\r\n%b\r\n" % (len(BODY), BODY)
ANNOUNCED = UPLOAD.index(b"\n") + 1
GO_ON = b"+ go on\r\n"
DOWNLOAD = b"* 1 FETCH (BODY[] {%d}\r\n%b)\r\nz OK done\r\n" % (len(BODY), BODY)


async def send_in_pieces(far: Far, data: bytes, seed: int) -> None:
    """Send in pieces of any size, so that records of TLS have any size too."""
    dice = random.Random(seed)
    at = 0
    while at < len(data):
        size = dice.choice((1, 17, 512, 513, 4096, 16384, 60_000, 300_000))
        await far.send_all(data[at : at + size])
        at += size


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("tls", LEGS)
@pytest.mark.parametrize("make", [imap_core, CopyRelay])
async def test_both_sides_send_much_at_once(make: Callable[[], RelayCore], tls: str, tcp: bool) -> None:
    async with serving() as yard:
        link = await yard.link(make(), tls=tls, tcp=tcp, small=True)
        got = {}

        async def take(name: str, far: Far, size: int) -> None:
            got[name] = got.get(name, b"") + await read(far, size, at_a_time=9001)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_in_pieces, link.client, UPLOAD, 1)
                await take("upstream", link.upstream, ANNOUNCED)
                nursery.start_soon(send_in_pieces, link.upstream, GO_ON + DOWNLOAD, 2)
                nursery.start_soon(take, "client", link.client, len(GO_ON + DOWNLOAD))
                nursery.start_soon(take, "upstream", link.upstream, len(UPLOAD) - ANNOUNCED)
        assert got == {"client": GO_ON + DOWNLOAD, "upstream": UPLOAD}
        assert (link.session.bytes_in, link.session.bytes_out) == (len(UPLOAD), len(GO_ON + DOWNLOAD))


@pytest.mark.parametrize("tls", LEGS)
async def test_messages_of_any_size_over_pop3(tls: str, autojump_clock: object) -> None:
    dice = random.Random(11)
    sizes = [dice.choice((0, 1, 600, 16_000, 16_384, 262_140, 270_000)) for _ in range(12)]
    replies = [b"+OK follows\r\n%b\r\n.\r\n" % (b"x" * size) for size in sizes]
    commands = b"".join(b"RETR %d\r\n" % number for number in range(len(sizes)))
    async with serving() as yard:
        link = await yard.link(pop3_core(), tls=tls, small=True)
        await link.client.send_all(commands)
        assert await read(link.upstream, len(commands)) == commands
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_pieces, link.upstream, b"".join(replies), 3)
            assert await read(link.client, len(b"".join(replies))) == b"".join(replies)
        assert [(verb, result) for verb, result, _ in yard.finished] == [("RETR", "ok")] * len(sizes)


@pytest.mark.parametrize("tls", LEGS)
async def test_a_slow_reader_holds_the_sender_back_and_loses_nothing(tls: str, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), tls=tls, small=True)
        pair = yard.engine._legs[link.near[0].fileno()].pair
        largest = 0
        sent = [0]

        async def flood() -> None:
            for at in range(0, len(DOWNLOAD), 10_000):
                await link.upstream.send_all(DOWNLOAD[at : at + 10_000])
                sent[0] += 10_000

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            got = bytearray()
            while len(got) < len(DOWNLOAD):
                await trio.sleep(0.01)
                got += await link.client.receive_some(5000)
                largest = max(largest, len(pair.client.backlog or b""))
                # What is on its way fits into a burst, some records and the sockets' buffers.
                assert sent[0] - len(got) < BURST + 100_000
        assert bytes(got) == DOWNLOAD
        assert 0 < largest <= BURST
        del pair


@pytest.mark.parametrize("tls", LEGS)
async def test_a_client_that_never_reads_costs_a_burst_and_nobody_else(tls: str, autojump_clock: object) -> None:
    async with serving() as yard:
        deaf, other = await yard.link(imap_core(), tls=tls, small=True), await yard.link(imap_core(), tls=tls)
        turns = yard.count_turns()
        pair = yard.engine._legs[deaf.near[0].fileno()].pair
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deaf.upstream.send_all, DOWNLOAD * 2)
            for number in range(20):
                await trio.sleep(1)
                await command(other, b"a%d" % number)
                assert 0 < len(pair.client.backlog or b"") <= BURST
            before = turns[0]
            await trio.sleep(30)
            assert turns[0] - before < 100
            assert not yard.relay(deaf).quiet
            nursery.cancel_scope.cancel()
        del pair


@pytest.mark.parametrize("tls", LEGS)
async def test_answers_of_the_gateway_keep_their_place_beside_a_blocked_send(tls: str, autojump_clock: object) -> None:
    body = b"* 1 FETCH (BODY[] {200000}\r\n%b)\r\n" % (b"x" * 200_000)
    async with serving() as yard, trio.open_nursery() as nursery:
        link = await yard.link(imap_core(), tls=tls, small=True)
        nursery.start_soon(link.upstream.send_all, body)
        await trio.sleep(0.05)
        await link.client.send_all(b"".join(b"t%d\r\n" % number for number in range(3)))
        await trio.sleep(0.05)
        answers = b"* BAD Expected a tag and a command\r\n" * 3
        assert await read(link.client, len(body) + len(answers)) == body + answers


async def test_a_flood_of_bad_lines_is_answered_in_turns(autojump_clock: object) -> None:
    lines = 20_000
    answers = b"* BAD Expected a tag and a command\r\n" * lines
    async with serving() as yard, trio.open_nursery() as nursery:
        link = await yard.link(imap_core(), small=True)
        other = await yard.link(imap_core())
        # The socket of the client that does not read is full long before all is answered.
        nursery.start_soon(link.client.send_all, b"x\r\n" * lines)
        await command(other, b"a")
        got = bytearray()
        while len(got) < len(answers):
            got += await link.client.receive_some(100_000)
            await command(other, b"b")
        assert bytes(got) == answers


async def test_answers_that_were_put_off_come_behind_a_send_that_is_blocked_meanwhile(autojump_clock: object) -> None:
    lines = b"* 1 EXISTS\r\n" * 8000
    answers = b"* BAD Expected a tag and a command\r\n" * 300
    async with serving() as yard:

        def say(link: Link) -> None:
            raw_socket(link.upstream).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            assert raw_socket(link.upstream)._sock.send(lines) == len(lines)

        # The turn in which the upstream's lines fill the client's socket is one of the client's, too.
        link = await yard.link(imap_core(), early=(b"x\r\n" * 300, b""), small=True, before=say)
        await trio.sleep(1)
        got = await read(link.client, len(lines) + len(answers))
        assert got.replace(b"* 1 EXISTS\r\n", b"") == answers
        assert got.count(b"* 1 EXISTS\r\n") == 8000


async def test_what_was_put_off_is_put_off_once(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core())
        await trio.testing.wait_all_tasks_blocked()
        longest = []
        yard.count_turns(lambda number: longest.append(len(yard.engine._again)))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read_client() -> None:
                await read(link.client, 5000 * 36 + 500 * 12)

            nursery.start_soon(link.client.send_all, b"x\r\n" * 5000)
            for _ in range(500):
                await link.upstream.send_all(b"* 1 EXISTS\r\n")
                await trio.lowlevel.checkpoint()
        assert max(longest) <= 1


# -------------------------------------------------------------------- what OpenSSL holds already


@pytest.mark.parametrize("leg", ["client", "upstream"])
async def test_bytes_that_openssl_held_at_the_adoption(leg: str, autojump_clock: object) -> None:
    async with serving() as yard:
        buffer = bytearray(1)

        def take_one(link: Link) -> None:
            # One byte of the record: the rest of it has left the socket.
            link.near[leg == "upstream"].recv_into(buffer)

        def begin(link: Link) -> None:
            far = link.client if leg == "client" else link.upstream
            send_at_once(far, b"xa NOOP\r\n")
            take_one(link)

        link = await yard.link(imap_core(), tls=leg, before=begin)
        with trio.fail_after(5):
            assert await read(link.upstream if leg == "client" else link.client, 8) == b"a NOOP\r\n"


@pytest.mark.parametrize("records", [[16384] * 16, [16384] * 17, [16000] * 17, [16384] * 15 + [16383, 2], [1000] * 300])
async def test_a_burst_that_fills_the_buffer(records: list[int], autojump_clock: object) -> None:
    async with serving() as yard:
        sent = b"".join(bytes([65 + number % 26]) * size for number, size in enumerate(records))

        def fill(link: Link) -> None:
            raw_socket(link.upstream).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            at = 0
            for size in records:
                send_at_once(link.upstream, sent[at : at + size])
                at += size

        link = await yard.link(CopyRelay(), tls="upstream", before=fill)
        with trio.fail_after(5):
            assert await read(link.client, len(sent)) == sent


async def test_the_rest_of_a_record_is_not_forgotten_while_its_side_is_not_read(autojump_clock: object) -> None:
    """The buffer is full with some of a record left, and the client takes none of it for a long while."""
    sent = b"y" * (BURST + 100)

    def fill(link: Link) -> None:
        raw_socket(link.upstream).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for at in range(0, len(sent), 16000):
            send_at_once(link.upstream, sent[at : at + 16000])

    async with serving() as yard:
        link = await yard.link(CopyRelay(), tls="upstream", small=True, before=fill)
        await trio.sleep(10)
        with trio.fail_after(5):
            assert await read(link.client, len(sent)) == sent


async def test_the_rest_of_a_clients_record_is_not_forgotten_while_it_must_wait(autojump_clock: object) -> None:
    line = b"t NOOP\r\n"
    lines = b"b XUNKNOWN\r\nc XUNKNOWN\r\n" + line * ((BURST + 4000) // len(line))

    def fill(link: Link) -> None:
        raw_socket(link.client).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for at in range(0, len(lines), 16000):
            send_at_once(link.client, lines[at : at + 16000])

    async with serving() as yard:
        link = await yard.link(imap_core(), tls="client", before=fill)
        await trio.sleep(1)
        got = bytearray()
        with trio.fail_after(60):
            for tag in (b"b", b"c"):
                while tag + b" XUNKNOWN\r\n" not in got:
                    got += await link.upstream.receive_some(65536)
                await link.upstream.send_all(tag + b" OK done\r\n")
            answered = 0
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def take() -> None:
                    await read(link.client, 11 * (2 + (len(lines) - 24) // 8))

                while len(got) < len(lines):
                    got += await link.upstream.receive_some(65536)
                    complete = (len(got) - 24) // 8
                    await link.upstream.send_all(b"t OK done\r\n" * (complete - answered))
                    answered = complete
        assert bytes(got) == lines


# -------------------------------------------------------------------- delays


def slow_select(verb: str) -> Verdict:
    return Delay(3.0, "test") if verb == "SELECT" else ALLOW


@pytest.mark.parametrize("tls", LEGS)
async def test_a_delay_of_the_gate_holds_a_command_back(tls: str, autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(slow_select), tls=tls)
        began = trio.current_time()
        await link.client.send_all(b"x NOOP\r\na SELECT inbox\r\nb NOOP\r\n")
        await link.client.send_all(b"c NOOP\r\n")
        assert await read(link.upstream, 24) == b"x NOOP\r\na SELECT inbox\r\n"
        assert trio.current_time() - began == 3.0
        assert await read(link.upstream, 16) == b"b NOOP\r\nc NOOP\r\n"
        assert trio.current_time() - began == 3.0
        await link.upstream.send_all(b"x OK done\r\na OK done\r\nb OK done\r\nc OK done\r\n")
        await read(link.client, 44)
        assert [(verb, seconds) for verb, _, seconds in yard.finished] == [
            ("NOOP", 3.0),
            ("SELECT", 3.0),
            ("NOOP", 0.0),
            ("NOOP", 0.0),
        ]


async def test_delays_one_after_another(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(slow_select))
        began = trio.current_time()
        await link.client.send_all(b"a SELECT inbox\r\n" * 3)
        for number in range(3):
            await read(link.upstream, 16)
            assert trio.current_time() - began == 3.0 * (number + 1)


async def test_an_answer_passes_while_a_command_is_delayed(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(slow_select))
        began = trio.current_time()
        await link.client.send_all(b"a SELECT inbox\r\n")
        await trio.sleep(1)
        await link.upstream.send_all(b"* 3 EXISTS\r\n")
        assert await read(link.client, 12) == b"* 3 EXISTS\r\n"
        assert trio.current_time() - began == 1.0


async def test_a_client_that_goes_during_a_delay_without_awaiting_it(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(slow_select))
        await link.client.send_all(b"a SELECT inbox\r\n")
        await trio.sleep(1)
        await link.client.aclose()
        assert await read(link.upstream, 16) == b"a SELECT inbox\r\n"
        await link.upstream.send_all(b"a OK done\r\n")
        await link.ended.wait()
    assert link.ends[0].side is Side.CLIENT


# -------------------------------------------------------------------- state


async def test_a_relay_that_is_sending_is_not_quiet(autojump_clock: object) -> None:
    async with serving() as yard:
        link = await yard.link(imap_core(), small=True)
        relay = yard.relay(link)
        data = b"* 1 EXISTS\r\n" * 2000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.upstream.send_all, data)
            await trio.sleep(1)
            assert not relay.quiet
            assert yard.watch.end_idle("shutting_down") == 1
            await read(link.client, len(data))
        await trio.testing.wait_all_tasks_blocked()
        assert relay.quiet
        del relay


@pytest.mark.parametrize("tls", LEGS)
@pytest.mark.parametrize("make", [imap_core, pop3_core, CopyRelay])
async def test_what_came_before_the_relay_comes_first(
    make: Callable[[], RelayCore], tls: str, autojump_clock: object
) -> None:
    imap = make is imap_core
    early = (b"a NOOP\r\n", b"* 1 EXISTS\r\n") if imap else (b"STAT\r\n", b"+OK 1\r\n")
    rest = (b"b NOOP\r\n", b"* 2 EXISTS\r\n") if imap else (b"NOOP\r\n", b"+OK 2\r\n")
    async with serving() as yard:
        link = await yard.link(make(), tls=tls, early=early)
        await link.client.send_all(rest[0])
        await link.upstream.send_all(rest[1])
        assert await read(link.upstream, len(early[0] + rest[0])) == early[0] + rest[0]
        assert await read(link.client, len(early[1] + rest[1])) == early[1] + rest[1]
        assert link.session.bytes_in == len(rest[0])


async def test_early_bytes_that_must_wait_are_not_forgotten(autojump_clock: object) -> None:
    async with serving() as yard:
        early = b"a XFROB\r\nb XFROB\r\nc NOOP\r\n"
        link = await yard.link(imap_core(), tls="client", early=(early, b""))
        await link.client.send_all(b"d NOOP\r\n")
        assert await read(link.upstream, 9) == early[:9]
        await trio.sleep(1)
        await link.upstream.send_all(b"a OK done\r\n")
        assert await read(link.upstream, 9) == early[9:18]
        await link.upstream.send_all(b"b OK done\r\n")
        assert await read(link.upstream, 16) == b"c NOOP\r\nd NOOP\r\n"

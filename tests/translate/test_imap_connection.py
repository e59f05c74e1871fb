"""A connection to an IMAP server: ENABLE, what comes of its own accord, every way in which it ends."""

from __future__ import annotations

import pytest
import trio

from mailgate.translate.imap_client import (
    ImapClient,
    MailboxChanged,
    UpstreamLost,
)
from tests.translate.imap import body_of, playing, selecting


async def test_enable_and_noop() -> None:
    async def use(client: ImapClient) -> frozenset[str]:
        enabled = await client.enable("QRESYNC", "UTF8=ACCEPT")
        await client.noop()
        return enabled

    script = "G: m1 ENABLE QRESYNC UTF8=ACCEPT\nU: * ENABLED qresync UTF8=ACCEPT\nU: m1 OK\nG: m2 NOOP\nU: m2 OK"
    assert await playing(script, use) == {"QRESYNC", "UTF8=ACCEPT"}


async def test_what_was_received_behind_the_login_counts() -> None:
    script = "G: m1 NOOP\nU: m1 OK"

    async def use(client: ImapClient) -> frozenset[str]:
        await client.noop()
        return client.capabilities

    assert await playing(script, use, residual=b"* CAPABILITY idle\r\n") == {"IDLE"}


ENDS = {
    "BYE": "U: * BYE [UNAVAILABLE] later",
    "endless BYE": "U: * BYE\\r\\n* BYE\\r\\n* BYE",
    "the end": "close: upstream",
    "a reset": "reset: upstream",
    "silence": "wait: 61",
    "nonsense": "U: nonsense",
    "another tag": "U: m77 OK",
    "a number that is none": "U: * 999999999999999999999 EXISTS",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_the_connection_is_lost(end: str, autojump_clock: object) -> None:
    async def use(client: ImapClient) -> None:
        with pytest.raises(UpstreamLost):
            await client.noop()
        assert not client.alive
        with pytest.raises(UpstreamLost):
            await client.noop()
        await client.logout()

    await playing(f"G: m1 NOOP\n{end}", use)


async def test_the_connection_is_lost_in_a_message() -> None:
    with pytest.raises(UpstreamLost):
        await playing("G: m1 <*>\nU: * 1 FETCH (UID 7 BODY[] {9}\nU: x\nclose: upstream", lambda c: body_of(c, 7))


@pytest.mark.parametrize("said", ["* OK [UIDVALIDITY 78] new", "* OK [CLOSED] gone", "[UIDVALIDITY 78] new"])
async def test_the_mailbox_changed(said: str) -> None:
    async def use(client: ImapClient) -> None:
        await client.select(b"INBOX")
        with pytest.raises(MailboxChanged):
            await client.noop()
        assert not client.alive

    await playing(selecting(1) + f"G: m2 NOOP\nU: {said}\nU: m2 OK", use)


async def test_the_same_uidvalidity_again_is_no_change() -> None:
    async def use(client: ImapClient) -> int:
        await client.select(b"INBOX")
        await client.noop()
        return client.exists

    assert await playing(selecting(1) + "G: m2 NOOP\nU: * OK [UIDVALIDITY 77] x\nU: * 4 EXISTS\nU: m2 OK", use) == 4


async def test_a_command_that_was_cancelled_ends_the_connection(autojump_clock: object) -> None:
    async def use(client: ImapClient) -> None:
        with trio.move_on_after(1):
            await client.noop()
        with pytest.raises(UpstreamLost):
            await client.noop()

    await playing("G: m1 NOOP\nwait: 2", use)


async def test_silence_is_measured_from_the_last_byte(autojump_clock: object) -> None:
    script = "G: m1 NOOP\nwait: 50\nU: * OK still here\nwait: 50\nU: m1 OK"
    await playing(script, lambda client: client.noop())


@pytest.mark.parametrize("answer", ["U: * BYE bye\\x0d\\x0am1 OK", "U: m1 OK", "close: upstream", "wait: 6"])
async def test_goodbye(answer: str, autojump_clock: object) -> None:
    await playing(f"G: m1 LOGOUT\n{answer}", lambda client: client.logout())


async def test_goodbye_in_the_middle_of_a_message_waits_for_nothing() -> None:
    async def use(client: ImapClient) -> None:
        await client.begin_body(7)
        await client.logout()

    await playing("G: m1 <*>\nU: * 1 FETCH (UID 7 BODY[] {9}\nclosed: upstream", use)

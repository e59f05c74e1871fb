"""The client of IMAP servers against real ones: overview, messages in pieces, flags, removing, moving."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mailgate.stream import SocketStream, burst_buffer
from mailgate.translate.imap_client import ImapClient, Refused, Vanished
from tests.support.stores import Maildirs, Store, said

pytestmark = pytest.mark.real


def mail(number: int) -> bytes:
    head = b"Message-ID: <%d@example.org>\r\nSubject: {5}\r\n\r\n" % number
    return head + b"* %d FETCH (UID 1 BODY[] {5}\r\n" % number * (number % 70)


LARGE = mail(0) + b"x" * 75 + b"\r\n" + (b"y" * 76 + b"\r\n") * 20_000


def fill(store: Store, user: str, count: int) -> list[bytes]:
    """Lay mail into a mailbox, in one session where that is how it comes in."""
    messages = [mail(number) for number in range(1, count + 1)]
    if isinstance(store, Maildirs):
        for message in messages:
            store.deliver(user, message)
        return messages
    with store.client(user) as imap:
        for message in messages:
            said(imap.append("INBOX", None, None, message))  # type: ignore[arg-type]
    return messages


@asynccontextmanager
async def connected(store: Store, user: str) -> AsyncIterator[ImapClient]:
    sock = socket.socket()
    stream = SocketStream(sock)
    await stream.connect(("127.0.0.1", store.imap))
    client = ImapClient(stream, burst_buffer(), frozenset())
    try:
        await client.command(b'LOGIN "%b" "%b"' % (user.encode(), store.users[user].encode()))
        await client.command(b"CAPABILITY")
        yield client
    finally:
        await client.logout()


async def body(client: ImapClient, uid: int, section: bytes = b"", *part: int) -> bytes:
    size = await client.begin_body(uid, section, *part)
    whole = bytearray()
    while (piece := await client.next_piece()) is not None:
        whole += piece
    assert len(whole) == size
    return bytes(whole)


async def test_reading_a_mailbox(store: Store, user: str) -> None:
    messages = fill(store, user, 2000 if isinstance(store, Maildirs) else 300)
    async with connected(store, user) as client:
        selected = await client.select(b"INBOX")
        assert selected.uidvalidity > 0
        assert selected.exists == len(messages)
        assert selected.uids_sticky
        overview = await client.overview()
        assert overview.sizes.tolist() == [len(message) for message in messages]
        assert overview.uids.tolist() == sorted(set(overview.uids))
        assert not any(overview.deleted + overview.hidden)
        uids = overview.uids.tolist()

        # Each is asked for while the one before it is read.
        for number, (uid, message) in enumerate(zip(uids, messages, strict=True)):
            if number + 1 < len(uids):
                client.ask_body(uids[number + 1])
            assert await body(client, uid) == message

        head, _, text = messages[68].partition(b"\r\n\r\n")
        assert await body(client, uids[68], b"HEADER") == head + b"\r\n\r\n"
        assert await body(client, uids[68], b"TEXT") == text
        assert await body(client, uids[68], b"TEXT", 0, 100) == text[:100]
        assert await body(client, uids[68], b"TEXT", 0, 100_000) == text
        assert await body(client, uids[69], b"TEXT") == b""
        assert (await client.search(b"ALL")).tolist() == uids

        headers = await client.overview(uids[100], frozenset({"headers"}))
        assert headers.uids.tolist() == uids[100:]
        assert headers.headers == [one.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for one in messages[100:]]
        assert len(await client.overview(uids[-1] + 1)) == 0


async def test_changing_a_mailbox(store: Store, user: str) -> None:
    fill(store, user, 60)
    above = "INBOX." if store.name == "courier" else ""
    with store.client(user) as imap:
        for name in ("Old", "Entw&APw-rfe"):
            said(imap.create(f'"{above}{name}"'))
    async with connected(store, user) as client:
        await client.select("INBOX")
        uids = (await client.overview()).uids.tolist()
        await client.store(uids[::2], b"\\Deleted $Hidden")
        await client.store(uids[:1], b"\\Deleted", add=False, silent=False)
        overview = await client.overview(keyword=b"$Hidden")
        assert overview.deleted == (b"\1\0" * 30).replace(b"\1", b"\0", 1)
        assert "\\*" not in client.selected.flags_kept or overview.hidden == b"\1\0" * 30  # type: ignore[union-attr]
        if "UIDPLUS" in client.capabilities:
            await client.expunge_uids(uids[:5])
            assert client.expunged == 2
            assert (await client.search(b"ALL")).tolist() == [*uids[:2], uids[3], *uids[5:]]
        await client.copy(uids[1:2], f"{above}Entwürfe")
        if "MOVE" in client.capabilities:
            await client.move(uids[50:], f"{above}Old")
            assert (await client.search(b"ALL"))[-1] == uids[49]
        await client.expunge()
        assert not any((await client.overview()).deleted)
        with pytest.raises(Refused):
            await client.move(uids[1:2], "Nowhere")
        with pytest.raises(Refused):
            await client.select("Nowhere")
        assert (await client.select(f"{above}Entwürfe")).exists == 1
        assert (await client.select(b"INBOX", read_only=True)).read_only
        assert client.alive


async def test_what_other_clients_remove_is_gone(store: Store, user: str) -> None:
    messages = fill(store, user, 10)
    async with connected(store, user) as client:
        await client.select(b"INBOX")
        uids = (await client.overview()).uids.tolist()
        with store.client(user) as imap:
            said(imap.uid("STORE", ",".join(map(str, uids[2:5])), "+FLAGS", "(\\Deleted)"))
            said(imap.expunge())
        client.ask_body(uids[3])
        client.ask_body(uids[6])
        gone = 0
        for uid in (uids[3], uids[4]):
            try:
                # A server may keep for a session what another one removed.
                assert await body(client, uid) == messages[uids.index(uid)]
            except Vanished:
                gone += 1
        assert await body(client, uids[6]) == messages[6]
        await client.noop()
        overview = await client.overview()
        assert overview.uids.tolist() == uids[:2] + uids[5:]
        with pytest.raises(Vanished):
            await client.begin_body(uids[-1] + 1000)
        assert client.alive


async def test_a_large_message(store: Store, user: str) -> None:
    with store.client(user) as imap:
        said(imap.append("INBOX", None, None, LARGE))  # type: ignore[arg-type]
    async with connected(store, user) as client:
        await client.select(b"INBOX")
        (uid,) = (await client.overview()).uids
        assert await body(client, uid) == LARGE
        await client.begin_body(uid)
        await client.next_piece()
        client.ask_body(uid)
        await client.noop()
        assert client.alive

"""A gateway whose POP3 clients are served from an IMAP server: what it promises, where it routes, who ends sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from mailgate.config import Config, Endpoint, parse
from tests.support.gateway import Client, Running, logging_as_before, running, unprobed, until
from tests.support.mailbox import Folder, Store, serve

__all__ = ["logging_as_before", "unprobed"]

CONFIG = """
    [[listener]]
    name = "pop3"
    protocol = "pop3"
    bind = "127.0.0.1:1"
    tls = "off"
    [pool.main]
    protocol = "imap"
    servers = ["127.0.0.1:{port}"]
    tls = "off"
    [pool.other]
    protocol = "{other}"
    servers = ["127.0.0.1:1"]
    tls = "off"
    [[route]]
    name = "elsewhere"
    pool = "other"
    match = {{ domain = "example.com" }}
    {route}
    [[route]]
    name = "default"
    pool = "main"
    [pop3]
    login_folder = "+"
    {pop3}
"""


def configured(port: int, *, other: str = "imap", route: str = "", pop3: str = "") -> Config:
    found = parse(CONFIG.format(port=port, other=other, route=route, pop3=pop3), base=Path("/x"), environ={})
    # Any port that is free, which no file can ask for.
    anywhere = found.listener[0].model_copy(update={"bind": (Endpoint("127.0.0.1", 0),)})
    return found.model_copy(update={"listener": (anywhere,)})


@asynccontextmanager
async def imap_server(store: Store) -> AsyncIterator[int]:
    """Serve a store's mailboxes on loopback; yield the port."""

    async def connection(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"* OK hello\r\n")
            await serve(store, stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, connection, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.fixture
def store() -> Store:
    found = Store()
    found.inbox.add("mail 1")
    found.inbox.add("mail 2")
    found.folders[b"Archive"] = Folder(uidvalidity=9)
    return found


@asynccontextmanager
async def gateway(store: Store, **options: str) -> AsyncIterator[Running]:
    async with imap_server(store) as port, running(configured(port, **options)) as found:
        yield found


async def signed_in(gateway: Running, user: str = "joe") -> Client:
    client = await gateway.connect()
    assert (await client.hears()).startswith("+OK POP3")
    await client.says(f"USER {user}")
    await client.hears()
    await client.says("PASS secret")
    assert await client.hears() == "+OK Logged in"
    return client


async def promised(client: Client) -> set[str]:
    await client.says("CAPA")
    found = set()
    while (line := await client.hears()) != ".":
        found.add(line)
    return found


async def test_a_session_through_the_whole_gateway(store: Store) -> None:
    async with gateway(store) as found:
        client = await signed_in(found)
        await client.says("RETR 1")
        assert [await client.hears() for _ in range(5)] == ["+OK 27 octets", "Subject: mail 1", "", "mail 1", "."]
        await client.says("DELE 1")
        assert (await client.hears()).startswith("+OK")
        await client.says("QUIT")
        assert await client.hears() == "+OK Bye"
        await until(lambda: bool(found.logged("session")))
        assert found.logged("session")[0]["reason"] == "logged_out"
        assert found.logged("maildrop updated")[0]["removed"] == 1
        assert found.metric("maildrop_open_duration_seconds_count") == 1
        assert found.metric("commands_total", protocol="pop3", verb="RETR", result="ok") == 1
    assert store.inbox.contents() == ["mail 2"]


async def test_the_longest_delay_of_those_who_may_sign_in_here_is_told(store: Store) -> None:
    async with gateway(store, route="pop3 = { login_delay = '2m' }", pop3="login_delay = '10s'") as found:
        client = await found.connect()
        await client.hears()
        before = await promised(client)
        assert {"LOGIN-DELAY 120 USER", "EXPIRE NEVER", "TOP", "UIDL", "UTF8", "LANG", "PIPELINING"} <= before
        client = await signed_in(found)
        assert {"LOGIN-DELAY 10", "EXPIRE NEVER"} <= await promised(client)
        again = await found.connect()
        await again.hears()
        assert {"LOGIN-DELAY 120 USER", "EXPIRE NEVER"} <= await promised(again)


async def test_what_servers_of_pop3_cannot_is_not_promised(store: Store) -> None:
    async with gateway(store, other="pop3") as found:
        client = await found.connect()
        await client.hears()
        assert "EXPIRE NEVER" in await promised(client), "nothing is known of the other server"


async def test_a_mailbox_in_the_user_name(store: Store) -> None:
    async with gateway(store) as found:
        client = await signed_in(found, "joe+Archive")
        await client.says("STAT")
        assert await client.hears() == "+OK 0 0"
        assert "SELECT" in store.said


@pytest.mark.parametrize("user", ["joe@example.com", "joe+Archive@example.com"])
async def test_a_name_that_goes_to_a_server_of_pop3_is_left_alone(store: Store, user: str) -> None:
    async with gateway(store, other="pop3") as found:
        client = await found.connect()
        for line in (f"USER {user}", "PASS secret"):
            await client.hears()
            await client.says(line)
        assert (await client.hears()).startswith("-ERR [SYS/TEMP]")
        assert found.logged("upstream failed")[0]["pool"] == "other"
        assert found.logged("upstream failed")[0]["user"] == user


async def test_a_translated_session_is_listed_and_kicked(store: Store) -> None:
    async with gateway(store) as found:
        client = await signed_in(found)
        await client.says("DELE 1")
        await client.hears()
        (listed,) = (await found.gateway.administration.sessions())["sessions"]  # type: ignore[misc]
        assert (listed["user"], listed["protocol"], listed["state"], listed["pool"]) == ("joe", "pop3", "relay", "main")
        assert await found.gateway.administration.kick(user="joe") == {"kicked": 1, "missing": []}
        await until(lambda: bool(found.logged("session")))
        assert found.logged("session")[0]["reason"] == "kicked"
    assert len(store.inbox.mails) == 2

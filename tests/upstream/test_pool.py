"""Which server a login is taken to, when the next one is tried, and what is known of each."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import trio

from mailgate.errors import UpstreamFailed
from mailgate.events import UpstreamConnected, UpstreamRefused
from mailgate.model import Failure, Mechanism, Protocol, Route
from mailgate.upstream.pool import PROBE_SECONDS, Upstreams
from tests.support.certificates import authority
from tests.support.upstream import Client, a_config, a_login, a_pool, a_session, serving

HELLO = "S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready\n"
LOGIN = 'C: L1 LOGIN "joe" "secret"\n'
IN = "S: L1 OK [CAPABILITY IMAP4rev1 IDLE] in\n"
NOBODY = "127.0.0.1:1"


async def test_logins_take_turns() -> None:
    async with serving(HELLO + LOGIN + IN) as first, serving(HELLO + LOGIN + IN) as second:
        client = Client.of(a_pool(first, second))
        used = []
        for _ in range(4):
            signed_in = await client.open(a_login())
            used.append(signed_in.server)
            assert client.session.server == signed_in.server
            await signed_in.stream.aclose()
    assert used == [first.address, second.address] * 2
    assert client.told == ["UpstreamConnected"] * 4
    connected = client.events[0]
    assert isinstance(connected, UpstreamConnected)
    assert (connected.pool, connected.server) == ("main", first.address)
    assert 0 < connected.seconds < 5


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("close", Failure.CONNECT),
        ("S: * BYE full\nclose", Failure.CONNECT),
        ("silence", Failure.TIMEOUT),
        (HELLO + LOGIN + "S: L1 NO [UNAVAILABLE] later", Failure.AUTH_TEMPORARY),
        (HELLO + LOGIN + "S: * BYE over\nclose", Failure.AUTH_TEMPORARY),
        (HELLO + LOGIN + "close", Failure.AUTH_TEMPORARY),
    ],
)
async def test_the_next_server_is_tried_after(script: str, failure: Failure) -> None:
    async with serving(script) as bad, serving(HELLO + LOGIN + IN) as good:
        client = Client.of(a_pool(bad, good, greeting_timeout="0.1s"))
        signed_in = await client.open(a_login())
        assert signed_in.server == good.address
        await signed_in.stream.aclose()
    refused = next(event for event in client.events if isinstance(event, UpstreamRefused))
    assert (refused.pool, refused.server, refused.failure) == ("main", bad.address, failure)
    assert refused.reached is script.startswith(HELLO)


async def test_a_server_that_is_not_there_comes_last_from_then_on() -> None:
    async with serving(HELLO + LOGIN + IN) as good:
        client = Client.of(a_pool(NOBODY, good))
        for _ in range(3):
            await (await client.open(a_login())).stream.aclose()
    assert client.told == ["UpstreamRefused"] + ["UpstreamConnected"] * 3


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (HELLO + LOGIN + "S: L1 NO [AUTHENTICATIONFAILED] no", Failure.AUTH_REJECTED),
        (HELLO + LOGIN + "S: L1 NO no", Failure.AUTH_REJECTED),
        (HELLO + LOGIN + "S: L1 NO [LIMIT] no", Failure.LIMIT),
        (HELLO + LOGIN + "S: L1 NO [INUSE] no", Failure.IN_USE),
        (HELLO + LOGIN + "S: L1 NO [CANNOT] no", Failure.UNSUPPORTED),
        (HELLO + LOGIN + "S: L1 BAD no", Failure.PROTOCOL),
        (HELLO + LOGIN + "silence", Failure.TIMEOUT),
    ],
)
async def test_no_other_server_hears_the_password_after(script: str, failure: Failure) -> None:
    async with serving(script) as first, serving(HELLO + LOGIN + IN) as second:
        client = Client.of(a_pool(first, second, login_timeout="0.2s"))
        with pytest.raises(UpstreamFailed) as caught:
            await client.open(a_login())
    assert caught.value.failure is failure
    assert (first.connections, second.connections) == (1, 0)


async def test_the_last_failure_is_the_one_that_is_told() -> None:
    client = Client.of(a_pool(NOBODY, "unix:/nowhere/imap"))
    with pytest.raises(UpstreamFailed) as caught:
        await client.open(a_login())
    assert caught.value.server == "unix:/nowhere/imap"
    assert client.told == ["UpstreamRefused"] * 2
    assert client.upstreams.unreachable() == ["main"]


async def test_servers_are_tried_until_the_login_s_time_is_over() -> None:
    async with serving("silence") as first, serving("silence") as second:
        client = Client.of(a_pool(first, second, NOBODY, login_timeout="0.1s", greeting_timeout="0.1s"))
        with pytest.raises(UpstreamFailed) as caught:
            await client.open(a_login())
    assert (caught.value.failure, caught.value.server) == (Failure.TIMEOUT, first.address)
    assert second.connections == 0


async def test_a_cancelled_login_closes_its_connection() -> None:
    async with serving("silence", HELLO + LOGIN + "silence") as server:
        client = Client.of(a_pool(server))
        for _ in range(2):
            with trio.move_on_after(0.05) as scope:
                await client.open(a_login())
            assert scope.cancelled_caught
    assert server.connections == 2


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when its task is about to run for the ``step``-th time."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope, self.left, self.task = scope, step, trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


@pytest.mark.parametrize("mode", ["off", "starttls", "implicit"])
async def test_cancelled_at_any_moment_a_login_leaves_nothing_open(mode: str, tmp_path: Path) -> None:
    script = HELLO + LOGIN + IN
    if mode == "starttls":
        script = (
            HELLO
            + "C: T1 STARTTLS\nS: T1 OK go\ntls\nC: C1 CAPABILITY\nS: C1 OK [CAPABILITY IMAP4rev1] x\n"
            + LOGIN
            + IN
        )
    tls = None if mode == "off" else authority().issue().server()
    settings = "off" if mode == "off" else {"mode": mode, "ca": authority().write(tmp_path)}
    # The server ends only when every connection was closed by its client.
    async with serving(script, tls=tls, implicit=mode == "implicit", lenient=True) as server:
        client = Client.of(a_pool(server, tls=settings))
        steps = 0
        while True:
            steps += 1
            with trio.CancelScope() as scope:
                instrument = CancelAt(scope, steps)
                trio.lowlevel.add_instrument(instrument)
                try:
                    signed_in = await client.open(a_login())
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            if not scope.cancelled_caught:
                break
        await signed_in.stream.aclose()
        gc.collect()
    # On one machine a login waits for the greeting and for the answer, and to connect for nothing.
    assert steps >= 2


async def test_what_servers_can_is_remembered(tmp_path: Path) -> None:
    async with serving(HELLO + LOGIN + IN, "close", path=tmp_path / "imap") as server:
        client = Client.of(a_pool(server, NOBODY))
        upstreams = client.upstreams
        assert upstreams.known_capabilities(["main"]) == []
        assert upstreams.unreachable() == []
        signed_in = await client.open(a_login())
        await signed_in.stream.aclose()
        assert upstreams.known_capabilities(["main"]) == [{"IMAP4REV1", "IDLE", "AUTH=PLAIN"}]
        with pytest.raises(UpstreamFailed):
            await client.open(a_login())
        assert upstreams.known_capabilities(["main"]) == []
        assert upstreams.unreachable() == ["main"]


async def test_probes_ask_every_server_of_every_pool() -> None:
    told: dict[str, Failure | None] = {}

    async with (
        serving(HELLO + "C: Z1 LOGOUT\n") as imap,
        serving("S: +OK\nC: CAPA\nS: +OK\nS: TOP\nS: .\nC: QUIT\n") as pop3,
    ):
        config = a_config(mail=a_pool(imap, NOBODY), old=a_pool(pop3, protocol="pop3"))
        upstreams = Upstreams(config, lambda event: None)
        everyone = trio.Event()

        def tell(pool: str, server: str, failed: UpstreamFailed | None) -> None:
            told[f"{pool} {server}"] = failed.failure if failed else None
            if len(told) == 3:
                everyone.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstreams.probe, tell)
            await everyone.wait()
            nursery.cancel_scope.cancel()
    assert told == {f"mail {imap.address}": None, f"mail {NOBODY}": Failure.CONNECT, f"old {pop3.address}": None}
    assert upstreams.known_capabilities(["mail", "old"]) == [{"IMAP4REV1", "AUTH=PLAIN"}, {"TOP"}]
    assert upstreams.unreachable() == []


async def test_probes_come_again(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = Upstreams(a_config(main=a_pool(NOBODY)), lambda event: None)
    times: list[float] = []

    async def probe(*_: object) -> None:
        times.append(trio.current_time())
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(upstreams, "_probe_one", probe)
    began = trio.current_time()
    with trio.move_on_after(2.5 * PROBE_SECONDS):
        await upstreams.probe(lambda *facts: None)
    assert [time - began for time in times] == [0, PROBE_SECONDS, 2 * PROBE_SECONDS]


async def test_a_route_to_a_pool_of_the_other_protocol() -> None:
    async with serving("S: +OK\nC: CAPA\nS: +OK\nS: USER\nS: .\nC: USER joe\nS: +OK\nC: PASS secret\nS: +OK\n") as pop3:
        config = a_config(mail=a_pool(NOBODY), old=a_pool(pop3, protocol="pop3"))
        upstreams = Upstreams(config, lambda event: None)
        login = a_login(protocol=Protocol.POP3)
        signed_in = await upstreams.open(Route("to-old", "old"), login, a_session(Protocol.POP3))
        assert signed_in.capabilities == {"USER"}
        await signed_in.stream.aclose()


async def test_credentials_that_cannot_be_sent_cost_no_second_try() -> None:
    async with serving(HELLO) as first, serving(HELLO) as second:
        client = Client.of(a_pool(first, second))
        with pytest.raises(UpstreamFailed) as caught:
            await client.open(a_login(mechanism=Mechanism.EXTERNAL))
    assert caught.value.failure is Failure.UNSUPPORTED
    assert first.connections + second.connections == 1

"""The configuration read again while the gateway runs: what changes, what stays, what is refused."""

from __future__ import annotations

import contextlib
import gc
import re
import signal
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from mailgate import app, doors
from mailgate import config as configuration
from mailgate.config import Config
from mailgate.errors import ConfigError, MailgateError
from mailgate.net import certificate
from mailgate.upstream.pool import Upstreams
from tests.support.certificates import authority
from tests.support.gateway import (  # noqa: F401
    HELLO,
    SIGNED_IN,
    Client,
    Running,
    logging_as_before,
    probed,
    running,
    unprobed,
    until,
)
from tests.support.servers import free_ports
from tests.support.upstream import serving

NOBODY = "127.0.0.1:1"
ANSWERS = SIGNED_IN + "C: a2 NOOP\nS: a2 OK done\n"
CONNECTION_LIMIT = "* BYE [LIMIT] Too many connections from your address."


def listener(port: int, name: str = "imap", **options: str) -> str:
    lines = {"name": f'"{name}"', "protocol": '"imap"', "bind": f'"127.0.0.1:{port}"', "tls": '"off"'} | options
    return "[[listener]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def pool(server: Any, name: str = "main") -> str:
    address = server if isinstance(server, str) else server.address
    return f'[pool.{name}]\nprotocol = "imap"\nservers = ["{address}"]\ntls = "off"\n'


class House:
    """A gateway with its configuration's file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gateway: Running

    def write(self, *parts: str) -> None:
        self.path.write_text("".join(parts))

    def load(self) -> Config:
        return configuration.load(self.path, {})

    async def reload(self, *parts: str) -> list[str]:
        """Write another file and put it into force; return what that changed."""
        if parts:
            self.write(*parts)
        changed = (await self.gateway.gateway.reload())["changed"]
        assert isinstance(changed, list)
        return changed

    async def refused(self, *parts: str) -> list[str]:
        """Write a bad file; return why it is refused."""
        before = self.gateway.gateway.current
        with pytest.raises(ConfigError) as caught:
            await self.reload(*parts)
        assert self.gateway.gateway.current is before
        return [str(problem) for problem in caught.value.problems]


@asynccontextmanager
async def house(folder: Path, *parts: str) -> AsyncIterator[House]:
    made = House(folder / "mailgate.toml")
    made.write(*parts)
    async with running(made.load(), made.load) as made.gateway:
        yield made


async def nobody_listens(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return True
    await trio.aclose_forcefully(stream)
    return False


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(5):
        while not await condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


# ---------------------------------------------------------------- listeners


async def test_listeners_come_and_go_and_sessions_live_on(tmp_path: Path) -> None:
    old, kept, new = free_ports(3)
    async with serving(ANSWERS) as server:
        rest = pool(server)
        async with house(tmp_path, listener(old, "old"), listener(kept, "kept"), rest) as home:
            gateway = home.gateway
            sockets = {door.place.endpoint.port: door.socket for door in gateway.gateway.doors.open}
            client = await gateway.connect(old)
            await client.logs_in()
            changed = await home.reload(listener(kept, "kept"), listener(new, "new"), rest)
            assert changed == ["listener old: removed", "listener new: added"]
            assert gateway.gateway.doors.open[0].socket is sockets[kept]
            assert (await (await gateway.connect(new)).hears()).startswith("* OK")
            assert (await (await gateway.connect(kept)).hears()).startswith("* OK")
            assert await nobody_listens(old)
            assert await client.asks("a2 NOOP") == "a2 OK done"
            states = {
                name: gateway.metric("sessions_open", protocol="imap", listener=name, state="relay")
                for name in ("old", "kept", "new")
            }
            assert states == {"old": 1, "kept": 0, "new": 0}
            assert [line["bind"] for line in gateway.logged("listening no more")] == [[f"127.0.0.1:{old}"]]
            assert [line["listener"] for line in gateway.logged("listening")] == ["old", "kept", "new"]
            await client.goes()
            await until(lambda: len(gateway.gateway.sessions) == 2)
            assert gateway.metric("sessions_open", protocol="imap", listener="old", state="relay") is None


async def test_what_waits_in_the_queue_of_a_socket_is_served_after_the_reload(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            # No checkpoint was reached since, so the gateway has not accepted it.
            await home.reload(listener(port, "renamed"), pool(NOBODY))
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(waiting))
            assert (await Client(stream).hears()).startswith("* OK")


async def test_what_waits_in_the_queue_of_a_socket_that_goes_is_served_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, other = free_ports(2)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        waiting: list[socket.socket] = []
        # The last thing that happens before the new configuration is in force.
        monkeypatch.setattr(
            Upstreams, "learn_from", lambda *_: waiting.append(socket.create_connection(("127.0.0.1", port)))
        )
        await home.reload(listener(other), pool(NOBODY))
        with waiting[0]:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(waiting[0]))
            assert (await Client(stream).hears()).startswith("* OK")
            assert await nobody_listens(port)


async def test_an_address_that_cannot_be_had_changes_nothing(tmp_path: Path) -> None:
    port, new = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        async with house(tmp_path, listener(port), pool(NOBODY)) as home:
            told = await home.refused(
                listener(port, "renamed"), listener(new, "new"), listener(taken, "taken"), pool(NOBODY)
            )
            assert told == [
                f'listener[2].bind[0] = "127.0.0.1:{taken}": cannot listen on 127.0.0.1:{taken}: '
                "something else listens there already; `ss -ltnp` tells what"
            ]
            assert await nobody_listens(new)
            assert [one.name for one in home.gateway.gateway.config.listener] == ["imap"]
            assert (await (await home.gateway.connect(port)).hears()).startswith("* OK")


async def test_an_address_that_is_still_in_the_way_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        everywhere = listener(port, bind=f'"0.0.0.0:{port}"', allow_plaintext_auth="true")
        assert await home.refused(everywhere, pool(NOBODY)) == [
            f'listener[0].bind[0] = "0.0.0.0:{port}": overlaps 127.0.0.1:{port}, which stays open until the reload '
            "is done: take that out with one reload and put this in with the next, or restart"
        ]
        (elsewhere,) = free_ports(1)
        await home.reload(listener(elsewhere), pool(NOBODY))
        assert await home.reload(everywhere, pool(NOBODY)) == ["listener imap: changed bind"]
        assert (await (await home.gateway.connect(port)).hears()).startswith("* OK")


# ---------------------------------------------------------------- what sessions keep


async def test_sessions_keep_their_routes_and_new_ones_get_the_new(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with (
        serving(ANSWERS) as first,
        serving(SIGNED_IN) as second,
        house(tmp_path, listener(port), pool(first)) as home,
    ):
        logged_in, waiting = await home.gateway.connect(port), await home.gateway.connect(port)
        await logged_in.logs_in()
        await waiting.hears()
        assert await home.reload(listener(port), pool(second, "other")) == [
            "pool main: removed",
            "pool other: added",
            "route default: changed pool",
        ]
        assert (await waiting.asks("a1 LOGIN joe secret")).startswith("a1 OK")
        assert (first.connections, second.connections) == (2, 0)
        assert await logged_in.asks("a2 NOOP") == "a2 OK done"
        newcomer = await home.gateway.connect(port)
        assert (await newcomer.logs_in()).startswith("a1 OK")
        assert (first.connections, second.connections) == (2, 1)
        reachable = {
            (sample.labels["pool"], sample.labels["server"])
            for family in home.gateway.gateway.metrics.registry.collect()
            if family.name == "mailgate_upstream_reachable"
            for sample in family.samples
        }
        assert reachable == {("other", second.address)}
        for client in (logged_in, newcomer):
            await client.goes()
        await until(lambda: len(home.gateway.logged("session")) == 2)
        assert {line["pool"] for line in home.gateway.logged("session")} == {"main", "other"}
        # One script expects more than this client says.
        await waiting.says("a2 NOOP")
        assert await waiting.hears() == "a2 OK done"


async def test_a_configuration_that_nobody_uses_any_more_is_forgotten(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with serving(SIGNED_IN) as server, house(tmp_path, listener(port), pool(server)) as home:
        client = await home.gateway.connect(port)
        await client.logs_in()
        first = weakref.ref(home.gateway.gateway.current)
        await home.reload(listener(port, "second"), pool(server))
        second = weakref.ref(home.gateway.gateway.current)
        await home.reload(listener(port, "third"), pool(server))
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert (first() is None, second() is None) == (False, True)
        await client.goes()
        await until(lambda: not home.gateway.gateway.sessions)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert first() is None


async def test_counts_go_on_with_the_new_limits(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    parts = listener(port), pool(NOBODY)
    async with house(tmp_path, *parts) as home:
        gateway = home.gateway
        first = await gateway.connect(port)
        await first.hears()
        assert await home.reload(*parts, "[limits]\nsessions_per_address = 1\n") == [
            "[limits]: changed sessions_per_address"
        ]
        assert await (await gateway.connect(port)).hears() == CONNECTION_LIMIT
        await home.reload(*parts, "[limits]\nsessions_per_address = 2\n")
        second = await gateway.connect(port)
        assert (await second.hears()).startswith("* OK")
        assert await (await gateway.connect(port)).hears() == CONNECTION_LIMIT
        # The oldest half-open session is an earlier configuration's, and goes all the same.
        await home.reload(*parts, "[limits]\nhalf_open_per_address = 2\n")
        third = await gateway.connect(port)
        assert (await third.hears()).startswith("* OK")
        assert (await first.hears()).startswith("* BYE")
        assert gateway.gateway.current.gate.half_open == 2
        await second.goes()
        await third.goes()
        await until(lambda: gateway.gateway.current.gate.sessions == 0)


async def test_sessions_keep_their_own_limits(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    parts = listener(port), pool(NOBODY)
    async with house(tmp_path, *parts, "[limits]\nbad_commands = 3\n") as home:
        client = await home.gateway.connect(port)
        await client.hears()
        await home.reload(*parts, "[limits]\nbad_commands = 1\n")
        newcomer = await home.gateway.connect(port)
        await newcomer.hears()
        for one, allowed in ((client, 2), (newcomer, 0)):
            for _ in range(allowed):
                assert "BAD" in await one.asks("a1 WHAT")
            await one.says("a1 WHAT")
            said = ""
            while line := await one.hears():
                said += line
            assert "* BYE" in said


async def test_what_is_known_of_unchanged_pools_stays(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    moved = HELLO.replace("IDLE", "IDLE MOVE")
    async with serving(SIGNED_IN, lenient=True) as one, serving(moved, lenient=True) as two:
        route = '[[route]]\npool = "main"\n'
        async with house(tmp_path, listener(port), pool(one), pool(two, "other"), route) as home:
            client = await home.gateway.connect(port)
            await client.logs_in()
            known = home.gateway.gateway.current.upstreams.known_capabilities(["main"])
            assert known == [frozenset({"IMAP4REV1", "IDLE"})]
            await home.reload(listener(port), pool(one), pool(NOBODY, "other"), route)
            upstreams = home.gateway.gateway.current.upstreams
            assert upstreams.known_capabilities(["main"]) == known
            await home.reload(listener(port), pool(two), pool(one, "other"), route)
            assert home.gateway.gateway.current.upstreams.known_capabilities(["main", "other"]) == []
            await client.goes()


@pytest.mark.usefixtures("probed")
async def test_new_servers_are_asked_and_old_ones_forgotten(tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    gone, new = f"127.0.0.1:{nobody}", NOBODY
    async with house(tmp_path, listener(port), pool(gone)) as home:
        await until(lambda: home.gateway.metric("upstream_reachable", pool="main", server=gone) == 0)
        await home.reload(listener(port), pool(new))
        await until(lambda: home.gateway.metric("upstream_reachable", pool="main", server=new) == 0)
        assert home.gateway.metric("upstream_reachable", pool="main", server=gone) is None
        home.gateway.gateway._probed("main", gone, None)
        assert home.gateway.metric("upstream_reachable", pool="main", server=gone) is None


# ---------------------------------------------------------------- TLS


class TlsClient:
    """A client that remembers its session, as mail programs do."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.session: ssl.SSLSession | None = None
        self.resumed = False

    async def certificate(self) -> bytes:
        """Connect, with what is remembered, and return the certificate that is shown."""
        return await trio.to_thread.run_sync(self._connect)

    def _connect(self) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", self.port), 5) as plain,
            self.context.wrap_socket(plain, session=self.session, server_hostname="localhost") as sock,
        ):
            # Tickets come behind the handshake.
            sock.recv(100)
            self.session, self.resumed = sock.session, bool(sock.session_reused)
            return sock.getpeercert(binary_form=True) or b""


async def test_tickets_stay_valid_and_changed_certificates_are_shown(tmp_path: Path) -> None:
    port, plain = free_ports(2)
    pairs = {name: (tmp_path / f"{name}.pem", tmp_path / f"{name}.key") for name in ("one", "two")}
    for paths in pairs.values():
        certificate.write(*paths, *certificate.self_signed(["localhost"], days=90))

    def tls(name: str, more: str = "") -> str:
        return f'[tls]\ncertificate = "{pairs[name][0]}"\nkey = "{pairs[name][1]}"\n{more}'

    encrypted = listener(port, tls='"implicit"')
    rest = pool(NOBODY)
    async with house(tmp_path, tls("one"), encrypted, rest) as home:
        client = TlsClient(port)
        first = await client.certificate()
        starttls = listener(plain, "starttls", tls='"starttls"', profile='"modern"')
        more = f'sni = [{{ names = ["x.example"], certificate = "{pairs["two"][0]}", key = "{pairs["two"][1]}" }}]\n'
        assert await home.reload(tls("one", more), encrypted, starttls, rest) == [
            "listener starttls: added",
            "[tls]: changed sni",
        ]
        assert (await client.certificate(), client.resumed) == (first, True)
        certificate.write(*pairs["one"], *certificate.self_signed(["localhost"], days=80), replace=True)
        assert await home.reload() == [f"certificate {pairs['one'][0]}: new contents"]
        renewed = await TlsClient(port).certificate()
        assert await home.reload(tls("two"), encrypted, rest) == [
            "listener starttls: removed",
            "[tls]: changed certificate, key, sni",
        ]
        other = await client.certificate()
        assert not client.resumed
        assert len({first, renewed, other}) == 3
        pairs["two"][1].write_text("nothing")
        # That the watch has told of it already makes it no better.
        assert home.gateway.gateway.current.tls is not None
        assert len(home.gateway.gateway.current.tls.reload()) == 1
        (problem,) = await home.refused(tls("two"), encrypted, rest)
        assert re.match(r"tls: cannot be used: .*two\.pem and .*two\.key: ", problem)
        assert await TlsClient(port).certificate() == other
        assert await home.reload(encrypted.replace("implicit", "off"), rest) == [
            "listener imap: changed tls, allow_plaintext_auth",
            "[tls]: removed",
        ]
        assert (await (await home.gateway.connect(port)).hears()).startswith("* OK")


async def test_starttls_after_a_reload_that_takes_tls_away(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    issued = authority().issue("mail.example.org", parent=tmp_path)
    tls = f'[tls]\ncertificate = "{issued.certificate}"\nkey = "{issued.key}"\n'
    async with house(tmp_path, tls, listener(port, tls='"starttls"'), pool(NOBODY)) as home:
        client = await home.gateway.connect(port)
        await client.hears()
        await home.reload(listener(port), pool(NOBODY))
        assert (await client.asks("a1 STARTTLS")).startswith("a1 OK")
        context = authority().client()
        inside = Client(trio.SSLStream(client.stream, context, server_hostname="mail.example.org"))
        assert "CAPABILITY" in await inside.asks("a2 CAPABILITY")
        await client.goes()


# ---------------------------------------------------------------- the rest of the configuration


async def test_metrics_move_and_go_on(tmp_path: Path) -> None:
    port, old, new = free_ports(3)
    parts = listener(port), pool(NOBODY)
    async with house(tmp_path, *parts, f'[metrics]\nbind = "127.0.0.1:{old}"\n') as home:
        await home.gateway.connect(port)
        await until(lambda: bool(home.gateway.gateway.sessions))
        assert await home.reload(*parts, f'[metrics]\nbind = "127.0.0.1:{new}"\n') == ["[metrics]: changed bind"]
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{new}/metrics")).text
        assert 'mailgate_sessions_started_total{listener="imap",protocol="imap"} 1.0' in text
        assert 'mailgate_reloads_total{result="ok"} 1.0' in text
        await until(lambda: len(home.gateway.logged("listening no more")) == 1)
        await eventually(lambda: nobody_listens(old))
        assert await home.reload(*parts) == ["[metrics]: removed"]


async def test_a_reload_over_the_socket_that_it_moves_is_answered(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    parts = listener(port), pool(NOBODY)

    def admin(name: str, more: str = "") -> str:
        return f'[admin]\nsocket = "{tmp_path / name}"\n{more}'

    async with house(tmp_path, *parts, admin("a")) as home:
        home.write(*parts, admin("b", f'[trace]\ndirectory = "{tmp_path / "traces"}"\n'))
        async with asking(tmp_path / "a") as ask:
            assert (await ask.post("/v1/trace", json={"user": "joe"})).status_code == 409
            answer = await ask.post("/v1/reload")
        assert answer.status_code == 200
        assert answer.json() == {"changed": ["[admin]: changed socket", "[trace]: changed directory"], "warnings": []}
        async with asking(tmp_path / "b") as ask:
            assert (await ask.post("/v1/trace", json={"user": "joe"})).status_code == 201
            home.write(*parts, admin("b"), "[limits]\nsessions = 0\nline = 1\n")
            answer = await ask.post("/v1/reload")
            assert answer.status_code == 422
            assert [one["path"] for one in answer.json()["problems"]] == ["limits.sessions", "limits.line"]
            home.write(*parts, admin("b"))
            assert (await ask.post("/v1/reload")).json()["changed"] == ["[trace]: changed directory"]
            assert len((await ask.get("/v1/trace")).json()["traces"]) == 1
        await eventually(lambda: nobody_answers(tmp_path / "a"))


@asynccontextmanager
async def asking(path: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def nobody_answers(path: Path) -> bool:
    await trio.lowlevel.checkpoint()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        return probe.connect_ex(str(path)) != 0


async def test_the_log_changes_for_everything_that_is_told_from_then_on(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    parts = listener(port), pool(NOBODY)
    async with house(tmp_path, *parts) as home:
        first = await home.gateway.connect(port)
        await first.goes()
        await home.gateway.log("session")
        assert await home.reload(*parts, '[log]\nlevel = "warning"\n') == ["[log]: changed level"]
        second = await home.gateway.connect(port)
        await second.goes()
        await until(lambda: home.gateway.metric("sessions_started_total", protocol="imap", listener="imap") == 2)
        await until(lambda: not home.gateway.gateway.sessions)
        assert len(home.gateway.logged("session")) == 1
        assert home.gateway.logged("configuration reloaded") == []
        await home.reload(*parts, '[log]\nlevel = "info"\n')
        assert len(home.gateway.logged("configuration reloaded")) == 1


# ---------------------------------------------------------------- what is refused


async def test_a_bad_file_is_refused_with_everything_that_is_wrong(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        told = await home.refused(listener(port, tls='"of"'), pool(NOBODY), 'hostname = "a b"\n[limit]\n')
        assert [problem.partition(" ")[0] for problem in told] == ["listener[0].tls", "pool.main.hostname", "limit:"]
        (told,) = await home.refused("[[listener\n")
        assert told.startswith("line 1, column")
        home.path.unlink()
        (told,) = await home.refused()
        assert told.endswith("cannot be read: No such file or directory")
        line = await home.gateway.log("reload refused, the old configuration stays in force")
        assert line["level"] == "error"
        assert len(home.gateway.logged("reload refused, the old configuration stays in force")) == 5
        assert home.gateway.metric("reloads_total", result="refused") == 3
        assert home.gateway.metric("reloads_total", result="ok") is None
        assert (await (await home.gateway.connect(port)).hears()).startswith("* OK")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(5, "Input/output error"), "cannot be used: [Errno 5] Input/output error"),
        (ZeroDivisionError("oops"), "met an error of mailgate's own; its traceback is in the log"),
    ],
)
@pytest.mark.parametrize("where", ["file", "pool", "listener", "tls"])
async def test_what_fails_on_the_way_harms_nobody(
    where: str, error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, new = free_ports(2)

    def fail(*_: object, **__: object) -> None:
        raise error

    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        place = {
            "file": (home, "load"),
            "pool": (Upstreams, "__init__"),
            "listener": (doors, "open_socket"),
            "tls": (Upstreams, "learn_from"),
        }[where]
        monkeypatch.setattr(*place, fail)
        home.gateway.gateway._load = home.load
        assert await home.refused(listener(port), listener(new, "new"), pool(NOBODY)) == [f"{where}: {told}"]
        assert await nobody_listens(new)
        assert len(home.gateway.logged("reload failed")) == isinstance(error, ZeroDivisionError)
        monkeypatch.undo()
        home.gateway.gateway._load = home.load
        assert await home.reload() == ["listener new: added"]


async def test_sighup_reloads_and_a_bad_file_ends_nothing(tmp_path: Path) -> None:
    port, new = free_ports(2)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        home.write("nothing")
        signal.raise_signal(signal.SIGHUP)
        await home.gateway.log("reload refused, the old configuration stays in force")
        home.write(listener(port), listener(new, "new"), pool(NOBODY))
        signal.raise_signal(signal.SIGHUP)
        line = await home.gateway.log("configuration reloaded")
        assert line["changed"] == ["listener new: added"]
        assert (await (await home.gateway.connect(new)).hears()).startswith("* OK")


async def test_without_a_file_there_is_nothing_to_reload(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    made = House(tmp_path / "mailgate.toml")
    made.write(listener(port), pool(NOBODY))
    async with running(made.load()) as gateway:
        with pytest.raises(MailgateError, match="started without a configuration file"):
            await gateway.gateway.reload()


async def test_a_stop_does_not_wait_for_a_reload(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        begun, go_on = trio.Event(), threading.Event()

        def slow() -> Config:
            trio.from_thread.run_sync(begun.set)
            go_on.wait(5)
            return home.load()

        async def reload() -> None:
            with pytest.raises(MailgateError, match="shutting down"):
                await home.gateway.gateway.reload()

        home.gateway.gateway._load = slow
        client = await home.gateway.connect(port)
        await client.hears()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload)
            await begun.wait()
            signal.raise_signal(signal.SIGTERM)
            assert (await client.hears()).startswith("* BYE")
            await home.gateway.stopped.wait()
            go_on.set()


async def test_a_hangup_that_was_held_back_is_heard(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        signal.raise_signal(signal.SIGHUP)
        async with house(tmp_path, listener(port), pool(NOBODY)) as home:
            assert (await home.gateway.log("configuration reloaded"))["changed"] == []
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_a_reload_that_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    port, new = free_ports(2)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        gateway = home.gateway.gateway
        home.write(listener(port), listener(new, "new"), pool(NOBODY))
        for seconds in (0.0, 0.001, 0.002, 0.005, 0.01):
            current = gateway.current
            with trio.move_on_after(seconds) as scope:
                await home.reload()
            assert scope.cancelled_caught == (gateway.current is current)
            assert await nobody_listens(new) == (gateway.current is current)
            home.write(listener(port), pool(NOBODY))
            await home.reload()
            await eventually(lambda: nobody_listens(new))
            home.write(listener(port), listener(new, "new"), pool(NOBODY))


async def test_more_sessions_need_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    asked: list[int] = []
    monkeypatch.setattr(app, "allow_files", lambda sessions, logger: asked.append(sessions))
    parts = listener(port), pool(NOBODY)
    async with house(tmp_path, *parts) as home:
        await home.reload(*parts, "[limits]\nsessions = 3\n")
        await home.reload(*parts, "[limits]\nsessions = 3\nhalf_open = 2\n")
        monkeypatch.setattr(app, "allow_files", lambda sessions, logger: asked.append(1 // 0))
        assert await home.refused(*parts) == [
            "limits.sessions: met an error of mailgate's own; its traceback is in the log"
        ]
    assert asked == [3]


async def test_reloads_take_turns(tmp_path: Path) -> None:
    port, *more = free_ports(5)
    async with house(tmp_path, listener(port), pool(NOBODY)) as home:
        home.write(listener(port), *(listener(one, f"n{one}") for one in more), pool(NOBODY))
        found: list[object] = []

        async def reload() -> None:
            found.append(await home.reload())

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(reload)
        assert found == [[f"listener n{one}: added" for one in more], [], [], []]
        assert len(home.gateway.gateway.doors.open) == 5

"""The gateway as a whole in one process: real sockets, a scripted upstream, signals."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

import mailgate
from mailgate import app, reception
from mailgate.app import Gateway, main
from mailgate.config import Admin, Config, Endpoint, LimitSettings, Metrics, Shutdown, Tls, TraceSettings
from mailgate.errors import MailgateError
from mailgate.events import Event
from mailgate.ledger import Ledger, Seat
from mailgate.model import Peer, Protocol, Session, Side, State
from mailgate.net import certificate
from mailgate.observe import log
from mailgate.policy.gate import Gate, GateSettings
from mailgate.reception import Connection
from mailgate.stream import SocketStream
from mailgate.upstream.pool import Upstreams
from tests.support.certificates import Issued, authority
from tests.support.gateway import (  # noqa: F401
    HELLO,
    IN,
    LOGIN,
    NOBODY,
    SIGNED_IN,
    Client,
    logging_as_before,
    one,
    probed,
    running,
    unprobed,
    until,
)
from tests.support.servers import free_ports
from tests.support.upstream import a_config, a_pool, serving


def with_tls(pair: Issued, mode: str, **more: Any) -> dict[str, Any]:
    """Return what makes the first listener of ``a_config`` speak TLS."""
    tls = Tls.model_validate({"certificate": pair.certificate, "key": pair.key} | more)
    listener = a_config(main=a_pool(NOBODY)).listener[0]
    return {"tls": tls, "listener": (listener.model_copy(update={"tls": mode, "handshake_timeout": 1.0}),)}


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    return authority().issue("mail.example.org", "127.0.0.1", parent=tmp_path)


# ---------------------------------------------------------------- sessions


async def test_a_session_from_connect_to_close() -> None:
    script = SIGNED_IN + "C: a2 NOOP\nS: a2 OK done\nC: a3 LOGOUT\nS: * BYE bye\nS: a3 OK out\n"
    async with serving(script) as server, running(one(server)) as gateway:
        client = await gateway.connect()
        assert (await client.hears()).startswith("* OK [CAPABILITY IMAP4rev1")
        assert gateway.metric("sessions_open", protocol="imap", listener="imap", state="login") == 1
        assert (await client.asks("a1 LOGIN joe secret")).startswith("a1 OK [CAPABILITY IMAP4rev1 IDLE")
        assert gateway.metric("sessions_open", protocol="imap", listener="imap", state="relay") == 1
        assert await client.asks("a2 NOOP") == "a2 OK done"
        assert await client.asks("a3 LOGOUT") == "* BYE bye"
        assert await client.hears() == "a3 OK out"
        await client.goes()
        line = await gateway.log("session")
        facts = {"user": "joe", "pool": "main", "route": "to-main", "upstream": server.address, "commands": 2}
        assert line.items() >= ({"reason": "logged_out", "side": "client", "mechanism": "COMMAND"} | facts).items()
        assert "secret" not in json.dumps(line)
        imap = {"protocol": "imap"}
        assert gateway.metric("sessions_started_total", **imap, listener="imap") == 1
        assert gateway.metric("logins_total", **imap, result="ok", reason="") == 1
        assert gateway.metric("commands_total", **imap, verb="NOOP", result="ok") == 1
        assert gateway.metric("client_received_bytes_total", **imap) == line["bytes_in"]
        for state in State:
            assert gateway.metric("sessions_open", protocol="imap", listener="imap", state=state) == 0
        assert gateway.metric("sessions_ended_total", **imap, listener="imap", side="client", reason="logged_out") == 1


async def test_a_password_that_is_wrong() -> None:
    script = HELLO + LOGIN + "S: L1 NO [AUTHENTICATIONFAILED] no\n"
    limits = LimitSettings(failure_delay="0s", failure_delay_max="0s")  # type: ignore[arg-type]
    async with serving(script) as server, running(one(server), limits=limits) as gateway:
        client = await gateway.connect()
        assert await client.logs_in() == "a1 NO [AUTHENTICATIONFAILED] Authentication failed."
        await client.goes()
        assert (await gateway.log("upstream failed"))["state"] == "login/banner"
        refused = await gateway.log("login refused")
        assert (refused["reason"], refused["failures"]) == ("auth_failed", 1)
        assert (await gateway.log("session"))["failures"] == 1


async def test_pop3_keeps_the_reason_of_a_mailbox_in_use() -> None:
    script = "S: +OK\nC: CAPA\nS: -ERR\nC: USER joe\nS: +OK\nC: PASS secret\nS: -ERR [IN-USE] locked\n"
    async with serving(script) as server, running(one(server, protocol="pop3")) as gateway:
        client = await gateway.connect()
        await client.hears()
        await client.asks("USER joe")
        assert await client.asks("PASS secret") == "-ERR [IN-USE] The mailbox is in use by another session."
        await client.goes()


@pytest.mark.parametrize(
    ("state", "farewell"),
    [(State.LOGIN, ["* BYE [UNAVAILABLE] Internal error.", ""]), (State.RELAY, [""]), (State.HANDSHAKE, [""])],
)
async def test_a_crashed_session_harms_no_other(
    state: State, farewell: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reception.run_session
    async with serving(SIGNED_IN + "C: a2 NOOP\nS: a2 OK done\n") as server, running(one(server)) as gateway:
        working = await gateway.connect()
        await working.logs_in()

        async def crash(*_: object) -> None:
            gateway.gateway.sessions[list(gateway.gateway.sessions)[-1]].state = state
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(reception, "run_session", crash)
        crashed = await gateway.connect()
        assert [await crashed.hears() for _ in farewell] == farewell
        line = await gateway.log("session crashed")
        assert "ZeroDivisionError: oops" in line["exception"]
        assert gateway.logged("session")[0].items() >= {"side": "proxy", "reason": "internal"}.items()
        assert gateway.metric("session_crashes_total", protocol="imap") == 1
        monkeypatch.setattr(reception, "run_session", real)
        assert await working.asks("a2 NOOP") == "a2 OK done"
        newcomer = await gateway.connect()
        assert (await newcomer.hears()).startswith("* OK")
        await newcomer.goes()
        await working.goes()


async def test_an_observer_that_fails_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, event: Event) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(log.SessionLog, "__call__", fail)
    monkeypatch.delattr(log.SessionLog, "hears")
    async with serving(SIGNED_IN) as server, running(one(server)) as gateway:
        client = await gateway.connect()
        assert (await client.logs_in()).startswith("a1 OK")
        await client.goes()
        assert "oops" in (await gateway.log("an observer of sessions failed"))["exception"]
        assert (gateway.metric("observer_errors_total") or 0) >= 3
        assert gateway.metric("logins_total", protocol="imap", result="ok", reason="") == 1


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [
        ("imap", "* BYE [LIMIT] Too many connections from your address."),
        ("pop3", "-ERR [SYS/TEMP] Too many connections from your address."),
    ],
)
async def test_an_address_has_so_many_connections(protocol: str, answer: str) -> None:
    limits = LimitSettings(sessions_per_address=1)
    async with running(one(NOBODY, protocol=protocol), limits=limits) as gateway:
        first = await gateway.connect()
        await first.hears()
        second = await gateway.connect()
        assert [await second.hears(), await second.hears()] == [answer, ""]
        assert (await gateway.log("limit")).items() >= {"rule": "sessions_per_address", "action": "deny"}.items()
        await first.goes()
        await until(lambda: not gateway.gateway.sessions)
        assert (await (await gateway.connect()).hears()) != answer


async def test_a_client_that_is_turned_away_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(one(NOBODY), limits=LimitSettings(sessions_per_address=1)) as gateway:
        first = await gateway.connect()
        await first.hears()

        async def gone(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError

        monkeypatch.setattr(SocketStream, "send_all", gone)
        assert await (await gateway.connect()).hears() == ""
        await first.goes()


async def test_a_limit_costs_no_handshake(issued: Issued) -> None:
    limits = LimitSettings(sessions_per_address=1)
    async with running(one(NOBODY), limits=limits, **with_tls(issued, "implicit")) as gateway:
        first = await gateway.connect()
        await until(lambda: len(gateway.gateway.sessions) == 1)
        assert await (await gateway.connect()).hears() == ""
        await first.goes()


async def test_the_oldest_half_open_connection_gives_way() -> None:
    limits = LimitSettings(half_open_per_address=1)
    async with serving(SIGNED_IN) as server, running(one(server), limits=limits) as gateway:
        at_work = await gateway.connect()
        await at_work.logs_in()
        lazy = await gateway.connect()
        await lazy.hears()
        newcomer = await gateway.connect()
        assert (await newcomer.hears()).startswith("* OK")
        assert [await lazy.hears(), await lazy.hears()] == ["* BYE [UNAVAILABLE] The server is full.", ""]
        assert (await gateway.log("limit")).items() >= {"rule": "half_open_per_address", "action": "shed"}.items()
        assert (await gateway.log("session"))["reason"] == "process_full"
        assert len(gateway.gateway.sessions) == 2
        for client in (at_work, newcomer):
            await client.goes()
        await until(lambda: not gateway.gateway.sessions)


# ---------------------------------------------------------------- TLS


def trusting() -> ssl.SSLContext:
    return authority().client()


async def test_tls_from_the_first_byte(issued: Issued) -> None:
    async with serving(SIGNED_IN) as server, running(one(server), **with_tls(issued, "implicit")) as gateway:
        plain = await gateway.connect()
        client = Client(trio.SSLStream(plain.stream, trusting(), server_hostname="mail.example.org"))
        assert (await client.logs_in()).startswith("a1 OK")
        await client.stream.aclose()
        line = await gateway.log("session")
        assert (line["tls"], line["sni"]) == ("TLSv1.3 TLS_AES_256_GCM_SHA384", None)
        assert gateway.metric("tls_handshakes_total", listener="imap", version="TLSv1.3", resumed="no") == 1
        assert gateway.metric("certificate_expiry_timestamp_seconds", path=str(issued.certificate)) is not None


async def test_starttls_and_no_password_before_it(issued: Issued) -> None:
    async with serving(SIGNED_IN) as server, running(one(server), **with_tls(issued, "starttls")) as gateway:
        client = await gateway.connect()
        assert "LOGINDISABLED" in await client.hears()
        assert (await client.asks("a1 LOGIN joe secret")).startswith("a1 NO [PRIVACYREQUIRED]")
        assert (await client.asks("a2 STARTTLS")).startswith("a2 OK")
        inside = Client(trio.SSLStream(client.stream, trusting(), server_hostname="mail.example.org"))
        assert (await inside.asks("a3 LOGIN joe secret")).startswith("a3 OK")
        await inside.stream.aclose()


@pytest.mark.parametrize(
    ("mode", "before", "reason"),
    [("implicit", [], "not_tls"), ("starttls", ["a1 STARTTLS"], "not_tls"), ("implicit", None, "timeout")],
)
async def test_a_handshake_that_fails(mode: str, before: list[str] | None, reason: str, issued: Issued) -> None:
    settings = with_tls(issued, mode)
    # Only who is to run into the limit waits for it; a busy machine must not make others meet it.
    patience = 0.1 if reason == "timeout" else 10.0
    settings["listener"] = (settings["listener"][0].model_copy(update={"handshake_timeout": patience}),)
    async with running(one(NOBODY), **settings) as gateway:
        client = await gateway.connect()
        if before is not None:
            for line in before:
                await client.hears()
                assert (await client.asks(line)).startswith("a1 OK")
            await client.says("GET / HTTP/1.1\r\n")
        line = await gateway.log("session")
        assert (line["side"], line["reason"]) == ("client", "tls_handshake_not_finished")
        assert (await gateway.log("TLS failed"))["reason"] == reason
        assert gateway.metric("tls_handshake_failures_total", listener="imap", reason=reason) == 1
        await client.goes()


async def test_certificates_are_loaded_again_on_sighup(tmp_path: Path) -> None:
    paths = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write(*paths, *certificate.self_signed(["mail.example.org"], days=5))
    tls = Tls.model_validate({"certificate": paths[0], "key": paths[1]})
    listener = one(NOBODY).listener[0].model_copy(update={"tls": "implicit"})
    async with running(one(NOBODY), tls=tls, listener=(listener,)) as gateway:
        assert (await gateway.log("a certificate ends soon"))["path"] == str(paths[0])
        before = gateway.metric("certificate_expiry_timestamp_seconds", path=str(paths[0]))
        certificate.write(*paths, *certificate.self_signed(["mail.example.org"], days=90), replace=True)
        signal.raise_signal(signal.SIGHUP)
        await gateway.log("certificates are up to date")
        assert (gateway.metric("certificate_expiry_timestamp_seconds", path=str(paths[0])) or 0) > (before or 0)
        assert len(gateway.logged("a certificate ends soon")) == 1
        paths[1].write_text("nothing")
        signal.raise_signal(signal.SIGHUP)
        line = await gateway.log("a replaced certificate is unusable, the old one stays in force")
        assert str(paths[1]) in line["problem"]
        assert gateway.metric("certificate_reload_failures_total") == 1
        assert not gateway.stopped.is_set()


async def test_sighup_without_certificates() -> None:
    async with running(one(NOBODY)) as gateway:
        signal.raise_signal(signal.SIGHUP)
        await gateway.log("certificates are up to date")


# ---------------------------------------------------------------- the end


async def test_sigterm_lets_commands_finish() -> None:
    busy_script = SIGNED_IN + "C: a2 NOOP\nwait\nS: a2 OK done\n"
    async with serving(SIGNED_IN, busy_script) as server, running(one(server)) as gateway:
        idle, busy, before_login = [await gateway.connect() for _ in range(3)]
        await idle.logs_in()
        await busy.logs_in()
        await before_login.hears()
        await busy.says("a2 NOOP")
        await until(lambda: server.heard[-1:] == [b"a2 NOOP"])
        signal.raise_signal(signal.SIGTERM)
        assert await idle.hears() == "* BYE [UNAVAILABLE] The server is shutting down."
        assert await idle.hears() == ""
        assert await before_login.hears() == "* BYE [UNAVAILABLE] The server is shutting down."
        assert await before_login.hears() == ""
        with pytest.raises(OSError, match="all attempts to connect"):
            await gateway.connect()
        assert gateway.gateway._not_ready() == ["shutting down"]
        server.go_on.set()
        assert await busy.hears() == "a2 OK done"
        assert await busy.hears() == "* BYE [UNAVAILABLE] The server is shutting down."
        await gateway.stopped.wait()
        assert (await gateway.log("stopping")).items() >= {"signal": "SIGTERM", "sessions": 3}.items()
        assert {line["reason"] for line in gateway.logged("session")} == {"shutting_down"}
        assert len(gateway.logged("session")) == 3
        assert gateway.logged("stopped")


async def test_sigterm_lets_pop3_reach_quit() -> None:
    login = "S: +OK\nC: CAPA\nS: -ERR\nC: USER joe\nS: +OK\nC: PASS secret\nS: +OK in\n"
    script = login + "C: DELE 1\nS: +OK deleted\nC: QUIT\nS: +OK bye\nclose\n"
    async with serving(script) as server, running(one(server, protocol="pop3")) as gateway:
        client, before_login = await gateway.connect(), await gateway.connect()
        await before_login.hears()
        await client.hears()
        await client.asks("USER joe")
        assert (await client.asks("PASS secret")).startswith("+OK")
        assert await client.asks("DELE 1") == "+OK deleted"
        signal.raise_signal(signal.SIGTERM)
        assert await before_login.hears() == "-ERR [SYS/TEMP] The server is shutting down."
        assert await client.asks("QUIT") == "+OK bye"
        await gateway.stopped.wait()
        assert [line["reason"] for line in gateway.logged("session")] == ["shutting_down", "logged_out"]
        assert gateway.logged("sessions are cut off") == []


@pytest.mark.parametrize(("second", "line"), [(True, "stopping at once"), (False, "sessions are cut off")])
async def test_a_command_without_end_does_not_hold_the_gateway(second: bool, line: str) -> None:
    limit = Shutdown(drain="60s" if second else "1s")  # type: ignore[arg-type]
    silent = SIGNED_IN + "C: a2 NOOP\nsilence"
    async with serving(silent) as server, running(one(server), shutdown=limit) as gateway:
        client = await gateway.connect()
        await client.logs_in()
        await client.says("a2 NOOP")
        await until(lambda: server.heard[-1:] == [b"a2 NOOP"])
        signal.raise_signal(signal.SIGINT)
        await gateway.log("stopping")
        signal.raise_signal(signal.SIGHUP)
        if second:
            await until(lambda: gateway.gateway.reception.closing)
            signal.raise_signal(signal.SIGTERM)
        await gateway.stopped.wait()
        assert (await gateway.log(line))["sessions"] == 1
        assert (await gateway.log("session"))["reason"] == "shutting_down"


async def test_cancelling_the_gateway_closes_every_session() -> None:
    async with serving(SIGNED_IN) as server, running(one(server)) as gateway:
        client = await gateway.connect()
        await client.logs_in()
        gateway.scope.cancel()
        assert await client.hears() == "* BYE [UNAVAILABLE] The server is shutting down."
        assert await client.hears() == ""
        await gateway.stopped.wait()
        assert (await gateway.log("session"))["reason"] == "shutting_down"


# ---------------------------------------------------------------- around the sessions


@pytest.mark.usefixtures("probed")
async def test_readiness_follows_the_servers() -> None:
    (port,) = free_ports(1)
    async with serving(HELLO + "C: Z1 LOGOUT\n") as server:
        config = a_config(main=a_pool(server), old=a_pool(NOBODY, protocol="pop3"))
        async with running(config, metrics=Metrics(bind=Endpoint("127.0.0.1", port))) as gateway:
            line = await gateway.log("upstream does not answer")
            assert line.items() >= {"pool": "old", "upstream": NOBODY, "failure": "connect"}.items()
            await until(lambda: gateway.metric("upstream_reachable", pool="main", server=server.address) == 1)
            assert gateway.metric("upstream_reachable", pool="old", server=NOBODY) == 0
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                answer = await client.get("/readyz")
                assert (answer.status_code, answer.text) == (200, "ready\n")
                assert 'mailgate_upstream_reachable{pool="old"' in (await client.get("/metrics")).text


@pytest.mark.usefixtures("probed")
async def test_a_gateway_without_servers_is_not_ready() -> None:
    async with running(one(NOBODY)) as gateway:
        await gateway.log("upstream does not answer")
        assert gateway.gateway._not_ready() == ["pool main: no server can be reached"]


async def test_a_trace_over_the_administration_socket(tmp_path: Path) -> None:
    changes = {
        "admin": Admin(socket=tmp_path / "admin"),
        "trace": TraceSettings(directory=tmp_path / "traces"),
    }
    async with serving(SIGNED_IN + "C: a2 NOOP\nS: a2 OK done\n") as server, running(one(server), **changes) as gateway:
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "admin"))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as admin:
            facts = (await admin.post("/v1/trace", json={"user": "joe"})).json()
            client = await gateway.connect()
            await client.logs_in()
            await client.asks("a2 NOOP")
            await client.goes()
            assert (await admin.delete(f"/v1/trace/{facts['id']}")).status_code == 204
        assert (await gateway.log("trace started"))["audit"] is True
        assert (await gateway.log("trace stopped"))["stopped_by"] == "admin socket"
    text = await trio.Path(facts["file"]).read_text()
    assert "C: a2 NOOP" in text
    assert "S: a2 OK done" in text
    assert "secret" not in text


async def test_what_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    pool = a_pool("mail.example.org:143", allow_plaintext_auth=True)
    async with running(a_config(main=pool)) as gateway:
        assert (await gateway.log("listening")).items() >= {
            "listener": "imap",
            "tls": "off",
            "protocol": "imap",
        }.items()
        warnings = list(gateway.gateway.config.warnings)
        assert warnings
        assert [line["warning"] for line in gateway.logged("configuration")] == warnings
        assert [line["version"] for line in gateway.logged("starting")] == [mailgate.__version__]


@pytest.mark.parametrize(
    ("limits", "after", "told"),
    [
        ((1024, 1 << 20), (2200, 1 << 20), None),
        ((1024, resource.RLIM_INFINITY), (2200, resource.RLIM_INFINITY), None),
        ((4096, 4096), (4096, 4096), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
        ((256, 2000), (2000, 2000), {"allowed": 2000, "needed": 2200, "sessions": 1000}),
    ],
)
def test_files_for_every_session(
    limits: tuple[int, int], after: tuple[int, int], told: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: now.append(both))
    output = io.StringIO()
    app.allow_files(1000, log.configure("json", "info", output))
    assert now[-1] == after
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == ([("too few open files", "warning")] if told else [])
    assert all(line.items() >= (told or {}).items() for line in lines)


async def test_accepting_that_rests_is_told() -> None:
    async with running(one(NOBODY)) as gateway:
        gateway.gateway._pause("Too many open files")
        assert (await gateway.log("accepting rests for a moment"))["reason"] == "Too many open files"
        assert gateway.metric("accept_pauses_total") == 1


def test_a_listener_with_tls_needs_certificates() -> None:
    gateway = Gateway(one(NOBODY), log.configure("json", "error", io.StringIO()))
    connection = Connection(None, gateway.current, gateway.config.listener[0], None, None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="without"):
        trio.run(connection.start_tls)


# ---------------------------------------------------------------- the program


def on_port(port: int, **changes: Any) -> Config:
    config = one(NOBODY)
    listener = config.listener[0].model_copy(update={"bind": (Endpoint("127.0.0.1", port),)})
    return config.model_copy(update={"listener": (listener,)} | changes)


def test_a_start_that_fails_gives_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        in_use = f"cannot listen on 127.0.0.1:{port}: something else listens there already; `ss -ltnp` tells what"
        endpoints = Endpoint("127.0.0.1", 0), Endpoint("127.0.0.1", port)
        two = on_port(0).listener[0].model_copy(update={"bind": endpoints})
        for config in (
            on_port(port),
            on_port(0, listener=(two,)),
            on_port(0, metrics=Metrics(bind=Endpoint("127.0.0.1", port))),
        ):
            with pytest.raises(MailgateError) as caught:
                main(config)
            assert str(caught.value) == in_use
    tls = Tls.model_validate({"certificate": tmp_path / "absent.pem", "key": tmp_path / "absent.key"})
    with pytest.raises(MailgateError, match="No such file or directory") as caught:
        main(on_port(0, tls=tls))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MailgateError("said"), OSError(5, "said")])
def test_an_error_that_nurseries_have_wrapped_is_unwrapped(error: Exception) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [error])])

    with pytest.raises(type(error), match="said"):
        app.run_alone(fail)


def test_an_error_of_our_own_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(self: object, tell: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Upstreams, "probe", crash)
    with pytest.raises(ExceptionGroup) as caught:
        app.run_alone(Gateway(on_port(0), log.configure("json", "error", io.StringIO())).run)
    assert caught.group_contains(ZeroDivisionError, match="oops")


def test_the_program_ends_well_on_sigterm(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)

    def stop() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                time.sleep(0.005)
            else:
                break
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert main(on_port(port)) == 0
    finally:
        thread.join()
    assert '"event": "stopped"' in capsys.readouterr().err


async def test_sessions_give_way_to_newcomers_of_other_workers_also_just_after_their_login() -> None:
    gateway = Gateway(one(NOBODY), log.configure("json", "error", io.StringIO()))
    ledger = Ledger.create(2, 100)
    seats = [Seat(ledger, slot, pytest.fail) for slot in range(2)]
    here, there = (Gate(GateSettings(half_open=1), counts=seat) for seat in seats)
    ended: list[tuple[Side, str]] = []

    class AtWork:
        session = Session("first", Protocol.IMAP, "imap", Peer("192.0.2.1", 1), 0.0, State.RELAY)

        def end(self, side: Side, reason: str) -> None:
            ended.append((side, reason))

    gateway.watch.add(AtWork())  # type: ignore[arg-type]
    gateway.sessions["first"] = AtWork.session
    gateway.sessions["second"] = Session("second", Protocol.IMAP, "imap", Peer("192.0.2.1", 2), 0.0, State.LOGIN)
    gateway.reception.scopes["second"] = trio.CancelScope()
    here.admit("first", "192.0.2.1", 0.0)
    assert there.admit("third", "192.0.2.2", 0.0).shed == ()
    here.logged_in("first")
    there.logged_in("third")
    here.admit("second", "192.0.2.1", 0.0)
    assert there.admit("fourth", "192.0.2.2", 0.0).shed == ()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway._make_room, seats[0])
        await until(lambda: gateway.reception.scopes["second"].cancel_called)
        nursery.cancel_scope.cancel()
    assert ended == [(Side.PROXY, "process_full")]
    labels = {"rule": "half_open", "action": "shed"}
    assert gateway.metrics.registry.get_sample_value("mailgate_limits_struck_total", labels) == 2
    ledger.close()


async def test_an_address_that_only_one_worker_counts_is_told_of_once() -> None:
    async with running(one(NOBODY)) as gateway:
        for _ in range(2):
            gateway.gateway._overflowed()
        assert len(gateway.logged("an address is counted by this worker alone")) == 1
        assert gateway.metric("ledger_overflows_total") == 2

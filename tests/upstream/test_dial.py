"""Reaching servers: addresses, TLS that never falls back, and whom a password may be told."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from pathlib import Path

import pytest
import trio

from mailgate.config import Server
from mailgate.errors import UpstreamFailed
from mailgate.model import Failure, Protocol
from mailgate.stream import SocketStream
from mailgate.upstream.dial import ASK_SECONDS, SESSION_SECONDS, Dialer, Resumption, client_context
from mailgate.upstream.limit import StepLimit
from tests.support.certificates import Authority, authority
from tests.support.upstream import Client, a_login, a_pool, serving

HELLO = "S: * OK [CAPABILITY IMAP4rev1] ready\n"
IN = 'C: L1 LOGIN "joe" "secret"\nS: L1 OK [CAPABILITY IMAP4rev1 IDLE] in\n'
START_TLS = (
    HELLO
    + "C: T1 STARTTLS\nS: T1 OK go\ntls\nC: C1 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: C1 OK\\ \n".replace(
        "\\ ", " done"
    )
)
START_TLS_POP3 = "S: +OK hi\nC: STLS\nS: +OK go\ntls\nC: CAPA\nS: +OK\nS: USER\nS: .\n"


@pytest.fixture(scope="module")
def ca() -> Authority:
    return authority()


async def failure_of(client: Client, **login: object) -> UpstreamFailed:
    with pytest.raises(UpstreamFailed) as caught:
        await client.open(a_login(**login))  # type: ignore[arg-type]
    return caught.value


# ---------------------------------------------------------------- addresses


async def test_a_unix_socket_needs_no_tls(tmp_path: Path) -> None:
    async with serving(HELLO + IN, path=tmp_path / "imap") as server:
        signed_in = await Client.of(a_pool(server)).open(a_login())
        assert signed_in.server == f"unix:{tmp_path / 'imap'}"
        await signed_in.stream.aclose()


@pytest.mark.parametrize(
    ("address", "detail"),
    [("unix:/nowhere/imap", "No such file or directory"), ("127.0.0.1:1", "Connection refused")],
)
async def test_nobody_is_there(address: str, detail: str) -> None:
    failed = await failure_of(Client.of(a_pool(address)))
    assert (failed.failure, failed.state, failed.detail) == (Failure.CONNECT, "connect/none", detail)
    assert failed.server == address


async def test_a_name_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", nothing)
    failed = await failure_of(Client.of(a_pool("mail.invalid:143", allow_plaintext_auth=True)))
    assert (failed.failure, failed.state) == (Failure.CONNECT, "dns/none")
    assert failed.detail == "mail.invalid: Name or service not known"


async def test_without_a_descriptor_left_nobody_is_reached(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    client, failures = Client.of(a_pool("unix:/somewhere/imap")), list[UpstreamFailed | None]()
    monkeypatch.setattr(socket, "socket", full)
    failed = await failure_of(client)
    assert (failed.failure, failed.state, failed.detail) == (Failure.CONNECT, "connect/none", "Too many open files")
    # The probe says so and goes on: it would end its worker, and with that all sessions.
    with trio.move_on_after(1):
        await client.upstreams.probe(lambda pool, server, failed: failures.append(failed))
    assert [str(one.detail) for one in failures if one is not None] == ["Too many open files"]


async def test_without_a_thread_left_no_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.socket, "getaddrinfo", nothing)
    failed = await failure_of(Client.of(a_pool("mail.invalid:143", allow_plaintext_auth=True)))
    assert (failed.failure, failed.state) == (Failure.CONNECT, "dns/none")
    assert failed.detail == "mail.invalid: can't start new thread"


async def test_every_address_of_a_name_is_tried_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        await trio.lowlevel.checkpoint()
        stream, six, four = socket.SOCK_STREAM, socket.AF_INET6, socket.AF_INET
        return [(six, stream, 6, "", ("::1", port, 0, 0)), (four, stream, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    async with serving(HELLO + IN) as server:
        asked.clear()
        client = Client.of(a_pool(f"localhost:{server.port}"))
        for _ in range(2):
            await (await client.open(a_login())).stream.aclose()
    assert asked == ["localhost"]
    failed = await failure_of(client)
    assert failed.detail == "Connection refused"


async def test_addresses_are_asked_for_again_after_a_minute(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked = []

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    dialer = Dialer(a_pool("mail.invalid:143"))
    for _ in range(2):
        assert await dialer._resolve(dialer.pool.servers[0], StepLimit("main", 5)) == [
            (socket.AF_INET, ("192.0.2.1", 143))
        ]
    await trio.sleep(61)
    await dialer._resolve(dialer.pool.servers[0], StepLimit("main", 5))
    assert asked == ["mail.invalid", "mail.invalid"]


async def test_an_address_that_does_not_answer_costs_its_time_limit(autojump_clock: trio.testing.MockClock) -> None:
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            # The kernel takes one connection that is not accepted, and has nothing to say to those behind it.
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        began = trio.current_time()
        port = listening.getsockname()[1]
        failed = await failure_of(Client.of(a_pool(f"127.0.0.1:{port}", connect_timeout="3s")))
        assert trio.current_time() == began + 3
    assert (failed.failure, failed.state) == (Failure.TIMEOUT, "connect/none")
    assert failed.detail == "no connection within 3 s"


# ---------------------------------------------------------------- who may hear a password


async def test_a_password_never_leaves_the_machine_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(HELLO) as server:
        pool = a_pool("mail.example.org:143")
        address = pool.servers[0].address

        async def here(self: Dialer, server_: Server, limit: StepLimit) -> list[object]:
            await trio.lowlevel.checkpoint()
            assert server_.address == address
            return [(socket.AF_INET, ("127.0.0.1", server.port))]

        monkeypatch.setattr(Dialer, "_resolve", here)
        failed = await failure_of(Client.of(pool))
    assert (failed.failure, failed.state) == (Failure.INSECURE, "connect/banner")
    assert server.heard == []


@pytest.mark.parametrize(
    ("address", "settings", "may"),
    [
        ("127.0.0.1:143", {}, True),
        ("[::1]:143", {}, True),
        ("localhost:143", {}, True),
        ("unix:/run/imap", {}, True),
        ("192.0.2.1:143", {}, False),
        ("mail.example.org:143", {}, False),
        ("mail.example.org:143", {"allow_plaintext_auth": True}, True),
        ("mail.example.org:143", {"tls": "starttls"}, True),
        ("mail.example.org:993", {"tls": "implicit"}, True),
    ],
)
def test_whom_a_password_may_be_told(address: str, settings: dict[str, object], may: bool) -> None:
    pool = a_pool(address, **settings)
    assert Dialer(pool).may_carry_password(pool.servers[0]) is may


# ---------------------------------------------------------------- STARTTLS and STLS


@pytest.mark.parametrize(
    ("protocol", "script", "accepted"),
    [("imap", START_TLS, IN), ("pop3", START_TLS_POP3, "C: USER joe\nS: +OK\nC: PASS secret\nS: +OK in\n")],
)
async def test_tls_starts_before_anything_is_said(
    protocol: str, script: str, accepted: str, ca: Authority, tmp_path: Path
) -> None:
    tls = {"mode": "starttls", "ca": ca.write(tmp_path)}
    async with serving(script + accepted, tls=ca.issue().server()) as server:
        client = Client.of(a_pool(server, protocol=protocol, tls=tls))
        signed_in = await client.open(a_login(protocol=Protocol(protocol)))
        assert signed_in.stream.tls is not None
        assert signed_in.stream.tls.version == "TLSv1.3"
        await signed_in.stream.aclose()


@pytest.mark.parametrize(
    ("protocol", "script", "state", "detail"),
    [
        ("imap", HELLO + "C: T1 STARTTLS\nS: T1 NO not here", "starttls/banner", "the server refuses STARTTLS"),
        ("imap", HELLO + "C: T1 STARTTLS\nS: T1 BAD what", "starttls/banner", "the server refuses STARTTLS"),
        (
            "imap",
            HELLO + "C: T1 STARTTLS\nS: * BYE no\nclose",
            "starttls/banner",
            "the server says BYE to STARTTLS",
        ),
        (
            "imap",
            HELLO + "C: T1 STARTTLS\nS: T1 OK go\\r\\n* CAPABILITY IMAP4rev1 AUTH=PLAIN",
            "starttls/banner",
            "the server sent something in clear behind STARTTLS",
        ),
        (
            "imap",
            HELLO + "C: T1 STARTTLS\nS: T1 OK go\\r\\nx\\\n",
            "starttls/banner",
            "the server sent something in clear behind STARTTLS",
        ),
        ("pop3", "S: +OK\nC: STLS\nS: -ERR no", "stls/banner", "the server refuses STLS"),
        ("pop3", "S: +OK\nC: STLS\nS: + go on", "stls/banner", "the server refuses STLS"),
        (
            "pop3",
            "S: +OK\nC: STLS\nS: +OK\\r\\n+OK injected",
            "stls/banner",
            "the server sent something in clear behind STLS",
        ),
        ("imap", HELLO + "C: T1 STARTTLS\nS: T1 OK go\nclose", "tls/none", "the peer went during the TLS handshake"),
        ("imap", HELLO + "C: T1 STARTTLS\nS: T1 OK go\nreset", "tls/none", "the peer went during the TLS handshake"),
    ],
)
async def test_starttls_never_falls_back(protocol: str, script: str, state: str, detail: str) -> None:
    async with serving(script) as server:
        pool = a_pool(server, protocol=protocol, tls="starttls")
        failed = await failure_of(Client.of(pool), protocol=Protocol(protocol))
    assert (failed.failure, failed.state, failed.detail) == (Failure.TLS, state, detail)
    assert not any(b"secret" in line for line in server.heard)


async def test_capabilities_from_before_tls_do_not_count(ca: Authority, tmp_path: Path) -> None:
    """Someone in between may add or strip mechanisms in clear; inside TLS the server is asked again."""
    script = START_TLS.replace("[CAPABILITY IMAP4rev1]", "[CAPABILITY IMAP4rev1 SASL-IR LITERAL+ AUTH=XOAUTH2]", 1)
    async with serving(script + IN, tls=ca.issue().server()) as server:
        pool = a_pool(server, tls={"mode": "starttls", "ca": ca.write(tmp_path)})
        await (await Client.of(pool).open(a_login())).stream.aclose()


async def test_a_handshake_that_stands_still(ca: Authority) -> None:
    async with serving(HELLO + "C: T1 STARTTLS\nS: T1 OK go\nsilence") as server:
        failed = await failure_of(Client.of(a_pool(server, tls="starttls", greeting_timeout="0.1s")))
    assert (failed.failure, failed.state) == (Failure.TIMEOUT, "starttls/banner")
    async with serving("silence") as server:
        failed = await failure_of(Client.of(a_pool(server, tls="implicit", greeting_timeout="0.1s")))
    assert (failed.failure, failed.state, failed.detail) == (Failure.TIMEOUT, "tls/none", "no TLS within 0.1 s")


async def test_a_server_that_does_not_speak_tls() -> None:
    async with serving(HELLO + "silence") as server:
        failed = await failure_of(Client.of(a_pool(server, tls="implicit")))
    assert (failed.failure, failed.state, failed.detail) == (Failure.TLS, "tls/none", "WRONG_VERSION_NUMBER")


async def test_tls_cannot_start_where_it_is_off() -> None:
    async with serving("silence") as server:
        dialer = Dialer(a_pool(server))
        stream = await dialer.dial(dialer.pool.servers[0], StepLimit("main", 5))
        with pytest.raises(UpstreamFailed, match="TLS is off for this pool"):
            await dialer.start_tls(stream, dialer.pool.servers[0])
        await stream.aclose()


# ---------------------------------------------------------------- certificates


async def test_a_certificate_of_a_known_authority(ca: Authority, tmp_path: Path) -> None:
    pool_tls = {"mode": "implicit", "ca": ca.write(tmp_path), "name": "imap.example.org"}
    async with serving(HELLO + IN, tls=ca.issue("imap.example.org").server(), implicit=True) as server:
        client = Client.of(a_pool(server, tls=pool_tls))
        await (await client.open(a_login())).stream.aclose()
        assert server.names == ["imap.example.org"]


PIN, OTHER_PIN = "{right}", "0" * 64


@pytest.mark.parametrize(
    ("tls", "detail"),
    [
        pytest.param({"ca": "{ca}"}, "", id="authority and address"),
        pytest.param(
            {"ca": "{ca}", "name": "imap.example.org"},
            "Hostname mismatch, certificate is not valid for 'imap.example.org'.",
            id="wrong name",
        ),
        pytest.param({}, "unable to get local issuer certificate", id="unknown authority"),
        pytest.param({"verify": False}, "", id="unknown authority, not asked about"),
        pytest.param({"pin": [PIN]}, "", id="the pinned one"),
        pytest.param({"pin": [OTHER_PIN, PIN]}, "", id="one of those that are pinned"),
        pytest.param({"pin": [PIN], "name": "imap.example.org"}, "", id="a pin stands for the name too"),
        pytest.param({"pin": [OTHER_PIN]}, "the certificate is not the pinned one", id="not the pinned one"),
        pytest.param(
            {"pin": [OTHER_PIN], "verify": False},
            "the certificate is not the pinned one",
            id="a pin counts in any case",
        ),
        pytest.param(
            {"pin": [OTHER_PIN], "ca": "{ca}"}, "the certificate is not the pinned one", id="authority but not pinned"
        ),
    ],
)
async def test_which_certificates_are_believed(
    tls: dict[str, object], detail: str, ca: Authority, tmp_path: Path
) -> None:
    issued = ca.issue("127.0.0.1")
    values = {"{ca}": ca.write(tmp_path), PIN: issued.fingerprint.upper()}
    settings = {
        key: [values.get(one, one) for one in value] if isinstance(value, list) else values.get(str(value), value)
        for key, value in tls.items()
    }
    async with serving(HELLO + (IN if not detail else "silence"), tls=issued.server(), implicit=True) as server:
        client = Client.of(a_pool(server, tls={"mode": "implicit"} | settings))
        if not detail:
            await (await client.open(a_login())).stream.aclose()
            return
        failed = await failure_of(client)
    assert (failed.failure, failed.state) == (Failure.TLS, "tls/certificate")
    assert failed.detail.startswith(detail)
    assert server.heard == []


async def test_a_client_certificate_is_shown(ca: Authority, tmp_path: Path) -> None:
    mine = ca.issue("gateway.example.org", parent=tmp_path, stem="mine")
    context = ca.issue("127.0.0.1").server()
    ca.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    tls = {"mode": "implicit", "ca": ca.write(tmp_path), "certificate": mine.certificate, "key": mine.key}
    async with serving(HELLO + IN, tls=context, implicit=True) as server:
        await (await Client.of(a_pool(server, tls=tls)).open(a_login())).stream.aclose()
        assert server.certificates == [mine.der]


async def test_a_client_certificate_that_is_missing(ca: Authority, tmp_path: Path) -> None:
    context = ca.issue("127.0.0.1").server()
    context.verify_mode = ssl.CERT_REQUIRED
    async with serving("", tls=context, implicit=True) as server:
        failed = await failure_of(Client.of(a_pool(server, tls={"mode": "implicit", "ca": ca.write(tmp_path)})))
    # TLS 1.3 lets the server refuse after the client has finished its part of the handshake.
    assert (failed.failure, failed.state) == (Failure.CONNECT, "connect/none")


def test_files_of_a_client_certificate(ca: Authority, tmp_path: Path) -> None:
    mine = ca.issue("gateway.example.org", parent=tmp_path, stem="mine")
    both = tmp_path / "both.pem"
    both.write_bytes(mine.certificate.read_bytes() + mine.key.read_bytes())
    client_context(a_pool("127.0.0.1:993", tls={"mode": "implicit", "certificate": both}))
    with pytest.raises(FileNotFoundError):
        client_context(a_pool("127.0.0.1:993", tls={"mode": "implicit", "certificate": tmp_path / "none.pem"}))
    with pytest.raises(ssl.SSLError):
        client_context(a_pool("127.0.0.1:993", tls={"mode": "implicit", "certificate": mine.certificate}))


def test_an_encrypted_key_of_a_client_certificate(ca: Authority, tmp_path: Path) -> None:
    mine = ca.issue("gateway.example.org", parent=tmp_path, stem="mine")
    locked = mine.locked("s3cret")
    (tmp_path / "password").write_text("s3cret\n")
    key = {"file": locked, "password": {"file": tmp_path / "password"}}
    client_context(a_pool("127.0.0.1:993", tls={"mode": "implicit", "certificate": mine.certificate, "key": key}))


async def test_cancelling_a_connection_closes_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    async def never(stream: SocketStream, address: object) -> None:
        opened.append(stream.socket)
        await trio.sleep_forever()

    monkeypatch.setattr(SocketStream, "connect", never)
    dialer = Dialer(a_pool("127.0.0.1:143"))
    with trio.move_on_after(0.01):
        await dialer.dial(dialer.pool.servers[0], StepLimit("main", 5))
    assert [sock.fileno() for sock in opened] == [-1]


async def test_an_error_is_told_in_the_systems_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EHOSTUNREACH, "Error connecting to somewhere")

    monkeypatch.setattr(SocketStream, "connect", refuse)
    assert (await failure_of(Client.of(a_pool("127.0.0.1:143")))).detail == "No route to host"


# ---------------------------------------------------------------- resumption


async def several(client: Client, count: int) -> list[bool]:
    """Sign in one after the other; return which connections resumed a TLS session."""
    resumed = []
    for _ in range(count):
        signed_in = await client.open(a_login())
        assert signed_in.stream.tls is not None
        resumed.append(signed_in.stream.tls.resumed)
        await signed_in.stream.aclose()
    return resumed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("pinned", [False, True])
async def test_later_connections_resume_the_tls_session(
    version: ssl.TLSVersion, pinned: bool, ca: Authority, tmp_path: Path
) -> None:
    issued = ca.issue()
    context = issued.server()
    context.maximum_version = version
    tls: dict[str, object] = {"mode": "implicit", "ca": ca.write(tmp_path)}
    if pinned:
        tls["pin"] = [issued.fingerprint]
    async with serving(HELLO + IN, tls=context, implicit=True) as server:
        assert await several(Client.of(a_pool(server, tls=tls)), 3) == [False, True, True]


async def test_a_server_that_resumes_nothing_is_asked_rarely(ca: Authority, tmp_path: Path) -> None:
    context = ca.issue().server()
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    tls = {"mode": "implicit", "ca": ca.write(tmp_path)}
    async with serving(HELLO + IN, tls=context, implicit=True) as server:
        assert await several(Client.of(a_pool(server, tls=tls)), 3) == [False] * 3


def a_tls_session() -> ssl.SSLSession:
    """Do a handshake in memory, and return the client's session."""
    issuer = authority()
    near, far = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = issuer.issue().server().wrap_bio(near, far, server_side=True)
    client = issuer.client(check_hostname=False).wrap_bio(far, near)
    left = [client, server]
    while left:
        for end in list(left):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                left.remove(end)
    server.write(b"tickets come before this")
    client.read(100)
    session = client.session
    assert session is not None
    return session


def test_a_tls_session_is_kept_until_it_is_refused_or_old() -> None:
    resumption, session = Resumption(), a_tls_session()
    assert resumption.session("a", 0.0) is None
    assert resumption.wants("a", 0.0)
    resumption.keep("a", session, 0.0)
    assert not resumption.wants("a", 1e6)
    assert resumption.wants("b", 0.0)
    assert resumption.session("b", 0.0) is None
    assert resumption.session("a", SESSION_SECONDS - 1) is session
    resumption.refused("a")
    assert resumption.session("a", 1.0) is None
    assert not resumption.wants("a", ASK_SECONDS - 1)
    assert resumption.wants("a", ASK_SECONDS)
    resumption.keep("a", session, ASK_SECONDS)
    assert resumption.session("a", ASK_SECONDS + SESSION_SECONDS) is None
    assert resumption.wants("a", ASK_SECONDS + SESSION_SECONDS)

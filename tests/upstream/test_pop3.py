"""Signing in to POP3 servers: every word on the wire, and what each answer comes to."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from mailgate.errors import UpstreamFailed
from mailgate.model import Failure, Mechanism, Protocol
from mailgate.upstream.pop3 import capabilities_of
from tests.support.upstream import Client, a_login, a_pool, serving


def capa(*lines: str) -> str:
    return "S: +OK ready\nC: CAPA\nS: +OK list\n" + "".join(f"S: {line}\n" for line in lines) + "S: .\n"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


STEPWISE = capa("USER") + "C: USER joe\nS: +OK\nC: PASS secret\n"
PIPELINED = capa("USER", "PIPELINING") + "C: USER joe\nC: PASS secret\n"
SASL = capa("USER", "SASL PLAIN LOGIN XOAUTH2 OAUTHBEARER")
PLAIN = b64(b"\0joe\0secret")
DONE = "S: +OK in\n"


def login(**settings: Any) -> Any:
    return a_login(**{"protocol": Protocol.POP3} | settings)


@pytest.mark.parametrize(
    ("settings", "script"),
    [
        pytest.param({}, STEPWISE + DONE, id="step by step"),
        pytest.param({}, PIPELINED + "S: +OK\n" + DONE, id="both at once"),
        pytest.param({}, "S: +OK\nC: CAPA\nS: -ERR what\nC: USER joe\nS: +OK\nC: PASS secret\n" + DONE, id="no CAPA"),
        pytest.param(
            {"user": b"joe smith", "secret": " p ä".encode()},
            capa("USER") + "C: USER joe smith\nS: +OK\nC: PASS  p ä\n" + DONE,
            id="spaces and 8 bits",
        ),
        pytest.param({"mechanism": Mechanism.PLAIN}, SASL + f"C: AUTH PLAIN {PLAIN}\n" + DONE, id="PLAIN"),
        pytest.param(
            {"mechanism": Mechanism.LOGIN},
            SASL + f"C: AUTH LOGIN {b64(b'joe')}\nS: + UGFzc3dvcmQ6\nC: {b64(b'secret')}\n" + DONE,
            id="LOGIN",
        ),
        pytest.param(
            {"mechanism": Mechanism.LOGIN},
            capa("SASL PLAIN") + f"C: AUTH PLAIN {PLAIN}\n" + DONE,
            id="LOGIN becomes PLAIN",
        ),
        pytest.param(
            {"mechanism": Mechanism.PLAIN},
            capa("SASL LOGIN") + f"C: AUTH LOGIN {b64(b'joe')}\nS: +\nC: {b64(b'secret')}\n" + DONE,
            id="PLAIN becomes LOGIN",
        ),
        pytest.param({}, capa("SASL PLAIN") + f"C: AUTH PLAIN {PLAIN}\n" + DONE, id="the command becomes PLAIN"),
        pytest.param({"mechanism": Mechanism.PLAIN}, STEPWISE + DONE, id="PLAIN becomes the command"),
        pytest.param(
            {},
            capa("SASL CRAM-MD5") + "C: USER joe\nS: +OK\nC: PASS secret\n" + DONE,
            id="the command, where only unknown mechanisms are offered",
        ),
        pytest.param(
            {},
            capa("SASL XOAUTH2") + "C: USER joe\nS: +OK\nC: PASS secret\n" + DONE,
            id="the command, where only tokens are offered",
        ),
        pytest.param(
            {"authzid": b"shared"},
            SASL + f"C: AUTH PLAIN {b64(b'shared' + bytes(1) + b'joe' + bytes(1) + b'secret')}\n" + DONE,
            id="another identity",
        ),
        pytest.param(
            {"mechanism": Mechanism.XOAUTH2},
            SASL + f"C: AUTH XOAUTH2 {b64(b'user=joe' + bytes([1]) + b'auth=Bearer secret' + bytes([1, 1]))}\n" + DONE,
            id="XOAUTH2",
        ),
        pytest.param(
            {"mechanism": Mechanism.XOAUTH2, "secret": b"t" * 300},
            SASL + "C: AUTH XOAUTH2\nS: +\n"
            f"C: {b64(b'user=joe' + bytes([1]) + b'auth=Bearer ' + b't' * 300 + bytes([1, 1]))}\n" + DONE,
            id="a token longer than a command may be",
        ),
        pytest.param(
            {"utf8": True, "language": b"de"},
            capa("USER", "UTF8", "LANG") + "C: UTF8\nS: +OK\nC: LANG de\nS: +OK de ok\n"
            "C: USER joe\nS: +OK\nC: PASS secret\n" + DONE,
            id="UTF8 and LANG",
        ),
        pytest.param(
            {"language": b"xx"},
            capa("USER", "LANG") + "C: LANG xx\nS: -ERR no such\nC: USER joe\nS: +OK\nC: PASS secret\n" + DONE,
            id="a language that the server does not have",
        ),
        pytest.param({"language": b"de"}, STEPWISE + DONE, id="LANG that the server does not know"),
    ],
)
async def test_words_of_a_login(settings: dict[str, Any], script: str) -> None:
    async with serving(script) as server:
        signed_in = await Client.of(a_pool(server, protocol="pop3")).open(login(**settings))
        assert (signed_in.residual, signed_in.untagged, signed_in.shown) == (b"", (), ())
        assert signed_in.server == server.address
        await signed_in.stream.aclose()


async def test_what_follows_the_acceptance_is_kept() -> None:
    async with serving(STEPWISE + "S: +OK in\\r\\n+OK 1 120\n") as server:
        signed_in = await Client.of(a_pool(server, protocol="pop3")).open(login())
        assert signed_in.residual == b"+OK 1 120\r\n"
        await signed_in.stream.aclose()


async def test_capabilities_are_asked_for_once() -> None:
    again = "S: +OK ready\nC: USER joe\nS: +OK\nC: PASS secret\n" + DONE
    async with serving(STEPWISE + DONE, again) as server:
        client = Client.of(a_pool(server, protocol="pop3"))
        for _ in range(2):
            signed_in = await client.open(login())
            assert signed_in.capabilities == {"USER"}
            await signed_in.stream.aclose()
    assert server.connections == 2


CONNECT, PROTOCOL, REJECTED = Failure.CONNECT, Failure.PROTOCOL, Failure.AUTH_REJECTED
TEMPORARY, UNSUPPORTED = Failure.AUTH_TEMPORARY, Failure.UNSUPPORTED


@pytest.mark.parametrize(
    ("script", "settings", "failure", "state"),
    [
        # ---- the greeting, and what the server can
        ("S: -ERR go away\nclose", {}, CONNECT, "connect/banner"),
        ("S: -ERR [SYS/TEMP] later\nclose", {}, CONNECT, "connect/banner"),
        ("S: -ERR [AUTH] nobody asked\nclose", {}, CONNECT, "connect/banner"),
        ("S: * OK this is IMAP", {}, PROTOCOL, "connect/none"),
        ("S: +OKAY", {}, CONNECT, "connect/banner"),
        ("S: 220 mail.example.org ESMTP", {}, PROTOCOL, "connect/none"),
        ("close", {}, CONNECT, "connect/none"),
        ("reset", {}, CONNECT, "connect/none"),
        ("S: +OK hi\nC: CAPA\nclose", {}, TEMPORARY, "capa/banner"),
        ("S: +OK hi\nC: CAPA\nS: +OK\nS: USER\nclose", {}, TEMPORARY, "capa/banner"),
        ("S: +OK hi\nC: CAPA\nS: +OK\n" + f"S: {'x' * 8000}\n" * 3, {}, PROTOCOL, "capa/banner"),
        # ---- the answer to a login
        (STEPWISE + "S: -ERR no", {}, REJECTED, "login/capa"),
        (STEPWISE + "S: -ERR [AUTH] no", {}, REJECTED, "login/capa"),
        (STEPWISE + "S: -ERR [auth] no", {}, REJECTED, "login/capa"),
        (STEPWISE + "S: -ERR [X-ODD] no", {}, REJECTED, "login/capa"),
        (STEPWISE + "S: -ERR [SYS/TEMP] later", {}, TEMPORARY, "login/capa"),
        (STEPWISE + "S: -ERR [SYS/PERM] never", {}, UNSUPPORTED, "login/capa"),
        (STEPWISE + "S: -ERR [IN-USE] locked", {}, Failure.IN_USE, "login/capa"),
        (STEPWISE + "S: -ERR [LOGIN-DELAY] wait", {}, Failure.LIMIT, "login/capa"),
        (STEPWISE + "S: + more", {}, PROTOCOL, "login/capa"),
        (STEPWISE + "S: what", {}, PROTOCOL, "login/capa"),
        (STEPWISE + "close", {}, TEMPORARY, "login/capa"),
        (capa("USER") + "C: USER joe\nS: -ERR [AUTH] who", {}, REJECTED, "user/capa"),
        (capa("USER") + "C: USER joe\nS: + more", {}, PROTOCOL, "user/capa"),
        (PIPELINED + "S: -ERR [AUTH] who\nS: -ERR no USER yet", {}, REJECTED, "login/capa"),
        (PIPELINED + "S: +OK\nS: -ERR [AUTH] no", {}, REJECTED, "login/capa"),
        # ---- mechanisms
        (SASL + "C: AUTH PLAIN <*>\nS: -ERR no", {"mechanism": Mechanism.PLAIN}, REJECTED, "login/capa"),
        (
            SASL + "C: AUTH PLAIN <*>\nS: + x\nC: *\nS: -ERR [SYS/TEMP] x",
            {"mechanism": Mechanism.PLAIN},
            TEMPORARY,
            "login/capa",
        ),
        (
            SASL + "C: AUTH PLAIN <*>\nS: + x\nC: *\nS: +\nC: *\nS: +",
            {"mechanism": Mechanism.PLAIN},
            PROTOCOL,
            "login/capa",
        ),
        (
            SASL + "C: AUTH OAUTHBEARER <*>\nS: + e30=\nC: AQ==\nS: -ERR [AUTH] no",
            {"mechanism": Mechanism.OAUTHBEARER},
            REJECTED,
            "login/capa",
        ),
        (
            SASL + "C: AUTH XOAUTH2\nS: +OK in",
            {"mechanism": Mechanism.XOAUTH2, "secret": b"t" * 300},
            PROTOCOL,
            "login/capa",
        ),
        (
            SASL + "C: AUTH XOAUTH2\nS: -ERR [AUTH] no",
            {"mechanism": Mechanism.XOAUTH2, "secret": b"t" * 300},
            REJECTED,
            "login/capa",
        ),
        (capa("USER"), {"mechanism": Mechanism.XOAUTH2}, UNSUPPORTED, "capa/capa"),
        (capa("SASL EXTERNAL"), {"mechanism": Mechanism.EXTERNAL}, UNSUPPORTED, "capa/capa"),
        (capa("USER"), {"authzid": b"shared"}, UNSUPPORTED, "capa/capa"),
        (capa("USER") + "C: UTF8\nS: -ERR no", {"utf8": True}, UNSUPPORTED, "utf8/capa"),
        # ---- what would become another command
        (SASL, {"user": b"joe\r\nDELE 1"}, REJECTED, "capa/capa"),
        (SASL, {"secret": b"x\nDELE 1"}, REJECTED, "capa/capa"),
        (SASL, {"secret": b"to\x01ken", "mechanism": Mechanism.XOAUTH2}, REJECTED, "capa/capa"),
    ],
)
async def test_what_goes_wrong(script: str, settings: dict[str, Any], failure: Failure, state: str) -> None:
    async with serving(script) as server:
        with pytest.raises(UpstreamFailed) as caught:
            await Client.of(a_pool(server, protocol="pop3")).open(login(**settings))
    assert (caught.value.failure, caught.value.state) == (failure, state)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("silence", "connect/none"),
        ("S: +OK hi\\\nsilence", "connect/none"),
        ("S: +OK hi\nC: CAPA\nS: +OK\nS: USER\nsilence", "capa/banner"),
        (capa("USER") + "C: USER joe\nsilence", "user/capa"),
        (STEPWISE + "silence", "login/capa"),
        (PIPELINED + "S: +OK\nsilence", "login/capa"),
    ],
)
async def test_a_silent_server_costs_its_time_limit(script: str, state: str) -> None:
    async with serving(script) as server:
        pool = a_pool(server, protocol="pop3", greeting_timeout="0.1s", login_timeout="0.1s")
        with pytest.raises(UpstreamFailed) as caught:
            await Client.of(pool).open(login())
    assert (caught.value.failure, caught.value.state) == (Failure.TIMEOUT, state)


async def test_a_probe_says_goodbye_and_asks_again() -> None:
    async with serving(capa("USER") + "C: QUIT\n", capa("USER", "STLS") + "C: QUIT\n") as server:
        upstreams = Client.of(a_pool(server, protocol="pop3")).upstreams
        told: list[object] = []
        for _ in range(2):
            await upstreams._probe_one("main", upstreams._pools["main"].servers[0], lambda *facts: told.append(facts))
        assert upstreams.known_capabilities(["main"]) == [{"USER", "STLS"}]
    assert told == [("main", server.address, None)] * 2


def test_capabilities_are_words_in_upper_case() -> None:
    assert capabilities_of((b"top", b"", b"sasl PLAIN login", b"EXPIRE 60 USER", b"IMPLEMENTATION x")) == {
        "TOP",
        "SASL",
        "AUTH=PLAIN",
        "AUTH=LOGIN",
        "EXPIRE",
        "IMPLEMENTATION",
    }

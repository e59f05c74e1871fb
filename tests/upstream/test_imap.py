"""Signing in to IMAP servers: every word on the wire, and what each answer comes to."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from mailgate.errors import UpstreamFailed
from mailgate.model import Failure, Mechanism
from mailgate.upstream.pool import Upstreams
from tests.support.upstream import Client, a_login, a_pool, serving

HELLO = "S: * OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID AUTH=PLAIN AUTH=XOAUTH2] ready\n"
BARE = "S: * OK [CAPABILITY IMAP4rev1] ready\n"
DONE = "S: L1 OK [CAPABILITY IMAP4rev1 IDLE] in\n"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def greeting(*capabilities: str) -> str:
    return f"S: * OK [CAPABILITY IMAP4rev1 {' '.join(capabilities)}] ready\n"


PLAIN = b64(b"\0joe\0secret")
LOGIN_MECHANISM, PLAIN_MECHANISM = Mechanism.LOGIN, Mechanism.PLAIN
XOAUTH2 = b64(b"user=joe\x01auth=Bearer secret\x01\x01")
OAUTHBEARER = b64(b"n,a=joe,\x01auth=Bearer secret\x01\x01")


@pytest.mark.parametrize(
    ("login", "script"),
    [
        pytest.param({}, HELLO + 'C: L1 LOGIN "joe" "secret"\n' + DONE, id="a command"),
        pytest.param(
            {"secret": "pässwörd".encode()},
            HELLO + 'C: L1 LOGIN "joe" {10+}\nC10: pässwörd\nC: \n' + DONE,
            id="a literal that does not wait",
        ),
        pytest.param(
            {"secret": "pässwörd".encode()},
            greeting("LITERAL-") + 'C: L1 LOGIN "joe" {10+}\nC10: pässwörd\nC: \n' + DONE,
            id="a short literal under LITERAL-",
        ),
        pytest.param(
            {"user": "jö".encode(), "secret": "pässwörd".encode()},
            BARE + "C: L1 LOGIN {3}\nS: + go on\nC: jö {10}\nS: +\nC: pässwörd\n" + DONE,
            id="literals that wait",
        ),
        pytest.param(
            {"mechanism": PLAIN_MECHANISM},
            HELLO + f"C: L1 AUTHENTICATE PLAIN {PLAIN}\n" + DONE,
            id="PLAIN in one line",
        ),
        pytest.param(
            {"mechanism": PLAIN_MECHANISM},
            greeting("AUTH=PLAIN") + f"C: L1 AUTHENTICATE PLAIN\nS: +\nC: {PLAIN}\n" + DONE,
            id="PLAIN without SASL-IR",
        ),
        pytest.param(
            {"mechanism": LOGIN_MECHANISM},
            greeting("AUTH=LOGIN", "SASL-IR") + f"C: L1 AUTHENTICATE LOGIN {b64(b'joe')}\nS: + UGFzc3dvcmQ6\n"
            f"C: {b64(b'secret')}\n" + DONE,
            id="LOGIN with its name at once",
        ),
        pytest.param(
            {"mechanism": LOGIN_MECHANISM},
            greeting("AUTH=LOGIN") + f"C: L1 AUTHENTICATE LOGIN\nS: + VXNlcm5hbWU6\nC: {b64(b'joe')}\n"
            f"S: + UGFzc3dvcmQ6\nC: {b64(b'secret')}\n" + DONE,
            id="LOGIN step by step",
        ),
        pytest.param(
            {"mechanism": LOGIN_MECHANISM},
            HELLO + f"C: L1 AUTHENTICATE PLAIN {PLAIN}\n" + DONE,
            id="LOGIN becomes PLAIN",
        ),
        pytest.param(
            {"mechanism": PLAIN_MECHANISM},
            BARE + 'C: L1 LOGIN "joe" "secret"\n' + DONE,
            id="PLAIN becomes the command",
        ),
        pytest.param(
            {},
            greeting("LOGINDISABLED", "AUTH=PLAIN", "SASL-IR") + f"C: L1 AUTHENTICATE PLAIN {PLAIN}\n" + DONE,
            id="the command becomes PLAIN",
        ),
        pytest.param(
            {"mechanism": PLAIN_MECHANISM, "authzid": b"shared"},
            HELLO + f"C: L1 AUTHENTICATE PLAIN {b64(b'shared' + bytes(1) + b'joe' + bytes(1) + b'secret')}\n" + DONE,
            id="another identity",
        ),
        pytest.param(
            {"mechanism": Mechanism.XOAUTH2},
            HELLO + f"C: L1 AUTHENTICATE XOAUTH2 {XOAUTH2}\n" + DONE,
            id="XOAUTH2",
        ),
        pytest.param(
            {"mechanism": Mechanism.OAUTHBEARER},
            greeting("AUTH=OAUTHBEARER") + f"C: L1 AUTHENTICATE OAUTHBEARER\nS: + \nC: {OAUTHBEARER}\n" + DONE,
            id="OAUTHBEARER",
        ),
        pytest.param(
            {"client_id": ((b"name", b"Mutt"), (b"os", None), (b"x-odd", b"a\r\nb"), (b"k\xff", b"v"))},
            HELLO + 'C: I1 ID ("name" "Mutt" "os" NIL)\nC: L1 LOGIN "joe" "secret"\n'
            'S: * ID ("name" "Dovecot")\nS: I1 OK done\n' + DONE,
            id="ID with its pairs",
        ),
        pytest.param(
            {"client_id": ((b"name", b"a\r\nb"),)},
            HELLO + 'C: L1 LOGIN "joe" "secret"\n' + DONE,
            id="ID without a pair that can be said",
        ),
        pytest.param(
            {"client_id": ((b"name", b"Mutt"),)},
            BARE + 'C: L1 LOGIN "joe" "secret"\n' + DONE,
            id="ID that the server does not know",
        ),
        pytest.param(
            {"client_id": ()},
            HELLO + 'C: L1 LOGIN "joe" "secret"\n' + DONE,
            id="ID NIL",
        ),
        pytest.param(
            {},
            "S: * ok hi\nC: C1 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: C1 OK done\n"
            'C: L1 LOGIN "joe" "secret"\n' + DONE,
            id="capabilities that must be asked for",
        ),
        pytest.param(
            {},
            "S: * OK hi\nC: C1 CAPABILITY\nS: * OK working on it\nS: C1 OK [CAPABILITY IMAP4rev1] done\n"
            'C: L1 LOGIN "joe" "secret"\n' + DONE,
            id="capabilities in a tagged response",
        ),
    ],
)
async def test_words_of_a_login(login: dict[str, Any], script: str) -> None:
    async with serving(script) as server:
        signed_in = await Client.of(a_pool(server)).open(a_login(**login))
        assert signed_in.capabilities == {"IMAP4REV1", "IDLE"}
        assert signed_in.shown == (b"IMAP4rev1", b"IDLE")
        assert (signed_in.residual, signed_in.untagged, signed_in.server) == (b"", (), server.address)
        await signed_in.stream.aclose()


async def test_quotes_and_backslashes_are_escaped() -> None:
    async with serving(HELLO + "C: <*>\n" + DONE) as server:
        await (await Client.of(a_pool(server)).open(a_login(b'j"o\\e', b"a b"))).stream.aclose()
        assert server.heard == [b'L1 LOGIN "j\\"o\\\\e" "a b"']


LOGGED_IN = HELLO + 'C: L1 LOGIN "joe" "secret"\n'


@pytest.mark.parametrize(
    ("said", "untagged", "capabilities", "residual"),
    [
        pytest.param(
            "S: * OK [ALERT] Quota\nS: * CAPABILITY IMAP4rev1 MOVE\nS: L1 OK in\n",
            (b"* OK [ALERT] Quota\r\n",),
            {"IMAP4REV1", "MOVE"},
            b"",
            id="an alert and untagged capabilities",
        ),
        pytest.param(
            "S: * 3 EXISTS\nS: L1 OK [capability imap4rev1 Move] in\n",
            (b"* 3 EXISTS\r\n",),
            {"IMAP4REV1", "MOVE"},
            b"",
            id="tagged capabilities",
        ),
        pytest.param(
            "S: L1 OK in\nC: C1 CAPABILITY\nS: * CAPABILITY IMAP4rev1 MOVE\nS: C1 OK done\n",
            (),
            {"IMAP4REV1", "MOVE"},
            b"",
            id="capabilities asked for after the login",
        ),
        pytest.param(
            "S: L1 OK in\nC: C1 CAPABILITY\nS: * OK [ALERT] Quota\nS: * CAPABILITY IMAP4rev1\nS: C1 OK done\n",
            (b"* OK [ALERT] Quota\r\n",),
            {"IMAP4REV1"},
            b"",
            id="an alert behind the login",
        ),
        pytest.param(
            "S: * LIST () {3}\\r\\na\\r\\n\\\nS:  x\nS: L1 OK [CAPABILITY IMAP4rev1] in\\r\\n* 7 EXISTS\\r\\n* O\\\n",
            (b"* LIST () {3}\r\na\r\n x\r\n",),
            {"IMAP4REV1"},
            b"* 7 EXISTS\r\n* O",
            id="a literal, and what follows the acceptance",
        ),
    ],
)
async def test_what_comes_with_the_acceptance(
    said: str, untagged: tuple[bytes, ...], capabilities: set[str], residual: bytes
) -> None:
    async with serving(LOGGED_IN + said) as server:
        signed_in = await Client.of(a_pool(server)).open(a_login())
        assert signed_in.untagged == untagged
        assert signed_in.capabilities == capabilities
        assert signed_in.residual == residual
        await signed_in.stream.aclose()


REJECTED, TEMPORARY, LIMIT = Failure.AUTH_REJECTED, Failure.AUTH_TEMPORARY, Failure.LIMIT
CONNECT, PROTOCOL, UNSUPPORTED = Failure.CONNECT, Failure.PROTOCOL, Failure.UNSUPPORTED


@pytest.mark.parametrize(
    ("script", "failure", "state"),
    [
        # ---- the greeting
        ("S: * PREAUTH welcome root", PROTOCOL, "connect/banner"),
        ("S: * BYE full\nclose", CONNECT, "connect/banner"),
        ("S: * NO not today", PROTOCOL, "connect/banner"),
        ("S: L1 OK in", PROTOCOL, "connect/banner"),
        ("S: * 5 EXISTS", PROTOCOL, "connect/banner"),
        ("S: +OK this is POP3", PROTOCOL, "connect/banner"),
        ("S: 220 mail.example.org ESMTP", PROTOCOL, "connect/banner"),
        ("S: \\0\\0\\0", PROTOCOL, "connect/none"),
        ("S: ", PROTOCOL, "connect/none"),
        ("close", CONNECT, "connect/none"),
        ("S: * OK [CAPAB\\\nclose", CONNECT, "connect/none"),
        ("S: * OK {9999999}\nS: x\nC: C1 CAPABILITY\nclose", PROTOCOL, "capability/banner"),
        ("S: * CAPABILITY {65536}\nS: x", PROTOCOL, "connect/none"),
        # ---- capabilities
        ("S: * OK hi\nC: C1 CAPABILITY\nS: C1 OK done", PROTOCOL, "capability/banner"),
        ("S: * OK hi\nC: C1 CAPABILITY\nS: C1 NO never", PROTOCOL, "capability/banner"),
        ("S: * OK hi\nC: C1 CAPABILITY\nS: * BYE [UNAVAILABLE] full\nclose", TEMPORARY, "capability/banner"),
        ("S: * OK hi\nC: C1 CAPABILITY\nclose", TEMPORARY, "capability/banner"),
        # ---- the answer to a login
        (LOGGED_IN + "S: L1 NO Authentication failed.", REJECTED, "login/banner"),
        (LOGGED_IN + "S: L1 NO [AUTHENTICATIONFAILED] no", REJECTED, "login/banner"),
        (LOGGED_IN + "S: L1 NO [AUTHORIZATIONFAILED] no", REJECTED, "login/banner"),
        (LOGGED_IN + "S: L1 NO [EXPIRED] no", REJECTED, "login/banner"),
        (LOGGED_IN + "S: L1 NO [X-WHATEVER 5] no", REJECTED, "login/banner"),
        (LOGGED_IN + "S: L1 NO [unavailable] no", TEMPORARY, "login/banner"),
        (LOGGED_IN + "S: L1 NO [SERVERBUG] no", TEMPORARY, "login/banner"),
        (LOGGED_IN + "S: L1 NO [CONTACTADMIN] no", TEMPORARY, "login/banner"),
        (LOGGED_IN + "S: L1 NO [LIMIT] no", LIMIT, "login/banner"),
        (LOGGED_IN + "S: L1 NO [OVERQUOTA] no", LIMIT, "login/banner"),
        (LOGGED_IN + "S: L1 NO [INUSE] no", Failure.IN_USE, "login/banner"),
        (LOGGED_IN + "S: L1 NO [PRIVACYREQUIRED] no", UNSUPPORTED, "login/banner"),
        (LOGGED_IN + "S: L1 NO [CANNOT] no", UNSUPPORTED, "login/banner"),
        (LOGGED_IN + "S: L1 BAD what", PROTOCOL, "login/banner"),
        (LOGGED_IN + "S: * BYE over\nclose", TEMPORARY, "login/banner"),
        (LOGGED_IN + "S: * BYE [LIMIT] many\nclose", LIMIT, "login/banner"),
        (LOGGED_IN + "S: A9 OK in", PROTOCOL, "login/banner"),
        (LOGGED_IN + "S: + more", PROTOCOL, "login/continuation"),
        (LOGGED_IN + "close", TEMPORARY, "login/banner"),
        (LOGGED_IN + "reset", TEMPORARY, "login/banner"),
        (LOGGED_IN + "S: L1", PROTOCOL, "login/banner"),
        (LOGGED_IN + "S: L1 OK in\nC: C1 CAPABILITY\nS: C1 BAD no", PROTOCOL, "capability/banner"),
        (LOGGED_IN + "\n".join(["S: * OK " + "x" * 1000] * 20), PROTOCOL, "login/banner"),
    ],
)
async def test_what_goes_wrong(script: str, failure: Failure, state: str) -> None:
    async with serving(script) as server:
        client = Client.of(a_pool(server))
        with pytest.raises(UpstreamFailed) as caught:
            await client.open(a_login())
    assert (caught.value.failure, caught.value.state) == (failure, state)
    assert caught.value.server == server.address
    assert server.connections == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "login", "failure", "state"),
    [
        pytest.param(
            BARE + "C: L1 LOGIN {4}\nS: L1 NO no literals",
            {"user": "jöe".encode()},
            REJECTED,
            "login/banner",
            id="a literal is refused",
        ),
        pytest.param(
            BARE + "C: L1 LOGIN {4}\nS: L1 OK in",
            {"user": "jöe".encode()},
            PROTOCOL,
            "login/banner",
            id="accepted before the password was sent",
        ),
        pytest.param(
            greeting("AUTH=PLAIN") + "C: L1 AUTHENTICATE PLAIN\nS: L1 OK in",
            {"mechanism": PLAIN_MECHANISM},
            PROTOCOL,
            "login/banner",
            id="accepted before the credentials were sent",
        ),
        pytest.param(
            greeting("AUTH=PLAIN") + "C: L1 AUTHENTICATE PLAIN\nS: L1 NO [UNAVAILABLE] later",
            {"mechanism": PLAIN_MECHANISM},
            TEMPORARY,
            "login/banner",
            id="a mechanism is refused",
        ),
        pytest.param(
            HELLO + f"C: L1 AUTHENTICATE XOAUTH2 {XOAUTH2}\nS: + eyJzdGF0dXMiOiI0MDAifQ==\nC: \n"
            "S: L1 NO [AUTHENTICATIONFAILED] no",
            {"mechanism": Mechanism.XOAUTH2},
            REJECTED,
            "login/continuation",
            id="a token is refused",
        ),
        pytest.param(
            HELLO + f"C: L1 AUTHENTICATE PLAIN {PLAIN}\nS: + more\nC: *\nS: L1 BAD aborted",
            {"mechanism": PLAIN_MECHANISM},
            PROTOCOL,
            "login/continuation",
            id="a challenge that PLAIN does not have",
        ),
        pytest.param(
            HELLO + f"C: L1 AUTHENTICATE PLAIN {PLAIN}\nS: +\nC: *\nS: +\nC: *\nS: +",
            {"mechanism": PLAIN_MECHANISM},
            PROTOCOL,
            "login/continuation",
            id="challenges without end",
        ),
        pytest.param(BARE, {"mechanism": Mechanism.XOAUTH2}, UNSUPPORTED, "connect/banner", id="no such token"),
        pytest.param(BARE, {"mechanism": Mechanism.EXTERNAL}, UNSUPPORTED, "connect/banner", id="EXTERNAL"),
        pytest.param(
            greeting("AUTH=EXTERNAL"),
            {"mechanism": Mechanism.EXTERNAL},
            UNSUPPORTED,
            "connect/banner",
            id="EXTERNAL though the server offers it",
        ),
        pytest.param(BARE, {"authzid": b"shared"}, UNSUPPORTED, "connect/banner", id="no way to name an identity"),
        pytest.param(greeting("LOGINDISABLED"), {}, UNSUPPORTED, "connect/banner", id="no way to sign in"),
        *(
            pytest.param(HELLO, {field: b"a" + bad + b"b"}, REJECTED, "connect/banner", id=f"{bad!r} in {field}")
            for field in ("user", "secret", "authzid")
            for bad in (b"\r\n", b"\0", b"\x7f")
        ),
    ],
)
async def test_logins_that_cannot_be(script: str, login: dict[str, Any], failure: Failure, state: str) -> None:
    async with serving(script) as server:
        with pytest.raises(UpstreamFailed) as caught:
            await Client.of(a_pool(server)).open(a_login(**login))
    assert (caught.value.failure, caught.value.state) == (failure, state)


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("silence", "connect/none"),
        ("S: * OK hel\\\nsilence", "connect/none"),
        ("S: * OK hi\nC: C1 CAPABILITY\nsilence", "capability/banner"),
        (LOGGED_IN + "silence", "login/banner"),
        (LOGGED_IN + "S: * OK wait\nsilence", "login/banner"),
        (BARE + "C: L1 LOGIN {4}\nsilence", "login/banner"),
        (BARE + "C: L1 LOGIN {4}\nS: +\nC: jöe {7}\nsilence", "login/continuation"),
    ],
)
async def test_a_silent_server_costs_its_time_limit(script: str, state: str) -> None:
    user = "jöe".encode() if "{4}" in script else b"joe"
    secret = "sécret".encode() if "{7}" in script else b"secret"
    async with serving(script) as server:
        with pytest.raises(UpstreamFailed) as caught:
            await Client.of(a_pool(server, greeting_timeout="0.1s", login_timeout="0.1s")).open(a_login(user, secret))
    assert (caught.value.failure, caught.value.state) == (Failure.TIMEOUT, state)
    assert caught.value.detail == "no answer within 0.1 s"


async def test_a_banner_without_end_is_cut() -> None:
    async with serving("S: * OK " + "x" * 70_000 + "\\\nsilence") as server:
        with pytest.raises(UpstreamFailed) as caught:
            await Client.of(a_pool(server)).open(a_login())
    assert (caught.value.failure, caught.value.detail) == (PROTOCOL, "line too long")


async def test_a_probe_says_goodbye() -> None:
    async with serving(BARE + "C: Z1 LOGOUT\n") as server:
        upstreams: Upstreams = Client.of(a_pool(server)).upstreams
        told = []
        await upstreams._probe_one("main", upstreams._pools["main"].servers[0], lambda *facts: told.append(facts))
    assert told == [("main", server.address, None)]

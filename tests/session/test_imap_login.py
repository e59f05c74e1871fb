"""Logins in IMAP: every way to say who one is, and what comes of it."""

from __future__ import annotations

import pytest
import trio

from mailgate.model import End, Failure, Mechanism, Secret, Side, State
from tests.session.conftest import OAUTHBEARER, PLAIN, UPSTREAM, XOAUTH2, World, b64, on_stage
from tests.support.dialogue import Stage

GREETING = "S: * OK [CAPABILITY <*>] mail.example.org ready\n"
BEARER_FAILED = "+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0="
XOAUTH2_FAILED = "+ eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIn0="


# -------------------------------------------------------------------- LOGIN and AUTHENTICATE


@pytest.mark.parametrize(
    ("arguments", "user", "password"),
    [
        ("alice secret", b"alice", b"secret"),
        ('"alice" "se cr\\x5c"et\\x5c\\x5c"', b"alice", b'se cr"et\\'),
        ('alice ""', b"alice", b""),
        ("{5+}\\r\\nalice {6+}\\r\\nsecret", b"alice", b"secret"),
        ("{0005+}\\r\\nalice secret", b"alice", b"secret"),
        ("alice {0+}\\r\\n", b"alice", b""),
        ('"al\\xc3\\xafce" {3+}\\r\\n\\xff\\xfe\\xfd', "alïce".encode(), b"\xff\xfe\xfd"),
        ("nil NIL", b"nil", b"NIL"),
        ("alice@example.org a]b", b"alice@example.org", b"a]b"),
    ],
)
async def test_login(autojump_clock: object, arguments: str, user: bytes, password: bytes) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN {arguments}
            S: a OK [CAPABILITY IMAP4rev1 LITERAL+ IDLE] Logged in
            events: SessionEstablished
        """)
    login = world.login
    assert (login.user, login.secret, login.mechanism) == (user, Secret(password), Mechanism.COMMAND)
    assert (login.tag, login.authzid, login.client_id) == (b"a", b"", None)


async def test_login_with_literals_that_wait(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN {{5}}
            S: + OK
            C: alice {{6}}
            S: + OK
            C: secret
            login: alice COMMAND
            S: a OK <*>
        """)
    assert world.login.secret == Secret(b"secret")


async def test_a_literal_that_is_too_large_is_skipped(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN {{20000}}
            S: a BAD Literal too large
            C: b LOGIN alice {{16385+}}\\r\\n{"x" * 16385}
            S: b BAD Literal too large
            C: c NOOP
            S: c OK NOOP completed
        """)


@pytest.mark.parametrize(
    ("arguments", "logs"),
    [
        ('"" secret', "LOGIN"),
        ('"al\\tice" secret', "LOGIN"),
        ("alice {3+}\\r\\na\\r\\n", "LOGIN"),
        ("alice {2+}\\r\\n\\x7fx", "LOGIN"),
        (f"PLAIN {b64('alice')}", "AUTHENTICATE"),
        (f"PLAIN {b64(chr(0) + 'al' + chr(13) + 'ice' + chr(0) + 'secret')}", "AUTHENTICATE"),
        (f"PLAIN {b64(chr(0) + chr(0) + 'secret')}", "AUTHENTICATE"),
        ("PLAIN =", "AUTHENTICATE"),
        (f"XOAUTH2 {b64('user=alice')}", "AUTHENTICATE"),
    ],
)
async def test_control_characters_and_malformed_credentials(autojump_clock: object, arguments: str, logs: str) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a {logs} {arguments}
            S: a NO [CANNOT] Control characters are not allowed in user names and passwords.
            events: LoginRefused(invalid_credentials)
            C: b NOOP
            S: b OK NOOP completed
        """)
    assert world.logins == []


@pytest.mark.parametrize(
    ("script", "mechanism", "user", "authzid", "secret"),
    [
        (f"C: a AUTHENTICATE PLAIN {PLAIN}", "PLAIN", b"alice", b"", b"secret"),
        (f"C: a authenticate plain\nS: +\\x20\nC: {PLAIN}", "PLAIN", b"alice", b"", b"secret"),
        (f"C: a AUTHENTICATE PLAIN {b64('bob' + chr(0) + 'alice' + chr(0) + 'x')}", "PLAIN", b"alice", b"bob", b"x"),
        (f"C: a AUTHENTICATE PLAIN {b64('alice' + chr(0) + 'alice' + chr(0) + 'x')}", "PLAIN", b"alice", b"", b"x"),
        (
            f"C: a AUTHENTICATE LOGIN\nS: + VXNlcm5hbWU6\nC: {b64('alice')}\nS: + UGFzc3dvcmQ6\nC: {b64('secret')}",
            "LOGIN",
            b"alice",
            b"",
            b"secret",
        ),
        (
            f"C: a AUTHENTICATE LOGIN {b64('alice')}\nS: + UGFzc3dvcmQ6\nC: {b64('secret')}",
            "LOGIN",
            b"alice",
            b"",
            b"secret",
        ),
        (f"C: a AUTHENTICATE XOAUTH2 {XOAUTH2}", "XOAUTH2", b"alice", b"", b"token"),
        (f"C: a AUTHENTICATE XOAUTH2\nS: +\\x20\nC: {XOAUTH2}", "XOAUTH2", b"alice", b"", b"token"),
        (f"C: a AUTHENTICATE OAUTHBEARER {OAUTHBEARER}", "OAUTHBEARER", b"alice", b"", b"token"),
        (f"C: a AUTHENTICATE OAUTHBEARER\nS: +\\x20\nC: {OAUTHBEARER}", "OAUTHBEARER", b"alice", b"", b"token"),
    ],
)
async def test_authenticate(
    autojump_clock: object, script: str, mechanism: str, user: bytes, authzid: bytes, secret: bytes
) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            login: alice {mechanism}
            S: a OK [CAPABILITY IMAP4rev1 LITERAL+ IDLE] Logged in
        """)
    login = world.login
    assert (login.user, login.authzid, login.secret) == (user, authzid, Secret(secret))


@pytest.mark.parametrize(
    ("script", "answer", "event"),
    [
        ("C: a AUTHENTICATE PLAIN\nS: +\\x20\nC: *", "BAD Authentication aborted.", "auth_aborted_by_client"),
        (
            f"C: a AUTHENTICATE LOGIN {b64('alice')}\nS: + UGFzc3dvcmQ6\nC: *",
            "BAD Authentication aborted.",
            "auth_aborted_by_client",
        ),
        ("C: a AUTHENTICATE PLAIN\nS: +\\x20\nC: !!!!", "BAD Invalid base64 data.", "invalid_base64"),
        ("C: a AUTHENTICATE PLAIN !!!!", "BAD Invalid base64 data.", "invalid_base64"),
        (
            f"C: a AUTHENTICATE PLAIN\nS: +\\x20\nC: {'A' * 70_000}",
            "BAD Invalid base64 data.",
            "invalid_base64",
        ),
        ("C: a AUTHENTICATE CRAM-MD5", "NO [CANNOT] Authentication mechanism not supported.", "invalid_mech"),
        ("C: a AUTHENTICATE EXTERNAL =", "NO [CANNOT] Authentication mechanism not supported.", "invalid_mech"),
        ("C: a AUTHENTICATE COMMAND", "NO [CANNOT] Authentication mechanism not supported.", "invalid_mech"),
    ],
)
async def test_exchanges_that_come_to_nothing(autojump_clock: object, script: str, answer: str, event: str) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            S: a {answer}
            events: LoginRefused({event})
            C: b NOOP
            S: b OK NOOP completed
        """)
    assert world.logins == []


async def test_bearer_tokens_only_where_every_upstream_takes_them(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), known=[UPSTREAM, frozenset({"AUTH=PLAIN"})])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a AUTHENTICATE XOAUTH2 {XOAUTH2}
            S: a NO [CANNOT] Authentication mechanism not supported.
        """)


@pytest.mark.parametrize(
    ("mechanism", "initial", "challenge", "response", "answer"),
    [
        ("OAUTHBEARER", OAUTHBEARER, BEARER_FAILED, "AQ==", "NO [AUTHENTICATIONFAILED] Authentication failed."),
        ("XOAUTH2", XOAUTH2, XOAUTH2_FAILED, "", "NO [AUTHENTICATIONFAILED] Authentication failed."),
        ("OAUTHBEARER", OAUTHBEARER, BEARER_FAILED, "*", "BAD Authentication aborted."),
        ("XOAUTH2", XOAUTH2, XOAUTH2_FAILED, "not base64", "NO [AUTHENTICATIONFAILED] Authentication failed."),
        ("XOAUTH2", XOAUTH2, XOAUTH2_FAILED, "A" * 70_000, "NO [AUTHENTICATIONFAILED] Authentication failed."),
    ],
    ids=["dummy", "empty", "broken off", "garbled", "overlong"],
)
@pytest.mark.parametrize("known_user", [True, False])
async def test_a_token_that_is_refused_is_a_challenge_first(
    autojump_clock: object, mechanism: str, initial: str, challenge: str, response: str, answer: str, known_user: bool
) -> None:
    world = World(Stage(), fail=[Failure.AUTH_REJECTED])
    if not known_user:
        world.route = None
    async with on_stage("imap", world):
        await world.stage.play(f"""
            {GREETING}
            C: a AUTHENTICATE {mechanism} {initial}
            S: {challenge}
            silent: client
            C: {response}
            S: a {answer}
            events: LoginRefused({"auth_failed" if known_user else "no_route"}) LimitStruck(failure_delay delay)
            C: b NOOP
            S: b OK NOOP completed
        """)


async def test_only_a_refused_token_is_a_challenge(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), fail=[Failure.CONNECT, Failure.AUTH_REJECTED])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a AUTHENTICATE XOAUTH2 {XOAUTH2}
            S: a NO [UNAVAILABLE] The mail server is not available at the moment.
            C: b LOGIN alice secret
            S: b NO [AUTHENTICATIONFAILED] Authentication failed.
        """)


# -------------------------------------------------------------------- the outcome


@pytest.mark.parametrize(
    ("failure", "answer", "reason"),
    [
        (Failure.CONNECT, "[UNAVAILABLE] The mail server is not available at the moment.", "connect_failed"),
        (Failure.TLS, "[UNAVAILABLE] The mail server is not available at the moment.", "connect_failed"),
        (Failure.TIMEOUT, "[UNAVAILABLE] The mail server is not available at the moment.", "remote_failure"),
        (Failure.PROTOCOL, "[UNAVAILABLE] The mail server is not available at the moment.", "protocol_failure"),
        (Failure.INSECURE, "[UNAVAILABLE] The mail server is not available at the moment.", "internal_failure"),
        (Failure.INTERNAL, "[UNAVAILABLE] The mail server is not available at the moment.", "internal_failure"),
        (Failure.AUTH_TEMPORARY, "[UNAVAILABLE] The mail server is not available at the moment.", "auth_temp_failed"),
        (Failure.LIMIT, "[LIMIT] The mail server takes no more sessions now.", "connection_limit"),
        (Failure.UNSUPPORTED, "[CANNOT] The mail server does not support this way to log in.", "auth_failed"),
    ],
)
async def test_failures_that_are_not_the_users(
    autojump_clock: object, failure: Failure, answer: str, reason: str
) -> None:
    async with on_stage("imap", World(Stage(), fail=[failure])) as world:
        began = trio.current_time()
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice secret
            S: a NO {answer}
            events: LoginRefused(proxy_dest_{reason})
            C: b LOGIN alice secret
            S: b OK <*>
            events: SessionEstablished
        """)
        assert trio.current_time() == began, "they are answered without a delay"


async def test_failed_logins_are_bounded_and_wait_longer_each_time(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), fail=[Failure.AUTH_REJECTED] * 3)) as world:
        times = []
        await world.stage.play(GREETING)
        for tag in "abc":
            began = trio.current_time()
            await world.stage.play(f"""
                C: {tag} LOGIN alice wrong
                S: {tag} NO [AUTHENTICATIONFAILED] Authentication failed.
            """)
            times.append(trio.current_time() - began)
        await world.stage.play("""
            S: * BYE Too many failed logins.
            closed: client
        """)
    assert times == [2.0, 4.0, 8.0]
    assert world.end == End(Side.PROXY, "auth_failed")


async def test_nobody_learns_which_users_have_a_route(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), route=None)) as world:
        began = trio.current_time()
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN nobody secret
            S: a NO [AUTHENTICATIONFAILED] Authentication failed.
            events: LoginRefused(no_route) LimitStruck(failure_delay delay)
            C: b LOGOUT
            S: * BYE Logging out
            S: b OK Logout completed
            closed: client
            events: SessionClosed(client no_route)
        """)
        assert trio.current_time() - began == 2.0
    assert world.logins == []


async def test_after_a_failed_login_the_next_one_counts(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), fail=[Failure.AUTH_REJECTED])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice wrong
            S: a NO [AUTHENTICATIONFAILED] Authentication failed.
            C: b LOGIN bob right
            login: bob COMMAND
            S: b OK <*>
            events: LoginRefused(auth_failed) LimitStruck(failure_delay delay) SessionEstablished
        """)
    assert world.session is not None
    assert (world.session.user, world.session.failures, world.session.state) == (b"bob", 1, State.RELAY)
    assert (world.session.route, world.session.pool) == ("default", "backend")


async def test_nothing_of_an_earlier_login_is_told_of_the_next(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), fail=[Failure.CONNECT])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice secret
            S: a NO [UNAVAILABLE] <*>
        """)
        assert world.session is not None
        assert (world.session.route, world.session.pool) == ("default", "backend")
        world.route = None
        await world.stage.play("""
            C: b LOGIN bob secret
            S: b NO [AUTHENTICATIONFAILED] Authentication failed.
        """)
        assert (world.session.user, world.session.route, world.session.pool) == (b"bob", None, None)


async def test_capabilities_are_told_again_to_those_who_asked(autojump_clock: object) -> None:
    world = World(Stage(), untagged=(b"* 1 RECENT\r\n", b"* OK welcome\r\n"))
    async with on_stage("imap", world):
        await world.stage.play(f"""
            {GREETING}
            C: a CAPABILITY
            S: * CAPABILITY <*>
            S: a OK Capability completed
            C: b LOGIN alice secret
            S: * 1 RECENT
            S: * OK welcome
            S: * CAPABILITY IMAP4rev1 LITERAL+ IDLE
            S: b OK [CAPABILITY IMAP4rev1 LITERAL+ IDLE] Logged in
        """)

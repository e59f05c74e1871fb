"""Logins in POP3: every way to say who one is, and what comes of it."""

from __future__ import annotations

import pytest
import trio

from mailgate.model import End, Failure, Mechanism, Secret, Side
from tests.session.conftest import OAUTHBEARER, PLAIN, XOAUTH2, World, b64, on_stage
from tests.support.dialogue import Stage

GREETING = "S: +OK POP3 mail.example.org ready\n"
TEMPORARY = "[SYS/TEMP] The mail server is not available at the moment."


# -------------------------------------------------------------------- USER, PASS, AUTH


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"alice", b"secret"),
        (b"alice", b" two  words "),
        (b"alice smith ", b"x"),
        ("alïce".encode(), b"\xff\xfe"),
        (b"alice", b""),
        (b"alice", b"x" * 12_000),
    ],
)
async def test_user_and_pass_keep_the_rest_of_their_lines(autojump_clock: object, user: bytes, password: bytes) -> None:
    async with on_stage("pop3") as world:
        await world.stage.client.stream.send_all(b"USER %b\r\nPASS %b\r\n" % (user, password))
        await world.stage.play(f"""
            {GREETING}
            S: +OK Send the password
            S: +OK Logged in
            events: SessionEstablished
        """)
    login = world.login
    assert (login.user, login.secret, login.mechanism) == (user, Secret(password), Mechanism.COMMAND)
    assert (login.tag, login.authzid, login.client_id, login.utf8, login.language) == (b"", b"", None, False, None)


async def test_a_second_user_replaces_the_first(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            C: USER mallory
            S: +OK Send the password
            C: USER alice
            S: +OK Send the password
            C: NOOP
            S: +OK Nothing done
            C: PASS secret
            login: alice COMMAND
            S: +OK Logged in
        """)


async def test_a_second_user_that_is_refused_leaves_none(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            C: USER alice
            S: +OK Send the password
            C: USER
            S: -ERR [AUTH] Control characters are not allowed in user names and passwords.
            C: PASS secret
            S: -ERR USER first
            events: LoginRefused(invalid_credentials)
        """)
    assert world.logins == []


@pytest.mark.parametrize(
    "script",
    [
        "C: USER al\\tice",
        "C: USER alice\nS: +OK Send the password\nC: PASS se\\x01cret",
        "C: USER alice\nS: +OK Send the password\nC: PASS se\\x7fcret",
        f"C: AUTH PLAIN {b64('alice')}",
        f"C: AUTH PLAIN {b64(chr(0) + 'alice' + chr(0) + 'sec' + chr(10) + 'ret')}",
        "C: AUTH PLAIN =",
    ],
)
async def test_control_characters_and_malformed_credentials(autojump_clock: object, script: str) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            S: -ERR [AUTH] Control characters are not allowed in user names and passwords.
            events: LoginRefused(invalid_credentials)
            C: PASS again
            S: -ERR USER first
        """)
    assert world.logins == []


@pytest.mark.parametrize("command", ["AUTH", "auth", "AUTH\\x20", "AUTH\\x20\\x20"])
async def test_auth_alone_lists_the_mechanisms(autojump_clock: object, command: str) -> None:
    async with on_stage("pop3", World(Stage(), known=[])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: {command}
            S: +OK Mechanisms follow
            S: PLAIN
            S: LOGIN
            S: .
            events:
        """)


@pytest.mark.parametrize(
    ("script", "mechanism", "secret"),
    [
        (f"C: AUTH PLAIN {PLAIN}", "PLAIN", b"secret"),
        (f"C: auth plain\nS: +\\x20\nC: {PLAIN}", "PLAIN", b"secret"),
        (
            f"C: AUTH LOGIN\nS: + VXNlcm5hbWU6\nC: {b64('alice')}\nS: + UGFzc3dvcmQ6\nC: {b64('secret')}",
            "LOGIN",
            b"secret",
        ),
        (f"C: AUTH LOGIN {b64('alice')}\nS: + UGFzc3dvcmQ6\nC: {b64('secret')}", "LOGIN", b"secret"),
        (f"C: AUTH XOAUTH2 {XOAUTH2}", "XOAUTH2", b"token"),
        (f"C: AUTH XOAUTH2\nS: +\\x20\nC: {XOAUTH2}", "XOAUTH2", b"token"),
        (f"C: AUTH OAUTHBEARER {OAUTHBEARER}", "OAUTHBEARER", b"token"),
    ],
)
async def test_auth(autojump_clock: object, script: str, mechanism: str, secret: bytes) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            login: alice {mechanism}
            S: +OK Logged in
        """)
    assert (world.login.user, world.login.secret) == (b"alice", Secret(secret))


@pytest.mark.parametrize(
    ("script", "answer", "event"),
    [
        ("C: AUTH PLAIN\nS: +\\x20\nC: *", "Authentication aborted.", "auth_aborted_by_client"),
        ("C: AUTH PLAIN !!!!", "Invalid base64 data.", "invalid_base64"),
        ("C: AUTH PLAIN\nS: +\\x20\nC: x", "Invalid base64 data.", "invalid_base64"),
        (f"C: AUTH PLAIN\nS: +\\x20\nC: {'A' * 70_000}", "Invalid base64 data.", "invalid_base64"),
        ("C: AUTH CRAM-MD5", "[SYS/PERM] Authentication mechanism not supported.", "invalid_mech"),
        ("C: AUTH COMMAND", "[SYS/PERM] Authentication mechanism not supported.", "invalid_mech"),
    ],
)
async def test_exchanges_that_come_to_nothing(autojump_clock: object, script: str, answer: str, event: str) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            S: -ERR {answer}
            events: LoginRefused({event})
            C: NOOP
            S: +OK Nothing done
        """)


@pytest.mark.parametrize(
    ("response", "answer"), [("AQ==", "[AUTH] Authentication failed."), ("*", "Authentication aborted.")]
)
async def test_a_token_that_is_refused_is_a_challenge_first(autojump_clock: object, response: str, answer: str) -> None:
    async with on_stage("pop3", World(Stage(), fail=[Failure.AUTH_REJECTED])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: AUTH OAUTHBEARER {OAUTHBEARER}
            S: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=
            C: {response}
            S: -ERR {answer}
            C: NOOP
            S: +OK Nothing done
        """)


async def test_a_password_after_a_refused_token_is_refused_plainly(autojump_clock: object) -> None:
    async with on_stage("pop3", World(Stage(), fail=[Failure.CONNECT, Failure.AUTH_REJECTED])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: AUTH XOAUTH2 {XOAUTH2}
            S: -ERR {TEMPORARY}
            C: USER alice
            S: +OK Send the password
            C: PASS wrong
            S: -ERR [AUTH] Authentication failed.
        """)


# -------------------------------------------------------------------- the outcome


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (Failure.CONNECT, TEMPORARY),
        (Failure.TLS, TEMPORARY),
        (Failure.TIMEOUT, TEMPORARY),
        (Failure.PROTOCOL, TEMPORARY),
        (Failure.INSECURE, TEMPORARY),
        (Failure.INTERNAL, TEMPORARY),
        (Failure.AUTH_TEMPORARY, TEMPORARY),
        (Failure.LIMIT, "[SYS/TEMP] The mail server takes no more sessions now."),
        (Failure.IN_USE, "[IN-USE] The mailbox is in use by another session."),
        (Failure.UNSUPPORTED, "[SYS/PERM] The mail server does not support this way to log in."),
    ],
)
async def test_failures_that_are_not_the_users(autojump_clock: object, failure: Failure, answer: str) -> None:
    async with on_stage("pop3", World(Stage(), fail=[failure])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: USER alice
            S: +OK Send the password
            C: PASS secret
            S: -ERR {answer}
            C: PASS secret
            S: -ERR USER first
            C: AUTH PLAIN {PLAIN}
            S: +OK Logged in
        """)


async def test_failed_logins_are_bounded_and_wait_longer_each_time(autojump_clock: object) -> None:
    async with on_stage("pop3", World(Stage(), fail=[Failure.AUTH_REJECTED] * 3)) as world:
        times = []
        await world.stage.play(GREETING)
        for _ in range(3):
            began = trio.current_time()
            await world.stage.play("""
                C: USER alice
                S: +OK Send the password
                C: PASS wrong
                S: -ERR [AUTH] Authentication failed.
            """)
            times.append(trio.current_time() - began)
        await world.stage.play("S: -ERR Too many failed logins.\nclosed: client")
    assert times == [2.0, 4.0, 8.0]
    assert world.end == End(Side.PROXY, "auth_failed")


async def test_quit_after_a_failure(autojump_clock: object) -> None:
    async with on_stage("pop3", World(Stage(), route=None)) as world:
        await world.stage.play(f"""
            {GREETING}
            C: AUTH PLAIN {PLAIN}
            S: -ERR [AUTH] Authentication failed.
            C: QUIT
            S: +OK Bye
            closed: client
            events: LoginRefused(no_route) LimitStruck(failure_delay delay) SessionClosed(client no_route)
        """)


async def test_a_client_that_takes_too_long(autojump_clock: object) -> None:
    async with on_stage("pop3", login_timeout=30) as world:
        await world.stage.play(f"""
            {GREETING}
            C: USER alice
            S: +OK Send the password
            S: -ERR Logged out for inactivity.
            closed: client
            events: SessionClosed(proxy no_auth_attempts)
        """)

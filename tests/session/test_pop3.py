"""The POP3 dialogue before login, as scripts."""

from __future__ import annotations

import pytest
import trio

from mailgate.model import Failure, Side, State
from tests.session.conftest import PLAIN, UPSTREAM, XOAUTH2, SessionOver, TraceDouble, World, on_stage
from tests.support.dialogue import Stage

GREETING = "S: +OK POP3 mail.example.org ready\n"


# -------------------------------------------------------------------- greeting and capabilities


@pytest.mark.parametrize(
    ("options", "known", "shown"),
    [
        (
            {"tls": "off"},
            [UPSTREAM],
            ["TOP", "UIDL", "UTF8", "LANG", "PIPELINING", "-", "USER", "SASL PLAIN LOGIN XOAUTH2 OAUTHBEARER"],
        ),
        ({"tls": "off"}, [], ["TOP", "UIDL", "-", "USER", "SASL PLAIN LOGIN"]),
        ({"tls": "off", "allow_plaintext_auth": False}, [], ["TOP", "UIDL", "-"]),
        ({"tls": "starttls"}, [], ["TOP", "UIDL", "-", "STLS"]),
        ({"tls": "starttls-optional"}, [], ["TOP", "UIDL", "-", "STLS", "USER", "SASL PLAIN LOGIN"]),
        ({"tls": "starttls-optional", "allow_plaintext_auth": False}, [], ["TOP", "UIDL", "-", "STLS"]),
        ({"tls": "implicit"}, [], ["TOP", "UIDL", "-", "USER", "SASL PLAIN LOGIN"]),
        ({"tls": "off"}, [frozenset({"UIDL"}), UPSTREAM], ["UIDL", "-", "USER", "SASL PLAIN LOGIN"]),
    ],
)
async def test_greeting_and_capa(
    autojump_clock: object, options: dict[str, object], known: list[frozenset[str]], shown: list[str]
) -> None:
    at = shown.index("-")
    lines = [*shown[:at], "RESP-CODES", "AUTH-RESP-CODE", *shown[at + 1 :], "IMPLEMENTATION mailgate", "."]
    async with on_stage("pop3", World(Stage(), known=known), **options) as world:
        await world.stage.play(GREETING + "C: CAPA\nS: +OK Capability list follows\n")
        await world.stage.play("\n".join(f"S: {line}" for line in lines))


async def test_quitting_after_a_refusal_tells_of_it(autojump_clock: object) -> None:
    async with on_stage("pop3", World(Stage(), fail=[Failure.IN_USE])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: USER alice
            S: +OK <*>
            C: PASS secret
            S: -ERR [IN-USE] <*>
            C: QUIT
            S: +OK Bye
            closed: client
            events: LoginRefused(proxy_dest_auth_temp_failed) SessionClosed(client proxy_dest_auth_temp_failed)
        """)


async def test_commands_that_are_answered_here(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            C: noop
            S: +OK Nothing done
            C: QUIT
            S: +OK Bye
            closed: client
            events: SessionClosed(client no_auth_attempts)
        """)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("STAT", "-ERR Log in first"),
        ("RETR 1", "-ERR Log in first"),
        ("APOP alice 0123456789abcdef", "-ERR Log in first"),
        ("XCLIENT ADDR=10.0.0.1", "-ERR Log in first"),
        ("FROBNICATE", "-ERR Unknown command"),
        ("PASS secret", "-ERR USER first"),
        ("STLS", "-ERR TLS is not available"),
        ("UTF8 now", "-ERR UTF8 is not available"),
        ("LANG de;x", "-ERR LANG takes a language tag"),
        ("LANG -", "-ERR LANG takes a language tag"),
        ("LANG de-", "-ERR LANG takes a language tag"),
        ("LANG de\\x00", "-ERR NUL is not allowed"),
        ("LANG \\xff", "-ERR LANG takes a language tag"),
        ("LANG de fr", "-ERR LANG takes a language tag"),
        ("", "-ERR Malformed command"),
        (" USER alice", "-ERR Malformed command"),
        (f"USER {'x' * 300}", "-ERR Line too long"),
        (f"PASS {'x' * 17_000}", "-ERR Line too long"),
    ],
)
async def test_bad_commands_are_answered(autojump_clock: object, command: str, answer: str) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"{GREETING}\nC: {command}\nS: {answer}")
        if "NUL" in answer:
            await world.stage.play("closed: client\nevents: SessionClosed(client protocol)")
        else:
            await world.stage.play("C: NOOP\nS: +OK Nothing done\nevents:")


async def test_too_many_bad_commands(autojump_clock: object) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            C: FOO
            S: -ERR Unknown command
            C: STAT
            S: -ERR Log in first
            C: PASS x
            S: -ERR USER first
            C: BAR
            S: -ERR Unknown command
            S: -ERR Too many invalid commands.
            closed: client
            events: LimitStruck(bad_commands deny) SessionClosed(proxy too_many_bad_commands)
        """)


@pytest.mark.parametrize("first", ["GET / HTTP/1.1\\r\\nHost: x\\r\\n", "\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\r\\n"])
async def test_other_protocols_are_answered_once_and_left(autojump_clock: object, first: str) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            C: {first}
            S: -ERR This is a POP3 server
            closed: client
            events: SessionClosed(client protocol)
        """)


# -------------------------------------------------------------------- STLS


async def test_stls_forgets_what_was_said_before(autojump_clock: object) -> None:
    async with on_stage("pop3", tls="starttls-optional", allow_plaintext_auth=True) as world:
        await world.stage.play(f"""
            {GREETING}
            C: UTF8
            S: +OK UTF8 enabled
            C: LANG de
            S: +OK de noted
            C: USER mallory
            S: +OK Send the password
            C: STLS
            S: +OK Begin TLS negotiation
            C: PASS secret
            S: -ERR USER first
            C: STLS
            S: -ERR Command not permitted when TLS active
            C: USER alice
            S: +OK Send the password
            C: PASS secret
            login: alice COMMAND
            S: +OK Logged in
            C: STLS
            S: -ERR [SYS/PERM] This command is not available here.
        """)
    assert (world.login.utf8, world.login.language) == (False, None)


@pytest.mark.parametrize("behind", ["CAPA\\r\\n", "C", "\\x16\\x03\\x01", "USER alice\\r\\nPASS secret\\r\\n"])
async def test_bytes_in_clear_behind_stls_end_the_connection(autojump_clock: object, behind: str) -> None:
    async with on_stage("pop3", tls="starttls") as world:
        await world.stage.play(f"""
            {GREETING}
            C: STLS\\r\\n{behind}\\
            closed: client
            events: SessionClosed(client protocol)
        """)
    assert world.logins == []


async def test_a_handshake_that_fails(autojump_clock: object) -> None:
    over = SessionOver(Side.CLIENT, "tls_handshake_not_finished")
    async with on_stage("pop3", tls="starttls", tls_outcome=over) as world:
        await world.stage.play(f"""
            {GREETING}
            C: STLS
            S: +OK Begin TLS negotiation
            closed: client
            events: SessionClosed(client tls_handshake_not_finished)
        """)


@pytest.mark.parametrize("command", ["USER alice", "PASS secret", "AUTH", "AUTH PLAIN", f"AUTH PLAIN {PLAIN}"])
async def test_passwords_need_tls(autojump_clock: object, command: str) -> None:
    async with on_stage("pop3", tls="starttls") as world:
        await world.stage.play(f"""
            {GREETING}
            C: {command}
            S: -ERR [SYS/PERM] Log in over TLS only.
            events: LoginRefused(cleartext_auth_disabled)
        """)
    assert world.logins == []


# -------------------------------------------------------------------- UTF8 and LANG


@pytest.mark.parametrize(
    ("script", "utf8", "language"),
    [
        ("C: UTF8\nS: +OK UTF8 enabled", True, None),
        ("C: LANG de-CH\nS: +OK de-CH noted", False, b"de-CH"),
        ("C: LANG de\nS: +OK de noted\nC: LANG *\nS: +OK i-default Default language", False, None),
        ("C: LANG\nS: +OK Language list follows\nS: i-default Default language\nS: .", False, None),
    ],
)
async def test_utf8_and_lang_are_remembered_for_the_upstream(
    autojump_clock: object, script: str, utf8: bool, language: bytes | None
) -> None:
    async with on_stage("pop3") as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            C: USER alice
            S: +OK Send the password
            C: PASS secret
            S: +OK Logged in
        """)
    assert (world.login.utf8, world.login.language) == (utf8, language)


@pytest.mark.parametrize("command", ["UTF8", "LANG de", "LANG", "LANG *"])
async def test_what_an_upstream_lacks_is_not_promised(autojump_clock: object, command: str) -> None:
    async with on_stage("pop3", World(Stage(), known=[UPSTREAM, frozenset({"TOP"})])) as world:
        await world.stage.play(f"{GREETING}\nC: {command}\nS: -ERR {command.split()[0]} is not available")


# -------------------------------------------------------------------- pipelining


async def test_commands_behind_the_login_wait_for_it_and_pass_once_in_order(autojump_clock: object) -> None:
    world = World(Stage())
    asked = trio.Event()

    async def hold() -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert world.session is not None
        assert (world.stage.upstream, world.session.state) == (None, State.LOGIN)
        await asked.wait()

    world.before_open = hold
    async with on_stage("pop3", world):
        await world.stage.play(f"""
            {GREETING}
            C: USER alice\\r\\nPASS secret\\r\\nSTAT\\r\\nUIDL\\r\\nRET\\
            S: +OK Send the password
            silent: client
        """)
        asked.set()
        await world.stage.play("""
            C: R 1
            S: +OK Logged in
            G: STAT
            G: UIDL
            G: RETR 1
            silent: upstream
        """)


async def test_commands_behind_a_failed_login_never_reach_an_upstream(autojump_clock: object) -> None:
    async with on_stage("pop3", World(Stage(), fail=[Failure.AUTH_REJECTED])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: USER alice\\r\\nPASS wrong\\r\\nSTAT\\r\\nDELE 1
            S: +OK Send the password
            S: -ERR [AUTH] Authentication failed.
            S: -ERR Log in first
            S: -ERR Log in first
        """)
    assert world.stage.upstream is None


# -------------------------------------------------------------------- traces


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("C: USER alice\nS: +OK Send the password\nC: PASS secret", [b"USER alice\r\n", b"PASS\r\n"]),
        (
            "C: secret\nS: -ERR <*>\nC: secret word\nS: -ERR <*>\nC: USER alice\nS: +OK <*>\nC: PASS secret",
            [b"<hidden>\r\n", b"<hidden>\r\n", b"USER alice\r\n", b"PASS\r\n"],
        ),
        (f"C: AUTH PLAIN {PLAIN}", [b"AUTH\r\n"]),
        (f"C: PASSWORD secret\nS: -ERR <*>\nC: AUTH PLAIN {PLAIN}", [b"<hidden>\r\n", b"AUTH\r\n"]),
        (f"C: AUTH PLAIN\nS: +\\x20\nC: {PLAIN}", [b"AUTH\r\n", b"<hidden>\r\n"]),
        (
            f"C: APOP alice secret\nS: -ERR Log in first\nC: AUTH XOAUTH2 {XOAUTH2}",
            [b"APOP\r\n", b"AUTH\r\n"],
        ),
    ],
)
async def test_a_trace_shows_everything_but_secrets(autojump_clock: object, script: str, said: list[bytes]) -> None:
    trace = TraceDouble()
    async with on_stage("pop3", World(Stage(), trace=trace)) as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            S: +OK Logged in
        """)
    assert [line for side, line in trace.lines if side == "C"] == said
    shown = b"".join(line for _, line in trace.lines)
    assert not any(secret in shown for secret in (b"secret", b"token", PLAIN.encode(), XOAUTH2.encode()))

"""The IMAP dialogue before login, as scripts; after the login only what the dialogue itself says."""

from __future__ import annotations

import pytest
import trio

from mailgate.model import End, Failure, Side, State
from tests.session.conftest import PLAIN, UPSTREAM, XOAUTH2, SessionOver, TraceDouble, World, on_stage
from tests.support.dialogue import Stage

GREETING = "S: * OK [CAPABILITY <*>] mail.example.org ready\n"
TOO_MANY = "* BYE Too many invalid commands."


# -------------------------------------------------------------------- greeting and capabilities


@pytest.mark.parametrize(
    ("options", "known", "shown"),
    [
        (
            {"tls": "off"},
            [UPSTREAM],
            "IMAP4rev1 LITERAL+ IDLE ENABLE SASL-IR ID AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2 AUTH=OAUTHBEARER",
        ),
        ({"tls": "off"}, [], "IMAP4rev1 SASL-IR ID AUTH=PLAIN AUTH=LOGIN"),
        ({"tls": "off"}, [UPSTREAM, frozenset({"IDLE"})], "IMAP4rev1 IDLE SASL-IR ID AUTH=PLAIN AUTH=LOGIN"),
        ({"tls": "off", "allow_plaintext_auth": False}, [], "IMAP4rev1 SASL-IR ID LOGINDISABLED"),
        ({"tls": "starttls"}, [], "IMAP4rev1 SASL-IR ID STARTTLS LOGINDISABLED"),
        ({"tls": "starttls-optional"}, [], "IMAP4rev1 SASL-IR ID STARTTLS AUTH=PLAIN AUTH=LOGIN"),
        (
            {"tls": "starttls-optional", "allow_plaintext_auth": False},
            [],
            "IMAP4rev1 SASL-IR ID STARTTLS LOGINDISABLED",
        ),
        ({"tls": "implicit"}, [], "IMAP4rev1 SASL-IR ID AUTH=PLAIN AUTH=LOGIN"),
    ],
)
async def test_greeting_and_capability(
    autojump_clock: object, options: dict[str, object], known: list[frozenset[str]], shown: str
) -> None:
    async with on_stage("imap", World(Stage(), known=known), **options) as world:
        await world.stage.play(f"""
            S: * OK [CAPABILITY {shown}] mail.example.org ready
            C: a CAPABILITY
            S: * CAPABILITY {shown}
            S: a OK Capability completed
        """)


async def test_commands_that_are_answered_here(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a NOOP
            S: a OK NOOP completed
            C: b noop
            S: b OK NOOP completed
            C: c LOGOUT
            S: * BYE Logging out
            S: c OK Logout completed
            closed: client
            events: SessionClosed(client no_auth_attempts)
        """)
    assert world.logins == []


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("a ENABLE UTF8=ACCEPT", "a BAD Log in first"),
        ("a SELECT inbox", "a BAD Log in first"),
        ("a UID FETCH 1 FLAGS", "a BAD Unknown command"),
        ("a FROBNICATE", "a BAD Unknown command"),
        ("a UNAUTHENTICATE", "a BAD Log in first"),
        ("a COMPRESS DEFLATE", "a BAD Log in first"),
        ("a CAPABILITY now", "a BAD CAPABILITY takes no arguments"),
        ("a STARTTLS now", "a BAD STARTTLS takes no arguments"),
        ("a STARTTLS", "a BAD TLS is not available"),
        ("a LOGIN alice", "a BAD LOGIN takes a user name and a password"),
        ("a LOGIN alice secret more", "a BAD LOGIN takes a user name and a password"),
        ("a LOGIN (alice) secret", "a BAD LOGIN takes a user name and a password"),
        ("a AUTHENTICATE", "a BAD AUTHENTICATE takes a mechanism and perhaps an initial response"),
        ("a AUTHENTICATE PLAIN x y", "a BAD AUTHENTICATE takes a mechanism and perhaps an initial response"),
        ("a ID", "a BAD ID takes NIL or a list of up to 30 pairs of strings"),
        ('a ID ("name")', "a BAD ID takes NIL or a list of up to 30 pairs of strings"),
        ('a ID (NIL "x")', "a BAD ID takes NIL or a list of up to 30 pairs of strings"),
        ('a ID ("name" ("x"))', "a BAD ID takes NIL or a list of up to 30 pairs of strings"),
        ("LOGIN alice secret", "LOGIN BAD Begin with a tag of your choice, as in: a1 LOGIN name password"),
        ("nonsense", "nonsense BAD Expected a tag and a command"),
        ('a LOGIN "alice secret', "a BAD Malformed argument"),
    ],
)
async def test_bad_commands_are_answered_and_the_dialogue_goes_on(
    autojump_clock: object, command: str, answer: str
) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: {command}
            S: {answer}
            C: z NOOP
            S: z OK NOOP completed
            events:
        """)


async def test_too_many_bad_commands(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a FOO
            S: a BAD Unknown command
            C: b ENABLE
            S: b BAD Log in first
            C: nonsense
            S: nonsense BAD Expected a tag and a command
            C: d LOGIN
            S: d BAD LOGIN takes a user name and a password
            S: {TOO_MANY}
            closed: client
            events: LimitStruck(bad_commands deny) SessionClosed(proxy too_many_bad_commands)
        """)


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        ("GET / HTTP/1.1\\r\\nHost: mail.example.org\\r\\nContent-Length: 2\\r\\n\\r\\n", "This is an IMAP server"),
        ("\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03\\r\\n", "This is an IMAP server"),
        ("a LOGIN x\\0y z", "NUL is not allowed"),
    ],
)
async def test_other_protocols_are_answered_once_and_left(autojump_clock: object, first: str, answer: str) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: {first}
            S: * BYE {answer}
            closed: client
            events: SessionClosed(client protocol)
        """)


async def test_too_much_before_login(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(GREETING)
        for number in range(6):
            await world.stage.client.stream.send_all(b"a ID (%b)\r\n" % (b'"k" "' + b"x" * 50_000 + b'"'))
            if number < 5:
                await world.stage.play('S: * ID ("name" "mailgate")\nS: a OK ID completed')
        await world.stage.play("""
            S: * BYE Too much was sent before login
            closed: client
            events: SessionClosed(client protocol)
        """)


# -------------------------------------------------------------------- ID


@pytest.mark.parametrize(
    ("trusted", "sent", "remembered"),
    [
        ([], "NIL", ()),
        ([], "()", ()),
        ([], '("name" "x" "os" NIL)', ((b"name", b"x"), (b"os", None))),
        (["198.51.100.0/24"], '("X-Originating-IP" "10.0.0.1" "name" "x")', ((b"name", b"x"),)),
        (["192.0.2.0/24"], '("x-originating-ip" "10.0.0.1")', ((b"x-originating-ip", b"10.0.0.1"),)),
    ],
)
async def test_id_is_answered_and_remembered(
    autojump_clock: object, trusted: list[str], sent: str, remembered: tuple[tuple[bytes, bytes | None], ...]
) -> None:
    async with on_stage("imap", trusted=trusted) as world:
        await world.stage.play(f"""
            {GREETING}
            C: i ID {sent}
            S: * ID ("name" "mailgate")
            S: i OK ID completed
            C: a LOGIN alice secret
            login: alice COMMAND
            S: a OK <*>
        """)
    assert world.login.client_id == remembered
    assert world.session is not None
    assert world.session.client_id == remembered


async def test_an_id_of_more_than_thirty_pairs(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: i ID ({" ".join(['"k" "v"'] * 30)})
            S: * ID ("name" "mailgate")
            S: i OK ID completed
            C: j ID ({" ".join(['"k" "v"'] * 31)})
            S: j BAD ID takes NIL or a list of up to 30 pairs of strings
        """)


# -------------------------------------------------------------------- STARTTLS


async def test_starttls_forgets_what_was_said_before(autojump_clock: object) -> None:
    async with on_stage("imap", tls="starttls") as world:
        await world.stage.play(f"""
            {GREETING}
            C: i ID ("name" "told in clear")
            S: * ID ("name" "mailgate")
            S: i OK ID completed
            C: c CAPABILITY
            S: * CAPABILITY <*>STARTTLS LOGINDISABLED
            S: c OK Capability completed
            C: a STARTTLS
            S: a OK Begin TLS negotiation now
            C: b STARTTLS
            S: b BAD TLS is already active
            C: d LOGIN alice secret
            login: alice COMMAND
            S: d OK [CAPABILITY IMAP4rev1 LITERAL+ IDLE] Logged in
        """)
    assert world.login.client_id is None


@pytest.mark.parametrize("behind", ["b NOOP\\r\\n", "b", "\\x16\\x03\\x01", "b LOGIN alice secret\\r\\n"])
async def test_bytes_in_clear_behind_starttls_end_the_connection(autojump_clock: object, behind: str) -> None:
    async with on_stage("imap", tls="starttls") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a STARTTLS\\r\\n{behind}\\
            closed: client
            events: SessionClosed(client protocol)
        """)
    assert world.session is not None
    assert (world.logins, world.session.tls) == ([], None)


async def test_a_handshake_that_fails(autojump_clock: object) -> None:
    over = SessionOver(Side.CLIENT, "tls_handshake_not_finished")
    async with on_stage("imap", tls="starttls", tls_outcome=over) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a STARTTLS
            S: a OK Begin TLS negotiation now
            closed: client
            events: SessionClosed(client tls_handshake_not_finished)
        """)


@pytest.mark.parametrize(
    "command", ["LOGIN alice secret", "AUTHENTICATE PLAIN", f"AUTHENTICATE PLAIN {PLAIN}", "AUTHENTICATE CRAM-MD5"]
)
async def test_passwords_need_tls(autojump_clock: object, command: str) -> None:
    async with on_stage("imap", tls="starttls") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a {command}
            S: a NO [PRIVACYREQUIRED] Log in over TLS only.
            events: LoginRefused(cleartext_auth_disabled)
        """)
    assert world.logins == []


# -------------------------------------------------------------------- pipelining


async def test_commands_behind_the_login_wait_for_it_and_pass_once_in_order(autojump_clock: object) -> None:
    world = World(Stage(), residual=b"* 3 EXISTS\r\n")
    asked = trio.Event()

    async def hold() -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert world.session is not None
        assert (world.stage.upstream, world.session.state) == (None, State.LOGIN)
        await asked.wait()

    world.before_open = hold
    async with on_stage("imap", world):
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice secret\\r\\nb SELECT inbox\\r\\nc NOOP\\r\\nd FETCH 1 (FL\\
            silent: client
        """)
        asked.set()
        await world.stage.play("""
            C: AGS)
            S: a OK <*>
            S: * 3 EXISTS
            G: b SELECT inbox
            G: c NOOP
            G: d FETCH 1 (FLAGS)
            silent: upstream
        """)


async def test_commands_behind_a_failed_login_never_reach_an_upstream(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), fail=[Failure.AUTH_REJECTED])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice wrong\\r\\nb SELECT inbox\\r\\nc NOOP
            S: a NO [AUTHENTICATIONFAILED] Authentication failed.
            S: b BAD Log in first
            S: c OK NOOP completed
        """)
    assert world.stage.upstream is None


async def test_a_pipelined_exchange(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            C: a AUTHENTICATE PLAIN\\r\\n{PLAIN}\\r\\nb NOOP
            S: +\\x20
            S: a OK <*>
            G: b NOOP
        """)


# -------------------------------------------------------------------- time and ends


@pytest.mark.parametrize(
    ("script", "fail", "reason"),
    [
        ("", [], "no_auth_attempts"),
        ("C: a LOGIN ali\\", [], "no_auth_attempts"),
        ("C: a AUTHENTICATE PLAIN\nS: +\\x20", [], "no_auth_attempts"),
        (
            "C: a LOGIN u p\nS: a NO [AUTHENTICATIONFAILED] <*>",
            [Failure.AUTH_REJECTED],
            "auth_waiting_client",
        ),
        (
            "C: a LOGIN u p\nS: a NO [UNAVAILABLE] <*>",
            [Failure.CONNECT],
            "auth_waiting_client",
        ),
    ],
)
async def test_a_client_that_takes_too_long(
    autojump_clock: object, script: str, fail: list[Failure], reason: str
) -> None:
    async with on_stage("imap", World(Stage(), fail=fail), login_timeout=30) as world:
        began = trio.current_time()
        await world.stage.play(f"""
            {GREETING}
            {script}
            S: * BYE Logged out for inactivity.
            closed: client
        """)
        assert trio.current_time() - began == 30.0
    assert world.end == End(Side.PROXY, reason)


async def test_the_upstreams_time_is_not_the_clients(autojump_clock: object) -> None:
    world = World(Stage(), fail=[Failure.TIMEOUT])

    async def slow() -> None:
        await trio.sleep(45)

    world.before_open = slow
    async with on_stage("imap", world, login_timeout=30):
        await world.stage.play(f"""
            {GREETING}
            wait: 20
            C: a LOGIN alice secret
            wait: 45
            S: a NO [UNAVAILABLE] <*>
            wait: 9
            C: b LOGIN alice secret
            S: b OK <*>
        """)


@pytest.mark.parametrize("wait", [29.5, 30.0])
async def test_a_login_at_the_last_moment_is_accepted_in_peace(autojump_clock: object, wait: float) -> None:
    world = World(Stage())
    world.before_open = trio.lowlevel.checkpoint
    async with on_stage("imap", world, login_timeout=30.001):
        await world.stage.play(f"""
            {GREETING}
            wait: {wait}
            C: a LOGIN alice secret
            S: a OK <*>
        """)


@pytest.mark.parametrize("script", ["", "C: a LOGIN {5}\nS: + OK", "C: a AUTHENTICATE PLAIN\nS: +\\x20", "C: a LOG\\"])
async def test_a_client_that_goes_away(autojump_clock: object, script: str) -> None:
    async with on_stage("imap") as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            close: client
            events: SessionClosed(client no_auth_attempts)
        """)


@pytest.mark.parametrize("leaves", ["close: client", "C: z LOGOUT\nS: * BYE <*>\nS: z OK <*>\nclosed: client"])
@pytest.mark.parametrize(
    ("fail", "script", "reason"),
    [
        ([Failure.CONNECT], "C: a LOGIN alice secret\nS: a NO [UNAVAILABLE] <*>", "proxy_dest_connect_failed"),
        ([], "C: a AUTHENTICATE NTLM\nS: a NO [CANNOT] <*>", "invalid_mech"),
        (
            [Failure.TIMEOUT],
            "C: a AUTHENTICATE NTLM\nS: a NO [CANNOT] <*>\nC: b LOGIN alice secret\nS: b NO [UNAVAILABLE] <*>",
            "proxy_dest_remote_failure",
        ),
    ],
)
async def test_the_end_of_a_session_tells_why_its_last_login_was_refused(
    autojump_clock: object, fail: list[Failure], script: str, reason: str, leaves: str
) -> None:
    async with on_stage("imap", World(Stage(), fail=list(fail))) as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            {leaves}
        """)
    assert world.end == End(Side.CLIENT, reason)


async def test_a_client_that_goes_after_a_failure(autojump_clock: object) -> None:
    async with on_stage("imap", World(Stage(), fail=[Failure.AUTH_REJECTED])) as world:
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice wrong
            S: a NO <*>
            close: client
            events: LoginRefused(auth_failed) LimitStruck(failure_delay delay) SessionClosed(client auth_failed)
        """)


async def test_a_client_that_goes_while_its_upstream_is_asked(autojump_clock: object) -> None:
    world = World(Stage())

    async def leave() -> None:
        await world.stage.client.stream.aclose()

    world.before_open = leave
    async with on_stage("imap", world):
        await world.stage.play(f"""
            {GREETING}
            C: a LOGIN alice secret
            login: alice COMMAND
            closed: upstream
            events: SessionClosed(client reset)
        """)


# -------------------------------------------------------------------- traces


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("C: a LOGIN alice secret", [b"a LOGIN\r\n"]),
        ("C: a LOGIN alice {6}\nS: + OK\nC: secret", [b"a LOGIN\r\n"]),
        (
            "C: b LOGINN alice secret\nS: b BAD <*>\nC: a LOGIN alice secret",
            [b"<hidden>\r\n", b"a LOGIN\r\n"],
        ),
        ('C: b LOGIN alice "secret\nS: b BAD <*>\nC: a LOGIN alice secret', [b"<hidden>\r\n", b"a LOGIN\r\n"]),
        (
            # What is no command may be a secret that came too late, and its first word is no harmless tag.
            "C: secret\nS: secret BAD <*>\nC: secret word\nS: secret BAD <*>\nC: a LOGIN alice secret",
            [b"<hidden>\r\n", b"<hidden>\r\n", b"a LOGIN\r\n"],
        ),
        ("C: secret alice\nS: secret BAD <*>\nC: a LOGIN alice secret", [b"<hidden>\r\n", b"a LOGIN\r\n"]),
        (f"C: a AUTHENTICATE PLAIN {PLAIN}", [b"a AUTHENTICATE\r\n"]),
        (f"C: a AUTHENTICATE PLAIN\nS: +\\x20\nC: {PLAIN}", [b"a AUTHENTICATE\r\n", b"<hidden>\r\n"]),
        (
            f'C: i ID ("name" "x")\nS: * ID <*>\nS: i OK <*>\nC: a AUTHENTICATE XOAUTH2 {XOAUTH2}',
            [b'i ID ("name" "x")\r\n', b"a AUTHENTICATE\r\n"],
        ),
    ],
)
async def test_a_trace_shows_everything_but_secrets(autojump_clock: object, script: str, said: list[bytes]) -> None:
    trace = TraceDouble()
    async with on_stage("imap", World(Stage(), trace=trace)) as world:
        await world.stage.play(f"""
            {GREETING}
            {script}
            S: a OK <*>
            C: z NOOP
            G: z NOOP
        """)
    assert [line for side, line in trace.lines if side == "C"] == [*said, b"z NOOP\r\n"]
    shown = b"".join(line for _, line in trace.lines)
    assert not any(secret in shown for secret in (b"secret", b"token", PLAIN.encode(), XOAUTH2.encode()))
    assert trace.lines[0] == (
        "S",
        b"* OK [CAPABILITY IMAP4rev1 LITERAL+ IDLE ENABLE SASL-IR ID AUTH=PLAIN AUTH=LOGIN "
        b"AUTH=XOAUTH2 AUTH=OAUTHBEARER] mail.example.org ready\r\n",
    )

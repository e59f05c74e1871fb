"""The IMAP dialogue before login, as scripts; after the login only what the dialogue itself says."""

from __future__ import annotations

import base64

import pytest
import trio

from mailgate.model import Failure, Mechanism, Secret, Side, State
from mailgate.session.relay import End
from tests.session.conftest import UPSTREAM, SessionOver, TraceDouble, World, on_stage
from tests.support.dialogue import Stage

GREETING = "S: * OK [CAPABILITY <*>] mail.example.org ready\n"
BEARER_FAILED = "+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0="
XOAUTH2_FAILED = "+ eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIn0="
TOO_MANY = "* BYE Too many invalid commands."


def b64(text: str) -> str:
    return base64.b64encode(text.encode("latin-1")).decode("ascii")


PLAIN = b64("\0alice\0secret")
XOAUTH2 = b64("user=alice\1auth=Bearer token\1\1")
OAUTHBEARER = b64("n,a=alice,\1host=mail.example.org\1auth=Bearer token\1\1")


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
            events: SessionClosed(client auth_failed)
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

"""Contradictions, gaps and risks that show only when several options are seen together."""

from __future__ import annotations

import pytest

from tests.config.samples import IMAPS, MAIN, POP3S, SMALLEST, TLS, problems, read

POP = """
[pool.pop]
protocol = "pop3"
servers = ["pop.internal:995"]
"""
PIN = "00" * 32


def imap_listener(bind: str = "10.0.0.1:143", **options: str) -> str:
    lines = [f"{name.replace('_in', '')} = {value}" for name, value in options.items()]
    return "\n".join(["[[listener]]", 'name = "l"', 'protocol = "imap"', f'bind = "{bind}"', *lines, ""])


def main_pool(servers: str = '["a.internal:993"]', **options: str) -> str:
    lines = [f"{name} = {value}" for name, value in options.items()]
    return "\n".join(["[pool.main]", 'protocol = "imap"', f"servers = {servers}", *lines, ""])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # Names and places that are taken twice.
        (
            SMALLEST + IMAPS.replace("993", "1993") + 'tls = "implicit"',
            ['listener[1].name = "imaps": is already used by listener[0].name'],
        ),
        (
            SMALLEST + IMAPS.replace('"imaps"', '"b"').replace("0.0.0.0", "127.0.0.1"),
            ['listener[1].bind[0] = "127.0.0.1:993": is already taken by listener[0].bind[0] (0.0.0.0:993)'],
        ),
        (
            SMALLEST + '[metrics]\nbind = "0.0.0.0:993"',
            ['metrics.bind = "0.0.0.0:993": is already taken by listener[0].bind[0] (0.0.0.0:993)'],
        ),
        (
            TLS + IMAPS + main_pool('["a:993", "b:993", "a:993", { address = "c:993", name = "b:993" }]'),
            [
                'pool.main.servers[2].address = "a:993": is already used by pool.main.servers[0].address',
                'pool.main.servers[2].name = "a:993": is already used by pool.main.servers[0].name',
                'pool.main.servers[3].name = "b:993": is already used by pool.main.servers[1].name',
            ],
        ),
        (
            SMALLEST + '[[route]]\nname = "a"\nmatch = { user = "x" }\npool = "main"\n'
            '[[route]]\nname = "a"\npool = "main"',
            ['route[1].name = "a": is already used by route[0].name'],
        ),
        # TLS of listeners.
        (
            IMAPS + MAIN,
            ['listener[0].tls = "implicit": needs a certificate: add [tls] with certificate = … and key = …'],
        ),
        (
            TLS + MAIN + imap_listener(tls='"off"'),
            [
                'listener[0].tls = "off": nobody could log in: passwords in clear need '
                "allow_plaintext_auth = true here, which lets everyone on the way read them"
            ],
        ),
        (
            TLS + MAIN + imap_listener("127.0.0.1:143", tls='"off"', profile='"legacy"'),
            ['listener[0].profile = "legacy": has no effect with tls = off'],
        ),
        (
            SMALLEST.replace("[pool", "allow_plaintext_auth = true\n[pool"),
            [
                "listener[0].allow_plaintext_auth = true: has no effect with tls = implicit; "
                "passwords in clear need starttls-optional or off"
            ],
        ),
        (
            SMALLEST.replace("[pool", 'idle_timeout = "29m"\n[pool'),
            [
                'listener[0].idle_timeout = "29m": must be at least 30m for imap, '
                "or clients that wait for mail are cut off"
            ],
        ),
        # Pools.
        (
            TLS + IMAPS + main_pool(tls='"off"'),
            [
                'pool.main.tls = "off": passwords would go to a.internal:993 in clear: use implicit or '
                "starttls, or allow it with allow_plaintext_auth = true"
            ],
        ),
        (
            TLS + IMAPS + main_pool(allow_plaintext_auth="true"),
            ["pool.main.allow_plaintext_auth = true: has no effect with tls = implicit"],
        ),
        (
            TLS + IMAPS + main_pool('["127.0.0.1:143"]', tls='{ mode = "off", ca = "x", name = "y", verify = false }'),
            [
                "pool.main.tls.ca: has no effect with mode = off",
                "pool.main.tls.name: has no effect with mode = off",
                "pool.main.tls.verify: has no effect with mode = off",
            ],
        ),
        (
            TLS + IMAPS + main_pool(tls=f'{{ ca = "x", pin = "{PIN}" }}'),
            ["pool.main.tls.ca: has no effect with pin: a pin names the certificate itself"],
        ),
        (
            TLS + IMAPS + main_pool(tls=f'{{ verify = false, pin = "{PIN}" }}'),
            ["pool.main.tls.pin: has no effect with verify = false"],
        ),
        (TLS + IMAPS + main_pool(tls='{ key = "x" }'), ["pool.main.tls.key: needs a certificate beside it"]),
        (
            TLS + IMAPS + main_pool('["unix:/x"]', tls='"implicit"'),
            [
                'pool.main.servers[0].address = "unix:/x": a Unix socket has no host name to find in a '
                "certificate: add tls.name or tls.pin"
            ],
        ),
        (
            TLS + IMAPS + main_pool('["a:993", "b:143"]'),
            ["pool.main.tls: these ports do not tell: write implicit, starttls or off"],
        ),
        (
            TLS + IMAPS + main_pool(connect_timeout='"40s"'),
            ['pool.main.connect_timeout = "40s": is part of a login and cannot be longer than login_timeout (30s)'],
        ),
        # Routes.
        (SMALLEST + POP, ["route: with several pools it must be said which login goes where"]),
        (
            SMALLEST + '[[route]]\nmatch = { listener = "imap" }\npool = "mian"',
            [
                'route[0].pool = "mian": there is no such pool; did you mean "main"?',
                'route[0].match.listener = "imap": there is no such listener; did you mean "imaps"?',
            ],
        ),
        (
            TLS + IMAPS + POP3S + POP,
            [
                'listener[0].protocol = "imap": the only pool, "pop", speaks pop3, which is not translated: '
                "add a pool with protocol = imap"
            ],
        ),
        (
            TLS + IMAPS + POP3S + MAIN + POP + '[[route]]\npool = "pop"',
            [
                'route[0].pool = "pop": logins of listener "imaps" (imap) come here and the pool '
                "speaks pop3, which is not translated: limit the route with "
                'match = { protocol = "pop3" }, or put a route for imap before it'
            ],
        ),
        # POP3 clients on IMAP servers.
        (
            TLS + POP3S + MAIN + '[pop3]\nmax_age = "30d"\n[[route]]\npool = "main"\npop3 = { size = "cache" }',
            [
                'pop3.max_age = "30d": a message that was shown once must stay, so this needs a place to remember: '
                "add [pop3.store] with path = …",
                'route[0].pop3.size = "cache": what was seen must be kept, so this needs a place to remember: '
                "add [pop3.store] with path = …",
            ],
        ),
        (
            TLS + POP3S + POP + '[[route]]\npool = "pop"\npop3 = { delete = "never" }',
            ['route[0].pop3: has no effect: pool "pop" speaks pop3'],
        ),
        (
            TLS + POP3S + MAIN + '[pop3]\ngateways = "several"\nmax_messages = 500\n[[route]]\npool = "main"',
            [
                'pop3.gateways = "several": each gateway must know what clients saw at the others: add [pop3.store] '
                "with url = … of a database that all share",
            ],
        ),
        (
            TLS + POP3S + MAIN + '[pop3]\ngateways = "several"\nstore.path = "/tmp/pop3.sqlite"',
            [
                'pop3.store.path = "/tmp/pop3.sqlite": the other gateways would not know what clients saw here: '
                "write url = … of a database that all share",
            ],
        ),
        # Limits and traces.
        (
            SMALLEST + "[limits]\nfailure_delay = 20",
            ['limits.failure_delay = "20s": is longer than failure_delay_max (15s)'],
        ),
        (
            SMALLEST + '[limits]\nline = "1 MiB"\nliteral = 1048576',
            [
                'limits.line = "1 MiB": is larger than total (256 KiB), so it could never be used up',
                'limits.literal = "1 MiB": is larger than total (256 KiB), so it could never be used up',
            ],
        ),
        (
            SMALLEST + '[trace]\ndirectory = "t"',
            [
                'trace.directory = "/etc/mailgate/t": traces are started through the administration socket: '
                "add [admin] with socket = …"
            ],
        ),
        (
            TLS + IMAPS + 'inspect = "login"' + MAIN + '[trace]\ndirectory = "t"\n[admin]\nsocket = "s"',
            [
                'listener[0].inspect = "login": traces need to see commands, to keep messages out: '
                "write inspect = commands or leave out trace.directory"
            ],
        ),
    ],
)
def test_contradictions_are_told(source: str, expected: list[str]) -> None:
    assert problems(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        SMALLEST,
        # The same port on the wildcard addresses of both families, and on two addresses.
        SMALLEST.replace('"0.0.0.0:993"', '["0.0.0.0:993", "[::]:993"]'),
        SMALLEST.replace('"0.0.0.0:993"', '["10.0.0.1:993", "10.0.0.2:993", "name.example:993", "unix:/x"]').replace(
            "[pool", 'tls = "implicit"\n[pool'
        ),
        MAIN + imap_listener("127.0.0.1:143", tls='"off"'),
        MAIN + imap_listener(tls='"off"', allow_plaintext_auth="true"),
        TLS + IMAPS + main_pool('["127.0.0.1:143", "unix:/x"]', tls='"off"'),
        TLS + IMAPS + main_pool(tls='"off"', allow_plaintext_auth="true"),
        TLS + IMAPS + main_pool('["unix:/x"]', tls='{ mode = "implicit", name = "a" }'),
        TLS + IMAPS + main_pool('["unix:/x"]', tls='{ mode = "implicit", verify = false }'),
        TLS + IMAPS + main_pool('["unix:/x"]', tls=f'{{ mode = "implicit", pin = "{PIN}" }}'),
        TLS + IMAPS + main_pool(tls='{ certificate = "c" }'),
        TLS
        + IMAPS
        + POP3S
        + MAIN
        + POP
        + '[[route]]\nmatch = { protocol = "pop3" }\npool = "pop"\n[[route]]\npool = "main"',
        TLS
        + IMAPS
        + POP3S
        + MAIN
        + POP
        + '[[route]]\nmatch = { listener = "pop3s" }\npool = "pop"\n[[route]]\npool = "main"',
        TLS + IMAPS + 'inspect = "login"' + MAIN,
        SMALLEST + '[trace]\ndirectory = "t"\n[admin]\nsocket = "s"',
    ],
)
def test_what_is_sound_is_taken(source: str) -> None:
    assert read(source).listener


def test_a_mistake_in_one_part_does_not_hide_one_between_others() -> None:
    source = TLS + IMAPS + POP3S + "idle_timeout = 'x'" + MAIN + main_pool(tls='"off"').replace("main", "b")
    assert [problem.split(":")[0] for problem in problems(source + "[limits]\nfailure_delay = 20")] == [
        'listener[1].idle_timeout = "x"',
        'pool.b.tls = "off"',
        'limits.failure_delay = "20s"',
    ]


def test_an_invalid_listener_is_no_reason_to_miss_its_name_or_its_route() -> None:
    source = SMALLEST.replace("993", "99999", 1) + '[[route]]\nmatch = { listener = "imaps" }\npool = "main"'
    assert [problem.split(" =")[0] for problem in problems(source)] == ["listener[0].bind"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            TLS
            + 'profile = "legacy"'
            + IMAPS
            + POP3S
            + 'profile = "modern"\n'
            + MAIN
            + POP
            + '[[route]]\nmatch = { protocol = "pop3" }\npool = "pop"\n[[route]]\npool = "main"',
            ['listener[0] "imaps": profile = legacy allows TLS 1.0 and ciphers that can be broken.'],
        ),
        (
            TLS + imap_listener(tls='"starttls-optional"', allow_plaintext_auth="true") + MAIN,
            ['listener[0] "l": passwords may come without TLS, readable for everyone on the way.'],
        ),
        (
            TLS + imap_listener(tls='"starttls-optional"') + MAIN,
            ['listener[0] "l": tls = starttls-optional without allow_plaintext_auth works like starttls.'],
        ),
        (
            TLS + IMAPS + main_pool(tls="{ verify = false }"),
            ["pool.main: verify = false accepts any certificate, also an attacker's."],
        ),
        (
            TLS + IMAPS + main_pool(tls='"off"', allow_plaintext_auth="true"),
            ["pool.main: passwords go to the servers without TLS."],
        ),
        (
            SMALLEST + POP + '[[route]]\npool = "main"\n[[route]]\nmatch = { user = "a" }\npool = "main"',
            ["pool.pop: no route leads to it.", 'route[1] "route[1]": is never reached.'],
        ),
        (
            SMALLEST + '[[route]]\nmatch = { user = "a" }\npool = "main"',
            ['listener[0] "imaps": no route takes everyone, so logins that match none are refused.'],
        ),
        (
            SMALLEST + '[[route]]\nmatch = { protocol = "pop3" }\npool = "main"',
            [
                'listener[0] "imaps": no route takes everyone, so logins that match none are refused.',
                'route[0] "route[0]": is never reached.',
            ],
        ),
        (
            TLS + imap_listener("127.0.0.1:143", tls='"off"') + MAIN,
            ["tls: no listener uses the certificate."],
        ),
    ],
)
def test_risks_are_warned_of(source: str, expected: list[str]) -> None:
    assert list(read(source).warnings) == expected

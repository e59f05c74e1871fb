"""What the models make of what is given: defaults that depend on other options, short forms, names."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mailgate.config import Config, Endpoint, Listener, Match, Pool, RouteRule, Server
from mailgate.model import Protocol
from tests.config.samples import MAIN, SMALLEST, TLS, read


def listener(**options: object) -> Listener:
    return Listener.model_validate({"name": "l", "protocol": "imap", "bind": "0.0.0.0:993", **options})


def pool(**options: object) -> Pool:
    return Pool.model_validate({"protocol": "imap", "servers": ["imap.example.org:993"], **options})


def test_everything_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        listener().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("bind", "tls", "follows"),
    [
        ("0.0.0.0:993", "implicit", True),
        (["0.0.0.0:995", "[::]:993"], "implicit", True),
        ("0.0.0.0:143", "starttls", True),
        ("0.0.0.0:110", "starttls", True),
        (["0.0.0.0:110", "0.0.0.0:995"], "implicit", False),
        ("0.0.0.0:1234", "implicit", False),
        ("unix:/x", "implicit", False),
    ],
)
def test_a_listeners_tls_follows_its_ports(bind: object, tls: str, follows: bool) -> None:
    assert (listener(bind=bind).tls, listener(bind=bind).follows_port) == (tls, follows)
    assert listener(bind=bind, tls="off").tls == "off"


@pytest.mark.parametrize(
    ("bind", "tls", "allowed"),
    [
        ("127.0.0.1:143", "off", True),
        (["127.0.0.1:143", "unix:/x", "[::1]:143"], "starttls-optional", True),
        (["127.0.0.1:143", "10.0.0.1:143"], "off", False),
        ("127.0.0.1:143", "starttls", False),
        ("127.0.0.1:993", "implicit", False),
    ],
)
def test_passwords_in_clear_are_allowed_only_on_this_machine(bind: object, tls: str, allowed: bool) -> None:
    assert listener(bind=bind, tls=tls).allow_plaintext_auth is allowed
    assert listener(bind=bind, tls=tls).plaintext_allowed is allowed
    told = listener(bind="10.0.0.1:143", tls=tls, allow_plaintext_auth=True)
    assert told.allow_plaintext_auth is True
    assert told.plaintext_allowed is (tls in ("off", "starttls-optional"))


def test_idle_time_limits_are_those_of_the_protocol() -> None:
    assert listener().idle_timeout == 31 * 60
    assert listener(protocol="pop3").idle_timeout == 10 * 60
    assert listener(idle_timeout="2h").idle_timeout == 7200


@pytest.mark.parametrize(
    ("servers", "tls", "mode", "known"),
    [
        (["a:993"], None, "implicit", True),
        (["a:143"], None, "starttls", True),
        (["a:143", "b:143"], {"name": "imap.internal"}, "starttls", True),
        (["a:143"], {"mode": "implicit"}, "implicit", True),
        (["a:993"], "off", "off", True),
        (["a:143", "b:993"], None, "implicit", False),
        (["a:1143"], {}, "implicit", False),
    ],
)
def test_a_pools_tls_follows_its_ports(servers: list[str], tls: object, mode: str, known: bool) -> None:
    made = pool(servers=servers, **({"tls": tls} if tls is not None else {}))
    assert (made.tls.mode, "mode" in made.tls.model_fields_set) == (mode, known)


def test_a_server_is_named_by_its_address() -> None:
    made = pool(servers=["a:993", {"address": "b:993", "name": "second"}])
    assert [(str(server.address), server.name) for server in made.servers] == [
        ("a:993", "a:993"),
        ("b:993", "second"),
    ]
    assert Server.model_validate(Endpoint("a", 993)) == made.servers[0]


def test_pins_are_read_in_every_usual_form() -> None:
    digits = "0123456789abcdef" * 4
    colons = ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper()
    made = pool(tls={"pin": [digits, colons, f"SHA256:{digits}"]})
    assert set(made.tls.pin) == {digits}
    assert pool(tls={"pin": digits}).tls.pin == (digits,)


@pytest.mark.parametrize("pin", ["", "00", "g" * 64, "0" * 65])
def test_pins_of_another_kind_are_refused(pin: str) -> None:
    with pytest.raises(ValidationError, match="64 hexadecimal digits"):
        pool(tls={"pin": pin})


def test_ca_is_the_systems_or_a_file() -> None:
    assert pool().tls.ca == "system"
    assert pool(tls={"ca": "system"}).tls.ca == "system"
    assert pool(tls={"ca": "/x.pem"}).tls.ca == Path("/x.pem")
    assert pool(tls={"ca": "./system"}).tls.ca == Path("system")


def test_pools_and_routes_get_their_names() -> None:
    config = read(
        SMALLEST
        + """
[pool."with.dot"]
protocol = "imap"
servers = "b:993"
[[route]]
match = { user = "a" }
pool = "with.dot"
[[route]]
name = "rest"
pool = "main"
"""
    )
    assert {name: pool.name for name, pool in config.pool.items()} == {"main": "main", "with.dot": "with.dot"}
    assert [rule.name for rule in config.route] == ["route[0]", "rest"]


def test_the_only_pool_takes_everyone() -> None:
    assert read(SMALLEST).route == (RouteRule(name="default", pool="main"),)


def test_the_hostname_is_the_machines_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "machine.example.org")
    assert read(SMALLEST).hostname == "machine.example.org"
    for odd in ("", "two words\r\n"):
        monkeypatch.setattr("platform.node", lambda name=odd: name)
        assert read(SMALLEST).hostname == "localhost"


def test_a_match_knows_whether_it_takes_all_users() -> None:
    assert Match().catches_all_users
    assert Match(listener=("a",), protocol=Protocol.IMAP).catches_all_users
    assert not Match(user=("a",)).catches_all_users
    assert not Match(domain=("a",)).catches_all_users
    assert not Match(regex="").catches_all_users


def test_names_of_certificates_are_folded() -> None:
    config = read(
        SMALLEST
        + """
[[tls.sni]]
names = ["Mail.Example.NET.", "*.Example.net"]
certificate = "c"
key = "k"
alternate = { certificate = "c2", key = "k2" }
"""
    )
    assert config.tls is not None
    assert config.tls.sni[0].names == ("mail.example.net", "*.example.net")
    assert config.tls.sni[0].alternate is not None
    assert config.tls.sni[0].alternate.key.file == Path("/etc/mailgate/k2")


def test_a_configuration_can_be_made_without_a_file() -> None:
    config = Config(
        listener=(listener(bind="127.0.0.1:1143", tls="off"),),
        pool={"main": pool(servers=["127.0.0.1:143"], tls="off")},
    )
    assert config.tls is None
    assert config.pool["main"].name == "main"
    assert read(config.masked_toml()) == config


def test_limits_before_login_are_those_of_the_wire() -> None:
    framing = pytest.importorskip("mailgate.wire.framing")
    limits = read(TLS + MAIN + "[[listener]]\nname='a'\nprotocol='imap'\nbind='0.0.0.0:993'").limits
    wire = framing.Limits()
    assert (limits.line, limits.literal, limits.total) == (wire.line, wire.literal, wire.total)

"""What a reload says that has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailgate.config import Config, parse
from mailgate.config.changes import changes

OLD = """
hostname = "gate.example.org"
[tls]
certificate = "c"
key = "k"
[[listener]]
name = "imaps"
protocol = "imap"
bind = "127.0.0.1:993"
[pool.main]
protocol = "imap"
servers = ["a.example:993"]
[pool.second]
protocol = "imap"
servers = ["b.example:993"]
[[route]]
name = "friends"
match = { domain = "example.org" }
pool = "second"
[[route]]
name = "all"
pool = "main"
"""


def read(source: str) -> Config:
    return parse(source, base=Path("/"), environ={})


@pytest.mark.parametrize(
    ("replaced", "by", "told"),
    [
        ("", "", []),
        ('hostname = "gate', 'hostname = "gateway', ["hostname: changed"]),
        ("127.0.0.1:993", "127.0.0.1:143", ["listener imaps: changed bind, tls"]),
        ('"imaps"', '"other"', ["listener imaps: removed", "listener other: added"]),
        ('"b.example:993"', '"b.example:143"', ["pool second: changed servers, tls"]),
        ('key = "k"', 'key = "k"\nprofile = "modern"', ["[tls]: changed profile"]),
        ("[[listener]]", "[limits]\nsessions = 3\nline = 9000\n[[listener]]", ["[limits]: changed sessions, line"]),
        ("[[listener]]", '[metrics]\nbind = "127.0.0.1:9930"\n[[listener]]', ["[metrics]: added"]),
        ("[[listener]]", '[shutdown]\ndrain = "1m"\n[[listener]]', ["[shutdown]: changed drain"]),
        ('"example.org" }', '"example.net" }', ["route friends: changed match"]),
        ('name = "all"', 'name = "rest"', ["route all: removed", "route rest: added"]),
    ],
)
def test_what_has_changed(replaced: str, by: str, told: list[str]) -> None:
    old, new = read(OLD), read(OLD.replace(replaced, by, 1))
    assert changes(old, new) == told
    turned = [line.replace("added", "gone").replace("removed", "added").replace("gone", "removed") for line in told]
    assert sorted(changes(new, old)) == sorted(turned)


def test_the_order_of_routes_counts() -> None:
    old = read(OLD)
    new = old.model_copy(update={"route": old.route[::-1]})
    assert changes(old, new) == ["route: in another order"]


def test_values_are_not_told() -> None:
    with_password = OLD.replace('key = "k"', 'key = { file = "k", password = { file = "/secret/place" } }')
    assert changes(read(OLD), read(with_password)) == ["[tls]: changed key"]

"""Which rule takes a login, and what is said about those that did not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.config import RouteRule
from mailgate.model import Login, Mechanism, Peer, Protocol, Route, Secret, Session
from mailgate.routing.static import StaticRouter


def router(*matches: dict[str, Any]) -> StaticRouter:
    return StaticRouter([RouteRule(name=f"r{i}", match=match, pool=f"p{i}") for i, match in enumerate(matches)])


def decide(
    routes: StaticRouter, user: bytes, listener: str = "imaps", protocol: Protocol = Protocol.IMAP
) -> str | None:
    route = routes.decide(user, listener=listener, protocol=protocol)
    return route.name if route else None


@pytest.mark.parametrize(
    ("match", "user", "taken"),
    [
        ({}, b"", True),
        ({}, b"\xff\x00", True),
        ({"user": "alice"}, b"alice", True),
        ({"user": "alice"}, b"ALICE", True),
        ({"user": "alice"}, b"alice@example.org", False),
        ({"user": ["bob", "Alice@Example.org"]}, b"alice@EXAMPLE.org", True),
        ({"user": "alice@example.org"}, b"alice@example.org.", True),
        ({"user": "jürgen"}, "JÜRGEN".encode(), True),
        ({"user": "jürgen"}, "jürgen".encode("latin-1"), False),
        ({"domain": "example.org"}, b"a@example.org", True),
        ({"domain": "example.org"}, b"a@EXAMPLE.ORG.", True),
        ({"domain": "Example.Org"}, b"a@example.org", True),
        ({"domain": "example.org"}, b"a@b@example.org", True),
        ({"domain": "example.org"}, b"a@example.org@b", False),
        ({"domain": "example.org"}, b"example.org", False),
        ({"domain": "example.org"}, b"a@sub.example.org", False),
        ({"domain": "*.example.org"}, b"a@sub.example.org", True),
        ({"domain": "*.example.org"}, b"a@x.sub.example.org", True),
        ({"domain": "*.example.org"}, b"a@example.org", False),
        ({"domain": "*.example.org"}, b"a@.example.org", False),
        ({"domain": "*.example.org"}, b"a@badexample.org", False),
        ({"regex": "[a-m].*"}, b"bob@example.org", True),
        ({"regex": "[a-m].*"}, b"Bob@example.org", False),
        ({"regex": "bob"}, b"bob@example.org", False),
        ({"regex": r".*@example\.org"}, b"Bob@EXAMPLE.ORG", True),
        ({"regex": ".*"}, b"\xff\xfe", True),
        ({"regex": ".*"}, b"a" * 513, False),
        ({"domain": "example.org", "regex": "b.*"}, b"alice@example.org", False),
        ({"domain": "example.org", "regex": "b.*"}, b"bob@example.org", True),
        ({"domain": "example.org", "user": "bob@example.net"}, b"bob@example.net", False),
        ({"listener": "imaps"}, b"x", True),
        ({"listener": ["a", "b"]}, b"x", False),
        ({"protocol": "imap"}, b"x", True),
        ({"protocol": "pop3"}, b"x", False),
    ],
)
def test_a_rule_takes_whom_all_its_conditions_name(match: dict[str, Any], user: bytes, taken: bool) -> None:
    assert decide(router(match), user) == ("r0" if taken else None)


def test_the_first_match_wins() -> None:
    routes = router({"protocol": "pop3"}, {"domain": "example.org"}, {"domain": "*.example.org"}, {})
    assert decide(routes, b"a@example.org", protocol=Protocol.POP3) == "r0"
    assert decide(routes, b"a@example.org") == "r1"
    assert decide(routes, b"a@x.example.org") == "r2"
    assert decide(routes, b"a") == "r3"


def test_without_rules_nobody_is_taken() -> None:
    assert decide(router(), b"a") is None
    assert router().explain(b"a", listener="", protocol=Protocol.IMAP) == []


def test_every_rule_asked_is_explained() -> None:
    routes = router(
        {"listener": "other"},
        {"protocol": "pop3"},
        {"user": "bob"},
        {"domain": "example.net"},
        {"regex": "b.*"},
        {"domain": "example.org", "protocol": "imap"},
        {},
    )
    steps = routes.explain(b"alice@example.org", listener="imaps", protocol=Protocol.IMAP)
    assert [(step.rule.name, step.matched, step.why) for step in steps] == [
        ("r0", False, "the listener is imaps"),
        ("r1", False, "the protocol is imap"),
        ("r2", False, "the user is not in its list"),
        ("r3", False, "the domain is example.org"),
        ("r4", False, "the user name does not match its regex"),
        ("r5", True, "domain and protocol match"),
    ]
    steps = router({"domain": "x.y"}, {}).explain(b"alice", listener="", protocol=Protocol.IMAP)
    assert [step.why for step in steps] == ["the user name has no domain", "it takes everyone"]
    assert router({"user": "a"}).explain(b"a", listener="", protocol=Protocol.IMAP)[0].why == "user matches"


@given(st.binary(max_size=30), st.sampled_from(list(Protocol)))
def test_the_explanation_ends_where_the_decision_falls(user: bytes, protocol: Protocol) -> None:
    routes = router({"user": "a"}, {"regex": "[^@]+"}, {"domain": "*.b"}, {"protocol": "pop3"})
    decided = routes.decide(user, listener="l", protocol=protocol)
    steps = routes.explain(user, listener="l", protocol=protocol)
    assert [step.matched for step in steps[:-1]] == [False] * (len(steps) - 1)
    assert (steps[-1].rule.name if steps[-1].matched else None) == (decided.name if decided else None)


@pytest.mark.parametrize(("user", "authzid", "name"), [(b"a", b"", "r0"), (b"a", b"b", "r1"), (b"b", b"a", "r0")])
async def test_the_identity_to_act_as_decides(user: bytes, authzid: bytes, name: str) -> None:
    login = Login(Protocol.IMAP, user, Secret(b"x"), Mechanism.PLAIN, authzid=authzid)
    session = Session("s", Protocol.IMAP, "imaps", Peer("192.0.2.1", 1), 0.0)
    assert await router({"user": "a"}, {"user": "b"})(login, session) == Route(name, f"p{name[1]}")

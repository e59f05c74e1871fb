"""Which capabilities are shown and which commands pass: the tables entry by entry, then the functions."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.model import Mechanism, Protocol
from mailgate.policy.access import (
    DENIED_VERBS,
    IMAP_CAPABILITIES,
    KNOWN_VERBS,
    POP3_CAPABILITIES,
    denied_verb,
    filter_capabilities,
    filter_pop3_capabilities,
    greeting_capabilities,
    pop3_capabilities,
)

MECHANISMS = (Mechanism.PLAIN, Mechanism.LOGIN)


@pytest.mark.parametrize("name", sorted(IMAP_CAPABILITIES))
def test_every_imap_capability(name: str) -> None:
    entry = IMAP_CAPABILITIES[name]
    assert re.fullmatch(r"[A-Z0-9][A-Z0-9+\-]*(=[A-Z0-9]*)?\+?", name), "names are in upper case"
    assert entry.reason
    token = (name + "X1" if name.endswith("=") else name).encode()
    for spelling in (token, token.lower()):
        assert filter_capabilities([b"IDLE", spelling]) == ([b"IDLE", spelling] if entry.relay else [b"IDLE"])


@pytest.mark.parametrize("name", sorted(POP3_CAPABILITIES))
def test_every_pop3_capability(name: str) -> None:
    entry = POP3_CAPABILITIES[name]
    assert entry.reason
    line = f"{name} with arguments".encode()
    assert filter_pop3_capabilities([line, name.lower().encode()]) == (
        [line, name.lower().encode()] if entry.relay else []
    )


@pytest.mark.parametrize(
    "token",
    [
        "COMPRESS=DEFLATE",
        "STARTTLS",
        "AUTH=PLAIN",
        "AUTH=XOAUTH2",
        "UNAUTHENTICATE",
        "LOGINDISABLED",
        "SASL-IR",
        "LOGIN-REFERRALS",
        "MAILBOX-REFERRALS",
        "URLAUTH",
        "URLAUTH=BINARY",
        "URL-PARTIAL",
        "XCLIENT",
        "COMPRESS",
        "AUTH=",
        "X-SOMETHING-NEW",
        "THREAD",
        "IDLE=NOW",
        "",
        "\xff",
    ],
)
def test_imap_capabilities_that_must_not_be_seen(token: str) -> None:
    assert filter_capabilities([token.encode("latin-1")]) == []


def test_order_and_spelling_are_the_upstreams() -> None:
    tokens = b"IMAP4rev1 AUTH=PLAIN idle Literal+ thread=REFS COMPRESS=DEFLATE THREAD=ORDEREDSUBJECT".split()
    assert filter_capabilities(tokens) == b"IMAP4rev1 idle Literal+ thread=REFS THREAD=ORDEREDSUBJECT".split()


def test_pop3_lines_that_must_not_be_seen() -> None:
    lines = [b"TOP", b"STLS", b"USER", b"SASL PLAIN", b"XCLIENT ADDR", b"EXPIRE 60 USER", b"X-NEW", b"", b"\xff"]
    assert filter_pop3_capabilities(lines) == [b"TOP", b"EXPIRE 60 USER"]


@given(st.lists(st.binary(max_size=12)))
def test_filters_only_ever_take_away(tokens: list[bytes]) -> None:
    for kept in (filter_capabilities(tokens), filter_pop3_capabilities(tokens)):
        rest = iter(tokens)
        assert all(token in rest for token in kept)


@pytest.mark.parametrize(
    ("protocol", "verb"), [(protocol, verb) for protocol in Protocol for verb in sorted(DENIED_VERBS[protocol])]
)
def test_every_denied_verb(protocol: Protocol, verb: str) -> None:
    assert verb == verb.upper()
    assert denied_verb(protocol, verb), "it has a reason"
    assert verb in KNOWN_VERBS[protocol], "metrics name it"


@pytest.mark.parametrize(
    ("protocol", "verb"),
    [
        *product([Protocol.IMAP], ["COMPRESS", "STARTTLS", "AUTHENTICATE", "LOGIN", "UNAUTHENTICATE", "GENURLAUTH"]),
        *product([Protocol.POP3], ["USER", "PASS", "APOP", "AUTH", "STLS", "XCLIENT"]),
    ],
)
def test_commands_that_must_be_refused(protocol: Protocol, verb: str) -> None:
    assert denied_verb(protocol, verb) is not None


@pytest.mark.parametrize(
    ("protocol", "verb"), [(protocol, verb) for protocol in Protocol for verb in sorted(KNOWN_VERBS[protocol])]
)
def test_every_known_verb_is_one_that_a_core_can_name(protocol: Protocol, verb: str) -> None:
    pattern = r"(UID )?[A-Z][A-Z0-9]*" if protocol is Protocol.IMAP else r"[A-Z0-9]{3,7}"
    assert re.fullmatch(pattern, verb)
    assert denied_verb(protocol, verb) is None or verb in DENIED_VERBS[protocol]


def test_every_hidden_extensions_command_is_refused() -> None:
    """What is hidden because it would bypass the gateway must not work for those who guess it."""
    for name in ("COMPRESS", "STARTTLS", "UNAUTHENTICATE"):
        hidden = IMAP_CAPABILITIES.get(name) or IMAP_CAPABILITIES[f"{name}="]
        assert not hidden.relay
        assert denied_verb(Protocol.IMAP, name) is not None
    assert not IMAP_CAPABILITIES["AUTH="].relay


def imap(upstream: list[str], *, tls: bool = False, plaintext: bool = True) -> str:
    known = [frozenset(names.split()) for names in upstream]
    return " ".join(greeting_capabilities(known, tls_available=tls, plaintext_ok=plaintext, mechanisms=MECHANISMS))


@pytest.mark.parametrize(
    ("upstream", "tls", "plaintext", "shown"),
    [
        ([], False, True, "IMAP4rev1 SASL-IR ID AUTH=PLAIN AUTH=LOGIN"),
        ([], True, True, "IMAP4rev1 SASL-IR ID STARTTLS AUTH=PLAIN AUTH=LOGIN"),
        ([], True, False, "IMAP4rev1 SASL-IR ID STARTTLS LOGINDISABLED"),
        ([], False, False, "IMAP4rev1 SASL-IR ID LOGINDISABLED"),
        (["IDLE LITERAL+ QUOTA"], False, False, "IMAP4rev1 LITERAL+ IDLE SASL-IR ID LOGINDISABLED"),
        (["IDLE LITERAL+", "IDLE"], False, False, "IMAP4rev1 IDLE SASL-IR ID LOGINDISABLED"),
        (["IDLE", ""], False, False, "IMAP4rev1 SASL-IR ID LOGINDISABLED"),
        (
            ["IMAP4REV2 ENABLE UTF8=ACCEPT LITERAL-"],
            False,
            False,
            "IMAP4rev1 LITERAL- ENABLE UTF8=ACCEPT IMAP4rev2 SASL-IR ID LOGINDISABLED",
        ),
    ],
)
def test_imap_before_login(upstream: list[str], tls: bool, plaintext: bool, shown: str) -> None:
    assert imap(upstream, tls=tls, plaintext=plaintext) == shown


@pytest.mark.parametrize(
    ("upstream", "tls", "plaintext", "shown"),
    [
        ([], False, True, "TOP UIDL RESP-CODES AUTH-RESP-CODE USER SASL+PLAIN+LOGIN"),
        ([], True, False, "TOP UIDL RESP-CODES AUTH-RESP-CODE STLS"),
        (["TOP UTF8 LANG PIPELINING"], False, False, "TOP UTF8 LANG PIPELINING RESP-CODES AUTH-RESP-CODE"),
        (["TOP UIDL UTF8", "UIDL"], False, False, "UIDL RESP-CODES AUTH-RESP-CODE"),
    ],
)
def test_pop3_before_login(upstream: list[str], tls: bool, plaintext: bool, shown: str) -> None:
    known = [frozenset(names.split()) for names in upstream]
    lines = pop3_capabilities(known, tls_available=tls, plaintext_ok=plaintext, mechanisms=MECHANISMS)
    assert [line.replace(" ", "+") for line in lines] == [*shown.split(), "IMPLEMENTATION+mailgate"]


@pytest.mark.parametrize(
    ("upstream", "shown"),
    [
        ([], []),
        ([{"EXPIRE NEVER", "LOGIN-DELAY 0"}], ["EXPIRE NEVER"]),
        ([{"EXPIRE NEVER", "LOGIN-DELAY 60"}] * 2, ["EXPIRE NEVER", "LOGIN-DELAY 60"]),
        ([{"LOGIN-DELAY 0", "LOGIN-DELAY 60"}], ["LOGIN-DELAY 60 USER"]),
        ([{"LOGIN-DELAY 9"}, {"LOGIN-DELAY 60"}], ["LOGIN-DELAY 60 USER"]),
        ([{"EXPIRE NEVER", "LOGIN-DELAY 60"}, {"TOP"}], ["LOGIN-DELAY 60 USER"]),
    ],
)
def test_what_holds_for_a_site_is_told_before_login(upstream: list[set[str]], shown: list[str]) -> None:
    lines = pop3_capabilities(list(map(frozenset, upstream)), tls_available=False, plaintext_ok=True, mechanisms=[])
    assert [line for line in lines if line.startswith(("EXPIRE", "LOGIN-DELAY"))] == shown

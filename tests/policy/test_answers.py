"""Fixed answers: exact bytes, and properties that hold for every one of them."""

from __future__ import annotations

import re

import pytest

from mailgate.model import Failure, Refusal
from mailgate.policy import answers
from mailgate.policy.answers import farewell_for, imap_reply, pop3_reply, refusal_for

FIXED = {name: value for name, value in vars(answers).items() if isinstance(value, Refusal)}
ALL = [*FIXED.values(), *map(refusal_for, Failure)]

# RFC 5530 §3 and RFC 9051 §7.1; RFC 2449 §8 and RFC 3206.
IMAP_CODES = {"", "AUTHENTICATIONFAILED", "PRIVACYREQUIRED", "CANNOT", "LIMIT", "INUSE", "UNAVAILABLE"}
POP3_CODES = {"", "AUTH", "SYS/TEMP", "SYS/PERM", "IN-USE", "LOGIN-DELAY"}


@pytest.mark.parametrize("refusal", ALL, ids=lambda refusal: refusal.reason)
def test_every_refusal(refusal: Refusal) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", refusal.reason)
    assert re.fullmatch(r"[A-Z][A-Za-z ]+\.|Invalid base64 data\.", refusal.text)
    assert refusal.imap_code in IMAP_CODES
    assert refusal.pop3_code in POP3_CODES
    for reply in (imap_reply(refusal, b"a1"), imap_reply(refusal, None, "BYE"), pop3_reply(refusal)):
        assert reply.endswith(b"\r\n")
        assert reply.count(b"\n") == 1
        assert len(reply) <= 512, "RFC 2449 §4"


@pytest.mark.parametrize(
    ("failure", "imap", "pop3"),
    [
        (Failure.CONNECT, b"[UNAVAILABLE] The mail server is not available", b"[SYS/TEMP] The mail server is not"),
        (Failure.TLS, b"[UNAVAILABLE] The mail server is not available", b"[SYS/TEMP] The mail server is not"),
        (Failure.TIMEOUT, b"[UNAVAILABLE] The mail server is not available", b"[SYS/TEMP] The mail server is not"),
        (Failure.PROTOCOL, b"[UNAVAILABLE] The mail server is not available", b"[SYS/TEMP] The mail server is not"),
        (Failure.INSECURE, b"[UNAVAILABLE] The mail server is not available", b"[SYS/TEMP] The mail server is not"),
        (Failure.AUTH_REJECTED, b"[AUTHENTICATIONFAILED] Authentication failed.", b"[AUTH] Authentication failed."),
        (Failure.AUTH_TEMPORARY, b"[UNAVAILABLE] The mail server is not", b"[SYS/TEMP] The mail server is not"),
        (Failure.LIMIT, b"[LIMIT] The mail server takes no more", b"[SYS/TEMP] The mail server takes no more"),
        (Failure.IN_USE, b"[INUSE] The mailbox is in use", b"[IN-USE] The mailbox is in use by another session."),
        (Failure.UNSUPPORTED, b"[CANNOT] The mail server does not support", b"[SYS/PERM] The mail server does not"),
        (Failure.INTERNAL, b"[UNAVAILABLE] The mail server is not", b"[SYS/TEMP] The mail server is not"),
    ],
)
def test_every_failure_of_an_upstream(failure: Failure, imap: bytes, pop3: bytes) -> None:
    refusal = refusal_for(failure)
    assert imap_reply(refusal, b"a1").startswith(b"a1 NO " + imap)
    assert pop3_reply(refusal).startswith(b"-ERR " + pop3)
    assert not refusal.close, "the client may try again"


def test_no_failure_was_forgotten() -> None:
    assert len({id(refusal_for(failure)) for failure in Failure}) == len(Failure)


def test_a_user_without_a_route_cannot_be_told_from_a_wrong_password() -> None:
    assert imap_reply(answers.NO_ROUTE, b"a") == imap_reply(answers.AUTH_FAILED, b"a")
    assert pop3_reply(answers.NO_ROUTE) == pop3_reply(answers.AUTH_FAILED)
    assert {answers.NO_ROUTE.reason, answers.AUTH_FAILED.reason} == answers.COUNTED_REASONS


@pytest.mark.parametrize(
    ("reason", "reply"),
    [
        ("idle", b"* BYE Disconnected for inactivity.\r\n"),
        ("shutting_down", b"* BYE [UNAVAILABLE] The server is shutting down.\r\n"),
        ("process_full", b"* BYE [UNAVAILABLE] The server is full.\r\n"),
        ("protocol", b"* BYE Protocol error.\r\n"),
        ("internal", b"* BYE [UNAVAILABLE] Internal error.\r\n"),
        ("anything else", b"* BYE [UNAVAILABLE] Internal error.\r\n"),
    ],
)
def test_farewells(reason: str, reply: bytes) -> None:
    assert imap_reply(farewell_for(reason), None, "BYE") == reply


def test_imap_kinds_of_reply() -> None:
    assert imap_reply(answers.INVALID_BASE64, b"a", "BAD") == b"a BAD Invalid base64 data.\r\n"
    assert imap_reply(answers.DENIED_COMMAND, b"a") == b"a NO [CANNOT] This command is not available here.\r\n"
    assert pop3_reply(answers.INVALID_BASE64) == b"-ERR Invalid base64 data.\r\n"


def test_every_reason_of_sasl_has_its_answer() -> None:
    assert set(answers.SASL_REFUSALS) == {
        "invalid_base64",
        "auth_aborted_by_client",
        "invalid_credentials",
        "invalid_mech",
    }

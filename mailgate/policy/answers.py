"""Fixed answers: which words a client hears when something is not done, and with which code.

The sentences hold nothing of what the client sent and nothing of what an upstream said, so that
they cannot carry a secret, a forged line or the news that a user exists. Response codes are those
of RFC 5530 and RFC 3501 for IMAP, RFC 2449 §8 and RFC 3206 for POP3. Reasons are Dovecot's words,
which administrators' searches and dashboards know.
"""

from __future__ import annotations

from typing import Final, Literal

from mailgate.model import Failure, Refusal

AUTH_FAILED: Final = Refusal("auth_failed", "Authentication failed.", "AUTHENTICATIONFAILED", "AUTH")
NO_ROUTE: Final = Refusal("no_route", "Authentication failed.", "AUTHENTICATIONFAILED", "AUTH")
CLEARTEXT_DISABLED: Final = Refusal("cleartext_auth_disabled", "Log in over TLS only.", "PRIVACYREQUIRED", "SYS/PERM")
INVALID_CREDENTIALS: Final = Refusal(
    "invalid_credentials", "Control characters are not allowed in user names and passwords.", "CANNOT", "AUTH"
)
INVALID_MECHANISM: Final = Refusal("invalid_mech", "Authentication mechanism not supported.", "CANNOT", "SYS/PERM")
INVALID_BASE64: Final = Refusal("invalid_base64", "Invalid base64 data.")
ABORTED: Final = Refusal("auth_aborted_by_client", "Authentication aborted.")
LOGIN_TIMEOUT: Final = Refusal("auth_waiting_client", "Logged out for inactivity.", close=True)
TOO_MANY_FAILURES: Final = Refusal("auth_failed", "Too many failed logins.", close=True)
TOO_MANY_BAD_COMMANDS: Final = Refusal("too_many_bad_commands", "Too many invalid commands.", close=True)
CONNECTION_LIMIT: Final = Refusal(
    "connection_limit", "Too many connections from your address.", "LIMIT", "SYS/TEMP", close=True
)
PROCESS_FULL: Final = Refusal("process_full", "The server is full.", "UNAVAILABLE", "SYS/TEMP", close=True)
SHUTTING_DOWN: Final = Refusal("shutting_down", "The server is shutting down.", "UNAVAILABLE", "SYS/TEMP", close=True)
IDLE: Final = Refusal("idle", "Disconnected for inactivity.", close=True)
KICKED: Final = Refusal("kicked", "Disconnected by the administrator.", close=True)
PROTOCOL: Final = Refusal("protocol", "Protocol error.", close=True)
INTERNAL: Final = Refusal("internal_failure", "Internal error.", "UNAVAILABLE", "SYS/TEMP", close=True)
DENIED_COMMAND: Final = Refusal("denied_command", "This command is not available here.", "CANNOT", "SYS/PERM")

MAILDROP_IN_USE: Final = Refusal("maildrop_in_use", "Another session has this maildrop open.", "INUSE", "IN-USE")
LOGIN_DELAY: Final = Refusal("login_delay", "Too soon after the last login.", "LIMIT", "LOGIN-DELAY")
MAILDROP_TAKEN: Final = Refusal(
    "taken_over", "Another session has taken over this maildrop.", "INUSE", "IN-USE", close=True
)

_TEMPORARY: Final = "The mail server is not available at the moment."
_BY_FAILURE: Final = {
    Failure.AUTH_REJECTED: AUTH_FAILED,
    Failure.CONNECT: Refusal("proxy_dest_connect_failed", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP"),
    Failure.TLS: Refusal("proxy_dest_connect_failed", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP"),
    Failure.TIMEOUT: Refusal("proxy_dest_remote_failure", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP"),
    Failure.PROTOCOL: Refusal("proxy_dest_protocol_failure", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP"),
    Failure.AUTH_TEMPORARY: Refusal("proxy_dest_auth_temp_failed", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP"),
    Failure.INSECURE: Refusal("proxy_dest_internal_failure", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP"),
    Failure.UNSUPPORTED: Refusal(
        "proxy_dest_auth_failed", "The mail server does not support this way to log in.", "CANNOT", "SYS/PERM"
    ),
    Failure.LIMIT: Refusal(
        "proxy_dest_connection_limit", "The mail server takes no more sessions now.", "LIMIT", "SYS/TEMP"
    ),
    Failure.IN_USE: Refusal(
        "proxy_dest_auth_temp_failed", "The mailbox is in use by another session.", "INUSE", "IN-USE"
    ),
    Failure.INTERNAL: Refusal("proxy_dest_internal_failure", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP"),
}

SASL_REFUSALS: Final = {
    refusal.reason: refusal for refusal in (INVALID_BASE64, ABORTED, INVALID_CREDENTIALS, INVALID_MECHANISM)
}

COUNTED_REASONS: Final = frozenset({AUTH_FAILED.reason, NO_ROUTE.reason})
"""Refusals that count as a failed login of the session: the ones that guessing would cause."""

_FAREWELLS: Final = {
    refusal.reason: refusal for refusal in (IDLE, SHUTTING_DOWN, PROCESS_FULL, PROTOCOL, KICKED, MAILDROP_TAKEN)
}


def refusal_for(failure: Failure) -> Refusal:
    """Return what the client hears of an upstream's failure."""
    return _BY_FAILURE[failure]


def farewell_for(reason: str) -> Refusal:
    """Return what a client hears when the gateway ends its session for ``reason``."""
    return _FAREWELLS.get(reason, INTERNAL)


def imap_reply(refusal: Refusal, tag: bytes | None, kind: Literal["NO", "BAD", "BYE"] = "NO") -> bytes:
    """Return a refusal as an IMAP response, untagged where ``tag`` is None."""
    code = f"[{refusal.imap_code}] " if refusal.imap_code else ""
    return b"%b %b\r\n" % (tag or b"*", f"{kind} {code}{refusal.text}".encode("ascii"))


def pop3_reply(refusal: Refusal) -> bytes:
    """Return a refusal as a POP3 reply."""
    code = f"[{refusal.pop3_code}] " if refusal.pop3_code else ""
    return f"-ERR {code}{refusal.text}\r\n".encode("ascii")

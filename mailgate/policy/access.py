"""Which capabilities may be seen and which commands may pass after login, each with its reason.

The capability tables are allowlists: what is not in them is hidden, because an extension that
mailgate does not know may change how commands or responses are framed, and a proxy that frames
them must know. The IMAP table is IANA's registry of IMAP capabilities, the POP3 table that of POP3
extensions, both with what widely used servers announce unregistered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mailgate.model import Mechanism, Protocol


class Capability(NamedTuple):
    """Whether a capability may be shown after login, and why."""

    relay: bool
    reason: str


_FACT: Final = "states a fact about the server"
_COMMANDS: Final = "adds commands and responses in the ordinary framing"
_OPTIONS: Final = "adds options and response data in the ordinary framing"
_LITERALS: Final = "the relay learns from it which literals the upstream takes"
_EIGHT_BIT: Final = "8-bit bytes pass, and literal8 is framed like any literal"
_BYPASS: Final = "would send the client past the gateway to another server"
_LOGIN: Final = "concerns logins only"


def _table(rows: tuple[tuple[bool, str, str], ...]) -> dict[str, Capability]:
    return {name: Capability(relay, reason) for relay, reason, names in rows for name in names.split()}


IMAP_CAPABILITIES: Final = _table(
    (
        (True, _FACT, "IMAP4 IMAP4REV1 IMAP4REV2 APPENDLIMIT APPENDLIMIT= MESSAGELIMIT= SAVELIMIT= OBJECTID"),
        (True, _FACT, "RIGHTS= QUOTA= I18NLEVEL=1 I18NLEVEL=2 JMAPACCESS"),
        (
            True,
            _COMMANDS,
            "ACL ANNOTATE-EXPERIMENT-1 BINARY CHILDREN CONVERT ENABLE FILTERS ID IDLE LANGUAGE",
        ),
        (
            True,
            _COMMANDS,
            "LIST-EXTENDED METADATA METADATA-SERVER MOVE MULTIAPPEND MULTISEARCH NAMESPACE NOTIFY",
        ),
        (
            True,
            _COMMANDS,
            "QUOTA QUOTASET REPLACE SORT UIDONLY UIDPLUS UNSELECT X-GM-EXT-1 XAPPLEPUSHSERVICE XLIST",
        ),
        (True, _OPTIONS, "CATENATE CONDSTORE CONTEXT=SEARCH CONTEXT=SORT CREATE-SPECIAL-USE ESEARCH ESORT"),
        (
            True,
            _OPTIONS,
            "IMAPSIEVE= INPROGRESS LIST-METADATA LIST-MYRIGHTS LIST-STATUS PARTIAL PREVIEW QRESYNC",
        ),
        (
            True,
            _OPTIONS,
            "PREVIEW=FUZZY SAVEDATE SEARCH=FUZZY SEARCHRES SNIPPET=FUZZY SORT=DISPLAY SPECIAL-USE",
        ),
        (True, _OPTIONS, "STATUS=SIZE THREAD= WITHIN"),
        (True, _LITERALS, "LITERAL+ LITERAL-"),
        (True, _EIGHT_BIT, "UTF8=ACCEPT UTF8=ONLY"),
        (False, "its URLs name the upstream and bypass the gateway", "URLAUTH URLAUTH=BINARY URL-PARTIAL"),
        (False, _BYPASS, "LOGIN-REFERRALS MAILBOX-REFERRALS"),
        (False, "the gateway could no longer frame what passes", "COMPRESS="),
        (False, "TLS with the client ends at the gateway", "STARTTLS"),
        (False, "a second login would bypass routes and limits", "AUTH= UNAUTHENTICATE"),
        (False, _LOGIN, "LOGINDISABLED SASL-IR"),
    )
)

POP3_CAPABILITIES: Final = _table(
    (
        (True, _COMMANDS, "TOP UIDL UTF8 LANG LAST"),
        (True, _FACT, "RESP-CODES AUTH-RESP-CODE LOGIN-DELAY PIPELINING EXPIRE IMPLEMENTATION"),
        (False, _LOGIN, "USER SASL APOP"),
        (False, "TLS with the client ends at the gateway", "STLS"),
        (False, "only proxies that are trusted may say whose connection they carry", "XCLIENT"),
    )
)

_NO_SECOND_LOGIN: Final = "a second login would bypass routes and limits"
_NO_SECOND_TLS: Final = "TLS with the client ends at the gateway"
_NO_IDENTITY: Final = "only proxies that are trusted may say whose connection they carry"

DENIED_VERBS: Final[dict[Protocol, dict[str, str]]] = {
    Protocol.IMAP: {
        "AUTHENTICATE": _NO_SECOND_LOGIN,
        "LOGIN": _NO_SECOND_LOGIN,
        "UNAUTHENTICATE": _NO_SECOND_LOGIN,
        "PROXYAUTH": _NO_SECOND_LOGIN,
        "STARTTLS": _NO_SECOND_TLS,
        "COMPRESS": "the gateway could no longer frame what passes",
        "XCLIENT": _NO_IDENTITY,
        "GENURLAUTH": "its URLs name the upstream and bypass the gateway",
        "RESETKEY": "belongs to URLAUTH",
        "URLFETCH": "belongs to URLAUTH",
        "XPROXYREUSE": "concerns another proxy's cache of sessions",
    },
    Protocol.POP3: {
        "USER": _NO_SECOND_LOGIN,
        "PASS": _NO_SECOND_LOGIN,
        "APOP": _NO_SECOND_LOGIN,
        "AUTH": _NO_SECOND_LOGIN,
        "STLS": _NO_SECOND_TLS,
        "XCLIENT": _NO_IDENTITY,
    },
}

KNOWN_VERBS: Final[dict[Protocol, frozenset[str]]] = {
    Protocol.IMAP: frozenset(
        (
            "APPEND CANCELUPDATE CAPABILITY CHECK CLOSE COMPARATOR CONVERSIONS COPY CREATE DELETE DELETEACL "
            "ENABLE ESEARCH EXAMINE EXPUNGE FETCH GETACL GETANNOTATION GETMETADATA GETQUOTA GETQUOTAROOT ID "
            "IDLE LANGUAGE LIST LISTRIGHTS LOGOUT LSUB MOVE MYRIGHTS NAMESPACE NOOP NOTIFY RENAME REPLACE "
            "RLIST RLSUB SEARCH SELECT SETACL SETANNOTATION SETMETADATA SETQUOTA SORT STATUS STORE SUBSCRIBE "
            "THREAD UNSELECT UNSUBSCRIBE XLIST XAPPLEPUSHSERVICE"
        ).split()
    ).union(
        (f"UID {verb}" for verb in ("COPY EXPUNGE FETCH MOVE REPLACE SEARCH SORT STORE THREAD").split()),
        DENIED_VERBS[Protocol.IMAP],
    ),
    Protocol.POP3: frozenset(("CAPA DELE LANG LAST LIST NOOP QUIT RETR RSET STAT TOP UIDL UTF8").split()).union(
        DENIED_VERBS[Protocol.POP3]
    ),
}
"""The closed set of verbs that metrics and the relay know; anything else is ``other``."""


def denied_verb(protocol: Protocol, verb: str) -> str | None:
    """Return why a command is refused after login, ``None`` if it may pass; ``verb`` in upper case."""
    return DENIED_VERBS[protocol].get(verb)


def _listed(table: dict[str, Capability], token: str) -> bool:
    """Whether a capability may be shown: under its whole name, or under ``NAME=`` for any parameter."""
    name = token.upper()
    entry = table.get(name)
    if entry is None and "=" in name:
        entry = table.get(name.partition("=")[0] + "=")
    return entry is not None and entry.relay


def filter_capabilities(tokens: Iterable[bytes]) -> list[bytes]:
    """Return the IMAP capabilities that a client may see after login, in order and spelling of the upstream."""
    return [token for token in tokens if _listed(IMAP_CAPABILITIES, token.decode("latin-1"))]


def filter_pop3_capabilities(lines: Iterable[bytes]) -> list[bytes]:
    """Return the lines of a CAPA reply that a client may see after login."""
    return [line for line in lines if _listed(POP3_CAPABILITIES, line.decode("latin-1").split(" ")[0])]


_BEFORE_LOGIN_OPTIONS: Final = ("LITERAL+", "LITERAL-", "IDLE", "ENABLE", "UTF8=ACCEPT", "IMAP4REV2")
_SPELLING: Final = {"IMAP4REV2": "IMAP4rev2"}


def greeting_capabilities(
    upstream: Sequence[frozenset[str]],
    *,
    tls_available: bool,
    plaintext_ok: bool,
    mechanisms: Iterable[Mechanism],
) -> tuple[str, ...]:
    """Return what IMAP CAPABILITY says before login.

    ``upstream`` holds, in upper case, the capabilities of each server that a login here may reach
    and that was heard of. What a client may rely on after login is promised only if all of them
    have it; while none was heard of, nothing is. ID and SASL-IR are the gateway's own.
    """
    common = frozenset.intersection(*upstream) if upstream else frozenset()
    shown: list[str] = ["IMAP4rev1"]
    shown += [_SPELLING.get(name, name) for name in _BEFORE_LOGIN_OPTIONS if name in common]
    shown += ["SASL-IR", "ID"]
    if tls_available:
        shown.append("STARTTLS")
    if plaintext_ok:
        shown += [f"AUTH={mechanism}" for mechanism in mechanisms]
    else:
        shown.append("LOGINDISABLED")
    return tuple(shown)


def pop3_capabilities(
    upstream: Sequence[frozenset[str]],
    *,
    tls_available: bool,
    plaintext_ok: bool,
    mechanisms: Iterable[Mechanism],
) -> tuple[str, ...]:
    """Return the lines of CAPA before login; ``upstream`` as in :func:`greeting_capabilities`.

    LOGIN-DELAY is the longest that anybody may have to wait (RFC 2449 §6.5): where a set has one or more, with their
    seconds, it is shown though another set has none, and as what differs between users.

    TOP and UIDL are promised while no server was heard of, because clients that see CAPA without
    them give up, and every server of the last decades has them.
    """
    common = frozenset.intersection(*upstream) if upstream else frozenset({"TOP", "UIDL"})
    lines: list[str] = [name for name in ("TOP", "UIDL", "UTF8", "LANG", "PIPELINING") if name in common]
    lines += ["RESP-CODES", "AUTH-RESP-CODE"]
    lines += [name for name in ("EXPIRE NEVER",) if name in common]
    delays = [{int(name[12:]) for name in one if name.startswith("LOGIN-DELAY ")} or {0} for one in upstream]
    if longest := max(set().union(*delays), default=0):
        lines.append(f"LOGIN-DELAY {longest}" + ("" if all(one == {longest} for one in delays) else " USER"))
    if tls_available:
        lines.append("STLS")
    if plaintext_ok:
        lines += ["USER", " ".join(("SASL", *mechanisms))]
    lines.append("IMPLEMENTATION mailgate")
    return tuple(lines)

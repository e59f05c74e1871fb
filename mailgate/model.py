"""The words that every room shares: values only, no behaviour that touches the world.

A *client* is the mail program, an *upstream* the mail server behind the gateway. Bytes that came
from the network stay bytes: user names need not be UTF-8 (RFC 3501 §9 lets quoted strings carry
what servers accept), and a proxy that decodes them loses users.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Protocol(StrEnum):
    """What a listener speaks with its clients and a pool with its servers."""

    IMAP = "imap"
    POP3 = "pop3"


class Mechanism(StrEnum):
    """How a client signed in.

    ``COMMAND`` is the protocol's own login (``LOGIN`` in IMAP, ``USER`` and ``PASS`` in POP3), the
    others are SASL mechanisms by their registered names (RFC 4616, RFC 7628, RFC 4422 appendix A).
    """

    COMMAND = "COMMAND"
    PLAIN = "PLAIN"
    LOGIN = "LOGIN"
    XOAUTH2 = "XOAUTH2"
    OAUTHBEARER = "OAUTHBEARER"
    EXTERNAL = "EXTERNAL"


BEARER_MECHANISMS: Final = frozenset({Mechanism.XOAUTH2, Mechanism.OAUTHBEARER})


class Secret:
    """A password or token that does not print, pickle or compare in variable time.

    Every place that needs the clear value calls :meth:`reveal`, so that a search for that word
    lists all of them.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the clear value, in the bytes that the client or the administrator gave."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not written to disk or sent to another process")


@dataclass(frozen=True, slots=True)
class Peer:
    """The client's end of a connection: an IP address in its canonical text form and a port.

    A connection on a Unix socket has the address ``"unix"`` and port 0.
    """

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """What a finished TLS handshake agreed on."""

    version: str
    cipher: str
    server_name: str | None = None
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Login:
    """What a client said to sign in, complete and well-formed, not yet believed.

    ``user`` is the authentication identity, ``authzid`` the identity to act as where the mechanism
    carried one that differs. ``secret`` is the password or the bearer token; for EXTERNAL it is
    empty. ``client_id`` holds the pairs of the client's ``ID`` command (RFC 2971), ``None`` when
    it sent none. ``utf8`` and ``language`` are POP3's UTF8 and LANG given before login
    (RFC 6856), which the upstream must hear too.
    """

    protocol: Protocol
    user: bytes
    secret: Secret
    mechanism: Mechanism
    authzid: bytes = b""
    tag: bytes = b""
    client_id: tuple[tuple[bytes, bytes | None], ...] | None = None
    utf8: bool = False
    language: bytes | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a login goes, and by whose word: the route's name in the configuration and its pool.

    Where the user's name carried a ``mailbox`` for a POP3 client, ``login`` is the login without it.
    """

    name: str
    pool: str
    login: Login | None = None
    mailbox: bytes | None = None


class Failure(StrEnum):
    """What can go wrong between the gateway and an upstream; the metric's label and the reply's key."""

    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    INSECURE = "insecure"
    AUTH_REJECTED = "auth_rejected"
    AUTH_TEMPORARY = "auth_temporary"
    LIMIT = "limit"
    IN_USE = "in_use"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fixed answer to something that is not done.

    ``reason`` is the metric's and the log's word for it, from Dovecot's vocabulary where that has
    one. ``imap_code`` and ``pop3_code`` are response codes without brackets (RFC 5530, RFC 2449
    §8, RFC 3206), empty where none fits. ``text`` holds no data of the client's. ``close`` says
    that the connection ends after the answer.
    """

    reason: str
    text: str
    imap_code: str = ""
    pop3_code: str = ""
    close: bool = False


@dataclass(frozen=True, slots=True)
class Allow:
    """The gate has no objection."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The gate wants ``seconds`` of waiting first; ``rule`` is the limit that asks for it."""

    seconds: float
    rule: str


@dataclass(frozen=True, slots=True)
class Deny:
    """The gate refuses; ``rule`` is the limit or policy that does."""

    refusal: Refusal
    rule: str


Verdict = Allow | Delay | Deny
ALLOW: Final = Allow()


class State(StrEnum):
    """How far a session has come."""

    HANDSHAKE = "handshake"
    LOGIN = "login"
    RELAY = "relay"


class Side(StrEnum):
    """Who ended a session."""

    CLIENT = "client"
    SERVER = "server"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class End:
    """Who ended a session, and why, in one word of a closed set."""

    side: Side
    reason: str


@dataclass(slots=True, eq=False)
class Session:
    """What is known of one client connection: filled in as it goes, read by observers.

    ``id`` is unique over restarts and machines. ``started`` is on the clock that
    ``trio.current_time()`` reads. Byte counts are of the mail protocol, without TLS.
    """

    id: str
    protocol: Protocol
    listener: str
    peer: Peer
    started: float
    state: State = State.HANDSHAKE
    tls: TlsInfo | None = None
    user: bytes | None = None
    mechanism: Mechanism | None = None
    route: str | None = None
    pool: str | None = None
    server: str | None = None
    client_id: tuple[tuple[bytes, bytes | None], ...] | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    commands: int = 0
    failures: int = 0
    trace: object | None = field(default=None, repr=False)

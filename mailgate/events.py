"""What observers may see of a session: facts as frozen values, told once, where they are born.

Sessions call an ``Emit``; metrics and the log are what stands behind it. An
``Emit`` never blocks and never raises into a session, so losing an observer costs a line in the
log and not a user's connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mailgate.model import Failure, Session, Side


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events. ``session`` is live: observers read it and never write it."""

    session: Session


@dataclass(frozen=True, slots=True)
class SessionOpened(Event):
    """A client's connection was accepted and passed the connect gate."""


@dataclass(frozen=True, slots=True)
class TlsFinished(Event):
    """A TLS handshake with a client succeeded after ``seconds``; the session's ``tls`` is set."""

    seconds: float


@dataclass(frozen=True, slots=True)
class TlsFailed(Event):
    """A TLS handshake with a client failed.

    ``reason`` is one of: timeout, alpn, not_tls, protocol_version, no_shared_cipher,
    unknown_certificate, closed, other.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class LoginRefused(Event):
    """A login did not succeed, for ``reason`` (Dovecot's vocabulary); the session may go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class UpstreamConnected(Event):
    """An upstream was reached, greeted and, where asked, TLS was started, in ``seconds``."""

    pool: str
    server: str
    seconds: float


@dataclass(frozen=True, slots=True)
class UpstreamRefused(Event):
    """An upstream could not be used for a login; ``state`` as in ``UpstreamFailed``.

    ``reached`` says whether it greeted, so that only the login went wrong.
    """

    pool: str
    server: str
    failure: Failure
    state: str
    detail: str
    reached: bool = False


@dataclass(frozen=True, slots=True)
class SessionEstablished(Event):
    """The upstream accepted the login, ``seconds`` after the client's login was complete."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CommandFinished(Event):
    """A command was answered.

    ``verb`` is a known verb in upper case (``UID FETCH``) or ``other``; ``result`` is ``ok``,
    ``no``, ``bad``, ``err`` or ``refused``; ``seconds`` runs from the command's first line to its
    completion.
    """

    verb: str
    result: str
    seconds: float


@dataclass(frozen=True, slots=True)
class LimitStruck(Event):
    """A rule of the gate delayed or refused something; ``action`` is ``delay``, ``deny`` or ``shed``."""

    rule: str
    action: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BytesRelayed(Event):
    """Bytes of the mail protocol went through since the last such event of this session.

    Told now and then for a long session and once at its end, so that a counter of bytes rises
    while a download runs. ``received`` came from the client, ``sent`` went to it.
    """

    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class MaildropOpened(Event):
    """A POP3 client's maildrop of mailboxes of an IMAP server was opened within ``seconds``.

    That is without the login at the server and without waiting for the maildrop's lock. ``notes`` are words that say
    where the configuration could not be followed (``uids_not_sticky``).
    """

    messages: int
    octets: int
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class MaildropClosed(Event):
    r"""A POP3 client's QUIT changed, or should have changed, mailboxes of an IMAP server, within ``seconds``.

    ``policy`` is the word of the configuration (``expunge``). ``removed`` messages are deleted as that says, ``kept``
    ones are not or not for certain, of which nothing is known of ``unknown``. ``unseen`` could not be marked \Seen.
    Told whether or not the client waited for the answer.
    """

    policy: str
    removed: int
    kept: int
    unknown: int
    unseen: int
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SessionClosed(Event):
    """A session is over; told exactly once for every ``SessionOpened``."""

    side: Side
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CrashedSession(Event):
    """A session ended by an error of mailgate's own; ``error`` holds the traceback for the log."""

    error: BaseException


Emit = Callable[[Event], None]


class Trace(Protocol):
    """Where a session's dialogue is written for an administrator; masks credentials by itself."""

    def client(self, data: bytes) -> None:
        """Note what the client sent."""
        ...

    def upstream(self, data: bytes) -> None:
        """Note what the client was sent."""
        ...


def fan_out(observers: tuple[Emit, ...], on_error: Callable[[Emit, BaseException], None]) -> Emit:
    """Return an Emit that tells every observer in turn.

    An observer that raises is reported to ``on_error`` and the others are still told: what
    watches mail must not be able to stop it. One that has a set ``hears`` of events is told of no others.
    """
    audiences: dict[type[Event], tuple[Emit, ...]] = {}

    def emit(event: Event) -> None:
        kind = type(event)
        audience = audiences.get(kind)
        if audience is None:
            audience = tuple(one for one in observers if kind in getattr(one, "hears", (kind,)))
            audiences[kind] = audience
        for observer in audience:
            try:
                observer(event)
            except Exception as error:
                on_error(observer, error)

    return emit

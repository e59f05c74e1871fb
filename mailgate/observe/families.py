"""Which metrics there are: their names, texts, labels and buckets. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a lone command on the same machine to a search through a huge mailbox."""

LONG: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 86400.0)
"""From a login that checks for mail to a client that idles all day."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family of metrics; ``name`` is without the prefix and, for a counter, without ``_total``.

    A row of a histogram holds the counts of its buckets, each for itself and the unbounded one last,
    and then the sum; every other row is one cell.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """The number of a row's cells."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(name, "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, "gauge", text, labels)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Family:
    return Family(name, "histogram", text, labels, buckets)


OPEN: Final = _gauge("sessions_open", "Sessions that are open now.", "protocol", "listener", "state")
EXPIRY: Final = _gauge(
    "certificate_expiry_timestamp_seconds",
    "When a certificate that is in force ends, in seconds since 1970.",
    "path",
)
BUILD: Final = Family("build", "info", "The version that runs.", ("version",))
STARTED: Final = _counter("sessions_started", "Connections that were let in.", "protocol", "listener")
ENDED: Final = _counter(
    "sessions_ended", "Sessions that are over, by who ended them.", "protocol", "listener", "side", "reason"
)
DURATION: Final = _histogram(
    "session_duration_seconds", "How long sessions lasted that had logged in.", "protocol", buckets=LONG
)
LOGINS: Final = _counter("logins", "Logins, by result and the reason of a failure.", "protocol", "result", "reason")
LOGIN_SECONDS: Final = _histogram(
    "login_duration_seconds", "From the client's complete login to the upstream's acceptance.", "protocol"
)
COMMANDS: Final = _counter("commands", "Commands after login.", "protocol", "verb", "result")
COMMAND_SECONDS: Final = _histogram("command_duration_seconds", "How long commands took.", "protocol", "verb")
CONNECTS: Final = _counter("upstream_connects", "Upstreams reached and greeted.", "pool", "server")
CONNECT_SECONDS: Final = _histogram(
    "upstream_connect_duration_seconds", "How long reaching an upstream took, its greeting included.", "pool"
)
FAILURES: Final = _counter("upstream_failures", "Upstream failures, by kind.", "pool", "server", "failure")
REACHABLE: Final = _gauge("upstream_reachable", "1 if the server could be reached when last tried.", "pool", "server")
RECEIVED: Final = _counter("client_received_bytes", "Bytes of the mail protocol from clients.", "protocol")
SENT: Final = _counter("client_sent_bytes", "Bytes of the mail protocol to clients.", "protocol")
HANDSHAKES: Final = _counter("tls_handshakes", "TLS handshakes with clients.", "listener", "version", "resumed")
HANDSHAKE_FAILURES: Final = _counter(
    "tls_handshake_failures", "TLS handshakes with clients that failed.", "listener", "reason"
)
HANDSHAKE_SECONDS: Final = _histogram("tls_handshake_duration_seconds", "How long they took.", "listener")
LIMITS: Final = _counter("limits_struck", "Times that a limit delayed or refused something.", "rule", "action")
OPENINGS: Final = _histogram(
    "maildrop_open_duration_seconds", "How long opening the maildrops of POP3 clients on IMAP servers took."
)
UPDATES: Final = _counter(
    "maildrop_updates", "QUITs of POP3 clients that changed mailboxes of an IMAP server.", "policy", "result"
)
UPDATE_SECONDS: Final = _histogram("maildrop_update_duration_seconds", "How long these QUITs took.")
DELETIONS: Final = _counter("maildrop_deletions", "Messages that they were to delete.", "policy", "result")
CRASHES: Final = _counter("session_crashes", "Sessions that ended by an error of the gateway's own.", "protocol")
ACCEPT_PAUSES: Final = _counter("accept_pauses", "Times that accepting rested: files or memory ran out.")
LEDGER_OVERFLOWS: Final = _counter(
    "ledger_overflows", "Connections whose address no other worker counts: the memory that they share was full."
)
OBSERVER_ERRORS: Final = _counter("observer_errors", "Errors in what watches sessions, mail unharmed.")
RELOAD_FAILURES: Final = _counter("certificate_reload_failures", "Replaced certificates that were unusable.")
RELOADS: Final = _counter("reloads", "Reloads of the configuration: ok, or refused because it was bad.", "result")
UPGRADES: Final = _counter(
    "upgrades",
    "Upgrades in place: ok, refused since the new code cannot take over, or failed since its workers did not start.",
    "result",
)
WORKERS: Final = _gauge("workers", "Worker processes that run now.")
WORKER_EXITS: Final = _counter("worker_exits", "Worker processes that ended, by how.", "reason")
WORKER_SESSIONS: Final = _gauge("worker_sessions", "Sessions that are open now, by the worker that has them.", "worker")
WORKER_LOGINS: Final = _counter("worker_logins", "Logins that succeeded, by the worker that served them.", "worker")
LEFT_OUT: Final = _gauge("series_left_out", "Series that are not counted, because there is no room for more.")

TIMED: Final = Family("timed_commands", "histogram", "", ("protocol", "verb", "result"), SECONDS)
"""What is kept of commands: one row instead of two for each. ``COMMANDS`` and ``COMMAND_SECONDS`` are made of it."""

FAMILIES: Final = (
    OPEN,
    EXPIRY,
    BUILD,
    STARTED,
    ENDED,
    DURATION,
    LOGINS,
    LOGIN_SECONDS,
    COMMANDS,
    COMMAND_SECONDS,
    CONNECTS,
    CONNECT_SECONDS,
    FAILURES,
    REACHABLE,
    RECEIVED,
    SENT,
    HANDSHAKES,
    HANDSHAKE_FAILURES,
    HANDSHAKE_SECONDS,
    LIMITS,
    OPENINGS,
    UPDATES,
    UPDATE_SECONDS,
    DELETIONS,
    CRASHES,
    ACCEPT_PAUSES,
    LEDGER_OVERFLOWS,
    OBSERVER_ERRORS,
    RELOAD_FAILURES,
    RELOADS,
    UPGRADES,
    WORKERS,
    WORKER_EXITS,
    WORKER_SESSIONS,
    WORKER_LOGINS,
    LEFT_OUT,
)
"""All that a scrape shows under the prefix ``mailgate_``, in its order."""

NOW: Final = frozenset({OPEN.name, REACHABLE.name})
"""Families whose rows say how things are in one process: they end with it."""

"""Metrics, made from events alone.

Labels come from closed sets: the configuration's names, known verbs, enumerations. Nothing that a
client chooses is ever a label, since each new value would cost memory for good.
"""

from __future__ import annotations

import signal
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from mailgate import events
from mailgate.model import Protocol, State
from mailgate.observe import families
from mailgate.observe.cells import Cells, SharedCells
from mailgate.observe.exposition import Expiry, Exposition
from mailgate.observe.families import SECONDS, Family

_SUM: Final = len(SECONDS) + 1
"""The cell of a row of ``SECONDS`` that holds the sum; the buckets are before it."""


class Rows(dict[tuple[str, ...], "memoryview[float]"]):
    """The rows of one family by their labels; one that is looked up and is not there is made."""

    def __init__(self, cells: Cells, family: Family) -> None:
        super().__init__()
        self._cells = cells
        self._family = family
        if not family.labels:
            # A series that exists from the start shows its first increase.
            self[()]

    def __missing__(self, labels: tuple[str, ...]) -> memoryview[float]:
        family = self._family
        if len(labels) != len(family.labels):
            raise ValueError(f"{family.name} has the labels {family.labels}")
        row = self[labels] = self._cells.row(family.name, tuple(map(str, labels)), family.width)
        return row

    def inc(self, *labels: str) -> None:
        """Count one more."""
        self[labels][0] += 1.0


class Metrics:
    """An observer of events that keeps the numbers; ``registry`` is what a scrape shows.

    ``listeners`` are the configured ones with their protocols, ``expiry`` tells when certificates end. Numbers
    are kept in the part of ``worker`` of cells that all workers share; without them in ones of its own.
    """

    def __init__(
        self,
        listeners: Mapping[str, Protocol],
        expiry: Expiry,
        shared: SharedCells | None = None,
        worker: int = 0,
    ) -> None:
        shared = shared or SharedCells()
        cells = shared.worker(worker)
        # What a predecessor in this part said of itself has ended with it.
        cells.clear(families.NOW)
        self._exposition = Exposition(shared, listeners, expiry)
        self.registry = self._exposition.registry

        def rows(family: Family) -> Rows:
            return Rows(cells, family)

        self.accept_pauses = rows(families.ACCEPT_PAUSES)
        self.ledger_overflows = rows(families.LEDGER_OVERFLOWS)
        self.observer_errors = rows(families.OBSERVER_ERRORS)
        self.reload_failures = rows(families.RELOAD_FAILURES)
        self.reloads = rows(families.RELOADS)
        self._open = rows(families.OPEN)
        self._started = rows(families.STARTED)
        self._ended = rows(families.ENDED)
        self._duration = rows(families.DURATION)
        self._logins = rows(families.LOGINS)
        self._login_seconds = rows(families.LOGIN_SECONDS)
        self._timed = rows(families.TIMED)
        self._connects = rows(families.CONNECTS)
        self._connect_seconds = rows(families.CONNECT_SECONDS)
        self._failures = rows(families.FAILURES)
        # Each holds the moment of the last try, negative when it failed: the latest of all workers' is shown.
        self._reachable = rows(families.REACHABLE)
        self._received = rows(families.RECEIVED)
        self._sent = rows(families.SENT)
        self._handshakes = rows(families.HANDSHAKES)
        self._handshake_failures = rows(families.HANDSHAKE_FAILURES)
        self._handshake_seconds = rows(families.HANDSHAKE_SECONDS)
        self._limits = rows(families.LIMITS)
        self._openings = rows(families.OPENINGS)
        self._updates = rows(families.UPDATES)
        self._update_seconds = rows(families.UPDATE_SECONDS)
        self._deletions = rows(families.DELETIONS)
        self._crashes = rows(families.CRASHES)
        for protocol in Protocol:
            # These as well exist from the start.
            self._received[(protocol,)]
            self._sent[(protocol,)]
        self._counts: dict[type[events.Event], Callable[[Any], None]] = {
            events.CommandFinished: self._command_finished,
            events.BytesRelayed: self._bytes_relayed,
            events.SessionOpened: self._session_opened,
            events.TlsFinished: self._tls_finished,
            events.TlsFailed: self._tls_failed,
            events.LoginRefused: self._login_refused,
            events.SessionEstablished: self._session_established,
            events.UpstreamConnected: self._upstream_connected,
            events.UpstreamRefused: self._upstream_refused,
            events.LimitStruck: self._limit_struck,
            events.MaildropOpened: self._maildrop_opened,
            events.MaildropClosed: self._maildrop_closed,
            events.SessionClosed: self._session_closed,
            events.CrashedSession: self._crashed_session,
        }

    def __call__(self, event: events.Event) -> None:
        """Count an event."""
        # A table instead of a match: that would ask for each class in turn whether the event is one of it.
        self._counts[type(event)](event)

    def scrape(self, accept: str) -> tuple[Iterator[bytes], str]:
        """Return the numbers, in pieces, in the format that an ``Accept`` header asks for, and its content type."""
        return self._exposition.pieces(accept)

    def probed(self, pool: str, server: str, reachable: bool) -> None:
        """Note whether a server answered when it was asked what it can."""
        self._reachable[pool, server][0] = time.monotonic() if reachable else -time.monotonic()

    def forget(self, pool: str, server: str) -> None:
        """Show no more whether a server can be reached that is not in the configuration; counters stay."""
        self._reachable[pool, server][0] = 0.0

    def keep_servers(self, servers: Collection[tuple[str, str]]) -> None:
        """Forget all but these servers of pools."""
        for labels, row in self._reachable.items():
            if labels not in servers:
                row[0] = 0.0

    # ---------------------------------------------------------------- events

    def _command_finished(self, event: events.CommandFinished) -> None:
        row = self._timed[event.session.protocol, event.verb, event.result]
        seconds = event.seconds
        row[bisect_left(SECONDS, seconds)] += 1.0
        row[_SUM] += seconds

    def _bytes_relayed(self, event: events.BytesRelayed) -> None:
        labels = (event.session.protocol,)
        self._received[labels][0] += event.received
        self._sent[labels][0] += event.sent

    def _session_opened(self, event: events.SessionOpened) -> None:
        session = event.session
        self._started[session.protocol, session.listener][0] += 1.0
        self._open[session.protocol, session.listener, session.state][0] += 1.0

    def _tls_finished(self, event: events.TlsFinished) -> None:
        session = event.session
        listener = session.listener
        tls = session.tls
        if tls is not None:
            self._handshakes[listener, tls.version, "yes" if tls.resumed else "no"][0] += 1.0
        _observe(self._handshake_seconds[(listener,)], event.seconds)
        if session.state is State.HANDSHAKE:
            # The dialogue begins, and changes the state itself; after STARTTLS it goes on.
            self._open[session.protocol, listener, State.HANDSHAKE][0] -= 1.0
            self._open[session.protocol, listener, State.LOGIN][0] += 1.0

    def _tls_failed(self, event: events.TlsFailed) -> None:
        self._handshake_failures[event.session.listener, event.reason][0] += 1.0

    def _login_refused(self, event: events.LoginRefused) -> None:
        self._logins[event.session.protocol, "failed", event.reason][0] += 1.0

    def _session_established(self, event: events.SessionEstablished) -> None:
        session = event.session
        protocol, listener = session.protocol, session.listener
        self._logins[protocol, "ok", ""][0] += 1.0
        _observe(self._login_seconds[(protocol,)], event.seconds)
        self._open[protocol, listener, State.LOGIN][0] -= 1.0
        self._open[protocol, listener, State.RELAY][0] += 1.0

    def _upstream_connected(self, event: events.UpstreamConnected) -> None:
        server = event.pool, event.server
        self._connects[server][0] += 1.0
        _observe(self._connect_seconds[(event.pool,)], event.seconds)
        self._reachable[server][0] = time.monotonic()

    def _upstream_refused(self, event: events.UpstreamRefused) -> None:
        self._failures[event.pool, event.server, event.failure][0] += 1.0
        self.probed(event.pool, event.server, event.reached)

    def _limit_struck(self, event: events.LimitStruck) -> None:
        self._limits[event.rule, event.action][0] += 1.0

    def _maildrop_opened(self, event: events.MaildropOpened) -> None:
        _observe(self._openings[()], event.seconds)

    def _maildrop_closed(self, event: events.MaildropClosed) -> None:
        self._updates[event.policy, "failed" if event.kept else "ok"][0] += 1.0
        _observe(self._update_seconds[()], event.seconds)
        counts = {"removed": event.removed, "kept": event.kept - event.unknown, "unknown": event.unknown}
        for result, count in counts.items():
            if count:
                self._deletions[event.policy, result][0] += count

    def _session_closed(self, event: events.SessionClosed) -> None:
        session = event.session
        protocol, listener, state = session.protocol, session.listener, session.state
        self._ended[protocol, listener, event.side, event.reason][0] += 1.0
        self._open[protocol, listener, state][0] -= 1.0
        if state is State.RELAY:
            row = self._duration[(protocol,)]
            row[bisect_left(families.LONG, event.seconds)] += 1.0
            row[-1] += event.seconds

    def _crashed_session(self, event: events.CrashedSession) -> None:
        self._crashes[(event.session.protocol,)][0] += 1.0


def _observe(row: memoryview[float], seconds: float) -> None:
    row[bisect_left(SECONDS, seconds)] += 1.0
    row[_SUM] += seconds


class SupervisorMetrics:
    """The numbers that a supervisor keeps; it has no HTTP, and the workers show them with theirs."""

    def __init__(self, shared: SharedCells) -> None:
        self._shared = shared
        cells = shared.supervisor()
        self._exits = Rows(cells, families.WORKER_EXITS)
        self.reload_failures = Rows(cells, families.RELOAD_FAILURES)
        self.reloads = Rows(cells, families.RELOADS)
        self.upgrades = Rows(cells, families.UPGRADES)

    def exited(self, worker: int, status: int, *, stopped: bool) -> None:
        """Note that a worker's process has ended; to be called before another takes its place.

        ``status`` is what ``os.waitstatus_to_exitcode`` returns, ``stopped`` says that it was told to end.
        """
        self._shared.left(worker, families.NOW)
        self._exits.inc(_how(status, stopped))


def _how(status: int, stopped: bool) -> str:
    """Return in a word how a process ended."""
    if stopped and status in (0, -signal.SIGTERM, -signal.SIGINT):
        return "stopped"
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"

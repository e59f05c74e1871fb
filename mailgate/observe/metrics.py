"""Prometheus metrics, made from events alone. The only module that imports prometheus_client.

Labels come from closed sets: the configuration's names, known verbs, enumerations. Nothing that a
client chooses is ever a label, since each new value would cost memory for good.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

import mailgate
from mailgate import events
from mailgate.model import Protocol, Session, State

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a lone command on the same machine to a search through a huge mailbox."""

Expiry = Callable[[], Mapping[str, datetime]]

_Labelled = TypeVar("_Labelled", Counter, Histogram)


class _Sampled(Collector):
    """Values that are looked up when a scrape asks for them."""

    def __init__(self, sessions: Mapping[str, Session], listeners: Mapping[str, Protocol], expiry: Expiry) -> None:
        self._sessions = sessions
        self._listeners = listeners
        self._expiry = expiry

    def collect(self) -> Iterator[Metric]:
        """Count the open sessions, and read when certificates end."""
        counts = {
            (protocol.value, name, state.value): 0 for name, protocol in self._listeners.items() for state in State
        }
        for session in self._sessions.values():
            key = session.protocol.value, session.listener, session.state.value
            counts[key] = counts.get(key, 0) + 1
        open_now = GaugeMetricFamily(
            "mailgate_sessions_open", "Sessions that are open now.", labels=("protocol", "listener", "state")
        )
        for labels, count in counts.items():
            open_now.add_metric(labels, count)
        yield open_now
        ends = GaugeMetricFamily(
            "mailgate_certificate_expiry_timestamp_seconds",
            "When a certificate that is in force ends, in seconds since 1970.",
            labels=("path",),
        )
        for path, end in self._expiry().items():
            ends.add_metric((path,), end.timestamp())
        yield ends


class Metrics:
    """An observer of events that keeps the numbers; ``registry`` is what a scrape shows.

    ``sessions`` is the live table of open sessions, ``listeners`` the configured ones with their
    protocols, ``expiry`` tells when certificates end.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        listeners: Mapping[str, Protocol],
        expiry: Expiry,
        registry: CollectorRegistry | None = None,
    ) -> None:
        # Every counter would be sent a second time, with the moment at which it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = registry or CollectorRegistry()
        registry.register(_Sampled(sessions, listeners, expiry))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("mailgate_build", "The version that runs.", registry=registry).info({"version": mailgate.__version__})

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mailgate_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"mailgate_{name}", text, labels, buckets=SECONDS, registry=registry)

        self.started = counter("sessions_started", "Connections that were let in.", "protocol", "listener")
        self.ended = counter(
            "sessions_ended",
            "Sessions that are over, by who ended them.",
            "protocol",
            "listener",
            "side",
            "reason",
        )
        self.duration = Histogram(
            "mailgate_session_duration_seconds",
            "How long sessions lasted that had logged in.",
            ("protocol",),
            buckets=(1, 5, 15, 60, 300, 900, 1800, 3600, 14400, 86400),
            registry=registry,
        )
        self.logins = counter(
            "logins", "Logins, by result and the reason of a failure.", "protocol", "result", "reason"
        )
        self.login_seconds = histogram(
            "login_duration_seconds",
            "From the client's complete login to the upstream's acceptance.",
            "protocol",
        )
        self.commands = counter("commands", "Commands after login.", "protocol", "verb", "result")
        self.command_seconds = histogram("command_duration_seconds", "How long commands took.", "protocol", "verb")
        self.connects = counter("upstream_connects", "Upstreams reached and greeted.", "pool", "server")
        self.connect_seconds = histogram(
            "upstream_connect_duration_seconds",
            "How long reaching an upstream took, its greeting included.",
            "pool",
        )
        self.failures = counter("upstream_failures", "Upstream failures, by kind.", "pool", "server", "failure")
        self.reachable = Gauge(
            "mailgate_upstream_reachable",
            "1 if the server could be reached when last tried.",
            ("pool", "server"),
            registry=registry,
        )
        self.received = counter("client_received_bytes", "Bytes of the mail protocol from clients.", "protocol")
        self.sent = counter("client_sent_bytes", "Bytes of the mail protocol to clients.", "protocol")
        self.handshakes = counter("tls_handshakes", "TLS handshakes with clients.", "listener", "version", "resumed")
        self.handshake_failures = counter(
            "tls_handshake_failures", "TLS handshakes with clients that failed.", "listener", "reason"
        )
        self.handshake_seconds = histogram("tls_handshake_duration_seconds", "How long they took.", "listener")
        self.limits = counter("limits_struck", "Times that a limit delayed or refused something.", "rule", "action")
        self.crashes = counter("session_crashes", "Sessions that ended by an error of the gateway's own.", "protocol")
        self.accept_pauses = counter("accept_pauses", "Times that accepting rested: files or memory ran out.")
        self.observer_errors = counter("observer_errors", "Errors in what watches sessions, mail unharmed.")
        self.reload_failures = counter("certificate_reload_failures", "Replaced certificates that were unusable.")
        self.reloads = counter("reloads", "Reloads of the configuration: ok, or refused because it was bad.", "result")
        self._children: dict[tuple[Counter | Histogram, tuple[str, ...]], Counter | Histogram] = {}
        self._commands: dict[tuple[Protocol, str, str], tuple[Counter, Histogram]] = {}
        for protocol in Protocol:
            # A series that exists from the start shows its first increase.
            self.received.labels(protocol.value)
            self.sent.labels(protocol.value)

    def __call__(self, event: events.Event) -> None:
        """Count an event."""
        protocol = event.session.protocol
        of = self._child
        match event:
            case events.CommandFinished(verb=verb, result=result, seconds=seconds):
                # The most frequent event by far: one look-up for both.
                pair = self._commands.get((protocol, verb, result))
                if pair is None:
                    pair = of(self.commands, protocol, verb, result), of(self.command_seconds, protocol, verb)
                    self._commands[protocol, verb, result] = pair
                pair[0].inc()
                pair[1].observe(seconds)
            case events.BytesRelayed(received=received, sent=sent):
                of(self.received, protocol).inc(received)
                of(self.sent, protocol).inc(sent)
            case events.SessionOpened():
                of(self.started, protocol, event.session.listener).inc()
            case events.TlsFinished(seconds=seconds):
                tls = event.session.tls
                if tls is not None:
                    resumed = "yes" if tls.resumed else "no"
                    of(self.handshakes, event.session.listener, tls.version, resumed).inc()
                of(self.handshake_seconds, event.session.listener).observe(seconds)
            case events.TlsFailed(reason=reason):
                of(self.handshake_failures, event.session.listener, reason).inc()
            case events.LoginRefused(reason=reason):
                of(self.logins, protocol, "failed", reason).inc()
            case events.SessionEstablished(seconds=seconds):
                of(self.logins, protocol, "ok", "").inc()
                of(self.login_seconds, protocol).observe(seconds)
            case events.UpstreamConnected(pool=pool, server=server, seconds=seconds):
                of(self.connects, pool, server).inc()
                of(self.connect_seconds, pool).observe(seconds)
                self.reachable.labels(pool, server).set(1)
            case events.UpstreamRefused(pool=pool, server=server, failure=failure, reached=reached):
                of(self.failures, pool, server, failure).inc()
                self.reachable.labels(pool, server).set(reached)
            case events.LimitStruck(rule=rule, action=action):
                of(self.limits, rule, action).inc()
            case events.SessionClosed(side=side, reason=reason, seconds=seconds):
                of(self.ended, protocol, event.session.listener, side, reason).inc()
                if event.session.state is State.RELAY:
                    of(self.duration, protocol).observe(seconds)
            case events.CrashedSession():
                of(self.crashes, protocol).inc()

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the numbers in the format that an ``Accept`` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def probed(self, pool: str, server: str, reachable: bool) -> None:
        """Note whether a server answered when it was asked what it can."""
        self.reachable.labels(pool, server).set(reachable)

    def forget(self, pool: str, server: str) -> None:
        """Show no more whether a server can be reached that is not in the configuration; counters stay."""
        self.reachable.remove(pool, server)

    def keep_servers(self, servers: Collection[tuple[str, str]]) -> None:
        """Forget all but these servers of pools."""
        for sample in next(iter(self.reachable.collect())).samples:
            pool, server = sample.labels["pool"], sample.labels["server"]
            if (pool, server) not in servers:
                self.forget(pool, server)

    def _child(self, metric: _Labelled, *labels: str) -> _Labelled:
        """Return a metric's child: to look it up here costs half of what the library's lock and checks do."""
        key = metric, labels
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child  # type: ignore[return-value]

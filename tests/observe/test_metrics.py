"""Each event and what it counts, and that no client can make a new series."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

import mailgate
from mailgate import events
from mailgate.model import Failure, Peer, Protocol, Session, Side, State, TlsInfo
from mailgate.observe.families import SECONDS
from mailgate.observe.metrics import Metrics

IMAPS = {"protocol": "imap", "listener": "imaps"}


class World:
    def __init__(self) -> None:
        self.ends: dict[str, datetime] = {}
        listeners = {"imaps": Protocol.IMAP, "pop3s": Protocol.POP3}
        self.metrics = Metrics(listeners, lambda: self.ends)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"mailgate_{name}", labels)

    def samples(self) -> dict[str, float]:
        """Return all of mailgate's series that are not zero."""
        return {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name.startswith("mailgate_") and sample.value
        }


@pytest.fixture
def world() -> World:
    return World()


def a_session(**facts: Any) -> Session:
    return Session("5e5510", Protocol.IMAP, "imaps", Peer("192.0.2.1", 4711), 0.0, **facts)


TLS13 = TlsInfo("TLSv1.3", "TLS_AES_128_GCM_SHA256", "mail.example.org")


@pytest.mark.parametrize(
    ("event", "counted"),
    [
        (events.SessionOpened(a_session()), [("sessions_started_total", IMAPS, 1)]),
        (
            events.TlsFinished(a_session(tls=TLS13), 0.003),
            [
                ("tls_handshakes_total", {"listener": "imaps", "version": "TLSv1.3", "resumed": "no"}, 1),
                ("tls_handshake_duration_seconds_bucket", {"listener": "imaps", "le": "0.0025"}, 0),
                ("tls_handshake_duration_seconds_bucket", {"listener": "imaps", "le": "0.005"}, 1),
            ],
        ),
        (
            events.TlsFinished(a_session(tls=TlsInfo("TLSv1.2", "x", resumed=True)), 1),
            [("tls_handshakes_total", {"listener": "imaps", "version": "TLSv1.2", "resumed": "yes"}, 1)],
        ),
        (
            events.TlsFinished(a_session(), 1),
            [("tls_handshake_duration_seconds_count", {"listener": "imaps"}, 1)],
        ),
        (
            events.TlsFailed(a_session(), "alpn"),
            [("tls_handshake_failures_total", {"listener": "imaps", "reason": "alpn"}, 1)],
        ),
        (
            events.LoginRefused(a_session(), "auth_failed"),
            [("logins_total", {"protocol": "imap", "result": "failed", "reason": "auth_failed"}, 1)],
        ),
        (
            events.SessionEstablished(a_session(), 0.2),
            [
                ("logins_total", {"protocol": "imap", "result": "ok", "reason": ""}, 1),
                ("login_duration_seconds_sum", {"protocol": "imap"}, 0.2),
            ],
        ),
        (
            events.UpstreamConnected(a_session(), "main", "imap1", 0.01),
            [
                ("upstream_connects_total", {"pool": "main", "server": "imap1"}, 1),
                ("upstream_connect_duration_seconds_sum", {"pool": "main"}, 0.01),
                ("upstream_reachable", {"pool": "main", "server": "imap1"}, 1),
            ],
        ),
        (
            events.UpstreamRefused(a_session(), "main", "imap1", Failure.CONNECT, "connect/none", "x"),
            [
                ("upstream_failures_total", {"pool": "main", "server": "imap1", "failure": "connect"}, 1),
                ("upstream_reachable", {"pool": "main", "server": "imap1"}, 0),
            ],
        ),
        (
            events.UpstreamRefused(a_session(), "main", "imap1", Failure.AUTH_REJECTED, "login/banner", "x", True),
            [
                ("upstream_failures_total", {"pool": "main", "server": "imap1", "failure": "auth_rejected"}, 1),
                ("upstream_reachable", {"pool": "main", "server": "imap1"}, 1),
            ],
        ),
        (
            events.CommandFinished(a_session(), "UID FETCH", "ok", 0.03),
            [
                ("commands_total", {"protocol": "imap", "verb": "UID FETCH", "result": "ok"}, 1),
                ("command_duration_seconds_sum", {"protocol": "imap", "verb": "UID FETCH"}, 0.03),
            ],
        ),
        (
            events.BytesRelayed(a_session(), 10, 2000),
            [
                ("client_received_bytes_total", {"protocol": "imap"}, 10),
                ("client_sent_bytes_total", {"protocol": "imap"}, 2000),
                ("client_sent_bytes_total", {"protocol": "pop3"}, 0),
            ],
        ),
        (
            events.LimitStruck(a_session(), "half_open", "shed"),
            [("limits_struck_total", {"rule": "half_open", "action": "shed"}, 1)],
        ),
        (
            events.MaildropOpened(a_session(), 3, 4711, ("uids_not_sticky",), 0.25),
            [
                ("maildrop_open_duration_seconds_sum", {}, 0.25),
                ("maildrop_open_duration_seconds_count", {}, 1),
            ],
        ),
        (
            events.MaildropClosed(a_session(), "expunge", 5, 0, 0, 0, "", 0.25),
            [
                ("maildrop_updates_total", {"policy": "expunge", "result": "ok"}, 1),
                ("maildrop_update_duration_seconds_sum", {}, 0.25),
                ("maildrop_deletions_total", {"policy": "expunge", "result": "removed"}, 5),
                ("maildrop_deletions_total", {"policy": "expunge", "result": "kept"}, None),
            ],
        ),
        (
            events.MaildropClosed(a_session(), "trash", 5, 3, 2, 1, "UpstreamLost", 60),
            [
                ("maildrop_updates_total", {"policy": "trash", "result": "failed"}, 1),
                ("maildrop_deletions_total", {"policy": "trash", "result": "removed"}, 5),
                ("maildrop_deletions_total", {"policy": "trash", "result": "kept"}, 1),
                ("maildrop_deletions_total", {"policy": "trash", "result": "unknown"}, 2),
            ],
        ),
        (
            events.SessionClosed(a_session(state=State.RELAY), Side.CLIENT, "logged_out", 100),
            [
                ("sessions_ended_total", IMAPS | {"side": "client", "reason": "logged_out"}, 1),
                ("session_duration_seconds_sum", {"protocol": "imap"}, 100),
            ],
        ),
        (
            events.SessionClosed(a_session(state=State.LOGIN), Side.CLIENT, "closed", 100),
            [
                ("sessions_ended_total", IMAPS | {"side": "client", "reason": "closed"}, 1),
                ("session_duration_seconds_sum", {"protocol": "imap"}, None),
            ],
        ),
        (events.CrashedSession(a_session(), ValueError()), [("session_crashes_total", {"protocol": "imap"}, 1)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, events.Event) else "",
)
def test_what_an_event_counts(
    event: events.Event, counted: list[tuple[str, dict[str, str], float | None]], world: World
) -> None:
    world.metrics(event)
    for name, labels, value in counted:
        assert world.value(name, **labels) == value, name


def test_every_event_is_counted(world: World) -> None:
    """A new event without its metric is found here, unless it is named as one that has none."""
    kinds = {kind.__name__ for kind in events.Event.__subclasses__()}
    rows = next(mark for mark in test_what_an_event_counts.pytestmark if mark.name == "parametrize").args[1]  # type: ignore[attr-defined]
    assert kinds == {type(row[0]).__name__ for row in rows}


def test_counts_add_up(world: World) -> None:
    for seconds in (0.5, 1.5):
        world.metrics(events.CommandFinished(a_session(), "NOOP", "ok", seconds))
    world.metrics(events.CommandFinished(a_session(), "NOOP", "bad", 1))
    assert world.value("commands_total", protocol="imap", verb="NOOP", result="ok") == 2
    assert world.value("command_duration_seconds_count", protocol="imap", verb="NOOP") == 3
    assert world.value("command_duration_seconds_sum", protocol="imap", verb="NOOP") == 3.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Protocol),
            st.sampled_from(["NOOP", "UID FETCH", "other"]),
            st.sampled_from(["ok", "no", "refused"]),
            st.one_of(st.sampled_from(SECONDS), st.floats(0, 100)),
        ),
        max_size=30,
    )
)
def test_commands_are_counted_as_the_library_would(told: list[tuple[Protocol, str, str, float]]) -> None:
    world = World()
    registry = CollectorRegistry()
    count = Counter("mailgate_commands", "x", ("protocol", "verb", "result"), registry=registry)
    seconds_of = Histogram(
        "mailgate_command_duration_seconds", "x", ("protocol", "verb"), buckets=SECONDS, registry=registry
    )
    for protocol, verb, result, seconds in told:
        session = Session("x", protocol, "x", Peer("unix", 0), 0.0)
        world.metrics(events.CommandFinished(session, verb, result, seconds))
        count.labels(protocol, verb, result).inc()
        seconds_of.labels(protocol, verb).observe(seconds)
    expected = {
        (sample.name, tuple(sorted(sample.labels.items()))): pytest.approx(sample.value)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert expected == {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in world.metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith("mailgate_command")
    }


def test_nothing_that_a_client_chooses_is_a_label(world: World) -> None:
    """Sessions that differ in all that clients and upstreams say make the same series."""

    def run(text: str) -> set[str]:
        fresh = World()
        session = a_session(
            user=text.encode(),
            client_id=((text.encode(), text.encode()),),
            tls=TlsInfo("TLSv1.3", text, server_name=text),
            state=State.RELAY,
            server="imap1",
        )
        for event in (
            events.SessionOpened(session),
            events.TlsFinished(session, 1),
            events.UpstreamRefused(session, "main", "imap1", Failure.PROTOCOL, text, text),
            events.LoginRefused(session, "auth_failed"),
            events.SessionEstablished(session, 1),
            events.CommandFinished(session, "other", "ok", 1),
            events.CrashedSession(session, ValueError(text)),
            events.SessionClosed(session, Side.CLIENT, "closed", 1),
        ):
            fresh.metrics(event)
        return set(fresh.samples())

    assert run("one") == run("two\n\x00")


def open_sessions(world: World) -> dict[tuple[str, str], float]:
    """Return how many sessions are open of each listener and state, without those that are 0."""
    return {
        (sample.labels["listener"], sample.labels["state"]): sample.value
        for family in world.metrics.registry.collect()
        if family.name == "mailgate_sessions_open"
        for sample in family.samples
        if sample.value
    }


@pytest.mark.parametrize("last", list(State))
def test_an_open_session_is_shown_in_the_state_that_it_has(last: State, world: World) -> None:
    session = a_session()
    world.metrics(events.SessionOpened(session))
    assert open_sessions(world) == {("imaps", "handshake"): 1}
    if last is not State.HANDSHAKE:
        world.metrics(events.TlsFinished(session, 0.1))
        session.state = State.LOGIN
        assert open_sessions(world) == {("imaps", "login"): 1}
    if last is State.RELAY:
        session.state = State.RELAY
        world.metrics(events.SessionEstablished(session, 0.1))
        assert open_sessions(world) == {("imaps", "relay"): 1}
    world.metrics(events.SessionClosed(session, Side.CLIENT, "closed", 1))
    assert open_sessions(world) == {}


def test_a_session_that_begins_in_clear_stays_at_its_login_over_starttls(world: World) -> None:
    session = a_session(state=State.LOGIN)
    world.metrics(events.SessionOpened(session))
    world.metrics(events.TlsFinished(session, 0.1))
    assert open_sessions(world) == {("imaps", "login"): 1}


def test_a_configured_listener_is_shown_without_sessions_and_another_with_them(world: World) -> None:
    assert world.value("sessions_open", protocol="imap", listener="imaps", state="relay") == 0
    assert world.value("sessions_open", protocol="pop3", listener="pop3s", state="login") == 0
    session = a_session()
    session.listener = "gone"
    world.metrics(events.SessionOpened(session))
    labels = {"protocol": "imap", "listener": "gone", "state": "handshake"}
    assert world.value("sessions_open", **labels) == 1
    world.metrics(events.SessionClosed(session, Side.CLIENT, "closed", 1))
    assert world.value("sessions_open", **labels) is None


def test_ends_of_certificates_are_read_when_asked(world: World) -> None:
    assert world.value("certificate_expiry_timestamp_seconds", path="/a.pem") is None
    world.ends["/a.pem"] = datetime(2030, 1, 1, tzinfo=UTC)
    assert world.value("certificate_expiry_timestamp_seconds", path="/a.pem") == 1893456000.0


def test_probes_say_who_is_there(world: World) -> None:
    for reachable in (True, False):
        world.metrics.probed("main", "imap1", reachable)
        assert world.value("upstream_reachable", pool="main", server="imap1") == float(reachable)


def test_labels_that_are_not_the_metric_s_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="result"):
        world.metrics.reloads.inc("ok", "imap")


def test_servers_that_are_gone_are_shown_no_more(world: World) -> None:
    for server in ("imap1", "imap2", "imap3"):
        world.metrics.probed("main", server, False)
    world.metrics.keep_servers({("main", "imap2"), ("main", "imap3")})
    world.metrics.forget("main", "imap3")
    shown = [world.value("upstream_reachable", pool="main", server=f"imap{number}") for number in (1, 2, 3)]
    assert shown == [None, 0, None]


def test_byte_counters_exist_from_the_start(world: World) -> None:
    assert world.value("client_received_bytes_total", protocol="pop3") == 0
    assert world.value("build_info", version=mailgate.__version__) == 1


@pytest.mark.parametrize(
    ("accept", "content_type", "last"),
    [
        ("", "text/plain; version=0.0.4", b"\n"),
        ("text/plain", "text/plain; version=0.0.4", b"\n"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", b"# EOF\n"),
        ("nonsense;;;", "text/plain; version=0.0.4", b"\n"),
    ],
)
def test_a_scrape_in_the_format_that_was_asked_for(accept: str, content_type: str, last: bytes, world: World) -> None:
    pieces, kind = world.metrics.scrape(accept)
    body = b"".join(pieces)
    assert kind.startswith(content_type)
    assert body.endswith(last)
    assert b"# HELP mailgate_sessions_open Sessions that are open now.\n" in body
    assert b"process_resident_memory_bytes" in body
    assert b"python_info{" in body

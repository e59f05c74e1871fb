"""What a scrape shows of several processes, in texts that the library's own parsers read."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from mailgate import events
from mailgate.model import Failure, Peer, Protocol, Session, Side, State, TlsInfo
from mailgate.observe.cells import SharedCells
from mailgate.observe.exposition import PIECE, Exposition
from mailgate.observe.metrics import Metrics, SupervisorMetrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
LISTENERS = {"imaps": Protocol.IMAP, "pop3s": Protocol.POP3}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
Scrape = Callable[[str], tuple[Iterator[bytes], str]]


def use(metrics: Metrics, logins: int = 1, protocol: Protocol = Protocol.IMAP) -> None:
    """Tell of sessions that log in, give commands, and of which the last stays."""
    for number in range(logins):
        session = Session("x", protocol, f"{protocol}s", Peer("unix", 0), 0.0)
        metrics(events.SessionOpened(session))
        session.tls = TlsInfo("TLSv1.3", "x")
        metrics(events.TlsFinished(session, 0.003))
        session.state = State.LOGIN
        metrics(events.UpstreamConnected(session, "main", "imap1", 0.01))
        session.state = State.RELAY
        metrics(events.SessionEstablished(session, 0.2))
        metrics(events.CommandFinished(session, "NOOP", "ok", 0.5))
        metrics(events.CommandFinished(session, "NOOP", "no", 0.25))
        metrics(events.BytesRelayed(session, 10, 20))
        if number < logins - 1:
            metrics(events.SessionClosed(session, Side.CLIENT, "logged_out", 3.0))


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def samples(scrape: Scrape, accept: str = "") -> Samples:
    """Return what a scrape shows, as the library's parser reads it."""
    parse = parse_openmetrics if accept else text_string_to_metric_families
    return {
        key(sample.name.removeprefix("mailgate_"), **sample.labels): sample.value
        for family in parse(b"".join(scrape(accept)[0]).decode())
        for sample in family.samples
    }


@contextmanager
def process(shared: SharedCells, worker: int, logins: int) -> Iterator[int]:
    """Run a worker that counts so many logins and then waits to be killed; give its process."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Nothing of the tests may run in here, least of all what ends them.
        try:
            use(Metrics(LISTENERS, dict, shared, worker), logins)
            os.write(told, b".")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(told)
        assert os.read(ready, 1) == b"."
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_a_worker_that_is_killed_has_counted_everything_and_its_replacement_counts_on(accept: str) -> None:
    shared = SharedCells(2)
    supervisor = SupervisorMetrics(shared)
    # Whoever is asked shows the same; here that is one who does not count.
    scrape = Exposition(shared, LISTENERS, dict).pieces
    logins = key("logins_total", protocol="imap", result="ok", reason="")
    relays = key("sessions_open", protocol="imap", listener="imaps", state="relay")
    killed = key("worker_exits_total", reason="SIGKILL")
    with process(shared, 1, 50):
        with process(shared, 0, 30):
            found = samples(scrape, accept)
            assert (found[logins], found[relays], found["workers", ()]) == (80, 2, 2)
            for worker, count in (("0", 30), ("1", 50)):
                assert found[key("worker_logins_total", worker=worker)] == count
                assert found[key("worker_sessions", worker=worker)] == 1
                assert found[key("process_resident_memory_bytes", worker=worker)] > 1_000_000
            assert found[key("process_resident_memory_bytes", worker="supervisor")] > 1_000_000
        supervisor.exited(0, -signal.SIGKILL, stopped=False)
        found = samples(scrape, accept)
        assert (found[logins], found[relays], found["workers", ()], found[killed]) == (80, 1, 1, 1)
        assert key("worker_sessions", worker="0") not in found
        with process(shared, 0, 5):
            found = samples(scrape, accept)
            assert (found[logins], found[relays], found["workers", ()], found[killed]) == (85, 2, 2, 1)
            assert found[key("worker_logins_total", worker="0")] == 35
            verb = {"protocol": "imap", "verb": "NOOP"}
            assert found[key("commands_total", **verb, result="no")] == 85
            assert found[key("command_duration_seconds_bucket", **verb, le="0.25")] == 85
            assert found[key("command_duration_seconds_count", **verb)] == 170
            assert found[key("command_duration_seconds_sum", **verb)] == 85 * 0.75
            assert found[key("client_sent_bytes_total", protocol="imap")] == 85 * 20


def test_who_tried_last_says_whether_a_server_can_be_reached() -> None:
    shared = SharedCells(2)
    first, second = (Metrics({}, dict, shared, worker) for worker in range(2))
    shown = key("upstream_reachable", pool="main", server="imap1")
    for one, reachable in ((first, True), (second, False), (first, True), (second, False), (second, True)):
        one.probed("main", "imap1", reachable)
        assert samples(first.scrape)[shown] == samples(second.scrape)[shown] == reachable
    first.probed("main", "imap1", False)
    first.forget("main", "imap1")
    assert samples(first.scrape)[shown] == 1
    SupervisorMetrics(shared).exited(1, 0, stopped=True)
    assert shown not in samples(first.scrape)


def test_a_gateway_in_one_process_is_its_only_worker() -> None:
    metrics = Metrics(LISTENERS, dict)
    use(metrics, 2)
    found = samples(metrics.scrape)
    assert found["workers", ()] == 1
    assert found[key("worker_logins_total", worker="0")] == 2
    assert found[key("worker_sessions", worker="0")] == 1
    assert found["process_resident_memory_bytes", ()] > 1_000_000
    assert found["process_cpu_seconds_total", ()] > 0
    assert found["series_left_out", ()] == 0


@pytest.mark.parametrize(
    ("status", "stopped", "reason"),
    [
        (0, True, "stopped"),
        (-signal.SIGTERM, True, "stopped"),
        (-signal.SIGKILL, True, "SIGKILL"),
        (-signal.SIGTERM, False, "SIGTERM"),
        (-signal.SIGSEGV, False, "SIGSEGV"),
        (-(signal.SIGRTMIN + 1), False, f"signal {signal.SIGRTMIN + 1}"),
        (0, False, "status 0"),
        (70, True, "status 70"),
    ],
)
def test_how_a_worker_ended(status: int, stopped: bool, reason: str) -> None:
    shared = SharedCells()
    metrics = Metrics({}, dict, shared)
    SupervisorMetrics(shared).exited(0, status, stopped=stopped)
    assert samples(metrics.scrape)[key("worker_exits_total", reason=reason)] == 1
    assert samples(metrics.scrape)["workers", ()] == 0


def test_what_the_supervisor_counts_is_shown_with_what_workers_count() -> None:
    shared = SharedCells()
    metrics, supervisor = Metrics({}, dict, shared), SupervisorMetrics(shared)
    metrics.reloads.inc("ok")
    supervisor.reloads.inc("ok")
    supervisor.reload_failures.inc()
    found = samples(metrics.scrape)
    assert found[key("reloads_total", result="ok")] == 2
    assert found["certificate_reload_failures_total", ()] == 1


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_pieces_are_the_text_that_the_library_makes_of_the_whole(accept: str) -> None:
    metrics = Metrics(LISTENERS, dict)
    use(metrics, 3, Protocol.POP3)
    session = Session("x", Protocol.IMAP, "imaps", Peer("unix", 0), 0.0)
    for number in range(PIECE // 3):
        metrics(events.CommandFinished(session, f"VERB{number}", "ok", number / 10))
    metrics(events.UpstreamRefused(session, 'a"b\n', "\\", Failure.TIMEOUT, "x", "y"))
    pieces = list(metrics.scrape(accept)[0])
    assert max(piece.count(b"\n") for piece in pieces) <= PIECE + 2
    encode = generate_openmetrics if accept else generate_latest

    def steady(body: bytes) -> list[bytes]:
        return [line for line in body.splitlines() if not line.startswith((b"process_", b"python_gc"))]

    assert steady(b"".join(pieces)) == steady(encode(metrics.registry))


def test_rows_of_another_version_are_left_out() -> None:
    shared = SharedCells(2)
    Metrics({}, dict, shared, 0)
    other = shared.worker(1)
    other.row("invented_later", ("x",), 1)[0] = 1
    other.row("logins", ("imap",), 1)[0] = 7
    other.row("login_duration_seconds", ("imap",), 3)[0] = 7
    found = samples(Exposition(shared, {}, dict).pieces, "")
    assert not [name for name, _ in found if "invented" in name or "logins" in name or "login_duration" in name]

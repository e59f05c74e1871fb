"""What a scrape shows: the cells of all processes put together. The only module that imports prometheus_client.

The library knows the formats. Its own multi-process mode is not used; docs/DEPENDENCIES.md says why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import add
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.registry import Collector

import mailgate
from mailgate.model import Protocol, State
from mailgate.observe import families
from mailgate.observe.cells import Labels, SharedCells
from mailgate.observe.families import Family
from mailgate.observe.processes import Usage, usage

Expiry = Callable[[], Mapping[str, datetime]]

Series = dict[Labels, Sequence[float]]

END: Final = b"# EOF\n"
"""What ends a text in OpenMetrics' format."""

PIECE: Final = 200
"""Samples that are put into text at a time: about a millisecond."""

_SHAPES: Final = {family.name: (len(family.labels), family.width) for family in (*families.FAMILIES, families.TIMED)}
"""How many labels and cells the rows of each family have."""

_Make = type[GaugeMetricFamily] | type[CounterMetricFamily]

_PROCESS: Final[tuple[tuple[_Make, str, str, Callable[[Usage], float | None]], ...]] = (
    (GaugeMetricFamily, "virtual_memory_bytes", "Virtual memory size in bytes.", lambda used: used.virtual),
    (GaugeMetricFamily, "resident_memory_bytes", "Resident memory size in bytes.", lambda used: used.resident),
    (
        GaugeMetricFamily,
        "start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        lambda used: used.started,
    ),
    (CounterMetricFamily, "cpu_seconds", "Total user and system CPU time spent in seconds.", lambda used: used.cpu),
    (GaugeMetricFamily, "open_fds", "Number of open file descriptors.", lambda used: used.open_files),
    (GaugeMetricFamily, "max_fds", "Maximum number of open file descriptors.", lambda used: used.most_files),
)
"""The names and texts that prometheus_client and others give these."""


class Exposition(Collector):
    """Puts the numbers of all processes together when a scrape asks for them.

    ``listeners`` are the configured ones with their protocols, ``expiry`` tells when certificates end; these are this
    process's own, since every worker has the same.
    """

    def __init__(self, cells: SharedCells, listeners: Mapping[str, Protocol], expiry: Expiry) -> None:
        self._cells = cells
        self._listeners = listeners
        self._expiry = expiry
        self.registry = CollectorRegistry()
        self.registry.register(self)
        PlatformCollector(registry=self.registry)

    def pieces(self, accept: str) -> tuple[Iterator[bytes], str]:
        """Return the text in the format that an ``Accept`` header asks for, in pieces, and its content type.

        The whole takes milliseconds; between the pieces mail can go on.
        """
        encode, content_type = choose_encoder(accept)

        def texts() -> Iterator[bytes]:
            end = b""
            for family in self.registry.collect():
                samples = family.samples
                for start in range(0, max(len(samples), 1), PIECE):
                    family.samples = samples[start : start + PIECE]
                    text = encode(_One(family))
                    if text.endswith(END):
                        text, end = text[: -len(END)], END
                    # The library begins each with two lines of comment, which a family has once.
                    yield text.split(b"\n", 2)[2] if start else text
            yield end

        return texts(), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield all families but those of the platform."""
        parts = self._cells.read()
        found: dict[str, Series] = {}
        workers: dict[str, int] = {}
        for number, part in enumerate(parts):
            worker = str(number) if number < self._cells.workers else "supervisor"
            if part.pid:
                workers[worker] = part.pid
            for row in part.rows:
                if _SHAPES.get(row.family) != (len(row.labels), len(row.values)):
                    # An earlier or a later version, which the memory was or will be handed on by, counts otherwise.
                    continue
                series = found.setdefault(row.family, {})
                known = series.get(row.labels)
                series[row.labels] = row.values if known is None else _together(row.family, known, row.values)
                if row.family == families.OPEN.name and part.pid:
                    _count(found, families.WORKER_SESSIONS, (worker,), row.values[0])
                elif row.family == families.LOGINS.name and row.labels[1] == "ok":
                    _count(found, families.WORKER_LOGINS, (worker,), row.values[0])
        self._derive(found, workers)
        found[families.LEFT_OUT.name] = {(): [float(sum(part.left_out for part in parts))]}
        for family in families.FAMILIES:
            yield _shown(family, found.get(family.name, {}))
        yield from _processes(workers)

    def _derive(self, found: dict[str, Series], workers: Collection[str]) -> None:
        """Add what is made from other rows, or known without any."""
        for (protocol, verb, result), row in found.pop(families.TIMED.name, {}).items():
            _count(found, families.COMMANDS, (protocol, verb, result), sum(row[:-1]))
            series = found.setdefault(families.COMMAND_SECONDS.name, {})
            known = series.get((protocol, verb))
            series[protocol, verb] = row if known is None else list(map(add, known, row))
        configured = {
            (protocol.value, name, state.value) for name, protocol in self._listeners.items() for state in State
        }
        # A listener that is gone is shown while it has sessions.
        opened = found.get(families.OPEN.name, {})
        found[families.OPEN.name] = {labels: [0.0] for labels in sorted(configured)} | {
            labels: row for labels, row in opened.items() if row[0] or labels in configured
        }
        # 0 is a server that the configuration no longer has.
        found[families.REACHABLE.name] = {
            labels: [float(row[0] > 0)] for labels, row in found.get(families.REACHABLE.name, {}).items() if row[0]
        }
        found[families.EXPIRY.name] = {(path,): [end.timestamp()] for path, end in self._expiry().items()}
        found[families.BUILD.name] = {(mailgate.__version__,): [1.0]}
        found[families.WORKERS.name] = {(): [float(len(workers) - ("supervisor" in workers))]}


class _One:
    """A registry with one family, as far as the library's encoders look at it."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _count(found: dict[str, Series], family: Family, labels: Labels, value: float) -> None:
    series = found.setdefault(family.name, {})
    series[labels] = [series.get(labels, [0.0])[0] + value]


def _together(family: str, one: Sequence[float], other: Sequence[float]) -> Sequence[float]:
    """Add two processes' rows; who can be reached is known best by who tried last."""
    if family == families.REACHABLE.name:
        return max(one, other, key=lambda row: abs(row[0]))
    return list(map(add, one, other))


def _shown(family: Family, series: Series) -> Metric:
    """Return a family as the library shows it."""
    name = f"mailgate_{family.name}"
    match family.kind:
        case "histogram":
            histogram = HistogramMetricFamily(name, family.text, labels=family.labels)
            bounds = [*map(repr, family.buckets), "+Inf"]
            for labels, row in series.items():
                total = 0.0
                buckets = []
                for bound, count in zip(bounds, row, strict=False):
                    total += count
                    buckets.append((bound, total))
                histogram.add_metric(labels, buckets, row[-1])
            return histogram
        case "info":
            info = InfoMetricFamily(name, family.text, labels=())
            for labels in series:
                info.add_metric((), dict(zip(family.labels, labels, strict=True)))
            return info
        case "counter" | "gauge":
            simple = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
                name, family.text, labels=family.labels
            )
            for labels, row in series.items():
                simple.add_metric(labels, row[0])
            return simple


def _processes(workers: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the usual ``process_*``: of each process by its name, without a label where there is but one."""
    names = ("worker",) if len(workers) > 1 else ()
    used = [((worker,) if names else (), usage(pid)) for worker, pid in workers.items()]
    for make, name, text, value_of in _PROCESS:
        family = make(f"process_{name}", text, labels=names)
        for labels, one in used:
            value = None if one is None else value_of(one)
            if value is not None:
                family.add_metric(labels, value)
        yield family

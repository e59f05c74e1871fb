"""Numbers that several processes count into and each of them can read: one shared memory, a part for each.

A part has one writer, so that counting takes no lock, and what was counted is there for every reader at once: nothing
has to be sent or written out, and nothing is lost when a process is killed. Who takes a dead process's place opens
its part and counts on. The memory has no name in any file system: it is inherited by fork and goes with the last
process that has it.

A part begins with a header, then come the names of its rows, one JSON array a line (family, width, labels), and then
the rows' cells, doubles, in the order of the names. Rows are only ever added.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HEADER: Final = 4096
NAMES: Final = 2 << 20
CELLS: Final = 2 << 20
"""Bytes of one part. Some 5,000 servers fit in, each with several kinds of failure; what is not touched costs no
memory."""

PART: Final = HEADER + NAMES + CELLS

_USED, _PID, _LEFT_OUT = range(3)

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a part: which family of metrics it belongs to, its labels, and its cells at one moment."""

    family: str
    labels: Labels
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Part:
    """What a process has counted: ``pid`` is 0 when there is none now, ``left_out`` counts rows without room."""

    pid: int
    left_out: int
    rows: list[Row]


class _Names:
    """The names of a part's rows, read as they are added."""

    def __init__(self, part: memoryview) -> None:
        self._header = part[:HEADER].cast("q")
        self._names = part[HEADER : HEADER + NAMES]
        self._read = 0
        self.end = 0
        self.rows: list[tuple[str, Labels, int, int]] = []

    def follow(self) -> None:
        """Read what was added since the last time."""
        used = self._header[_USED]
        if used == self._read:
            return
        for line in bytes(self._names[self._read : used]).splitlines():
            family, width, *labels = json.loads(line)
            self.rows.append((family, tuple(labels), self.end, width))
            self.end += width
        self._read = used


class Cells:
    """The part that this process writes. Only one process may have it open at a time; ``pid`` is the one shown."""

    def __init__(self, part: memoryview, pid: int) -> None:
        self._header = part[:HEADER].cast("q")
        self._names = part[HEADER : HEADER + NAMES]
        self._cells: memoryview[float] = part[HEADER + NAMES :].cast("d")
        self._known = _Names(part)
        self._known.follow()
        self._places = {(family, labels): (start, width) for family, labels, start, width in self._known.rows}
        self._header[_PID] = pid

    def row(self, family: str, labels: Labels, width: int) -> memoryview[float]:
        """Return a row's cells, which begin at 0; a row of a predecessor's goes on with what it has.

        Without room for one more it returns cells that nobody reads: to watch must not stop what is watched.
        """
        place = self._places.get((family, labels))
        if place is None:
            place = self._add(family, labels, width)
            if place is None:
                self._header[_LEFT_OUT] += 1
                return memoryview(bytearray(8 * width)).cast("d")
        start, width = place
        return self._cells[start : start + width]

    def clear(self, families: frozenset[str]) -> None:
        """Set the rows of some families back to 0: those that say how things are, and not what has happened."""
        for (family, _), (start, width) in self._places.items():
            if family in families:
                for cell in range(start, start + width):
                    self._cells[cell] = 0.0

    def _add(self, family: str, labels: Labels, width: int) -> tuple[int, int] | None:
        line = json.dumps([family, width, *labels]).encode("ascii") + b"\n"
        used, start = self._header[_USED], self._known.end
        if used + len(line) > len(self._names) or start + width > len(self._cells):
            return None
        self._names[used : used + len(line)] = line
        # Last, so that a reader finds whole lines, and one that a killed process began is written anew.
        self._header[_USED] = used + len(line)
        self._known.follow()
        place = self._places[family, labels] = start, width
        return place


class SharedCells:
    """The parts of ``workers`` processes and of the one that supervises them; made before they are forked."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        memory = memoryview(mmap.mmap(-1, (workers + 1) * PART))
        self._parts = [memory[start : start + PART] for start in range(0, len(memory), PART)]
        self._names = [_Names(part) for part in self._parts]

    def worker(self, number: int) -> Cells:
        """Open the part of a worker, 0 being the first, to count in this process."""
        if not 0 <= number < self.workers:
            raise ValueError(f"worker {number} of {self.workers}")
        return Cells(self._parts[number], os.getpid())

    def supervisor(self) -> Cells:
        """Open the supervisor's part to count in this process."""
        return Cells(self._parts[self.workers], os.getpid())

    def left(self, number: int, families: frozenset[str]) -> None:
        """Note that a worker's process is gone; what these families said of it holds no more.

        For the supervisor, after the process was reaped and before another takes its place.
        """
        Cells(self._parts[number], 0).clear(families)

    def read(self) -> list[Part]:
        """Return what every process has counted, the workers in their order and the supervisor last."""
        return [self._read(part, names) for part, names in zip(self._parts, self._names, strict=True)]

    def _read(self, part: memoryview, names: _Names) -> Part:
        names.follow()
        header = part[:HEADER].cast("q")
        view: memoryview[float] = part[HEADER + NAMES : HEADER + NAMES + 8 * names.end].cast("d")
        cells = view.tolist()
        rows = [Row(family, labels, cells[start : start + width]) for family, labels, start, width in names.rows]
        return Part(header[_PID], header[_LEFT_OUT], rows)

"""Numbers that several processes count into and each of them can read: one shared memory, a part for each.

A part has one writer, so that counting takes no lock, and what was counted is there for every reader at once: nothing
has to be sent or written out, and nothing is lost when a process is killed. Who takes a dead process's place opens
its part and counts on. The memory has no name in any file system: it is inherited by fork, and by exec where that is
wanted, and goes with the last process that has it.

The memory begins with a head that says how it is laid out. A part begins with a header, then come the names of its
rows, one JSON array a line (family, width, labels), and then the rows' cells, doubles, in the order of the names. Rows
are only ever added.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"mailgate"
LAYOUT: Final = 1
"""Changes with the meaning of any byte of the head, of a header or of names: memory of another layout is not used."""

_HEAD: Final = struct.Struct("=8sII")
HEAD: Final = 4096
"""Bytes before the first part: whole pages, so that no part shares one with another."""

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
        self._places = {(family, labels, width): start for family, labels, start, width in self._known.rows}
        self._header[_PID] = pid

    def row(self, family: str, labels: Labels, width: int) -> memoryview[float]:
        """Return a row's cells, which begin at 0; a row of a predecessor's goes on with what it has, if it is as wide.

        Without room for one more it returns cells that nobody reads: to watch must not stop what is watched.
        """
        start = self._places.get((family, labels, width))
        if start is None:
            start = self._add(family, labels, width)
            if start is None:
                self._header[_LEFT_OUT] += 1
                return memoryview(bytearray(8 * width)).cast("d")
        return self._cells[start : start + width]

    def clear(self, families: frozenset[str]) -> None:
        """Set the rows of some families back to 0: those that say how things are, and not what has happened."""
        for (family, _, width), start in self._places.items():
            if family in families:
                for cell in range(start, start + width):
                    self._cells[cell] = 0.0

    def _add(self, family: str, labels: Labels, width: int) -> int | None:
        line = json.dumps([family, width, *labels]).encode("ascii") + b"\n"
        used, start = self._header[_USED], self._known.end
        if used + len(line) > len(self._names) or start + width > len(self._cells):
            return None
        self._names[used : used + len(line)] = line
        # Last, so that a reader finds whole lines, and one that a killed process began is written anew.
        self._header[_USED] = used + len(line)
        self._known.follow()
        self._places[family, labels, width] = start
        return start


class SharedCells:
    """The parts of ``workers`` processes and of the one that supervises them; made before they are forked.

    ``descriptor`` is the memory's and is closed with this object, and on exec unless made inheritable; without one the
    memory is new.
    """

    def __init__(self, workers: int = 1, descriptor: int | None = None) -> None:
        self.workers = workers
        if descriptor is None:
            descriptor = os.memfd_create("mailgate-metrics", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, _size(workers))
            os.pwrite(descriptor, _HEAD.pack(MAGIC, LAYOUT, workers), 0)
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        memory = memoryview(mmap.mmap(descriptor, _size(workers)))
        self._parts = [memory[start : start + PART] for start in range(HEAD, len(memory), PART)]
        self._names = [_Names(part) for part in self._parts]

    @classmethod
    def adopt(cls, descriptor: int, workers: int) -> SharedCells | None:
        """Return the memory that an earlier program handed on, or None if it is laid out in another way.

        Its numbers go on. The descriptor stays the caller's; raises OSError where it is none.
        """
        head = os.pread(descriptor, _HEAD.size, 0)
        if head != _HEAD.pack(MAGIC, LAYOUT, workers) or os.fstat(descriptor).st_size != _size(workers):
            return None
        return cls(workers, os.dup(descriptor))

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


def _size(workers: int) -> int:
    """Return how many bytes so many workers and their supervisor need."""
    return HEAD + (workers + 1) * PART

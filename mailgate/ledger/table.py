"""The shared memory: who has how many connections, by worker and by address.

One mapping without a file behind its name, made before the workers are forked. Each worker has a slot: a column in
every row of numbers. What a worker has is only ever written by itself, except for its ``owed``: half-open connections
that another worker has taken out of the counts already and that this one has yet to end. So a worker that is
killed in the middle of a change can spoil nothing but its own column, which :meth:`Ledger.forget` clears.

Every change happens under a lock of the kernel, which frees it when its holder dies (``fcntl(2)``, F_SETLKW). Workers
wait for it; the supervisor never does, so that it can end a worker that hangs with it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
from hashlib import blake2b
from typing import Final

MAGIC: Final = b"mailgate"
LAYOUT: Final = 1
"""Changes with the meaning of any byte below: a mapping of another layout is not used."""

_HEAD: Final = struct.Struct("=8sIII4x16s")
_KEY_SIZE: Final = 8
_NUMBERS: Final = 64
"""Where the rows of numbers begin; the head lies before them."""

SERVING, SESSIONS, HALF_OPEN, OWED, OWED_ANY = range(5)
"""The rows of each worker's totals. ``OWED`` sums what it owes by address, ``OWED_ANY`` is owed of any address."""

_TOTALS: Final = 5
_COUNTS: Final = 3
"""Numbers of each worker for one address: connections, half-open ones, owed ones."""

BUCKET: Final = 64
"""Cells that an address can be in. At a third of them used, on average, one in 10^14 buckets overflows."""

_EMPTY: Final = bytes(_KEY_SIZE)

_FLOCK: Final = struct.Struct("@hhqqi0q")
"""The kernel's ``struct flock``: type, where to count from, start, length (0: to the end), holder (``fcntl(2)``)."""


class Ledger:
    """The mapping, as every process that has it sees it. Make it with :meth:`create`, or :meth:`adopt` one."""

    def __init__(self, memory: int, pipes: tuple[tuple[int, int], ...]) -> None:
        self._memory = memory
        self.pipes = pipes
        self._map = mmap.mmap(memory, 0)
        self.slots: int
        self._buckets: int
        self._secret: bytes
        _, _, self.slots, self._buckets, self._secret = _HEAD.unpack_from(self._map)
        totals_end, rates, keys, cells, _ = _layout(self.slots, self._buckets)
        view = memoryview(self._map)
        self.totals: memoryview[int] = view[_NUMBERS:totals_end].cast("I")
        self.rates: memoryview[float] = view[rates:keys].cast("d")
        self._keys: memoryview[int] = view[keys:cells].cast("Q")
        self._keys_at = keys
        self.cells: memoryview[int] = view[cells:].cast("I")

    @classmethod
    def create(cls, slots: int, sessions: int) -> Ledger:
        """Return a new ledger for so many workers and, at first, so many connections of different addresses.

        There is room for twice as many, in case that a reload raises the limit. Raises OSError.
        """
        buckets = 1
        while buckets * BUCKET < 2 * sessions:
            buckets *= 2
        memory = os.memfd_create("mailgate-ledger", os.MFD_CLOEXEC)
        os.ftruncate(memory, _layout(slots, buckets)[-1])
        os.pwrite(memory, _HEAD.pack(MAGIC, LAYOUT, slots, buckets, secrets.token_bytes(16)), 0)
        return cls(memory, tuple(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(slots)))

    @classmethod
    def adopt(cls, descriptors: list[int]) -> Ledger | None:
        """Return the ledger that an earlier program handed on, or None if it is not one of this layout.

        ``descriptors`` are that ledger's :attr:`descriptors`. Raises OSError where they are none.
        """
        memory, *ends = descriptors
        head = os.pread(memory, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            return None
        magic, layout, slots, buckets, _ = _HEAD.unpack(head)
        if (magic, layout, 2 * slots) != (MAGIC, LAYOUT, len(ends)):
            return None
        if os.fstat(memory).st_size != _layout(slots, buckets)[-1]:
            return None
        return cls(memory, tuple(zip(ends[::2], ends[1::2], strict=True)))

    @property
    def descriptors(self) -> list[int]:
        """The open files that make up the ledger, closed on exec unless made inheritable."""
        return [self._memory, *(end for pipe in self.pipes for end in pipe)]

    def close(self) -> None:
        """Let go of the mapping and its files; other processes keep theirs."""
        for view in (self.totals, self.rates, self._keys, self.cells):
            view.release()
        self._map.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    # ---------------------------------------------------------------- the lock

    def __enter__(self) -> Ledger:
        fcntl.lockf(self._memory, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._memory, fcntl.LOCK_UN)

    def holder(self) -> int:
        """Return the pid of the other process that holds the lock at this moment; 0 if none does."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(self._memory, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    # ---------------------------------------------------------------- under the lock

    def digest(self, key: str) -> bytes:
        """Return what stands for an address; nobody outside knows the secret, so nobody can aim for a bucket."""
        digest = blake2b(key.encode(), key=self._secret, digest_size=_KEY_SIZE).digest()
        # All zeros is what an empty cell has.
        return digest if digest != _EMPTY else b"\1" * _KEY_SIZE

    def find(self, digest: bytes) -> int:
        """Return where an address's numbers begin in ``cells``, or -1."""
        first = self._bucket(digest)
        begin = at = self._keys_at + first * _KEY_SIZE
        end = begin + BUCKET * _KEY_SIZE
        while (at := self._map.find(digest, at, end)) >= 0:
            if (at - begin) % _KEY_SIZE == 0:
                return (first + (at - begin) // _KEY_SIZE) * self.slots * _COUNTS
            at += 1
        return -1

    def claim(self, digest: bytes) -> int:
        """Return where the numbers of an address that has none yet may stand, all of them 0; -1 if its bucket is full.

        The cell is the address's from then on, until :meth:`release`.
        """
        first = self._bucket(digest)
        try:
            cell = first + self._keys[first : first + BUCKET].tolist().index(0)
        except ValueError:
            return -1
        self._keys[cell] = int.from_bytes(digest, "little")
        return cell * self.slots * _COUNTS

    def release(self, numbers: int) -> None:
        """Give an address's cell back if nobody has a connection of it."""
        width = self.slots * _COUNTS
        if not any(self.cells[numbers : numbers + width].tolist()):
            self._keys[numbers // width] = 0

    def _bucket(self, digest: bytes) -> int:
        return (int.from_bytes(digest[:4], "little") & (self._buckets - 1)) * BUCKET

    # ---------------------------------------------------------------- whole workers

    def forget(self, slot: int) -> bool:
        """Take a worker that is no more out of all counts; its connections ended with it.

        Return False, with nothing done, where another process holds the lock at this moment.
        """
        try:
            fcntl.lockf(self._memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            self._clear(slot)
        finally:
            self.__exit__()
        return True

    def _clear(self, slot: int) -> None:
        slots = self.slots
        width = slots * _COUNTS
        for row in range(_TOTALS):
            self.totals[row * slots + slot] = 0
        self.rates[2 * slot] = 0.0
        # One that died between claiming a cell and counting in it left the cell empty; it is given back here too.
        for cell, key in enumerate(self._keys.tolist()):
            if key:
                numbers = cell * width
                for row in range(_COUNTS):
                    self.cells[numbers + row * slots + slot] = 0
                self.release(numbers)

    def sessions(self) -> int:
        """Return how many connections all workers have, as far as that can be known without the lock."""
        return sum(self.totals[SESSIONS * self.slots : (SESSIONS + 1) * self.slots].tolist())

    def in_use(self) -> int:
        """Return how many addresses have a cell."""
        return sum(map(bool, self._keys.tolist()))


def _layout(slots: int, buckets: int) -> tuple[int, int, int, int, int]:
    """Return where totals end, and where rates, keys and cells begin, and where all ends; in bytes."""
    totals_end = _NUMBERS + _TOTALS * slots * 4
    rates = (totals_end + 63) // 64 * 64
    keys = (rates + 2 * slots * 8 + 63) // 64 * 64
    cells = keys + buckets * BUCKET * _KEY_SIZE
    return totals_end, rates, keys, cells, cells + buckets * BUCKET * slots * _COUNTS * 4

"""What the workers of one machine know of maildrops together: which of them are locked, and who logged in when.

Locks are the kernel's, on ranges of bytes of files in memory that hold none (``fcntl(2)``, F_SETLK): a maildrop is one
byte at an offset that a hash of its name gives. So a worker that is killed leaves no lock behind, and one that stops
makes nobody wait but for what it has. The kernel keeps the locks of a file in one list, which it walks for each that is
asked for: with 10,000 of them that takes 0.6 ms in one file, and 0.03 ms where they are spread over sixteen.

The times of logins are a table of words (:mod:`mailgate.policy.login_delay`), in another file in memory that begins
with the secret of the hash. Both are handed on to the next program of an upgrade, so that maildrops of former workers
stay locked.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import weakref
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from mailgate.policy import login_delay

MAGIC: Final = b"mailgate"
LAYOUT: Final = 1
"""Changes with the meaning of any byte below, or of what a lock's offset says: files of another layout are not used."""

FILES: Final = 16
"""Files over which the locks are spread."""

BUCKET: Final = 8
"""Words in which a user's login can be noted: with as many others that logged in later, it is forgotten."""

BUCKETS: Final = 1 << 15
"""There is room for 262,144 users in 2 MiB, of which only those pages are memory that a login was noted in."""

_HEAD: Final = struct.Struct("=8sII16s")
_WORDS: Final = 64
"""Where the words begin; the head lies before them."""

_SIZE: Final = _WORDS + 8 * BUCKET * BUCKETS


class Register:
    """The files, as every process that has them sees them. Make them with :meth:`create`, or :meth:`adopt` some.

    A process that has locks must have this object to its end: the kernel frees all locks that a process has on a file
    as soon as any of its descriptors for it is closed. That happens with the object.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        table, *self._locks = self.descriptors = list(descriptors)
        """The open files, closed on exec unless made inheritable, and closed with this object."""
        weakref.finalize(self, _close, self.descriptors)
        memory = mmap.mmap(table, _SIZE)
        self._secret: bytes = _HEAD.unpack_from(memory)[-1]
        self._words: memoryview[int] = memoryview(memory)[_WORDS:].cast("Q")

    @classmethod
    def create(cls) -> Register:
        """Return a new register in which nothing is locked. Raises OSError."""
        names = ["mailgate-logins", *["mailgate-locks"] * FILES]
        table, *locks = (os.memfd_create(name, os.MFD_CLOEXEC) for name in names)
        os.ftruncate(table, _SIZE)
        os.pwrite(table, _HEAD.pack(MAGIC, LAYOUT, FILES, secrets.token_bytes(16)), 0)
        return cls([table, *locks])

    @classmethod
    def adopt(cls, descriptors: Sequence[int]) -> Register | None:
        """Return the register that an earlier program handed on, or None if it is not one of this layout.

        ``descriptors`` are that register's :attr:`descriptors`, which stay the caller's. Raises OSError where they are
        none.
        """
        if len(descriptors) != 1 + FILES:
            return None
        head = os.pread(descriptors[0], _HEAD.size, 0)
        if len(head) < _HEAD.size or os.fstat(descriptors[0]).st_size != _SIZE:
            return None
        if _HEAD.unpack(head)[:3] != (MAGIC, LAYOUT, FILES):
            return None
        return cls([os.dup(descriptor) for descriptor in descriptors])

    # ---------------------------------------------------------------- locks

    def place(self, key: bytes) -> int:
        """Return the number of 62 bits that stands for a maildrop in all workers."""
        return self._digest(key) >> 2

    def lock(self, place: int) -> bool:
        """Lock a maildrop for this process; return False where another one has it. Raises OSError.

        A process excludes only others: it must know itself what it has locked.
        """
        try:
            fcntl.lockf(self._locks[place % FILES], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self, place: int) -> None:
        """Free a maildrop that this process has locked."""
        fcntl.lockf(self._locks[place % FILES], fcntl.LOCK_UN, 1, place)

    # ---------------------------------------------------------------- logins

    def remaining(self, key: bytes, now: float, seconds: float) -> float:
        """Return for how many seconds a user may not log in yet; 0 if they may."""
        digest = self._digest(key)
        return login_delay.remaining(self._bucket(digest).tolist(), login_delay.tag(digest), now, seconds)

    def note(self, key: bytes, now: float) -> None:
        """Note the login of a user."""
        digest = self._digest(key)
        words = self._bucket(digest)
        index, word = login_delay.noted(words.tolist(), login_delay.tag(digest), now)
        words[index] = word

    def _bucket(self, digest: int) -> memoryview[int]:
        # The lowest 32 bits are the tag.
        first = (digest >> 32) % BUCKETS * BUCKET
        return self._words[first : first + BUCKET]

    def _digest(self, key: bytes) -> int:
        """Return what stands for a name: nobody outside knows the secret, so nobody can find two that collide."""
        return int.from_bytes(blake2b(key, key=self._secret, digest_size=8).digest(), "little")


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

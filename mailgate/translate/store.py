"""Where it is kept what POP3 clients once saw of each user's mailboxes: the store, whatever it is made of.

A record belongs to an owner and a mailbox. It is two opaque values, so that what changes with every session is
small and what an import brought (100,000 unique-ids are some 4 MB) is only written when it changes; a session that
changes nothing writes nothing. Each value carries a check sum: a store that lies must cost a login, never a
unique-id, because clients that see new ones download everything again and nobody can undo it. So whatever
cannot be read is :class:`StoreFailed` and never the same as "nothing is remembered".

Saving is conditional on what was loaded. Whoever loses a race against another session, worker or gateway merges
its own knowledge into what stands there and tries again.
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from mailgate.config import Pop3Store
from mailgate.translate.memory import FolderMemory
from mailgate.translate.store_backend import FOLDER_BYTES, OWNER_BYTES, StoreBackend, StoreFailed

ATTEMPTS: Final = 10
"""How often a save is tried against others that save the same mailbox: each round one of them wins, and a maildrop
has as many sessions at once only where locks are off."""

CHECK_BYTES: Final = 8
"""Bytes of a check sum: 64 bits of BLAKE2 also tell whether a value changed, for less memory than a copy of it."""


class Memories(Protocol):
    """What is remembered of one owner's mailboxes, for one session."""

    async def load(self, folder: bytes) -> FolderMemory | None:
        """Return what is remembered of a mailbox, ``None`` where it was never opened. Raises StoreFailed."""
        ...

    async def save(self, folder: bytes, memory: FolderMemory) -> FolderMemory:
        """Keep what is to be remembered; return what is. Others' changes are merged into it. Raises StoreFailed."""
        ...


class Store(Protocol):
    """Where memories are kept: one for a process and a configuration."""

    def of(self, owner: bytes) -> Memories:
        """Return the memories of one owner, for one session."""
        ...

    async def aclose(self) -> None:
        """Close what is open."""
        ...


def owner_of(realm: str, user: bytes) -> bytes:
    """Return whose memory that is. Routes of one ``realm`` share what is remembered of a user name.

    ASCII letters count in lower case, as servers compare user names: a client whose settings were retyped
    is still the same.
    """
    return b"%b/%b" % (realm.encode(), user.lower())


def checksum(value: bytes) -> bytes:
    """Return the check sum of a value."""
    return hashlib.blake2b(value, digest_size=CHECK_BYTES, usedforsecurity=False).digest()


def sealed(value: bytes) -> bytes:
    """Return a value with its check sum."""
    return value + checksum(value)


def opened(value: bytes) -> bytes:
    """Return what :func:`sealed` was given. Raises ValueError if it is not what was written."""
    content = value[:-CHECK_BYTES]
    if len(value) < CHECK_BYTES or checksum(content) != value[-CHECK_BYTES:]:
        raise ValueError("its check sum is wrong")
    return content


class NoStore:
    """The store where none is configured: it remembers nothing."""

    def of(self, owner: bytes) -> Memories:
        """See :class:`Store`."""
        return _Forgetful()

    async def aclose(self) -> None:
        """See :class:`Store`."""


class _Forgetful:
    async def load(self, folder: bytes) -> FolderMemory | None:
        return None

    async def save(self, folder: bytes, memory: FolderMemory) -> FolderMemory:
        return memory


class KeptStore:
    """A store over a backend."""

    def __init__(self, backend: StoreBackend) -> None:
        self.backend = backend

    def of(self, owner: bytes) -> KeptMemories:
        """See :class:`Store`."""
        return KeptMemories(self.backend, owner)

    async def aclose(self) -> None:
        """See :class:`Store`."""
        await self.backend.aclose()


class KeptMemories:
    """See :class:`Memories`: what was loaded is what a save builds upon."""

    def __init__(self, backend: StoreBackend, owner: bytes) -> None:
        self._backend = backend
        self._owner = owner
        # Of each mailbox the version that was loaded or saved, and the check sums of its two values.
        self._known: dict[bytes, tuple[int, bytes, bytes]] = {}

    async def load(self, folder: bytes) -> FolderMemory | None:
        """See :class:`Memories`."""
        self._check_names(folder)
        record = await self._backend.fetch(self._owner, folder)
        if record is None:
            self._known.pop(folder, None)
            return None
        try:
            head, rest = opened(record.head), opened(record.rest)
            memory = FolderMemory.decode(head, rest)
        except ValueError as error:
            raise StoreFailed(
                f"what is remembered of {_shown(folder)} of {_shown(self._owner)} cannot be used: {error}; "
                "restore the store from its backup"
            ) from None
        self._known[folder] = (record.version, record.head[-CHECK_BYTES:], record.rest[-CHECK_BYTES:])
        return memory

    async def save(self, folder: bytes, memory: FolderMemory) -> FolderMemory:
        """See :class:`Memories`."""
        self._check_names(folder)
        for _ in range(ATTEMPTS):
            head, rest = memory.encode()
            sums = checksum(head), checksum(rest)
            version, *known = self._known.get(folder, (None, b"", b""))
            if sums == tuple(known):
                return memory
            written = None if sums[1] == known[1] else sealed(rest)
            if await self._backend.put(self._owner, folder, version, sealed(head), written):
                self._known[folder] = ((version or 0) + 1, *sums)
                return memory
            stored = await self.load(folder)
            if stored is not None:
                memory = memory.merged(stored)
        raise StoreFailed(f"others change {_shown(folder)} of {_shown(self._owner)} all the time")

    def _check_names(self, folder: bytes) -> None:
        if len(self._owner) > OWNER_BYTES or len(folder) > FOLDER_BYTES:
            raise StoreFailed("the name of the user or the mailbox is too long to be remembered")


def _shown(name: bytes) -> str:
    return ascii(name.decode("utf-8", "backslashreplace"))


def open_store(settings: Pop3Store | None) -> KeptStore | NoStore:
    """Return the store that is configured. Nothing is opened before its first use, so it may be made before a fork.

    Raises StoreFailed where a library that it needs is not installed.
    """
    if settings is None:
        return NoStore()
    return KeptStore(_backend(settings))


def _backend(settings: Pop3Store) -> StoreBackend:
    # Each library costs a worker some megabytes, so only the one that is used is loaded.
    if settings.path is not None:
        from mailgate.translate.store_sqlite import SqliteBackend

        return SqliteBackend(settings.path)
    from mailgate.translate.store_sql import SqlBackend

    return SqlBackend(settings)

"""What is remembered of mailboxes, in memory: a store for tests of those that use one."""

from __future__ import annotations

import trio

from mailgate.translate.memory import FolderMemory
from mailgate.translate.store_backend import StoreFailed


class Kept:
    """Whatever is saved goes through bytes; ``saves`` counts. With ``fails`` nothing can be saved."""

    def __init__(self) -> None:
        self.records: dict[bytes, tuple[bytes, bytes]] = {}
        self.saves = 0
        self.fails = False

    async def load(self, folder: bytes) -> FolderMemory | None:
        return FolderMemory.decode(*self.records[folder]) if folder in self.records else None

    async def save(self, folder: bytes, memory: FolderMemory) -> FolderMemory:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise StoreFailed("the disk is full")
        self.saves += 1
        self.records[folder] = memory.encode()
        return memory

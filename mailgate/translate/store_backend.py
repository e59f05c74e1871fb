"""What every kind of store does: records by owner and mailbox, written only where the expected version stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from mailgate.errors import MailgateError

SCHEMA: Final = 1
"""The layout of the tables that this version writes; it reads no newer one."""

OWNER_BYTES: Final = 512
FOLDER_BYTES: Final = 1024
"""Bytes of an owner and a mailbox's name: together a key of MariaDB has 3,072 at most. No server takes longer ones."""


class StoreFailed(MailgateError):
    """What is remembered cannot be read or written now; ``str()`` tells the administrator what to do."""


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in the store of a mailbox; ``version`` counts its changes."""

    version: int
    head: bytes
    rest: bytes


class StoreBackend(Protocol):
    """A kind of store. Every call raises :class:`StoreFailed`; all are made from Trio."""

    async def fetch(self, owner: bytes, folder: bytes) -> Record | None:
        """Return what stands of a mailbox, ``None`` only if nothing was ever written."""
        ...

    async def put(self, owner: bytes, folder: bytes, expected: int | None, head: bytes, rest: bytes | None) -> bool:
        """Write where version ``expected`` stands (``None``: where nothing does); return whether it did.

        ``rest`` is left as it is where it is ``None``.
        """
        ...

    async def folders(self, owner: bytes) -> list[bytes]:
        """Return the mailboxes of which something is remembered, sorted."""
        ...

    async def aclose(self) -> None:
        """Close what is open. The next call opens it again."""
        ...

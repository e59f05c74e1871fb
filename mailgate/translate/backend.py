"""The connection to the mailboxes of one maildrop, replaced where it was lost.

A POP3 session outlives its connection to the server: as long as UIDVALIDITY says that the mailboxes are the same
ones, numbers and unique-ids mean the same messages over another connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from mailgate.translate.imap_client import ClientError, ImapClient, MailboxChanged
from mailgate.translate.opening import OpenFolder

NONE: Final = -1
"""In the place of a folder: none that is known to be the right one."""

Dial = Callable[[], Awaitable[ImapClient]]
"""Signs in once more; raises UpstreamFailed, ClientError."""


class Backend:
    """Where the messages of an open maildrop are; ``folders`` are its mailboxes, as they were when it was opened."""

    def __init__(self, client: ImapClient, folders: Sequence[OpenFolder], dial: Dial, *, read_only: bool) -> None:
        self.folders = folders
        self.current = client
        self._dial = dial
        self._read_only = read_only
        # The last one to be opened is still selected.
        self._selected = len(folders) - 1

    async def client(self, folder: int) -> ImapClient:
        """Return a connection with a folder selected, by its place; raises ClientError or UpstreamFailed.

        Raises MailboxChanged where the folder is not the one that was opened: its UIDs mean other messages.
        """
        if not self.current.alive:
            await self.replace()
        if self._selected != folder or self.current.selected is None:
            opened = self.folders[folder]
            # What was selected and is another mailbox must not be taken for this one the next time.
            self._selected = NONE
            selected = await self.current.select(opened.name, read_only=self._read_only)
            if selected.uidvalidity != opened.selected.uidvalidity or not selected.uids_sticky:
                raise MailboxChanged("a mailbox is not the one that was opened")
            self._selected = folder
        return self.current

    async def replace(self) -> ImapClient:
        """Return another connection in the place of this one; raises UpstreamFailed, ClientError."""
        await self.current.aclose()
        self._selected = NONE
        self.current = await self._dial()
        return self.current

    async def keep_alive(self) -> None:
        """Let the server hear that its client is there; a connection that was lost is replaced when it is needed."""
        if self.current.alive:
            with suppress(ClientError):
                await self.current.noop()

    async def logout(self) -> None:
        """Take leave of the server, shortly, and close."""
        await self.current.logout()

    async def aclose(self) -> None:
        """Close the connection at once."""
        await self.current.aclose()

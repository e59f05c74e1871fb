"""An IMAP server that plays a script for a client; see ``tests.support.dialogue``: U says, G hears."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from mailgate.translate.imap_client import ImapClient
from tests.support.dialogue import Stage

T = TypeVar("T")

SIZES = (1, 7, 65_536)
"""Of the buffer that bursts are read into: byte by byte, in pieces, whole."""


async def playing(
    script: str,
    use: Callable[[ImapClient], Awaitable[T]],
    *,
    size: int = 65_536,
    capabilities: frozenset[str] = frozenset({"IMAP4REV1", "UIDPLUS", "MOVE"}),
    residual: bytes = b"",
    quirks: frozenset[str] = frozenset(),
    seconds: float = 60.0,
) -> T:
    """Play a script against ``use``; return what that returns, or raise what it raises."""
    stage = Stage()
    near = stage.open_upstream(b"joe", "LOGIN")
    client = ImapClient(near, bytearray(size), capabilities, residual, quirks=quirks, seconds=seconds)
    failed: list[BaseException] = []
    results: list[T] = []

    async def run() -> None:
        try:
            results.append(await use(client))
        except Exception as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await stage.play(script)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert results or failed, "the client waits for more than the script says"
    if failed:
        raise failed[0]
    return results[0]


SELECT = """
    G: m1 SELECT "INBOX"
    U: * FLAGS (\\Answered \\Deleted \\Seen)
    U: * OK [PERMANENTFLAGS (\\Answered \\Deleted \\Seen \\*)] Flags permitted.
    U: * {exists} EXISTS
    U: * 0 RECENT
    U: * OK [UIDVALIDITY 77] UIDs valid
    U: * OK [UIDNEXT 100] Predicted next UID
    U: * OK [HIGHESTMODSEQ 12] Highest
    U: m1 OK [READ-WRITE] Select completed.
"""


def selecting(exists: int) -> str:
    """Return the script of a mailbox being selected, by the client's first command."""
    return SELECT.format(exists=exists)


async def body_of(client: ImapClient, uid: int, section: bytes = b"", *part: int) -> bytes:
    """Receive a message, or a section of it, whole."""
    announced = await client.begin_body(uid, section, *part)
    whole = b""
    while (piece := await client.next_piece()) is not None:
        whole += piece
    assert len(whole) == announced
    return whole

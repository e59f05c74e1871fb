"""One message on its way from an IMAP server to a POP3 client, or its header and some lines of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mailgate.translate.imap_client import ImapClient, Malformed
from mailgate.wire.dotted import MessageEncoder

TOP_BEGINS: Final = 8 * 1024
"""Bytes of a message that the first request of a TOP asks for, beside those of its lines: most headers fit."""

TOP_LINE: Final = 100
"""Bytes that a line is taken to have when a request of a TOP is sized."""


async def begin_message(client: ImapClient, uid: int, lines: int | None) -> None:
    """Ask for a message, or for its header and some lines; raises ClientError, Vanished among them."""
    if not lines:
        await client.begin_body(uid, section_of(lines))
    else:
        await client.begin_body(uid, first=0, length=room_for(lines))


async def send_message(
    client: ImapClient,
    uid: int,
    encoder: MessageEncoder,
    lines: int | None,
    held: bytes,
    send: Callable[[bytes], Awaitable[None]],
) -> None:
    """Send ``held`` and what was begun, and the rest of it where a TOP needs more than was asked for.

    The last piece waits until the server says that the message was whole, and goes out with the final dot: clients
    become confused when that comes by itself.
    """
    taken, asked = 0, room_for(lines) if lines else 0
    while True:
        came = 0
        while (piece := await client.next_piece()) is not None:
            came += len(piece)
            if encoder.enough:
                continue
            out = encoder.feed(piece)
            if taken or came > len(piece):
                await send(held)
                held = out
            else:
                held += out
        taken += came
        if not lines or encoder.enough or came != asked:
            # One that gives more than was asked for has given all there is.
            break
        asked = 2 * room_for(lines)
        if await client.begin_body(uid, first=taken, length=asked) > asked:
            raise Malformed("more of a message than the part that was asked for")
    await send(held + encoder.finish())


async def has_utf8_header(client: ImapClient, uid: int) -> bool:
    """Return whether a message has bytes beyond ASCII in its header; raises ClientError."""
    await client.begin_body(uid, b"HEADER")
    found = False
    while (piece := await client.next_piece()) is not None:
        found = found or not bytes(piece).isascii()
    return found


def section_of(lines: int | None) -> bytes:
    """Return what of a message RETR, for which ``lines`` is None, or a TOP of no lines asks for."""
    return b"" if lines is None else b"HEADER"


def room_for(lines: int) -> int:
    """Return how many bytes of a message a TOP of so many lines asks for first."""
    return TOP_BEGINS + min(lines, 1 << 20) * TOP_LINE

"""One user's unique-ids are brought over: read from a file or an old POP3 server, matched, and put into the store.

Nothing is changed in the mailbox. It is opened by SELECT all the same: Courier gives no UIDVALIDITY to one that was
never opened otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mailgate.errors import MailgateError
from mailgate.translate.imap_client import ImapClient, Vanished
from mailgate.translate.memory import FolderMemory
from mailgate.translate.store import Memories
from mailgate.translate.uidl import header_hash, is_valid
from mailgate.uidls.comparing import Listing
from mailgate.uidls.files import Known, UidList
from mailgate.uidls.matching import Matches, Message, by_body, by_file, by_header, by_size, by_uid
from mailgate.uidls.pop3_server import MessageDigest, Pop3Server
from mailgate.wire.mailbox_name import canonical, to_wire


@dataclass(slots=True)
class Imported:
    """What came of one user's mailbox: how many messages were matched, and what was not."""

    matches: Matches
    messages: int
    changed: int = 0
    keys: dict[int, bytes] = field(default_factory=dict)


async def from_file(client: ImapClient, folder: bytes, known: Sequence[Known], uids: UidList | None) -> Imported:
    """Match what a file says with the messages of a mailbox. Raises MailgateError.

    By UID where the file has them, by the Maildir files that ``uids`` names, else by size alone.
    """
    selected = await client.select(folder)
    overview = await client.overview()
    messages = [Message(uid, size) for uid, size in zip(overview.uids, overview.sizes, strict=True)]
    if uids is not None:
        placed = by_file(known, uids)
        matches = by_uid(placed, selected.uidvalidity, messages)
        names = {one.uidl for one in placed}
        matches.lost += [one for one in known if one.uidl not in names]
    elif all(one.uid for one in known):
        matches = by_uid(known, selected.uidvalidity, messages)
    elif all(one.size for one in known):
        matches = by_size(known, messages)
    else:
        raise MailgateError("the file has neither UIDs nor sizes for all messages: name the list of files by --uids")
    return Imported(matches, len(messages))


async def from_pop3(client: ImapClient, folder: bytes, server: Pop3Server, tell: Callable[[int], None]) -> Imported:
    """Match what an old POP3 server shows with the messages of a mailbox. Raises MailgateError.

    ``tell`` hears for each message that the old server gave the header of, how many there are.
    """
    listing = await server.listing()
    if wrong := [uidl for uidl in listing.uidls if not is_valid(uidl)]:
        raise MailgateError(f"the old server has unique-ids that no client may be shown, such as {wrong[0]!r}")
    if len(set(listing.uidls)) < len(listing.uidls):
        raise MailgateError("the old server gives one unique-id to several messages")
    await client.select(folder)
    overview = await client.overview(want=frozenset({"headers"}), digest=header_hash)
    digests: dict[int, bytes] = {}

    def take(number: int, header: bytes) -> None:
        digests[number] = header_hash(header)
        tell(len(listing))

    await server.headers(range(1, len(listing) + 1), take)
    headers = overview.headers or []
    messages = [Message(*row) for row in zip(overview.uids, overview.sizes, headers, strict=True)]
    old = [(size, digests[number]) for number, size in enumerate(listing.sizes, 1)]
    result = by_header(old, messages)
    pairs = dict(result.pairs)
    for group in result.groups:
        pairs |= by_body(group, *await _bodies(client, server, group))
    return Imported(
        _matches(listing, pairs, messages),
        len(messages),
        keys={one.uid: b"H" + one.header for one in messages if one.header},
    )


async def _bodies(
    client: ImapClient, server: Pop3Server, group: tuple[list[int], list[int]]
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Return the digests of the messages of a group, by number and by UID."""
    numbers, uids = group
    old = {number: await server.digest(number) for number in numbers}
    new: dict[int, bytes] = {}
    for uid in uids:
        hashed = MessageDigest()
        try:
            await client.begin_body(uid)
            while (piece := await client.next_piece()) is not None:
                hashed.update(piece)
        except Vanished:
            continue
        new[uid] = hashed.digest()
    return old, new


def _matches(listing: Listing, pairs: dict[int, int], messages: Sequence[Message]) -> Matches:
    found = {uid: listing.uidls[number - 1] for number, uid in pairs.items()}
    lost = [
        Known(uidl, size=listing.sizes[number - 1])
        for number, uidl in enumerate(listing.uidls, 1)
        if number not in pairs
    ]
    return Matches(found, lost, [message.uid for message in messages if message.uid not in found])


async def keep(client: ImapClient, memories: Memories, folder: bytes, imported: Imported, *, dry: bool) -> None:
    """Put what was matched into the store; ``dry`` only counts what would change. Raises MailgateError.

    The mailbox is the one that is selected.
    """
    selected = client.selected
    assert selected is not None
    if not selected.uids_sticky:
        raise MailgateError("the server's UIDs last as long as a session: nothing can be remembered by them")
    key = canonical(folder)
    memory = await memories.load(key)
    if memory is None:
        memory = FolderMemory(selected.uidvalidity)
    elif memory.uidvalidity != selected.uidvalidity:
        memory = memory.renewed(selected.uidvalidity)
    entries = {
        uid: (uidl, imported.keys.get(uid, b""))
        for uid, uidl in imported.matches.found.items()
        if memory.uidl(uid) != uidl
    }
    imported.changed = len(entries)
    if dry or not entries:
        return
    memory.name(entries, exact=True)
    kept = await memories.save(key, memory)
    lost = [uidl for uid, uidl in imported.matches.found.items() if kept.uidl(uid) != uidl]
    if lost:
        raise MailgateError(f"sessions of this user gave {len(lost)} messages other unique-ids meanwhile: try again")


async def remembered(client: ImapClient, memories: Memories, folder: str) -> list[tuple[str, int, int, bytes]]:
    """Return mailbox, UIDVALIDITY, UID and unique-id of each message that has one. Raises MailgateError."""
    name = to_wire(folder)
    memory = await memories.load(canonical(name))
    selected = await client.select(name)
    if memory is None or memory.uidvalidity != selected.uidvalidity:
        return []
    overview = await client.overview()
    return [(folder, memory.uidvalidity, uid, uidl) for uid in overview.uids if (uidl := memory.uidl(uid)) is not None]

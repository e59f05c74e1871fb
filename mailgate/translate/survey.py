"""What is in a mailbox, by as few commands as can be trusted.

A snapshot of an earlier session saves most of the work: UIDs and sizes of messages never change while UIDVALIDITY
holds. Whether something vanished in between, the count of messages tells; whatever does not add up is asked again
as a whole, since a client that misses messages in the list forgets that it had them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from mailgate.translate.columns import among
from mailgate.translate.imap_client import UID_LIMIT, ImapClient, Overview, Selected
from mailgate.translate.memory import Snapshot

DELETED: Final = b"DELETED"


@dataclass(frozen=True, slots=True)
class Known:
    """What a UIDL is made of: EMAILID or X-GM-MSGID in decimal, and the digest of the header."""

    identity: bytes = b""
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Asking:
    """What is wanted: ``want``, as :meth:`ImapClient.overview` takes it, of new messages, ``want_all`` of all where all
    are asked for; ``digest`` makes of a header what is kept.

    ``keyword`` hides messages, empty: none does. ``show_deleted`` shows those that carry \\Deleted.
    """

    keyword: bytes = b""
    show_deleted: bool = False
    want: frozenset[str] = frozenset()
    want_all: frozenset[str] = frozenset()
    digest: Callable[[bytes], bytes] = bytes

    @property
    def hidden_by(self) -> bytes:
        """The search that finds what is hidden, empty where nothing is."""
        keyword = b"KEYWORD " + self.keyword if self.keyword else b""
        if self.show_deleted:
            return keyword
        return b"OR DELETED " + keyword if keyword else DELETED


@dataclass(slots=True)
class Survey:
    """A mailbox's messages, ascending by UID: ``snapshot`` has all of them, ``known`` what was asked for of some."""

    snapshot: Snapshot
    known: dict[int, Known] = field(default_factory=dict)

    def visible(self) -> array[int]:
        """Return the UIDs of what is not hidden."""
        hidden = self.snapshot.hidden
        if not hidden:
            return self.snapshot.uids
        return array("I", [uid for uid in self.snapshot.uids if not among(hidden, uid)])


async def survey(client: ImapClient, selected: Selected, earlier: Snapshot | None, asking: Asking) -> Survey:
    """Return what is in the mailbox that is selected.

    ``earlier`` is what was in it before, None where nothing is known that still holds. Raises what
    the client does.
    """
    if not client.exists:
        return Survey(_snapshot(selected, asking, array("I"), array("Q"), array("I")))
    if earlier is not None and (selected.uidnext is None or selected.uidnext >= earlier.uidnext):
        found = await _since(client, selected, earlier, asking)
        if found is not None:
            return found
    return _taken(selected, asking, await _overview(client, 1, asking, asking.want_all), None)


async def _since(client: ImapClient, selected: Selected, earlier: Snapshot, asking: Asking) -> Survey | None:
    """Return what is in the mailbox from what was in it and what is new; None where that does not add up.

    What is gone is gone from the count: what is there is what was there less what vanished, and what is new.
    """
    nothing_new = selected.uidnext == earlier.uidnext
    same_flags = earlier.hidden_by == asking.hidden_by
    # Flags that change count HIGHESTMODSEQ up (RFC 7162 §3.1.2.1); servers without it tell none, or 0.
    same_flags = same_flags and earlier.highestmodseq > 0 and selected.highestmodseq == earlier.highestmodseq
    if nothing_new and same_flags and selected.exists == len(earlier.uids):
        return Survey(earlier)
    new = None if nothing_new else await _overview(client, earlier.uidnext, asking, asking.want)
    count = len(new) if new is not None else 0
    hidden = await client.search(asking.hidden_by) if asking.hidden_by and earlier.uids else array("I")
    # What others append or expunge meanwhile can only make the sum wrong, never right.
    if len(earlier.uids) + count != selected.exists or client.expunged:
        # To hear which are left costs some seven bytes a message, a tenth of what their sizes would.
        left = await client.search(b"UID 1:%d" % (earlier.uidnext - 1)) if earlier.uids else array("I")
        sizes = dict(zip(earlier.uids, earlier.sizes, strict=True))
        if len(left) + count != selected.exists or client.expunged or any(uid not in sizes for uid in left):
            return None
        earlier = Snapshot(earlier.uidnext, 0, left, array("Q", [sizes[uid] for uid in left]), array("I"))
    old = Snapshot(earlier.uidnext, 0, earlier.uids, earlier.sizes, _within(hidden, earlier))
    if new is None:
        return Survey(_snapshot(selected, asking, old.uids, old.sizes, old.hidden))
    return _taken(selected, asking, new, old)


def _within(uids: Iterable[int], earlier: Snapshot) -> array[int]:
    return array("I", [uid for uid in uids if uid < earlier.uidnext and among(earlier.uids, uid)])


async def known(client: ImapClient, uids: list[int], asking: Asking) -> dict[int, Known]:
    """Return what UIDLs are made of for these messages at least; those that vanished are left out."""
    return _known(await client.overview(uids[0], asking.want, digest=asking.digest))


async def _overview(client: ImapClient, first: int, asking: Asking, want: frozenset[str]) -> Overview:
    return await client.overview(first, want, keyword=asking.keyword, digest=asking.digest)


def _known(found: Overview) -> dict[int, Known]:
    if found.ids is None and found.headers is None:
        return {}
    nothing = [b""] * len(found)
    told = zip(found.uids, found.ids or nothing, found.headers or nothing, strict=True)
    return {uid: Known(identity, digest) for uid, identity, digest in told}


def _taken(selected: Selected, asking: Asking, found: Overview, old: Snapshot | None) -> Survey:
    """Return the survey of new messages behind the old ones."""
    flagged = zip(found.uids, found.deleted, found.hidden, strict=True)
    hidden = array("I", [uid for uid, deleted, hides in flagged if hides or (deleted and not asking.show_deleted)])
    uids, sizes = found.uids, found.sizes
    if old is not None:
        uids, sizes, hidden = old.uids + uids, old.sizes + sizes, old.hidden + hidden
    return Survey(_snapshot(selected, asking, uids, sizes, hidden), _known(found))


def _snapshot(selected: Selected, asking: Asking, uids: array[int], sizes: array[int], hidden: array[int]) -> Snapshot:
    # A message that came behind SELECT is above the UIDNEXT that SELECT told.
    uidnext = min(max(selected.uidnext or 1, uids[-1] + 1 if uids else 1), UID_LIMIT)
    return Snapshot(uidnext, selected.highestmodseq or 0, uids, sizes, hidden, asking.hidden_by)

"""What differs between two POP3 servers' lists of the same mailbox, and what a mail client would make of it.

Clients know messages by their unique-ids. One that they have not seen is a new message, whatever is in it, and is
downloaded; most also forget those that are listed no more. Order and sizes matter to few: some old clients
go by numbers, and show progress by sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listing:
    """A maildrop as UIDL and LIST show it: one unique-id and one size for each message, in order of the numbers."""

    uidls: tuple[bytes, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.uidls)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs. ``gone`` and ``new`` hold the unique-ids that only one server shows, in its order.

    ``moved`` holds those that stand in another place among the common ones, ``resized`` unique-ids with both sizes,
    ``repeated`` those that one of the servers gives to several messages.
    """

    messages: int
    gone: tuple[bytes, ...] = ()
    new: tuple[bytes, ...] = ()
    moved: tuple[bytes, ...] = ()
    resized: tuple[tuple[bytes, int, int], ...] = ()
    repeated: tuple[bytes, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.gone or self.new or self.moved or self.resized or self.repeated)

    @property
    def everything(self) -> bool:
        """Whether clients would download every message again."""
        return 0 < self.messages == len(self.new)

    @property
    def verdict(self) -> str:
        """What a client that knows the old server would do at the new one, in a sentence."""
        if self.everything and self.gone:
            return f"clients would download everything again: {_messages(self.messages)}"
        if self.new:
            return f"clients would download {len(self.new)} of {_messages(self.messages)} again"
        if self.gone:
            return f"clients would download nothing again, and miss {_messages(len(self.gone))}"
        if self.same:
            return f"no differences: {_messages(self.messages)}"
        return "clients would download nothing again"


def compare(old: Listing, new: Listing) -> Comparison:
    """Return what differs between the old server and the new one."""
    before, after = dict(zip(old.uidls, old.sizes, strict=True)), dict(zip(new.uidls, new.sizes, strict=True))
    order_before = [uidl for uidl in before if uidl in after]
    order_after = [uidl for uidl in after if uidl in before]
    return Comparison(
        messages=len(new),
        gone=tuple(uidl for uidl in before if uidl not in after),
        new=tuple(uidl for uidl in after if uidl not in before),
        moved=tuple(here for there, here in zip(order_before, order_after, strict=True) if there != here),
        resized=tuple(
            (uidl, size, after[uidl]) for uidl, size in before.items() if uidl in after and after[uidl] != size
        ),
        repeated=tuple(uidl for listing in (old, new) for uidl in _repeated(listing.uidls)),
    )


def _repeated(uidls: Sequence[bytes]) -> list[bytes]:
    return [uidl for uidl, times in Counter(uidls).items() if times > 1]


def _messages(count: int) -> str:
    return f"{count} message{'s' * (count != 1)}"

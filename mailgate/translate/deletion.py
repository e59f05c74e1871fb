"""How messages that a POP3 client deleted go from an IMAP mailbox: the policy, and what the server can do.

Decided when the first message is deleted, so that a client hears of a policy that can never work in DELE's
answer and not when it is too late, in QUIT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from mailgate.config.pop3 import Pop3Policy, WithoutUidplus
from mailgate.model import Refusal
from mailgate.translate.imap_client import ImapClient, Refused, Selected
from mailgate.wire.mailbox_name import canonical, to_wire


class OpenFolder(Protocol):
    """A folder of an open maildrop."""

    @property
    def name(self) -> bytes:
        """The mailbox's name in the wire's bytes."""
        ...

    @property
    def selected(self) -> Selected:
        """What the server said when the maildrop was opened."""
        ...


class Way(StrEnum):
    r"""What is done in a folder to what was deleted there.

    ``EXPUNGE`` sets \Deleted and expunges these UIDs alone (RFC 4315). ``SHUFFLE`` hides the \Deleted of all other
    messages from a plain EXPUNGE (RFC 4315 §2.1). ``MOVE`` moves to the trash in one command (RFC 6851).
    ``FLAG`` sets \Deleted and ``KEYWORD`` a keyword, no more. ``NOTHING`` leaves a copy.
    """

    EXPUNGE = "expunge"
    SHUFFLE = "shuffle"
    MOVE = "move"
    FLAG = "flag"
    KEYWORD = "keyword"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Deletion:
    """How a folder's messages are deleted: in which way and, where ``trash`` is given, that they get there.

    A way other than ``MOVE`` with a trash copies first: the server has no MOVE.
    """

    way: Way
    trash: bytes = b""


READ_ONLY: Final = Refusal(
    "maildrop_read_only", "Messages cannot be deleted, the maildrop is read-only.", "", "SYS/PERM"
)
NO_FLAG: Final = Refusal("no_permanent_flag", "The mail server keeps no mark on deleted messages.", "", "SYS/PERM")
NO_TRASH: Final = Refusal("no_trash", "The mail server has no trash to move deleted messages to.", "", "SYS/PERM")
NO_UIDPLUS: Final = Refusal("no_uidplus", "The mail server cannot remove single messages.", "", "SYS/PERM")

_WITHOUT_UIDPLUS: Final[dict[WithoutUidplus, Deletion | Refusal]] = {
    "refuse": NO_UIDPLUS,
    "flag": Deletion(Way.FLAG),
    "shuffle": Deletion(Way.SHUFFLE),
}


async def plan(
    client: ImapClient, folders: Sequence[OpenFolder], settings: Pop3Policy
) -> tuple[Deletion | Refusal, ...]:
    """Return for each folder how its messages are deleted, or what DELE answers because that can never work.

    Asks the server for nothing but the name of its trash, and only where that is needed. Raises what the client's
    verbs raise for a connection that is lost; a server that refuses to list its mailboxes has no trash to us.
    """
    trash: bytes | None = None
    if _wants_trash(client.capabilities, settings):
        try:
            trash = to_wire(settings.trash, utf8=client.utf8) if settings.trash else await client.special_use("\\Trash")
        except Refused:
            trash = None
    return tuple(_of_folder(client.capabilities, folder, settings, trash) for folder in folders)


def _wants_trash(capabilities: frozenset[str], settings: Pop3Policy) -> bool:
    if settings.read_only:
        return False
    if settings.delete == "expunge":
        # An expunge alone only takes Gmail's label Inbox off: the message stays in All Mail.
        return _gmail(capabilities) or (not _has(capabilities, "UIDPLUS") and _has(capabilities, "MOVE"))
    return settings.delete == "trash"


def _of_folder(
    capabilities: frozenset[str], folder: OpenFolder, settings: Pop3Policy, trash: bytes | None
) -> Deletion | Refusal:
    selected = folder.selected
    if settings.delete == "never":
        return Deletion(Way.NOTHING)
    if settings.read_only or selected.read_only:
        return READ_ONLY
    if settings.delete == "keyword":
        kept = selected.flags_kept
        return Deletion(Way.KEYWORD) if {"\\*", settings.keyword.upper()} & kept else NO_FLAG
    in_trash = trash is not None and same_mailbox(folder.name, trash)
    if _wants_trash(capabilities, settings) and not in_trash:
        if trash is not None and _has(capabilities, "MOVE"):
            return Deletion(Way.MOVE, trash)
        if trash is None and (settings.delete == "trash" or _gmail(capabilities)):
            return NO_TRASH
    else:
        trash = None
    if "\\DELETED" not in selected.flags_kept:
        return NO_FLAG
    if settings.delete == "flag":
        return Deletion(Way.FLAG)
    removal = Deletion(Way.EXPUNGE) if _has(capabilities, "UIDPLUS") else _WITHOUT_UIDPLUS[settings.without_uidplus]
    return Deletion(removal.way, trash) if isinstance(removal, Deletion) and trash is not None else removal


def _has(capabilities: frozenset[str], extension: str) -> bool:
    """Return whether a server has MOVE or UIDPLUS, both of which are a part of IMAP4rev2 (RFC 9051 appendix E)."""
    return extension in capabilities or "IMAP4REV2" in capabilities


def _gmail(capabilities: frozenset[str]) -> bool:
    return "X-GM-EXT-1" in capabilities


def same_mailbox(one: bytes, other: bytes) -> bool:
    """Return whether both are the name of the same mailbox."""
    return canonical(one) == canonical(other)

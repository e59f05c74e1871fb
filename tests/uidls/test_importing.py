"""What was matched is put into the store: what was there before, what others write meanwhile, what cannot be kept."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mailgate.config import Pop3Store
from mailgate.errors import MailgateError
from mailgate.translate.imap_client import Overview, Selected
from mailgate.translate.memory import FolderMemory
from mailgate.translate.store import KeptMemories, KeptStore, open_store
from mailgate.translate.uidl import Template
from mailgate.uidls.comparing import Listing
from mailgate.uidls.files import Known
from mailgate.uidls.importing import Imported, from_file, from_pop3, keep, remembered
from mailgate.uidls.matching import Matches

SELECTED = Selected(7, 3, 4, None, True, frozenset(), False)


@dataclass
class Mailbox:
    """An IMAP client that has three messages."""

    selected: Selected = SELECTED
    opened: bytes = b""

    async def select(self, folder: bytes) -> Selected:
        self.opened = folder
        return self.selected

    async def overview(self, **options: object) -> Overview:
        return Overview(array("I", [1, 2, 3]), array("Q", [10, 20, 30]), bytes(3), bytes(3))


@dataclass
class Maildrop:
    """A POP3 server that shows a listing."""

    found: Listing

    async def listing(self) -> Listing:
        return self.found


@pytest.fixture
async def store(tmp_path: Path) -> KeptStore:
    made = open_store(Pop3Store(path=tmp_path / "pop3.sqlite"))
    assert isinstance(made, KeptStore)
    yield made  # type: ignore[misc]
    await made.aclose()


def imported(**found: bytes) -> Imported:
    return Imported(Matches({int(uid[1:]): uidl for uid, uidl in found.items()}), 3, keys={1: b"Hdigest"})


async def test_what_was_matched_goes_before_what_was_shown(store: KeptStore) -> None:
    shown = FolderMemory(7)
    shown.freeze([1, 2, 3], Template.parse("cyrus").bound(7))
    await store.of(b"anna").save(b"INBOX", shown)
    one = imported(_1=b"old-1", _2=b"7.2", _3=b"old-3")
    await keep(Mailbox(), store.of(b"anna"), b"inbox", one, dry=True)  # type: ignore[arg-type]
    assert one.changed == 2
    assert await store.of(b"anna").load(b"INBOX") == shown
    await keep(Mailbox(), store.of(b"anna"), b"inbox", one, dry=False)  # type: ignore[arg-type]
    memory = await store.of(b"anna").load(b"INBOX")
    assert memory is not None
    assert [memory.uidl(uid) for uid in (1, 2, 3)] == [b"old-1", b"7.2", b"old-3"]
    assert memory.exceptions.entries()[1] == (b"old-1", b"Hdigest")
    found = await remembered(Mailbox(), store.of(b"anna"), "INBOX")  # type: ignore[arg-type]
    assert found == [("INBOX", 7, 1, b"old-1"), ("INBOX", 7, 2, b"7.2"), ("INBOX", 7, 3, b"old-3")]


async def test_what_was_remembered_of_another_uidvalidity_means_nothing(store: KeptStore) -> None:
    await keep(Mailbox(), store.of(b"anna"), b"INBOX", imported(_1=b"old-1"), dry=False)  # type: ignore[arg-type]
    later = Mailbox(replace(SELECTED, uidvalidity=8))
    assert await remembered(later, store.of(b"anna"), "INBOX") == []  # type: ignore[arg-type]
    await keep(later, store.of(b"anna"), b"INBOX", imported(_2=b"old-1"), dry=False)  # type: ignore[arg-type]
    memory = await store.of(b"anna").load(b"INBOX")
    assert memory is not None
    assert (memory.uidvalidity, memory.uidl(1), memory.uidl(2)) == (8, None, b"old-1")


async def test_sessions_that_gave_other_ids_meanwhile_are_told(store: KeptStore) -> None:
    class Late(KeptMemories):
        async def load(self, folder: bytes) -> FolderMemory | None:
            found = await super().load(folder)
            if found is None:
                other = FolderMemory(7)
                other.name({1: (b"shown", b"")}, exact=True)
                await store.of(b"anna").save(b"INBOX", other)
            return found

    with pytest.raises(MailgateError, match="gave 1 messages other unique-ids meanwhile: try again"):
        await keep(Mailbox(), Late(store.backend, b"anna"), b"INBOX", imported(_1=b"old-1"), dry=False)  # type: ignore[arg-type]


async def test_uids_that_do_not_last_cannot_be_remembered_by(store: KeptStore) -> None:
    mailbox = Mailbox(replace(SELECTED, uids_sticky=False))
    with pytest.raises(MailgateError, match="last as long as a session"):
        await keep(mailbox, store.of(b"anna"), b"INBOX", imported(_1=b"old-1"), dry=False)  # type: ignore[arg-type]


async def test_a_file_needs_uids_or_sizes_for_all() -> None:
    by_size = await from_file(Mailbox(), b"Sent", [Known(b"a", size=10)], None)  # type: ignore[arg-type]
    assert by_size.matches.found == {1: b"a"}
    by_uid = await from_file(Mailbox(), b"Sent", [Known(b"a", uid=2), Known(b"b", uid=9)], None)  # type: ignore[arg-type]
    assert (by_uid.matches.found, by_uid.matches.lost) == ({2: b"a"}, [Known(b"b", uid=9)])
    with pytest.raises(MailgateError, match="name the list of files by --uids"):
        await from_file(Mailbox(), b"Sent", [Known(b"a", size=10), Known(b"b", file=b"x")], None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uidls", "said"), [((b"a", b"a"), "one unique-id to several messages"), ((b"a b",), "that no client may be shown")]
)
async def test_unique_ids_that_cannot_be_shown_are_told(uidls: tuple[bytes, ...], said: str) -> None:
    server = Maildrop(Listing(uidls, (1,) * len(uidls)))
    with pytest.raises(MailgateError, match=said):
        await from_pop3(Mailbox(), b"INBOX", server, lambda messages: None)  # type: ignore[arg-type]

"""What sessions remember, over a store in a dictionary and over a real one: nothing written in vain, nothing lost."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import pytest
import trio

from mailgate.config import Pop3Store
from mailgate.translate.memory import FolderMemory, Snapshot
from mailgate.translate.store import ATTEMPTS, KeptStore, NoStore, checksum, open_store, opened, owner_of, sealed
from mailgate.translate.store_backend import FOLDER_BYTES, OWNER_BYTES, Record, StoreFailed
from mailgate.translate.uidl import Template

TEMPLATE = Template.parse("dovecot").bound(7)


class Shelf:
    """A backend in a dictionary, which notes what is written."""

    def __init__(self) -> None:
        self.records: dict[tuple[bytes, bytes], Record] = {}
        self.written: list[tuple[bytes, bytes | None]] = []
        self.refuses = 0
        self.closed = False

    async def fetch(self, owner: bytes, folder: bytes) -> Record | None:
        await trio.lowlevel.checkpoint()
        return self.records.get((owner, folder))

    async def put(self, owner: bytes, folder: bytes, expected: int | None, head: bytes, rest: bytes | None) -> bool:
        await trio.lowlevel.checkpoint()
        record = self.records.get((owner, folder))
        if self.refuses:
            self.refuses -= 1
            return False
        if (record.version if record is not None else None) != expected:
            return False
        if rest is None:
            assert record is not None
        self.written.append((head, rest))
        old = record.rest if record is not None else b""
        self.records[owner, folder] = Record((expected or 0) + 1, head, old if rest is None else rest)
        return True

    async def folders(self, owner: bytes) -> list[bytes]:
        return sorted(folder for whose, folder in self.records if whose == owner)

    async def aclose(self) -> None:
        self.closed = True


def remembered(*uids: int, **named: bytes) -> FolderMemory:
    memory = FolderMemory(7)
    memory.freeze(uids, TEMPLATE)
    memory.name({int(uid[1:]): (uidl, b"") for uid, uidl in named.items()}, exact=True)
    return memory


async def test_what_is_saved_is_loaded_by_the_next_session() -> None:
    store = KeptStore(Shelf())
    memory = remembered(1, 2, 3, _9=b"imported")
    assert await store.of(b"anna").load(b"INBOX") is None
    assert await store.of(b"anna").save(b"INBOX", memory) is memory
    assert await store.of(b"anna").load(b"INBOX") == memory
    assert await store.of(b"anna").load(b"Sent") is None
    assert await store.of(b"bert").load(b"INBOX") is None


async def test_a_session_that_changes_nothing_writes_nothing() -> None:
    shelf = Shelf()
    session = KeptStore(shelf).of(b"anna")
    await session.save(b"INBOX", remembered(1, 2, _9=b"imported"))
    await session.save(b"INBOX", remembered(1, 2, _9=b"imported"))
    later = KeptStore(shelf).of(b"anna")
    memory = await later.load(b"INBOX")
    assert memory is not None
    await later.save(b"INBOX", memory)
    assert len(shelf.written) == 1


async def test_what_is_large_is_written_only_when_it_changes() -> None:
    shelf = Shelf()
    session = KeptStore(shelf).of(b"anna")
    memory = remembered(1, 2, _9=b"imported")
    await session.save(b"INBOX", memory)
    memory.snapshot = Snapshot(10, 5, array("I", [1]), array("Q", [1]), array("I"))
    await session.save(b"INBOX", memory)
    memory.name({10: (b"another", b"")}, exact=True)
    await session.save(b"INBOX", memory)
    assert [rest is None for _, rest in shelf.written] == [False, True, False]
    assert await KeptStore(shelf).of(b"anna").load(b"INBOX") == memory


async def test_who_loses_a_race_merges() -> None:
    shelf = Shelf()
    first, second = KeptStore(shelf).of(b"anna"), KeptStore(shelf).of(b"anna")
    await first.load(b"INBOX")
    await second.load(b"INBOX")
    await first.save(b"INBOX", remembered(1, _8=b"first"))
    merged = await second.save(b"INBOX", remembered(1, 2, _8=b"second", _9=b"other"))
    assert [merged.uidl(uid) for uid in (1, 2, 8, 9)] == [TEMPLATE.of_uid(1), TEMPLATE.of_uid(2), b"first", b"other"]
    assert await first.load(b"INBOX") == merged


async def test_of_many_sessions_at_once_none_loses_what_it_showed(tmp_path: Path) -> None:
    store = open_store(Pop3Store(path=tmp_path / "pop3.sqlite"))
    other = open_store(Pop3Store(path=tmp_path / "pop3.sqlite"))

    async def session(number: int) -> None:
        memories = (store, other)[number % 2].of(b"anna")
        memory = await memories.load(b"INBOX") or FolderMemory(7)
        memory.name({100 + number: (b"shown-%d" % number, b"")}, exact=True)
        memory = await memories.save(b"INBOX", memory)
        assert memory.uidl(100 + number) == b"shown-%d" % number

    async with trio.open_nursery() as nursery:
        for number in range(ATTEMPTS):
            nursery.start_soon(session, number)
    memory = await store.of(b"anna").load(b"INBOX")
    assert memory is not None
    assert [memory.uidl(100 + number) for number in range(ATTEMPTS)] == [b"shown-%d" % n for n in range(ATTEMPTS)]
    await store.aclose()
    await other.aclose()


async def test_who_never_wins_is_told() -> None:
    shelf = Shelf()
    session = KeptStore(shelf).of(b"anna")
    shelf.refuses = ATTEMPTS
    with pytest.raises(StoreFailed, match="all the time"):
        await session.save(b"INBOX", remembered(1))


@pytest.mark.parametrize("damage", ["head", "rest", "short", "foreign"])
async def test_damage_is_never_the_same_as_nothing(damage: str) -> None:
    shelf = Shelf()
    await KeptStore(shelf).of(b"anna").save(b"INBOX", remembered(1, 2, _9=b"imported"))
    ((key, record),) = shelf.records.items()
    flipped = bytes([record.head[3] ^ 1])
    shelf.records[key] = {
        "head": Record(1, record.head[:3] + flipped + record.head[4:], record.rest),
        "rest": Record(1, record.head, record.rest[:-1] + b"\0"),
        "short": Record(1, b"", record.rest),
        "foreign": Record(1, sealed(b"of a newer mailgate"), record.rest),
    }[damage]
    with pytest.raises(StoreFailed, match=r"of 'INBOX' of 'anna' cannot be used: .*; restore the store"):
        await KeptStore(shelf).of(b"anna").load(b"INBOX")


async def test_names_that_no_key_can_hold_are_refused() -> None:
    store = KeptStore(Shelf())
    with pytest.raises(StoreFailed, match="too long"):
        await store.of(b"x" * (OWNER_BYTES + 1)).load(b"INBOX")
    with pytest.raises(StoreFailed, match="too long"):
        await store.of(b"x").save(b"x" * (FOLDER_BYTES + 1), remembered(1))
    assert await store.of(b"x" * OWNER_BYTES).load(b"x" * FOLDER_BYTES) is None


async def test_without_a_store_nothing_is_remembered() -> None:
    store = open_store(None)
    assert isinstance(store, NoStore)
    memories = store.of(b"anna")
    memory = remembered(1)
    assert await memories.save(b"INBOX", memory) is memory
    assert await memories.load(b"INBOX") is None
    await store.aclose()


async def test_closing_a_store_closes_its_backend() -> None:
    shelf = Shelf()
    await KeptStore(shelf).aclose()
    assert shelf.closed


async def test_the_configuration_says_which_store_it_is(tmp_path: Path) -> None:
    kept = open_store(Pop3Store(path=tmp_path / "pop3.sqlite"))
    shared = open_store(Pop3Store(url="mariadb://gate@db.example.org/mail"))
    assert [type(one.backend).__name__ for one in (kept, shared) if isinstance(one, KeptStore)] == [
        "SqliteBackend",
        "SqlBackend",
    ]
    assert os.listdir(tmp_path) == []


def test_an_owner_is_a_user_of_a_realm_in_any_case() -> None:
    assert owner_of("", b"Anna@Example.ORG") == owner_of("", b"anna@example.org")
    assert owner_of("", b"anna") != owner_of("branch", b"anna")
    assert owner_of("", b"\xc4nna") != owner_of("", b"\xe4nna")


def test_a_seal_tells_what_was_changed() -> None:
    assert opened(sealed(b"")) == b""
    assert opened(sealed(b"value")) == b"value"
    assert len(checksum(b"x")) == 8
    for wrong in (b"", b"1234567", sealed(b"value")[1:], sealed(b"value")[:-1]):
        with pytest.raises(ValueError, match="check sum"):
            opened(wrong)

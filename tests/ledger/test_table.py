"""The shared memory: cells of addresses, the lock, workers that died, other layouts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from mailgate.ledger import Ledger, Seat
from mailgate.ledger.table import BUCKET, LAYOUT, MAGIC
from tests.support.children import child, ended


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger.create(2, 1000)
    yield ledger
    ledger.close()


def test_an_address_has_one_cell_from_its_claim_to_its_release(ledger: Ledger) -> None:
    digest = ledger.digest("192.0.2.1")
    assert ledger.find(digest) == -1
    numbers = ledger.claim(digest)
    assert ledger.find(digest) == numbers
    assert ledger.find(ledger.digest("192.0.2.2")) == -1
    ledger.cells[numbers + 1] = 1
    ledger.release(numbers)
    assert ledger.find(digest) == numbers, "somebody has a connection of it"
    ledger.cells[numbers + 1] = 0
    ledger.release(numbers)
    assert (ledger.find(digest), ledger.in_use()) == (-1, 0)


def test_cells_of_different_addresses_do_not_touch(ledger: Ledger) -> None:
    width = 2 * 3
    cells = {number: ledger.claim(ledger.digest(str(number))) for number in range(1000)}
    assert len({numbers // width for numbers in cells.values()}) == 1000
    assert all(ledger.find(ledger.digest(str(number))) == numbers for number, numbers in cells.items())


def test_a_bucket_has_an_end() -> None:
    ledger = Ledger.create(1, 1)
    claimed = [ledger.claim(ledger.digest(str(number))) for number in range(BUCKET + 1)]
    assert sorted(claimed) == [-1, *range(0, 3 * BUCKET, 3)]
    ledger.close()


def test_a_digest_that_lies_across_two_keys_is_not_found(ledger: Ledger) -> None:
    key = b"\1\2\3\4\5\6\7\x08"
    ledger.claim(key)
    assert ledger._map.find(key[4:] + bytes(4)) >= 0
    # Its bucket is the same one: the bits that choose it are the four that both have at the beginning, or none.
    for bucket in range(ledger._buckets):
        shifted = key[4:] + bytes(4)
        ledger._bucket = lambda _, first=bucket * BUCKET: first  # type: ignore[method-assign,misc]
        assert ledger.find(shifted) == -1


def test_no_two_ledgers_have_a_secret_in_common(ledger: Ledger) -> None:
    other = Ledger.create(2, 1000)
    assert ledger.digest("192.0.2.1") != other.digest("192.0.2.1")
    other.close()


def test_a_ledger_is_handed_on_with_what_it_counts(ledger: Ledger) -> None:
    numbers = ledger.claim(ledger.digest("192.0.2.1"))
    ledger.cells[numbers] = 7
    heir = Ledger.adopt([os.dup(descriptor) for descriptor in ledger.descriptors])
    assert heir is not None
    assert heir.slots == 2
    assert heir.cells[heir.find(heir.digest("192.0.2.1"))] == 7
    os.write(heir.pipes[1][1], b"x")
    assert os.read(ledger.pipes[1][0], 2) == b"x"
    heir.close()


@pytest.mark.parametrize("change", ["magic", "layout", "slots", "size", "empty"])
def test_memory_of_another_layout_is_not_used(ledger: Ledger, change: str) -> None:
    memory = ledger.descriptors[0]
    match change:
        case "magic":
            os.pwrite(memory, b"other", 0)
        case "layout":
            os.pwrite(memory, (LAYOUT + 1).to_bytes(4, "little"), len(MAGIC))
        case "slots":
            os.pwrite(memory, (3).to_bytes(4, "little"), len(MAGIC) + 4)
        case "size":
            os.truncate(memory, os.fstat(memory).st_size + 1)
        case "empty":
            empty = os.memfd_create("empty")
            assert Ledger.adopt([empty, *ledger.descriptors[1:]]) is None
            os.close(empty)
            return
    assert Ledger.adopt(ledger.descriptors) is None


def test_what_a_dead_worker_had_is_taken_out(ledger: Ledger) -> None:
    shared, own = (ledger.claim(ledger.digest(name)) for name in ("shared", "own"))
    ledger.cells[shared], ledger.cells[shared + 1], ledger.cells[own + 1] = 1, 2, 3
    ledger.totals[2], ledger.totals[3] = 1, 5
    ledger.claim(ledger.digest("claimed by one that was killed before it counted"))
    ledger.forget(1)
    assert ledger.cells[shared : shared + 2].tolist() == [1, 0]
    assert ledger.totals[2:4].tolist() == [1, 0]
    assert ledger.find(ledger.digest("own")) == -1
    assert ledger.in_use() == 1


def test_who_holds_the_lock_is_known_and_nobody_has_to_wait_for_it(ledger: Ledger) -> None:
    ledger.totals[1] = 1
    ready, tell = os.pipe()

    def hold() -> None:
        with ledger:
            os.write(tell, b"x")
            signal.pause()

    assert ledger.holder() == 0
    pid = child(hold)
    assert os.read(ready, 1) == b"x"
    assert ledger.holder() == pid
    assert not ledger.forget(1)
    assert ledger.totals[1] == 1
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    assert ledger.holder() == 0
    assert ledger.forget(1)
    assert ledger.totals[1] == 0
    with ledger:
        assert ledger.holder() == 0, "one's own lock is none that one waits for"
    os.close(ready)
    os.close(tell)


def test_all_sessions_are_counted_without_the_lock(ledger: Ledger) -> None:
    for slot in range(2):
        seat = Seat(ledger, slot, lambda: None)
        with seat:
            seat.enter("a", "192.0.2.1")
            seat.enter("b", "192.0.2.2")
    assert ledger.sessions() == 4

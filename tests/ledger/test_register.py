"""The files that workers share: locks of the kernel, the table of logins, what is handed on, other layouts."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from mailgate.ledger import Register
from mailgate.ledger.register import FILES, LAYOUT, MAGIC
from tests.support.children import child, ended
from tests.support.locker import Locker, locker


@pytest.fixture
def register() -> Register:
    return Register.create()


@pytest.fixture
def other(register: Register) -> Iterator[Locker]:
    with locker(register) as one:
        yield one


def test_a_lock_excludes_other_processes_until_it_is_freed(register: Register, other: Locker) -> None:
    place = register.place(b"joe")
    assert register.lock(place)
    assert not other.lock(place)
    assert other.lock(register.place(b"ann"))
    register.unlock(place)
    assert other.lock(place)
    assert not register.lock(place)


def test_places_at_both_ends_and_side_by_side_are_different_ones(register: Register, other: Locker) -> None:
    places = [0, 1, FILES, 2 * FILES, 2**62 - 1, 2**62 - 1 - FILES]
    assert all(map(register.lock, places))
    register.unlock(FILES)
    assert [place for place in places if other.may_lock(place)] == [FILES]


def test_places_are_spread_over_all_files_and_fit_into_an_offset(register: Register) -> None:
    places = {register.place(b"%d" % number) for number in range(1000)}
    assert len(places) == 1000
    assert {place % FILES for place in places} == set(range(FILES))
    assert max(places) < 2**62


def test_nobody_can_know_where_a_key_is(register: Register) -> None:
    assert Register.create().place(b"joe") != register.place(b"joe")


def test_one_that_is_killed_leaves_no_lock_behind(register: Register, other: Locker) -> None:
    places = [register.place(b"%d" % number) for number in range(100)]
    assert all(map(other.lock, places))
    assert not any(map(register.lock, places))
    other.kill()
    assert all(map(register.lock, places))


def test_a_register_is_handed_on_with_its_locks_and_logins(register: Register, other: Locker) -> None:
    place = register.place(b"joe")
    assert other.lock(place)
    register.note(b"joe", 100.0)
    heir = Register.adopt(register.descriptors)
    assert heir is not None
    assert heir.place(b"joe") == place
    assert not heir.lock(place)
    assert heir.remaining(b"joe", 110.0, 60.0) == 50.0
    other.unlock(place)
    assert heir.lock(place)


def test_logins_are_noted_for_all_processes(register: Register) -> None:
    assert register.remaining(b"joe", 100.0, 60.0) == 0
    assert ended(child(lambda: register.note(b"joe", 100.0))) == 0
    assert register.remaining(b"joe", 115.0, 60.0) == 45.0
    assert register.remaining(b"ann", 115.0, 60.0) == 0


def test_a_hundred_thousand_users_are_told_apart(register: Register) -> None:
    # The table has room for more than twice as many; some buckets overflow, and there the oldest are forgotten.
    for number in range(100_000):
        register.note(b"%d" % number, 100.0 + number / 10_000)
    known = sum(register.remaining(b"%d" % number, 110.0, 60.0) > 0 for number in range(100_000))
    assert known > 99_000
    assert sum(register.remaining(b"other %d" % number, 110.0, 60.0) > 0 for number in range(10_000)) == 0


@pytest.mark.parametrize("change", ["magic", "layout", "files", "size", "empty", "fewer", "none"])
def test_files_of_another_layout_are_not_used(register: Register, change: str) -> None:
    table = register.descriptors[0]
    descriptors = list(register.descriptors)
    match change:
        case "magic":
            os.pwrite(table, b"other", 0)
        case "layout":
            os.pwrite(table, (LAYOUT + 1).to_bytes(4, "little"), len(MAGIC))
        case "files":
            os.pwrite(table, (FILES + 1).to_bytes(4, "little"), len(MAGIC) + 4)
        case "size":
            os.truncate(table, os.fstat(table).st_size + 8)
        case "empty":
            descriptors[0] = os.memfd_create("empty")
        case "fewer":
            del descriptors[-1]
        case "none":
            descriptors = []
    assert Register.adopt(descriptors) is None
    if change == "empty":
        os.close(descriptors[0])


def test_its_files_are_closed_with_it() -> None:
    register = Register.create()
    descriptors = register.descriptors
    assert not any(map(os.get_inheritable, descriptors))
    del register
    gc.collect()
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

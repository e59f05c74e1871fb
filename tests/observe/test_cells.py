"""Numbers that processes share: who takes a part over counts on, and what does not fit harms nobody."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.observe import cells
from mailgate.observe.cells import Row, SharedCells


def rows(shared: SharedCells, number: int) -> list[tuple[str, tuple[str, ...], list[float]]]:
    return [(row.family, row.labels, list(row.values)) for row in shared.read()[number].rows]


def test_what_is_counted_is_there_for_readers_at_once() -> None:
    shared = SharedCells(2)
    part = shared.worker(1)
    row = part.row("commands", ("imap", "NOOP"), 3)
    row[2] += 0.5
    assert rows(shared, 1) == [("commands", ("imap", "NOOP"), [0.0, 0.0, 0.5])]
    row[0] += 1
    part.row("other", (), 1)[0] = 7
    assert rows(shared, 1) == [("commands", ("imap", "NOOP"), [1.0, 0.0, 0.5]), ("other", (), [7.0])]
    assert rows(shared, 0) == rows(shared, 2) == []
    assert [part.pid for part in shared.read()] == [0, os.getpid(), 0]


def test_a_row_is_the_same_by_its_labels() -> None:
    part = SharedCells().worker(0)
    part.row("a", ("x",), 1)[0] += 1
    assert part.row("a", ("x",), 1)[0] == 1
    assert part.row("a", ("y",), 1)[0] == 0
    assert part.row("b", ("x",), 1)[0] == 0


def test_a_replacement_counts_on_and_clears_what_holds_no_more() -> None:
    shared = SharedCells()
    first = shared.worker(0)
    first.row("logins", (), 1)[0] = 5
    first.row("open", ("imaps",), 2)[1] = 3
    shared.left(0, frozenset({"open"}))
    assert shared.read()[0].pid == 0
    assert rows(shared, 0) == [("logins", (), [5.0]), ("open", ("imaps",), [0.0, 0.0])]
    second = shared.worker(0)
    second.row("logins", (), 1)[0] += 1
    second.row("new", (), 1)[0] = 1
    assert rows(shared, 0) == [("logins", (), [6.0]), ("open", ("imaps",), [0.0, 0.0]), ("new", (), [1.0])]


def test_a_row_that_a_killed_process_began_is_written_anew() -> None:
    shared = SharedCells()
    part = shared.worker(0)
    part.row("a", (), 1)[0] = 1
    # What a process leaves that ends between a name and the note of it.
    shared._parts[0][cells.HEADER + 9 : cells.HEADER + 200] = b"x" * 191
    assert rows(shared, 0) == [("a", (), [1.0])]
    shared.worker(0).row("b", ('\n"é\x00',), 1)[0] = 2
    assert rows(shared, 0) == [("a", (), [1.0]), ("b", ('\n"é\x00',), [2.0])]


@pytest.mark.parametrize("room", ["NAMES", "CELLS"])
def test_without_room_a_row_counts_for_nobody(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, room, 64)
    monkeypatch.setattr(cells, "PART", cells.HEADER + cells.NAMES + cells.CELLS)
    shared = SharedCells()
    part = shared.worker(0)
    for number in range(20):
        part.row("family", (str(number),), 2)[1] += 1
    found = shared.read()[0]
    assert 0 < len(found.rows) < 20
    assert found.left_out == 20 - len(found.rows)
    assert all(row.values == [0.0, 1.0] for row in found.rows)


@pytest.mark.parametrize("number", [-1, 2])
def test_only_workers_that_there_are_have_a_part(number: int) -> None:
    with pytest.raises(ValueError, match="of 2"):
        SharedCells(2).worker(number)


@given(
    st.lists(
        st.tuples(st.text('ab"\\é\n', max_size=3), st.lists(st.text("ab,\n", max_size=2), max_size=2), st.floats(0, 9))
    )
)
def test_a_part_holds_what_a_table_would(told: list[tuple[str, list[str], float]]) -> None:
    shared = SharedCells()
    part = shared.worker(0)
    table: dict[tuple[str, tuple[str, ...]], float] = {}
    for family, labels, amount in told:
        part.row(family, tuple(labels), 1)[0] += amount
        table[family, tuple(labels)] = table.get((family, tuple(labels)), 0.0) + amount
    assert shared.read()[0].rows == [Row(family, labels, [value]) for (family, labels), value in table.items()]


# ---------------------------------------------------------------- handed on


def test_memory_that_is_handed_on_counts_on() -> None:
    shared = SharedCells(2)
    shared.worker(1).row("logins", ("imap",), 1)[0] = 5
    adopted = SharedCells.adopt(shared.descriptor, 2)
    assert adopted is not None
    assert not os.get_inheritable(adopted.descriptor)
    adopted.worker(0).row("logins", ("imap",), 1)[0] = 2
    assert rows(shared, 0) == [("logins", ("imap",), [2.0])]
    assert rows(adopted, 1) == [("logins", ("imap",), [5.0])]
    # Each has its own descriptor of the memory.
    del shared
    assert rows(adopted, 1) == [("logins", ("imap",), [5.0])]


def test_a_row_that_was_as_wide_otherwise_begins_anew_beside_it() -> None:
    shared = SharedCells()
    shared.worker(0).row("seconds", (), 3)[2] = 9
    assert list(shared.worker(0).row("seconds", (), 4)) == [0.0] * 4
    assert rows(shared, 0) == [("seconds", (), [0.0, 0.0, 9.0]), ("seconds", (), [0.0] * 4)]


def test_memory_of_another_layout_is_not_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedCells(2)
    assert SharedCells.adopt(shared.descriptor, 3) is None
    os.ftruncate(shared.descriptor, cells.HEAD)
    assert SharedCells.adopt(shared.descriptor, 2) is None
    monkeypatch.setattr(cells, "LAYOUT", cells.LAYOUT + 1)
    later = SharedCells()
    monkeypatch.undo()
    assert SharedCells.adopt(later.descriptor, 1) is None
    memory = os.memfd_create("empty")
    assert SharedCells.adopt(memory, 1) is None
    os.close(memory)

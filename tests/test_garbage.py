"""What has survived a full collection is not searched again, until everything is."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from mailgate import garbage
from mailgate.garbage import Collections, spare_what_lasts


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Leave the interpreter as it was."""
    thresholds, callbacks = gc.get_threshold(), gc.callbacks[:]
    yield
    gc.callbacks[:] = callbacks
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class Ring:
    """Refers to itself, so that only a collection ends it."""

    ended = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Ring.ended += 1


def searched() -> int:
    return len(gc.get_objects(generation=2))


def test_what_lasts_is_searched_once() -> None:
    spare_what_lasts()
    lasting = [[number] for number in range(10_000)]
    gc.collect(1)
    assert searched() >= len(lasting)
    gc.collect()
    assert searched() < 1000
    assert gc.get_threshold() == garbage.GENERATIONS


def test_new_cycles_are_found_meanwhile() -> None:
    spare_what_lasts()
    gc.collect()
    before = Ring.ended
    Ring()
    gc.collect()
    assert Ring.ended == before + 1


def test_cycles_that_were_set_aside_while_they_lived_are_found_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "ROUNDS", 3)
    gc.callbacks.append(Collections())
    before = Ring.ended
    ring = Ring()
    gc.collect()
    del ring
    gc.collect()
    assert Ring.ended == before
    gc.collect()
    assert Ring.ended == before + 1


def test_small_collections_set_nothing_aside() -> None:
    gc.callbacks.append(Collections())
    before = gc.get_freeze_count()
    gc.collect(0)
    gc.collect(1)
    assert gc.get_freeze_count() == before

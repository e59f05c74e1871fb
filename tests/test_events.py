"""Telling observers: all of them, in order, whatever one of them does."""

from __future__ import annotations

import dataclasses

import pytest

from mailgate import events
from mailgate.model import Peer, Protocol, Session, Side

SESSION = Session("x", Protocol.IMAP, "imaps", Peer("unix", 0), 0.0)
OPENED = events.SessionOpened(SESSION)


def test_every_observer_is_told_in_turn() -> None:
    told: list[tuple[str, events.Event]] = []
    emit = events.fan_out(
        (lambda event: told.append(("first", event)), lambda event: told.append(("second", event))),
        lambda observer, error: pytest.fail(str(error)),
    )
    emit(OPENED)
    assert told == [("first", OPENED), ("second", OPENED)]


def test_an_observer_that_raises_stops_no_other() -> None:
    told: list[events.Event] = []
    errors: list[tuple[object, BaseException]] = []
    error = ZeroDivisionError("oops")

    def bad(event: events.Event) -> None:
        raise error

    emit = events.fan_out((bad, told.append), lambda observer, raised: errors.append((observer, raised)))
    emit(OPENED)
    assert told == [OPENED]
    assert errors == [(bad, error)]


def test_what_ends_a_program_is_not_an_observer_s_error() -> None:
    def interrupted(event: events.Event) -> None:
        raise KeyboardInterrupt

    emit = events.fan_out((interrupted,), lambda observer, error: pytest.fail("reported"))
    with pytest.raises(KeyboardInterrupt):
        emit(OPENED)


def test_an_observer_is_told_what_it_hears_only() -> None:
    class Choosy:
        hears = frozenset({events.SessionOpened})

        def __init__(self) -> None:
            self.told: list[events.Event] = []

        def __call__(self, event: events.Event) -> None:
            self.told.append(event)

    choosy, told = Choosy(), list[events.Event]()
    emit = events.fan_out((choosy, told.append), lambda observer, error: pytest.fail(str(error)))
    closed = events.SessionClosed(SESSION, Side.CLIENT, "closed", 1.0)
    for event in (OPENED, closed, OPENED):
        emit(event)
    assert (choosy.told, told) == ([OPENED, OPENED], [OPENED, closed, OPENED])


def test_nobody_listens() -> None:
    events.fan_out((), lambda observer, error: pytest.fail("reported"))(OPENED)


@pytest.mark.parametrize("kind", events.Event.__subclasses__(), ids=lambda kind: kind.__name__)
def test_events_are_facts(kind: type[events.Event]) -> None:
    """They cannot be changed, they name their session first, and say in words what they mean."""
    assert kind.__doc__
    fields = dataclasses.fields(kind)
    assert fields[0].name == "session"
    event = kind(*([SESSION] + [None] * (len(fields) - 1)))
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
        event.session = SESSION  # type: ignore[misc]

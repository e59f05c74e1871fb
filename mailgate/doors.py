"""The listening sockets of a gateway: which stay open over a reload, which are new, which are gone.

A socket that stays is the same one all the time, since closing it would refuse the clients that wait
in its queue. New ones are opened before anything else changes, so that a configuration whose
addresses cannot be had is refused whole.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import trio

from mailgate.config import Config, Endpoint, Listener
from mailgate.config.checks import collide, text
from mailgate.errors import ConfigProblem
from mailgate.generation import Generation
from mailgate.net.listener import ListenError, open_socket

Kind = Literal["mail", "metrics", "admin"]

IN_THE_WAY: Final = (
    "overlaps {}, which stays open until the reload is done: take that out with one reload "
    "and put this in with the next, or restart"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a configuration wants to be reached; ``path`` is the option that says so."""

    path: str
    kind: Kind
    endpoint: Endpoint
    listener: Listener | None = None

    def same_as(self, other: Place) -> bool:
        """Whether one socket can serve both."""
        return (self.kind, self.endpoint) == (other.kind, other.endpoint)

    @property
    def facts(self) -> tuple[str, str, str]:
        """Its name, protocol and TLS, for the log."""
        listener = self.listener
        return (self.kind, "http", "off") if listener is None else (listener.name, listener.protocol, listener.tls)


def places(config: Config) -> Iterator[Place]:
    """Yield every place that a configuration names, in its order."""
    for number, listener in enumerate(config.listener):
        for index, endpoint in enumerate(listener.bind):
            yield Place(f"listener[{number}].bind[{index}]", "mail", endpoint, listener)
    if config.metrics is not None:
        yield Place("metrics.bind", "metrics", config.metrics.bind)
    if config.admin is not None:
        yield Place("admin.socket", "admin", Endpoint("", 0, config.admin.socket))


@dataclass(eq=False, slots=True)
class Door:
    """An open listening socket, and what those who come through it meet.

    ``scope`` is what serving it runs in, ``gone`` asks a web server to finish what it is answering.
    """

    place: Place
    socket: socket.socket
    generation: Generation | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    gone: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class Plan:
    """What a configuration makes of the doors; ``refused`` says which cannot be had."""

    kept: list[tuple[Door, Place]] = field(default_factory=list)
    opened: list[Door] = field(default_factory=list)
    leaving: list[Door] = field(default_factory=list)
    refused: list[ConfigProblem] = field(default_factory=list)
    error: ListenError | None = None

    def abandon(self) -> None:
        """Close what was opened for nothing."""
        for door in self.opened:
            door.socket.close()


Opener = Callable[[Place], socket.socket]
"""Returns a listening socket for a place; raises ListenError."""


def open_place(place: Place) -> socket.socket:
    """Open a socket; what administers is for its owner alone."""
    return open_socket(place.endpoint, private=place.kind == "admin")


def told(plan: Plan) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield what the log says of a plan that is in force: an event and its facts."""
    opened: dict[tuple[str, str, str], list[str]] = {}
    for door in plan.opened:
        opened.setdefault(door.place.facts, []).append(str(door.place.endpoint))
    for (name, protocol, tls), bind in opened.items():
        yield "listening", {"listener": name, "protocol": protocol, "tls": tls, "bind": bind}
    for door in plan.leaving:
        yield "listening no more", {"listener": door.place.facts[0], "bind": [str(door.place.endpoint)]}


class Doors:
    """All doors that are open."""

    def __init__(self) -> None:
        self.open: list[Door] = []

    def plan(self, config: Config, opener: Opener = open_place) -> Plan:
        """Open what a configuration wants and is not open yet; nothing else changes."""
        plan = Plan(leaving=list(self.open))
        wanted = []
        for place in places(config):
            door = next((door for door in plan.leaving if door.place.same_as(place)), None)
            if door is None:
                wanted.append(place)
            else:
                plan.leaving.remove(door)
                plan.kept.append((door, place))
        for place in wanted:
            try:
                self._open(place, plan, opener)
            except ListenError as error:
                plan.error = plan.error or error
                plan.refused.append(ConfigProblem(place.path, text(place.endpoint), str(error)))
            except BaseException:
                plan.abandon()
                raise
        return plan

    def _open(self, place: Place, plan: Plan, opener: Opener) -> None:
        for door in self.open:
            if collide(place.endpoint, door.place.endpoint):
                message = IN_THE_WAY.format(door.place.endpoint)
                plan.refused.append(ConfigProblem(place.path, text(place.endpoint), message))
                return
        plan.opened.append(Door(place, opener(place)))

    def keep(self, plan: Plan) -> None:
        """Have those doors open that a plan wants; the caller ends the others."""
        for door, place in plan.kept:
            door.place = place
        self.open = [door for door, _ in plan.kept] + plan.opened

    def carry_out(self, plan: Plan, generation: Generation) -> None:
        """Put a plan into force: whoever comes in from now on belongs to ``generation``."""
        self.keep(plan)
        for door in self.open:
            door.generation = generation
        for door in plan.leaving:
            if door.place.kind == "mail":
                door.scope.cancel()
            door.gone.set()

    def close(self, kind: Kind | None = None) -> None:
        """Close all sockets, or those of one kind, at the end."""
        for door in self.open:
            if kind in (None, door.place.kind):
                door.socket.close()

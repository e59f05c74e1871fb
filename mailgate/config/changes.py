"""What differs between two configurations, for whoever has asked for a reload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mailgate.config.models import Config
from mailgate.config.values import Settings


def changes(old: Config, new: Config) -> list[str]:
    """Return a line for each listener, pool, route and table that is new, gone or different.

    Options are named without their values.
    """
    return list(_changes(old, new))


def _changes(old: Config, new: Config) -> Iterator[str]:
    if old.hostname != new.hostname:
        yield "hostname: changed"
    if old.workers != new.workers:
        yield f"workers: {new.workers} instead of {old.workers}"
    yield from _named("listener", {one.name: one for one in old.listener}, {one.name: one for one in new.listener})
    yield from _named("pool", old.pool, new.pool)
    yield from _named("route", {one.name: one for one in old.route}, {one.name: one for one in new.route})
    before, after = [one.name for one in old.route], [one.name for one in new.route]
    if before != after and sorted(before) == sorted(after):
        yield "route: in another order"
    for name in type(new).model_fields:
        one, other = getattr(old, name), getattr(new, name)
        if isinstance(one or other, Settings):
            yield from _differences(f"[{name}]", one, other)


def _named(kind: str, old: Mapping[str, Settings], new: Mapping[str, Settings]) -> Iterator[str]:
    for name in dict.fromkeys((*old, *new)):
        yield from _differences(f"{kind} {name}", old.get(name), new.get(name))


def _differences(what: str, old: Settings | None, new: Settings | None) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield f"{what}: {'added' if old is None else 'removed'}"
        return
    options = [name for name in type(new).model_fields if getattr(old, name) != getattr(new, name)]
    if options:
        yield f"{what}: changed {', '.join(options)}"

"""The end of all sessions, slowly enough that their clients do not come back in the same second."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import trio

from mailgate.model import Protocol, Session, State
from mailgate.session.relay import Watch

TICK: Final = 0.05
"""Seconds between two looks at who has become idle."""

SHARE: Final = 0.5
"""The part of the time over which idle sessions are spread; the rest is for those that become idle late."""

AT_LEAST: Final = 10
"""Sessions that are told at each tick, however few there are: 200 reconnections in a second hurt no server."""

SPARED: Final = frozenset({Protocol.POP3})
"""A POP3 session that ends before QUIT loses its deletions (RFC 1939 §6), even when nothing is under way."""

CALM_TICK: Final = 0.5
"""Seconds between two looks where there is much time."""


async def thin_out(sessions: Mapping[str, Session], watch: Watch, seconds: float) -> None:
    """Let sessions go on to their end for ``seconds``; return when there are none, or when the time is over.

    Those that have nothing under way are told to go one by one, evenly over the first half of the time; whoever is
    never idle in that half is told later. Those that log in just now may do so, and POP3 sessions end by themselves.
    """
    began = trio.current_time()
    rate = len(sessions) / (seconds * SHARE) if math.isfinite(seconds) else 0.0
    told = 0
    # The newest may not be in the table yet, so the first look comes after a while, too.
    while (left := began + seconds - trio.current_time()) > 0:
        await trio.sleep(min(CALM_TICK, left))
        if not sessions:
            return
        due = math.floor(rate * (trio.current_time() - began))
        if due > told:
            watch.end_idle("shutting_down", due - told, SPARED)
            told = due


async def drain(
    sessions: Mapping[str, Session], scopes: Mapping[str, trio.CancelScope], watch: Watch, seconds: float
) -> int:
    """End all sessions within ``seconds``; return how many are left then, for the caller to cut off.

    Those that have not logged in or have nothing under way are told to go, some at each tick. The
    others are told when their commands are answered; POP3 sessions end by themselves.
    """
    deadline = trio.current_time() + seconds
    at_most = max(AT_LEAST, math.ceil(len(sessions) * TICK / (seconds * SHARE)))
    while sessions:
        left = deadline - trio.current_time()
        if left <= 0:
            break
        before_login = [
            scope
            for name, scope in scopes.items()
            if sessions[name].state is not State.RELAY and not scope.cancel_called
        ]
        for scope in before_login[:at_most]:
            scope.cancel()
        watch.end_idle("shutting_down", at_most - len(before_login), SPARED)
        await trio.sleep(min(TICK, left))
    return len(sessions)

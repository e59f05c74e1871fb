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

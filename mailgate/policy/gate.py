"""The one place where limits and refusals are asked: at connect, at login, at each command.

Connections are counted by :class:`~mailgate.policy.limits.Counts`, which are of this process alone or of all workers.
A decision and its count are one step, since nobody else counts between them.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from mailgate.model import ALLOW, Allow, Deny, Protocol, Verdict
from mailgate.policy import answers
from mailgate.policy.access import denied_verb
from mailgate.policy.limits import Counts, FailureDelay, OneWorker

IPV6_PREFIX = 64
"""An IPv6 customer is given a /64 at least, and can use a new address of it for each connection."""


_DENIED_COMMAND = Deny(answers.DENIED_COMMAND, "denied_command")


@dataclass(frozen=True, slots=True)
class GateSettings:
    """The numbers behind the rules; see ``docs/configuration.md`` for their names and reasons."""

    sessions: int = 20_000
    sessions_per_address: int = 100
    half_open: int = 2_000
    half_open_per_address: int = 50
    failures_per_session: int = 3
    failure_delay: float = 2.0
    failure_delay_max: float = 15.0
    bad_commands: int = 10


@dataclass(frozen=True, slots=True)
class Admission:
    """What the gate says to a connection, and which half-open ones must go to make room for it.

    With a ``shed_rule`` and nothing in ``shed`` it is one of another worker's, which that worker ends.
    """

    verdict: Allow | Deny
    shed: tuple[str, ...] = ()
    shed_rule: str = ""


def address_key(address: str) -> str:
    """Return what is counted for an address: an IPv6 address counts as its /64 network."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))


class Gate:
    """All rules of one worker and the counts that they ask, which are the earlier gate's where there was one.

    Sessions keep the gate that let them in, so each gate has rules of its own, while all count together.
    ``counts`` are those of several workers; without them this process counts alone.
    """

    def __init__(self, settings: GateSettings, earlier: Gate | None = None, counts: Counts | None = None) -> None:
        self.settings = settings
        self._counts: Counts = earlier._counts if earlier is not None else counts or OneWorker()
        self._delay = FailureDelay(settings.failure_delay, settings.failure_delay_max)
        self.deciders: dict[Protocol, Callable[[str], Verdict]] = {
            protocol: functools.partial(self.command, protocol) for protocol in Protocol
        }
        """What to ask for a command of each protocol: made once, not once for each session."""

    @property
    def sessions(self) -> int:
        """Connections that are open."""
        with self._counts:
            return self._counts.standing("").sessions

    @property
    def half_open(self) -> int:
        """Connections that have not logged in."""
        with self._counts:
            return self._counts.standing("").half_open

    def admit(self, session_id: str, address: str, now: float) -> Admission:
        """Ask for a new connection at the moment ``now``; it is counted if it is allowed."""
        settings, counts = self.settings, self._counts
        key = address_key(address)
        with counts:
            standing = counts.standing(key)
            if standing.of_key >= settings.sessions_per_address:
                return Admission(Deny(answers.CONNECTION_LIMIT, "sessions_per_address"))
            shed: tuple[str, ...] | None = ()
            rule = ""
            if standing.half_open_of_key >= settings.half_open_per_address:
                shed, rule = counts.make_room(key), "half_open_per_address"
            elif standing.half_open >= settings.half_open:
                shed, rule = counts.make_room(None), "half_open"
            elif standing.sessions >= settings.sessions:
                # A connection that has not logged in gives way: people at work must not, nor newcomers.
                shed, rule = counts.make_room(None) if standing.half_open > 0 else None, "sessions"
            if shed is None:
                refusal = answers.CONNECTION_LIMIT if rule == "half_open_per_address" else answers.PROCESS_FULL
                return Admission(Deny(refusal, rule))
            counts.enter(session_id, key)
        return Admission(ALLOW, shed, rule)

    def logged_in(self, session_id: str) -> None:
        """Note that a session is half-open no more."""
        self._counts.logged_in(session_id)

    def left(self, session_id: str) -> None:
        """Note that a session is over; does nothing the second time."""
        self._counts.left(session_id)

    def login_failed(self, failures: int) -> tuple[Allow | Deny, float]:
        """Ask after a session's ``failures``-th failed login: may it try again, after how many seconds.

        The last answer waits too, so that a client that reconnects after each round gains nothing.
        """
        seconds = self._delay.after(failures)
        if failures >= self.settings.failures_per_session:
            return Deny(answers.TOO_MANY_FAILURES, "failures_per_session"), seconds
        return ALLOW, seconds

    def bad_command(self, count: int) -> Allow | Deny:
        """Ask after a client's ``count``-th bad command before its login."""
        if count >= self.settings.bad_commands:
            return Deny(answers.TOO_MANY_BAD_COMMANDS, "bad_commands")
        return ALLOW

    def command(self, protocol: Protocol, verb: str) -> Verdict:
        """Ask for a command after login; ``verb`` is in upper case."""
        return ALLOW if denied_verb(protocol, verb) is None else _DENIED_COMMAND

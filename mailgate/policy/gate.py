"""The one place where limits and refusals are asked: at connect, at login, at each command.

The gate holds the counts of one worker. It is asked from ordinary code without a checkpoint in
between, so a decision and its count are one step.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from mailgate.model import ALLOW, Allow, Deny, Protocol, Verdict
from mailgate.policy import answers
from mailgate.policy.access import denied_verb
from mailgate.policy.limits import Concurrency, FailureDelay, HalfOpen

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
    """What the gate says to a connection, and which half-open ones must go to make room for it."""

    verdict: Allow | Deny
    shed: tuple[str, ...] = ()
    shed_rule: str = ""


def address_key(address: str) -> str:
    """Return what is counted for an address: an IPv6 address counts as its /64 network."""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))


class Gate:
    """All rules of one worker with their counts, which go on from the gate before it where there was one.

    Sessions keep the gate that let them in, so each gate has rules of its own, while all count together.
    """

    def __init__(self, settings: GateSettings, earlier: Gate | None = None) -> None:
        self.settings = settings
        self._keys: dict[str, str] = {} if earlier is None else earlier._keys
        self._sessions: Concurrency = Concurrency() if earlier is None else earlier._sessions
        self._half_open: HalfOpen = HalfOpen() if earlier is None else earlier._half_open
        self._delay = FailureDelay(settings.failure_delay, settings.failure_delay_max)
        self.deciders: dict[Protocol, Callable[[str], Verdict]] = {
            protocol: functools.partial(self.command, protocol) for protocol in Protocol
        }
        """What to ask for a command of each protocol: made once, not once for each session."""

    @property
    def sessions(self) -> int:
        """Connections that are open."""
        return self._sessions.total

    @property
    def half_open(self) -> int:
        """Connections that have not logged in."""
        return len(self._half_open)

    def admit(self, session_id: str, address: str, now: float) -> Admission:
        """Ask for a new connection at the moment ``now``; it is counted if it is allowed."""
        settings = self.settings
        key = address_key(address)
        if self._sessions[key] >= settings.sessions_per_address:
            return Admission(Deny(answers.CONNECTION_LIMIT, "sessions_per_address"))
        shed: tuple[str, ...] = ()
        rule = ""
        if self._half_open.of(key) >= settings.half_open_per_address:
            shed, rule = (self._half_open.oldest(key),), "half_open_per_address"
        elif len(self._half_open) >= settings.half_open:
            shed, rule = (self._half_open.oldest(),), "half_open"
        if self._sessions.total >= settings.sessions and not shed:
            if not len(self._half_open):
                return Admission(Deny(answers.PROCESS_FULL, "sessions"))
            # A connection that has not logged in gives way: people at work must not, nor newcomers.
            shed, rule = (self._half_open.oldest(),), "sessions"
        for member in shed:
            self.left(member)
        self._keys[session_id] = key
        self._sessions.enter(key)
        self._half_open.enter(session_id, key)
        return Admission(ALLOW, shed, rule)

    def logged_in(self, session_id: str) -> None:
        """Note that a session is half-open no more."""
        self._half_open.leave(session_id)

    def left(self, session_id: str) -> None:
        """Note that a session is over; does nothing the second time."""
        key = self._keys.pop(session_id, None)
        if key is not None:
            self._sessions.leave(key)
            self._half_open.leave(session_id)

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

"""Routes that stand in the configuration: the first rule whose conditions all hold wins.

A user name is bytes. It is compared as UTF-8, where bytes that are no UTF-8 stand for themselves
(PEP 383), so that every name can be matched and two different ones never become the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mailgate.config import Match, Pattern, RouteRule
from mailgate.model import Login, Protocol, Route, Session


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that was asked: whether it took the login, and the condition that decided."""

    rule: RouteRule
    matched: bool
    why: str


@dataclass(frozen=True, slots=True)
class _User:
    """A user name in the forms that conditions compare."""

    folded: str
    domain: str
    whole: str

    @classmethod
    def of(cls, name: bytes) -> _User:
        text = name.decode("utf-8", "surrogateescape")
        local, at, domain = text.rpartition("@")
        domain = domain.lower() if at else ""
        # One dot at the end makes a name absolute and no other name (RFC 1034 §3.1).
        domain = domain.removesuffix(".")
        return cls(
            text.lower().removesuffix(".") if at else text.lower(),
            domain,
            f"{local}{at}{domain}" if at else text,
        )


class _Rule:
    """A rule with its conditions made ready: sets for names, the pattern compiled."""

    __slots__ = ("_domains", "_listeners", "_parents", "_pattern", "_protocol", "_users", "route", "rule")

    def __init__(self, rule: RouteRule) -> None:
        match: Match = rule.match
        self.rule = rule
        self.route = Route(rule.name, rule.pool)
        self._users = frozenset(user.lower() for user in match.user)
        self._domains = frozenset(domain for domain in match.domain if not domain.startswith("*."))
        self._parents = tuple(domain[1:] for domain in match.domain if domain.startswith("*."))
        self._pattern = Pattern(match.regex) if match.regex is not None else None
        self._listeners = frozenset(match.listener)
        self._protocol = match.protocol

    def objection(self, user: _User, listener: str, protocol: Protocol) -> str | None:
        """Return the first condition that does not hold, in words; None when all do."""
        if self._listeners and listener not in self._listeners:
            return f"the listener is {listener or 'not given'}"
        if self._protocol is not None and protocol is not self._protocol:
            return f"the protocol is {protocol}"
        if self._users and user.folded not in self._users:
            return "the user is not in its list"
        if (self._domains or self._parents) and not self._has_domain(user.domain):
            return f"the domain is {user.domain}" if user.domain else "the user name has no domain"
        if self._pattern is not None and not self._pattern.matches(user.whole):
            return "the user name does not match its regex"
        return None

    def _has_domain(self, domain: str) -> bool:
        return domain in self._domains or any(
            domain.endswith(parent) and len(domain) > len(parent) for parent in self._parents
        )

    def conditions(self) -> str:
        """Return what holds when nothing objects, for an explanation."""
        given = {
            "user": bool(self._users),
            "domain": bool(self._domains or self._parents),
            "regex": self._pattern is not None,
            "listener": bool(self._listeners),
            "protocol": self._protocol is not None,
        }
        names = [name for name, is_given in given.items() if is_given]
        return f"{' and '.join(names)} match{'es' if len(names) == 1 else ''}" if names else "it takes everyone"


class StaticRouter:
    """Decides by the routes of the configuration; pure, so it can be asked for explanations too."""

    def __init__(self, rules: Sequence[RouteRule]) -> None:
        self._rules = tuple(_Rule(rule) for rule in rules)

    def decide(self, user: bytes, *, listener: str, protocol: Protocol) -> Route | None:
        """Return where a login goes, None when no rule takes it."""
        name = _User.of(user)
        for rule in self._rules:
            if rule.objection(name, listener, protocol) is None:
                return rule.route
        return None

    def explain(self, user: bytes, *, listener: str, protocol: Protocol) -> list[Step]:
        """Return every rule that is asked for a login, in order; the last one took it, if any did."""
        return list(self._steps(_User.of(user), listener, protocol))

    def _steps(self, user: _User, listener: str, protocol: Protocol) -> Iterator[Step]:
        for rule in self._rules:
            objection = rule.objection(user, listener, protocol)
            if objection is None:
                yield Step(rule.rule, True, rule.conditions())
                return
            yield Step(rule.rule, False, objection)

    async def __call__(self, login: Login, session: Session) -> Route | None:
        """Return where ``login`` goes: the identity to act as decides, where one was given."""
        return self.decide(login.authzid or login.user, listener=session.listener, protocol=login.protocol)

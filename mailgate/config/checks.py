"""What only a look at several options together shows: contradictions, gaps and risks.

:func:`problems` works on a :class:`Draft`, the parts that are valid in themselves, so that a
mistake in one listener does not hide one between a route and a pool. It never tells of something
that could be the consequence of a part that is missing because it was invalid.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailgate.config.values import Endpoint, format_duration, format_size
from mailgate.errors import ConfigProblem
from mailgate.model import Protocol

if TYPE_CHECKING:
    from mailgate.config.models import (
        Config,
        LimitSettings,
        Listener,
        Metrics,
        Pool,
        Pop3Policy,
        Pop3Settings,
        RouteRule,
        TraceSettings,
        UpstreamTls,
    )

UNTRANSLATED = (Protocol.IMAP, Protocol.POP3)
"""What a client speaks and what its server does, where nothing stands between: a maildrop has no mailboxes."""

# RFC 9051 §5.4 and RFC 1939 §3: an autologout timer lasts at least 30 and 10 minutes.
IDLE_MINIMUM = {Protocol.IMAP: 1800.0, Protocol.POP3: 600.0}


@dataclass(slots=True)
class Draft:
    """The valid parts of a configuration, by their place in it.

    ``listener_names``, ``pool_names`` and ``route_pools`` also hold the names in invalid parts;
    ``complete`` says that no listener and no route is missing because it was invalid.
    """

    listeners: dict[int, Listener] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    routes: dict[int, RouteRule] = field(default_factory=dict)
    listener_names: set[str] = field(default_factory=set)
    pool_names: set[str] = field(default_factory=set)
    route_pools: dict[int, str] = field(default_factory=dict)
    has_tls: bool = False
    has_admin: bool = False
    limits: LimitSettings | None = None
    metrics: Metrics | None = None
    trace: TraceSettings | None = None
    pop3: Pop3Settings | None = None
    complete: bool = True


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` for the known word nearest to ``word``, else nothing."""
    spellings = {name.casefold(): name for name in sorted(known)}
    near = difflib.get_close_matches(word.casefold(), spellings, n=1, cutoff=0.6)
    return f'; did you mean "{spellings[near[0]]}"?' if near else ""


def problems(draft: Draft) -> Iterator[ConfigProblem]:
    """Yield everything that is wrong between the parts of ``draft``."""
    yield from _duplicates(draft)
    for index, listener in draft.listeners.items():
        yield from _listener(f"listener[{index}]", listener, draft)
    for name, pool in draft.pools.items():
        yield from _pool(f"pool.{key(name)}", pool)
    yield from _routes(draft)
    if draft.limits is not None:
        yield from _limits(draft.limits)
    if draft.pop3 is not None:
        yield from _pop3(draft.pop3, draft)
    if draft.trace is not None and draft.trace.directory is not None and not draft.has_admin:
        yield ConfigProblem(
            "trace.directory",
            text(draft.trace.directory),
            "traces are started through the administration socket: add [admin] with socket = …",
        )


def warnings(config: Config) -> tuple[str, ...]:
    """Return what is allowed but risky or without effect, one sentence each."""
    return tuple(_warnings(config))


def key(name: str) -> str:
    """Return ``name`` as a part of a dotted TOML key."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else text(name)


def text(value: object) -> str:
    """Return ``value`` as a TOML basic string."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(ord(c)) for c in escaped) + '"'


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _duplicates(draft: Draft) -> Iterator[ConfigProblem]:
    yield from _repeated((f"listener[{i}].name", part.name) for i, part in draft.listeners.items())
    yield from _repeated((f"route[{i}].name", part.name) for i, part in draft.routes.items() if part.name)
    for name, pool in draft.pools.items():
        path = f"pool.{key(name)}.servers"
        servers = list(enumerate(pool.servers))
        yield from _repeated((f"{path}[{i}].address", str(server.address)) for i, server in servers)
        yield from _repeated((f"{path}[{i}].name", server.name) for i, server in servers)
    taken: list[tuple[str, Endpoint]] = []
    for index, listener in draft.listeners.items():
        taken += [(f"listener[{index}].bind[{i}]", endpoint) for i, endpoint in enumerate(listener.bind)]
    if draft.metrics is not None:
        taken.append(("metrics.bind", draft.metrics.bind))
    for place, (path, endpoint) in enumerate(taken):
        for other, earlier in taken[:place]:
            if collide(endpoint, earlier):
                yield ConfigProblem(path, text(endpoint), f"is already taken by {other} ({earlier})")
                break


def _repeated(named: Iterable[tuple[str, str]]) -> Iterator[ConfigProblem]:
    seen: dict[str, str] = {}
    for path, name in named:
        if name in seen:
            yield ConfigProblem(path, text(name), f"is already used by {seen[name]}")
        seen.setdefault(name, path)


def collide(one: Endpoint, other: Endpoint) -> bool:
    """Whether the two cannot be listened on at the same time."""
    if one == other:
        return True
    if one.path is not None or other.path is not None or one.port != other.port:
        return False
    try:
        first, second = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    except ValueError:
        return False
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)


def _listener(path: str, listener: Listener, draft: Draft) -> Iterator[ConfigProblem]:
    def wrong(option: str, value: object, message: str) -> ConfigProblem:
        return ConfigProblem(f"{path}.{option}", text(value), message)

    off = listener.tls == "off"
    if "tls" not in listener.model_fields_set and not listener.follows_port:
        yield ConfigProblem(
            f"{path}.tls", "", "these ports do not tell: write implicit, starttls, starttls-optional or off"
        )
    elif not off and not draft.has_tls:
        yield wrong("tls", listener.tls, "needs a certificate: add [tls] with certificate = … and key = …")
    if off and listener.profile is not None:
        yield wrong("profile", listener.profile, "has no effect with tls = off")
    if listener.allow_plaintext_auth and listener.tls in ("implicit", "starttls"):
        yield ConfigProblem(
            f"{path}.allow_plaintext_auth",
            "true",
            f"has no effect with tls = {listener.tls}; passwords in clear need starttls-optional or off",
        )
    if off and not listener.allow_plaintext_auth:
        yield wrong(
            "tls",
            "off",
            "nobody could log in: passwords in clear need allow_plaintext_auth = true here, "
            "which lets everyone on the way read them",
        )
    minimum = IDLE_MINIMUM[listener.protocol]
    if listener.idle_timeout < minimum:
        yield wrong(
            "idle_timeout",
            format_duration(listener.idle_timeout),
            f"must be at least {format_duration(minimum)} for {listener.protocol}, "
            "or clients that wait for mail are cut off",
        )
    if listener.inspect == "login" and draft.trace is not None and draft.trace.directory is not None:
        yield wrong(
            "inspect",
            "login",
            "traces need to see commands, to keep messages out: write inspect = commands or leave out trace.directory",
        )


def _pool(path: str, pool: Pool) -> Iterator[ConfigProblem]:
    yield from _upstream_tls(path, pool, pool.tls)
    remote = [server for server in pool.servers if not server.address.loopback]
    if pool.allow_plaintext_auth and pool.tls.mode != "off":
        yield ConfigProblem(f"{path}.allow_plaintext_auth", "true", f"has no effect with tls = {pool.tls.mode}")
    if pool.tls.mode == "off" and remote and not pool.allow_plaintext_auth:
        yield ConfigProblem(
            f"{path}.tls",
            text("off"),
            f"passwords would go to {remote[0].address} in clear: use implicit or starttls, "
            "or allow it with allow_plaintext_auth = true",
        )
    for option in ("connect_timeout", "greeting_timeout"):
        seconds: float = getattr(pool, option)
        if seconds > pool.login_timeout:
            yield ConfigProblem(
                f"{path}.{option}",
                text(format_duration(seconds)),
                f"is part of a login and cannot be longer than login_timeout ({format_duration(pool.login_timeout)})",
            )


def _upstream_tls(path: str, pool: Pool, tls: UpstreamTls) -> Iterator[ConfigProblem]:
    if "mode" not in tls.model_fields_set:
        yield ConfigProblem(f"{path}.tls", "", "these ports do not tell: write implicit, starttls or off")
        return
    given = {
        "ca": tls.ca != "system",
        "pin": bool(tls.pin),
        "name": tls.name is not None,
        "verify": not tls.verify,
        "certificate": tls.certificate is not None,
        "key": tls.key is not None,
    }
    if tls.mode == "off":
        for option in (option for option, is_given in given.items() if is_given):
            yield ConfigProblem(f"{path}.tls.{option}", "", "has no effect with mode = off")
        return
    if given["key"] and not given["certificate"]:
        yield ConfigProblem(f"{path}.tls.key", "", "needs a certificate beside it")
    if not tls.verify:
        for option in (option for option in ("ca", "pin") if given[option]):
            yield ConfigProblem(f"{path}.tls.{option}", "", "has no effect with verify = false")
    if tls.pin and given["ca"]:
        yield ConfigProblem(f"{path}.tls.ca", "", "has no effect with pin: a pin names the certificate itself")
    if tls.verify and not tls.pin and tls.name is None:
        for index, server in enumerate(pool.servers):
            if server.address.path is not None:
                yield ConfigProblem(
                    f"{path}.servers[{index}].address",
                    text(server.address),
                    "a Unix socket has no host name to find in a certificate: add tls.name or tls.pin",
                )


def _routes(draft: Draft) -> Iterator[ConfigProblem]:
    if not draft.routes and draft.complete and len(draft.pool_names) > 1:
        yield ConfigProblem("route", "", "with several pools it must be said which login goes where")
    for index, pool in draft.route_pools.items():
        if pool not in draft.pool_names:
            hint = suggestion(pool, draft.pool_names)
            yield ConfigProblem(f"route[{index}].pool", text(pool), f"there is no such pool{hint}")
    for index, rule in draft.routes.items():
        for name in rule.match.listener:
            if name not in draft.listener_names:
                hint = suggestion(name, draft.listener_names)
                message = f"there is no such listener{hint}"
                yield ConfigProblem(f"route[{index}].match.listener", text(name), message)
    if draft.complete:
        yield from _mismatches(draft)


def _pop3(settings: Pop3Settings, draft: Draft) -> Iterator[ConfigProblem]:
    policies: dict[str, Pop3Policy] = {"pop3": settings}
    for index, rule in draft.routes.items():
        if rule.pop3 is None:
            continue
        policies[f"route[{index}].pop3"] = rule.pop3
        pool = draft.pools.get(rule.pool)
        if pool is not None and pool.protocol is not Protocol.IMAP:
            yield ConfigProblem(
                f"route[{index}].pop3", "", f'has no effect: pool "{pool.name or rule.pool}" speaks pop3'
            )
    several = settings.gateways == "several"
    if settings.store is not None:
        if several and settings.store.path is not None:
            yield ConfigProblem(
                "pop3.store.path",
                text(settings.store.path),
                "the other gateways would not know what clients saw here: write url = … of a database that all share",
            )
        return
    if several:
        yield ConfigProblem(
            "pop3.gateways",
            text(settings.gateways),
            "each gateway must know what clients saw at the others: add [pop3.store] with url = … of a database that "
            "all share",
        )
        return
    needs = {
        "max_age": "a message that was shown once must stay",
        "max_messages": "a message that was shown once must stay",
        "size": "what was seen must be kept",
    }
    for path, policy in policies.items():
        for option, why in needs.items():
            value = getattr(policy, option)
            if value and value not in ("trust", "exact"):
                yield ConfigProblem(
                    f"{path}.{option}",
                    str(value)
                    if isinstance(value, int)
                    else text(format_duration(value) if isinstance(value, float) else value),
                    f"{why}, so this needs a place to remember: add [pop3.store] with path = …",
                )


def _mismatches(draft: Draft) -> Iterator[ConfigProblem]:
    """Yield the routes that would send IMAP clients to servers that speak POP3: the other way is translated."""
    rules = dict(draft.routes)
    if not rules and len(draft.pools) == 1 == len(draft.pool_names):
        name, pool = next(iter(draft.pools.items()))
        for index, listener in draft.listeners.items():
            if (listener.protocol, pool.protocol) == UNTRANSLATED:
                yield ConfigProblem(
                    f"listener[{index}].protocol",
                    text(listener.protocol),
                    f'the only pool, "{name}", speaks {pool.protocol}, which is not translated: '
                    f"add a pool with protocol = {listener.protocol}",
                )
        return
    told = set()
    for listener in draft.listeners.values():
        for index, rule in reached_by(listener, rules.items()):
            target = draft.pools.get(rule.pool)
            if target is None or (listener.protocol, target.protocol) != UNTRANSLATED or index in told:
                continue
            told.add(index)
            yield ConfigProblem(
                f"route[{index}].pool",
                text(rule.pool),
                f'logins of listener "{listener.name}" ({listener.protocol}) come here and the pool speaks '
                f"{target.protocol}, which is not translated: limit the route with "
                f'match = {{ protocol = "{target.protocol}" }}, or put a route for '
                f"{listener.protocol} before it",
            )


def reached_by(listener: Listener, rules: Iterable[tuple[int, RouteRule]]) -> Iterator[tuple[int, RouteRule]]:
    """Yield the routes that a login on ``listener`` can come to, up to the first that takes all."""
    for index, rule in rules:
        match = rule.match
        if match.listener and listener.name not in match.listener:
            continue
        if match.protocol is not None and match.protocol != listener.protocol:
            continue
        yield index, rule
        if match.catches_all_users:
            return


def _limits(limits: LimitSettings) -> Iterator[ConfigProblem]:
    if limits.failure_delay > limits.failure_delay_max:
        yield ConfigProblem(
            "limits.failure_delay",
            text(format_duration(limits.failure_delay)),
            f"is longer than failure_delay_max ({format_duration(limits.failure_delay_max)})",
        )
    for option in ("line", "literal"):
        size: int = getattr(limits, option)
        if size > limits.total:
            yield ConfigProblem(
                f"limits.{option}",
                text(format_size(size)),
                f"is larger than total ({format_size(limits.total)}), so it could never be used up",
            )


def _warnings(config: Config) -> Iterator[str]:
    for index, listener in enumerate(config.listener):
        where = f'listener[{index}] "{listener.name}"'
        profile = listener.profile or (config.tls.profile if config.tls is not None else None)
        if listener.tls != "off" and profile == "legacy":
            yield f"{where}: profile = legacy allows TLS 1.0 and ciphers that can be broken."
        if listener.allow_plaintext_auth and not all(endpoint.loopback for endpoint in listener.bind):
            yield f"{where}: passwords may come without TLS, readable for everyone on the way."
        if listener.tls == "starttls-optional" and not listener.allow_plaintext_auth:
            yield f"{where}: tls = starttls-optional without allow_plaintext_auth works like starttls."
    for name, pool in config.pool.items():
        if pool.tls.mode != "off" and not pool.tls.verify:
            yield f"pool.{key(name)}: verify = false accepts any certificate, also an attacker's."
        if pool.allow_plaintext_auth and any(not server.address.loopback for server in pool.servers):
            yield f"pool.{key(name)}: passwords go to the servers without TLS."
        if not any(rule.pool == name for rule in config.route):
            yield f"pool.{key(name)}: no route leads to it."
    if config.tls is not None and all(listener.tls == "off" for listener in config.listener):
        yield "tls: no listener uses the certificate."
    yield from _route_warnings(config)


def _route_warnings(config: Config) -> Iterator[str]:
    reached: set[int] = set()
    for index, listener in enumerate(config.listener):
        rules = list(reached_by(listener, enumerate(config.route)))
        reached |= {place for place, _ in rules}
        if not rules or not rules[-1][1].match.catches_all_users:
            yield (
                f'listener[{index}] "{listener.name}": no route takes everyone, so logins that match none are refused.'
            )
    for index, rule in enumerate(config.route):
        if index not in reached:
            yield f'route[{index}] "{rule.name}": is never reached.'

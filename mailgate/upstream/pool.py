"""The pools' servers: which one a login is taken to, and what is known of each."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Protocol, TypeAlias, TypeVar

import trio

from mailgate import model
from mailgate.balance.choose import RoundRobin
from mailgate.config import Pool, Server
from mailgate.errors import RemoteProtocolError, UpstreamFailed
from mailgate.events import Emit, UpstreamConnected, UpstreamRefused
from mailgate.model import Failure, Login, Route, Session
from mailgate.upstream.dial import Dialer
from mailgate.upstream.imap import ImapLeg
from mailgate.upstream.leg import READ_SIZE, SignedIn, UpstreamLeg
from mailgate.upstream.limit import StepLimit
from mailgate.upstream.pop3 import Pop3Leg

PROBE_SECONDS: Final = 300.0
"""How often each server is asked what it can. Capabilities change with upgrades, not by the minute."""

RETRIED: Final = frozenset({Failure.CONNECT, Failure.TLS, Failure.TIMEOUT, Failure.AUTH_TEMPORARY})
"""Failures after which another server may be tried. A TIMEOUT is retried only before the login was
sent: behind it the first server may have begun a session."""

LEGS: Final[dict[model.Protocol, type[UpstreamLeg]]] = {model.Protocol.IMAP: ImapLeg, model.Protocol.POP3: Pop3Leg}

T = TypeVar("T")

Use: TypeAlias = Callable[[UpstreamLeg, StepLimit], Awaitable[T]]
"""What is done with a server that has greeted."""

ProbeResult = Callable[[str, str, UpstreamFailed | None], None]
"""Told after each probe: the pool, the server, and why it failed or None."""


class Pools(Protocol):
    """What has pools: a configuration, or less."""

    @property
    def pool(self) -> Mapping[str, Pool]:
        """The pools by their names."""
        ...


class Upstreams:
    """All pools of a configuration. Raises OSError or ssl.SSLError if a pool's TLS files are unusable."""

    def __init__(self, config: Pools, emit: Emit) -> None:
        self._emit = emit
        self._pools = dict(config.pool)
        self._dialers = {name: Dialer(pool) for name, pool in config.pool.items()}
        self._choosers: dict[str, RoundRobin[Server]] = {name: RoundRobin() for name in config.pool}
        self._before_login: dict[tuple[str, str], frozenset[str]] = {}
        self._after_login: dict[tuple[str, str], frozenset[str]] = {}
        self._unreachable: set[tuple[str, str]] = set()
        self._buffer = bytearray(READ_SIZE)

    def learn_from(self, earlier: Upstreams) -> None:
        """Take over what is known of the pools whose settings are the same."""
        same = {name for name, pool in self._pools.items() if earlier._pools.get(name) == pool}
        self._choosers |= {name: earlier._choosers[name] for name in same}
        self._before_login |= {key: known for key, known in earlier._before_login.items() if key[0] in same}
        self._after_login |= {key: known for key, known in earlier._after_login.items() if key[0] in same}
        self._unreachable |= {key for key in earlier._unreachable if key[0] in same}

    # ---------------------------------------------------------------- logins

    async def open(self, route: Route, login: Login, session: Session) -> SignedIn:
        """Take a login to one of the pool's servers; raises UpstreamFailed with the last one's failure."""
        pool = self._pools[route.pool]
        chooser = self._choosers[route.pool]
        began = trio.current_time()
        deadline = began + pool.login_timeout
        last: UpstreamFailed | None = None
        for server in chooser.order(pool.servers, began):
            if last is not None and trio.current_time() >= deadline:
                break
            session.server = server.name
            try:
                return await self._try(route.pool, server, login, session, deadline)
            except UpstreamFailed as failed:
                reached = (route.pool, server.name) not in self._unreachable
                self._emit(
                    UpstreamRefused(
                        session, route.pool, server.name, failed.failure, failed.state, failed.detail, reached
                    )
                )
                last = failed
                if failed.failure not in RETRIED or _login_was_sent(failed):
                    break
        if last is None:
            raise UpstreamFailed(Failure.CONNECT, "none/none", "the pool has no server")
        raise last

    async def _try(self, pool_name: str, server: Server, login: Login, session: Session, deadline: float) -> SignedIn:
        pool = self._pools[pool_name]

        async def sign_in(leg: UpstreamLeg, limit: StepLimit) -> SignedIn:
            now = trio.current_time()
            self._emit(UpstreamConnected(session, pool_name, server.name, now - limit.began))
            limit.begin(leg, "answer", pool.login_timeout, deadline)
            signed_in = await leg.sign_in(login)
            leg.dialer.keep_session(leg.stream, server)
            return signed_in

        signed_in = await self._reach(pool_name, server, sign_in)
        self._after_login[pool_name, server.name] = signed_in.capabilities
        return signed_in

    async def _reach(self, pool_name: str, server: Server, use: Use[T], *, ask: bool = False) -> T:
        """Connect to a server, hear its greeting and use it; remembers whether the server is there.

        Unless ``use`` returns, the connection is closed. With ``ask`` the server tells its capabilities
        again, whatever is known of them.
        """
        key = pool_name, server.name
        greeted = False
        try:
            dialer = self._dialers[pool_name]
            with StepLimit(server.name, dialer.pool.connect_timeout) as limit:
                stream = await dialer.dial(server, limit)
                try:
                    leg = LEGS[dialer.pool.protocol](dialer, server, stream, self._buffer)
                    limit.begin(leg, "answer", dialer.pool.greeting_timeout)
                    await leg.greet(None if ask else self._before_login.get(key))
                    greeted = True
                    self._choosers[pool_name].succeeded(server)
                    self._unreachable.discard(key)
                    self._before_login[key] = leg.capabilities
                    return await use(leg, limit)
                except RemoteProtocolError as error:
                    stream.abort()
                    raise leg.failed(Failure.PROTOCOL, str(error)) from error
                except BaseException:
                    stream.abort()
                    raise
        except UpstreamFailed:
            if not greeted:
                self._choosers[pool_name].failed(server, trio.current_time())
                self._unreachable.add(key)
            raise
        raise AssertionError("a limit that is over raises")

    # ---------------------------------------------------------------- what is known

    def known_capabilities(self, pools: Iterable[str]) -> list[frozenset[str]]:
        """Return, in upper case, what each reachable server of these pools can that was heard of.

        What it said after a login counts where there was one, with the mechanisms it offered
        before, which only then concern anybody.
        """
        found = []
        for name in pools:
            for server in self._pools[name].servers:
                key = name, server.name
                before = self._before_login.get(key)
                if before is None or key in self._unreachable:
                    continue
                found.append(_known(before, self._after_login.get(key, before)))
        return found

    def unreachable(self) -> list[str]:
        """Return the pools none of whose servers could be reached when last tried."""
        return [
            name
            for name, pool in self._pools.items()
            if all((name, server.name) in self._unreachable for server in pool.servers)
        ]

    async def probe(self, tell: ProbeResult) -> None:
        """Ask every server what it can, now and every few minutes, until cancelled."""
        while True:
            async with trio.open_nursery() as nursery:
                for name, pool in self._pools.items():
                    for server in pool.servers:
                        nursery.start_soon(self._probe_one, name, server, tell)
            await trio.sleep(PROBE_SECONDS)

    async def _probe_one(self, pool_name: str, server: Server, tell: ProbeResult) -> None:
        try:
            leg = await self._reach(pool_name, server, _greeted, ask=True)
        except UpstreamFailed as failed:
            tell(pool_name, server.name, failed)
            return
        try:
            with trio.move_on_after(1):
                await leg.say_goodbye()
            tell(pool_name, server.name, None)
        finally:
            leg.stream.abort()


async def _greeted(leg: UpstreamLeg, limit: StepLimit) -> UpstreamLeg:
    return leg


@functools.lru_cache(maxsize=64)
def _known(before: frozenset[str], after: frozenset[str]) -> frozenset[str]:
    """Return what a server can: asked for at every greeting, while it changes with the server's upgrades."""
    return after | {one for one in before if one.startswith("AUTH=")}


def _login_was_sent(failed: UpstreamFailed) -> bool:
    """Whether the server may have begun a session before it failed."""
    return failed.failure is Failure.TIMEOUT and failed.state.startswith("login/")

"""The pools' servers: which one a login is taken to, and what is known of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Final

import trio

from mailgate.balance.choose import RoundRobin
from mailgate.config import Config, Pool, Server
from mailgate.errors import RemoteProtocolError, UpstreamFailed
from mailgate.events import Emit, UpstreamConnected, UpstreamRefused
from mailgate.model import Failure, Login, Protocol, Route, Session
from mailgate.upstream.dial import Dialer
from mailgate.upstream.imap import ImapLeg
from mailgate.upstream.leg import READ_SIZE, SignedIn, UpstreamLeg
from mailgate.upstream.pop3 import Pop3Leg

PROBE_SECONDS: Final = 300.0
"""How often each server is asked what it can. Capabilities change with upgrades, not by the minute."""

RETRIED: Final = frozenset({Failure.CONNECT, Failure.TLS, Failure.TIMEOUT, Failure.AUTH_TEMPORARY})
"""Failures after which another server may be tried. A TIMEOUT is retried only before the login was
sent: behind it the first server may have begun a session."""

LEGS: Final[dict[Protocol, type[UpstreamLeg]]] = {Protocol.IMAP: ImapLeg, Protocol.POP3: Pop3Leg}

ProbeResult = Callable[[str, str, UpstreamFailed | None], None]
"""Told after each probe: the pool, the server, and why it failed or None."""


class Upstreams:
    """All pools of a configuration. Raises OSError or ssl.SSLError if a pool's TLS files are unusable."""

    def __init__(self, config: Config, emit: Emit) -> None:
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
        deadline = trio.current_time() + pool.login_timeout
        last: UpstreamFailed | None = None
        for server in chooser.order(pool.servers, trio.current_time()):
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
        began = trio.current_time()
        leg = await self._greeted(pool_name, server)
        try:
            self._emit(UpstreamConnected(session, pool_name, server.name, trio.current_time() - began))
            try:
                with trio.fail_after(max(0.0, deadline - trio.current_time())):
                    signed_in = await leg.sign_in(login)
            except trio.TooSlowError:
                raise leg.failed(Failure.TIMEOUT, f"no answer within {pool.login_timeout:g} s") from None
            except RemoteProtocolError as error:
                raise leg.failed(Failure.PROTOCOL, str(error)) from error
        except BaseException:
            leg.stream.abort()
            raise
        self._after_login[pool_name, server.name] = signed_in.capabilities
        return signed_in

    async def _greeted(self, pool_name: str, server: Server, *, ask: bool = False) -> UpstreamLeg:
        """Return a connection that was greeted, with TLS; remembers whether the server is there.

        With ``ask`` the server tells its capabilities again, whatever is known of them.
        """
        pool = self._pools[pool_name]
        chooser = self._choosers[pool_name]
        key = pool_name, server.name
        try:
            known = None if ask else self._before_login.get(key)
            leg = await self._reach(pool, self._dialers[pool_name], server, known)
        except UpstreamFailed:
            chooser.failed(server, trio.current_time())
            self._unreachable.add(key)
            raise
        chooser.succeeded(server)
        self._unreachable.discard(key)
        self._before_login[key] = leg.capabilities
        return leg

    async def _reach(self, pool: Pool, dialer: Dialer, server: Server, known: frozenset[str] | None) -> UpstreamLeg:
        stream = await dialer.dial(server)
        leg = LEGS[pool.protocol](dialer, server, stream, self._buffer)
        try:
            with trio.fail_after(pool.greeting_timeout):
                await leg.greet(known)
        except trio.TooSlowError:
            stream.abort()
            raise leg.failed(Failure.TIMEOUT, f"no answer within {pool.greeting_timeout:g} s") from None
        except RemoteProtocolError as error:
            stream.abort()
            raise leg.failed(Failure.PROTOCOL, str(error)) from error
        except BaseException:
            stream.abort()
            raise
        return leg

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
            leg = await self._greeted(pool_name, server, ask=True)
        except UpstreamFailed as failed:
            tell(pool_name, server.name, failed)
            return
        try:
            with trio.move_on_after(1):
                await leg.say_goodbye()
            tell(pool_name, server.name, None)
        finally:
            leg.stream.abort()


@functools.lru_cache(maxsize=64)
def _known(before: frozenset[str], after: frozenset[str]) -> frozenset[str]:
    """Return what a server can: asked for at every greeting, while it changes with the server's upgrades."""
    return after | {one for one in before if one.startswith("AUTH=")}


def _login_was_sent(failed: UpstreamFailed) -> bool:
    """Whether the server may have begun a session before it failed."""
    return failed.failure is Failure.TIMEOUT and failed.state.startswith("login/")

"""Where a user's mailbox is by the configuration, and what is remembered of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mailgate.config import Config, Pop3Policy
from mailgate.errors import MailgateError
from mailgate.model import Protocol, Secret
from mailgate.routing.static import StaticRouter
from mailgate.stream import burst_buffer
from mailgate.translate.imap_client import ImapClient
from mailgate.translate.store import KeptMemories, KeptStore, open_store, owner_of
from mailgate.uidls.servers import sign_in, unheard
from mailgate.upstream.pool import Upstreams


@dataclass(frozen=True, slots=True)
class Home:
    """Where a user's POP3 sessions are served from, and how."""

    pool: str
    policy: Pop3Policy
    owner: bytes


class Homes:
    """The mailboxes of a configuration's users. Raises MailgateError without a store: nothing could be kept."""

    def __init__(self, config: Config) -> None:
        store = open_store(config.pop3.store)
        if not isinstance(store, KeptStore):
            raise MailgateError("the configuration has no [pop3.store]: nothing would be remembered")
        self.store = store
        self._config = config
        self._router = StaticRouter(config.route)
        self._upstreams = Upstreams(config, unheard)
        self._buffer = burst_buffer()

    def home(self, user: bytes) -> Home:
        """Return where somebody's POP3 sessions are served from. Raises MailgateError."""
        rules = {rule.name: rule for rule in self._config.route}
        found: dict[tuple[str, bytes], Home] = {}
        for listener in self._config.listener:
            if listener.protocol is not Protocol.POP3:
                continue
            route = self._router.decide(user, listener=listener.name, protocol=Protocol.POP3)
            if route is None or self._config.pool[route.pool].protocol is not Protocol.IMAP:
                continue
            policy = rules[route.name].pop3 or self._config.pop3
            home = Home(route.pool, policy, owner_of(policy.realm, user))
            found.setdefault((home.pool, home.owner), home)
        if not found:
            raise MailgateError("no route takes this user from a POP3 listener to a pool that speaks imap")
        if len(found) > 1:
            pools = ", ".join(sorted(home.pool for home in found.values()))
            raise MailgateError(f"listeners take this user to different mailboxes, in the pools {pools}")
        return next(iter(found.values()))

    def memories(self, user: bytes) -> KeptMemories:
        """Return what is remembered of somebody. Raises MailgateError."""
        return self.store.of(self.home(user).owner)

    async def mailboxes(self, user: bytes) -> list[bytes]:
        """Return the mailboxes of which something is remembered. Raises MailgateError."""
        return await self.store.backend.folders(self.home(user).owner)

    @contextlib.asynccontextmanager
    async def client(self, user: bytes, secret: Secret) -> AsyncIterator[ImapClient]:
        """Sign somebody in at their IMAP server. Raises MailgateError."""
        home = self.home(user)
        signed_in = await sign_in(self._upstreams, home.pool, Protocol.IMAP, user, secret)
        client = ImapClient(signed_in.stream, self._buffer, signed_in.capabilities, signed_in.residual)
        try:
            yield client
            await client.logout()
        finally:
            client.abort()

    async def aclose(self) -> None:
        """Close the store."""
        await self.store.aclose()

"""Signing in to the servers that are compared or imported from, with the same care for TLS as the gateway's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from mailgate.config import Pool
from mailgate.errors import MailgateError
from mailgate.events import Event
from mailgate.model import Login, Mechanism, Peer, Protocol, Route, Secret, Session
from mailgate.uidls.places import Place
from mailgate.uidls.pop3_server import Pop3Server
from mailgate.upstream.leg import SignedIn
from mailgate.upstream.pool import Upstreams

NAME = "server"


@dataclass
class OnePool:
    """What :class:`Upstreams` needs to know where there is no configuration."""

    pool: Mapping[str, Pool] = field(default_factory=dict)


def unheard(event: Event) -> None:
    """Take an event that nobody counts."""


class Pop3Place:
    """A POP3 server to sign in to. Raises OSError or ssl.SSLError for TLS files that cannot be used."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._upstreams = Upstreams(OnePool({NAME: place.pool()}), unheard)

    async def sign_in(self, user: bytes, secret: Secret) -> Pop3Server:
        """Return a signed-in connection; raises UpstreamFailed."""
        signed_in = await sign_in(self._upstreams, NAME, Protocol.POP3, user, secret)
        return Pop3Server(signed_in.stream, signed_in.residual, signed_in.capabilities)


async def sign_in(upstreams: Upstreams, pool: str, protocol: Protocol, user: bytes, secret: Secret) -> SignedIn:
    """Sign somebody in to a pool's server, however it takes passwords; raises UpstreamFailed."""
    if not secret:
        raise MailgateError("a password is needed")
    session = Session("uidl", protocol, "", Peer("unix", 0), trio.current_time())
    return await upstreams.open(Route(pool, pool), Login(protocol, user, secret, Mechanism.COMMAND), session)

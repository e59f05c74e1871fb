"""Whom and what a command names: users with their passwords, POP3 servers and how far they are trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mailgate.config import Endpoint, Pool, Server, UpstreamTls
from mailgate.model import Protocol, Secret


@dataclass(frozen=True, slots=True)
class User:
    """Somebody whose mail moves: ``old_secret`` is the password at the old server."""

    name: bytes
    secret: Secret
    old_secret: Secret


@dataclass(frozen=True, slots=True)
class Place:
    """A POP3 server on the command line: where it is, and how far it is trusted.

    ``implicit`` is whether TLS begins with the first byte; else STLS is used, unless ``plaintext`` lets passwords
    go in clear or the server is on this machine.
    """

    endpoint: Endpoint
    implicit: bool
    plaintext: bool = False
    ca: Path | None = None
    pin: str | None = None

    def pool(self) -> Pool:
        """Return it as a pool of one server. Raises ValueError for a pin that is none."""
        if not self.implicit and (self.plaintext or self.endpoint.loopback):
            tls = UpstreamTls(mode="off")
        else:
            tls = UpstreamTls(
                mode="implicit" if self.implicit else "starttls",
                ca=self.ca or "system",
                pin=(self.pin,) if self.pin else (),
            )
        return Pool(
            protocol=Protocol.POP3,
            servers=(Server(address=self.endpoint),),
            tls=tls,
            allow_plaintext_auth=self.plaintext and tls.mode == "off",
        )

"""What signing in to an upstream has in common in both protocols: sending, receiving, time limits.

Every failure names how far things had come as ``sent/received``, since that is what an
administrator needs first: ``login/banner`` is a server that greets and then hangs.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass
from typing import Final, Literal

import trio

from mailgate.config import Server
from mailgate.errors import UpstreamFailed
from mailgate.model import BEARER_MECHANISMS, Failure, Login, Mechanism
from mailgate.stream import SocketStream
from mailgate.upstream.dial import Dialer
from mailgate.wire import sasl

READ_SIZE: Final = 16 * 1024
"""Bytes taken at a time before the login is accepted; what follows it stays in the socket."""

UNTAGGED_LIMIT: Final = 16 * 1024
"""Bytes of responses that are kept for the client until the login is accepted."""

CHALLENGES: Final = 2
"""Challenges behind an initial response that are answered: the password of LOGIN, and one more to break off."""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """An upstream that has accepted a login; see ``session.dialogue.SignedIn``."""

    stream: SocketStream
    residual: bytes
    untagged: tuple[bytes, ...]
    capabilities: frozenset[str]
    shown: tuple[bytes, ...]
    server: str
    translated: Literal[False] = False

    async def aclose(self) -> None:
        """Close the connection."""
        await self.stream.aclose()


@functools.lru_cache(maxsize=64)
def _mechanisms(capabilities: frozenset[str]) -> frozenset[Mechanism]:
    """Return the mechanisms among a server's capabilities, which are the same at every login."""
    return frozenset(one for one in Mechanism if f"AUTH={one}" in capabilities)


class UpstreamLeg(abc.ABC):
    """One connection to one server until its login is accepted."""

    def __init__(self, dialer: Dialer, server: Server, stream: SocketStream, buffer: bytearray) -> None:
        self.dialer = dialer
        self.server = server
        self.stream = stream
        self.capabilities: frozenset[str] = frozenset()
        self._view = memoryview(buffer)
        self._sent = "connect"
        self._received = "none"

    @abc.abstractmethod
    async def greet(self, known: frozenset[str] | None) -> None:
        """Read the greeting, start TLS where that is asked for, learn the capabilities.

        ``known`` are those that this server had before; asking again is saved where it is safe.
        """

    @abc.abstractmethod
    async def sign_in(self, login: Login) -> SignedIn:
        """Sign in; raises UpstreamFailed."""

    @abc.abstractmethod
    async def say_goodbye(self) -> None:
        """Tell the server that this connection ends, without waiting for its answer."""

    @abc.abstractmethod
    def _feed(self, data: memoryview) -> None:
        """Hand bytes to the receiver."""

    @property
    def state(self) -> str:
        """How far things have come."""
        return f"{self._sent}/{self._received}"

    def failed(self, failure: Failure, detail: str) -> UpstreamFailed:
        """Return the error for a failure at this point."""
        return UpstreamFailed(failure, self.state, detail, self.server.name)

    async def send(self, data: bytes, what: str = "") -> None:
        """Send, and note what was sent for ``state``."""
        if what:
            self._sent = what
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise self.failed(Failure.CONNECT, f"connection lost: {error}") from error

    async def fill(self) -> None:
        """Receive more; raises UpstreamFailed at the end of the connection."""
        try:
            count = await self.stream.receive(self._view)
        except trio.BrokenResourceError as error:
            raise self.at_end(f"connection lost: {error}") from error
        if count == 0:
            raise self.at_end("the server closed the connection")
        self._feed(self._view[:count])

    def at_end(self, detail: str) -> UpstreamFailed:
        """Return the error for a connection that ends here."""
        failure = Failure.CONNECT if self._received == "none" else Failure.AUTH_TEMPORARY
        return self.failed(failure, detail)

    @property
    def offered(self) -> frozenset[Mechanism]:
        """The SASL mechanisms that the server says it has and mailgate knows."""
        return _mechanisms(self.capabilities)

    def choose(self, login: Login, *, command: bool) -> Mechanism:
        """Return how to sign in: as the client did if the server can, else as it can.

        ``command`` says whether the server takes the protocol's own login. Raises UpstreamFailed.
        """
        offered = self.offered
        if login.mechanism in BEARER_MECHANISMS:
            if login.mechanism not in offered:
                raise self.failed(Failure.UNSUPPORTED, f"the server does not offer {login.mechanism}")
            return login.mechanism
        if login.mechanism is Mechanism.EXTERNAL:
            raise self.failed(Failure.UNSUPPORTED, "EXTERNAL is not relayed")
        if login.authzid:
            if Mechanism.PLAIN not in offered:
                raise self.failed(Failure.UNSUPPORTED, "only PLAIN carries an authorization identity")
            return Mechanism.PLAIN
        if login.mechanism is Mechanism.COMMAND and command:
            return Mechanism.COMMAND
        for mechanism in (login.mechanism, Mechanism.PLAIN, Mechanism.LOGIN):
            if mechanism in offered:
                return mechanism
        if command:
            return Mechanism.COMMAND
        raise self.failed(Failure.UNSUPPORTED, "the server offers no way to sign in")

    def check_password(self, login: Login) -> None:
        """Refuse to send a password where it could be read, or could become something else."""
        if not self.dialer.may_carry_password(self.server):
            raise self.failed(
                Failure.INSECURE,
                "no TLS on the way to this server: set tls, or allow_plaintext_auth for its pool",
            )
        if sasl.has_control(login.user + login.authzid + login.secret.reveal()):
            raise self.failed(Failure.AUTH_REJECTED, "control characters in the credentials")

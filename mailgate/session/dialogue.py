"""What every protocol's dialogue before login has in common, and what ``run`` needs of it.

A protocol is one subclass of :class:`Dialogue`: how it greets, reads a login, refuses, accepts and
says goodbye, and which relay core follows. ``run`` and ``relay`` know nothing more of it.
"""

from __future__ import annotations

import abc
import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal
from typing import Protocol as Interface

import trio

from mailgate.config import Listener
from mailgate.events import Emit, LimitStruck, LoginRefused, Trace
from mailgate.model import (
    BEARER_MECHANISMS,
    Deny,
    End,
    Login,
    Mechanism,
    Protocol,
    Refusal,
    Route,
    Secret,
    Session,
    Side,
    Verdict,
)
from mailgate.policy import answers
from mailgate.policy.gate import Gate
from mailgate.session.engine import Engine
from mailgate.session.relay import Watch, Watched
from mailgate.stream import ByteStream
from mailgate.wire import sasl
from mailgate.wire.framing import BadCommand, Limits, SaslLine
from mailgate.wire.relay import RelayCore

READ_SIZE: Final = 16 * 1024
"""Bytes taken at a time before login: several commands or most of the longest legal ID line, and
little enough that what a client sends behind its login stays in the socket until it is wanted."""

OFFERED_MECHANISMS: Final = (Mechanism.PLAIN, Mechanism.LOGIN, Mechanism.XOAUTH2, Mechanism.OAUTHBEARER)
"""What a client may sign in with; EXTERNAL would need a certificate verified on the client's leg."""

HIDDEN: Final = b"<hidden>"
"""What traces show in the place of secrets."""

_BEARER_FAILURE: Final = {
    # RFC 7628 §3.2.2, and the form in which XOAUTH2's inventor answers.
    Mechanism.OAUTHBEARER: b'{"status":"invalid_token"}',
    Mechanism.XOAUTH2: b'{"status":"401","schemes":"bearer"}',
}


class SessionOver(Exception):
    """A session ends before its relay began: by whom, and why in one word."""

    def __init__(self, side: Side, reason: str) -> None:
        super().__init__(f"{side}: {reason}")
        self.side = side
        self.reason = reason


class Accepted(Interface):
    """An upstream that has accepted a login.

    ``untagged`` are the lines before the acceptance that the client should see, ``shown`` what the upstream can after
    login in its own order and spelling.
    """

    @property
    def untagged(self) -> tuple[bytes, ...]: ...  # noqa: D102
    @property
    def shown(self) -> tuple[bytes, ...]: ...  # noqa: D102
    async def aclose(self) -> None:
        """Close the connection to the upstream."""
        ...


class SignedIn(Accepted, Interface):
    """An upstream that the client's session is relayed to.

    ``residual`` is what it sent behind the acceptance, ``capabilities`` what it can after login, in upper case.
    """

    @property
    def translated(self) -> Literal[False]: ...  # noqa: D102
    @property
    def stream(self) -> ByteStream: ...  # noqa: D102
    @property
    def residual(self) -> bytes: ...  # noqa: D102
    @property
    def capabilities(self) -> frozenset[str]: ...  # noqa: D102


class Translated(Accepted, Watched, Interface):
    """An upstream of another protocol, with what serves the client: a relay would not do."""

    @property
    def translated(self) -> Literal[True]: ...  # noqa: D102
    async def serve(
        self,
        stream: ByteStream,
        early: bytes,
        *,
        idle: float,
        decide: Callable[[str], Verdict],
        trace: Trace | None,
    ) -> End:
        """Serve the client to the end; ``early`` is what it sent behind its login."""
        ...


class Connection(Interface):
    """A client's connection as the network rooms hand it over."""

    @property
    def stream(self) -> ByteStream:
        """The client's stream, in clear or inside TLS."""
        ...

    @property
    def session(self) -> Session:
        """What is known of the client."""
        ...

    @property
    def can_start_tls(self) -> bool:
        """Whether STARTTLS or STLS may be offered now."""
        ...

    async def start_tls(self) -> None:
        """Do the TLS handshake; raises SessionOver when it fails."""
        ...

    def ended(self, end: End) -> None:
        """Hear how a session ended whose relay was taken over."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """What sessions use of the rooms that they must not import."""

    hostname: str
    gate: Gate
    limits: Limits
    route: Callable[[Login, Session], Awaitable[Route | None]]
    open_upstream: Callable[[Route, Login, Session], Awaitable[SignedIn | Translated | Refusal]]
    upstream_capabilities: Callable[[Session], list[frozenset[str]]]
    emit: Emit
    watch: Watch
    engine: Engine
    trace: Callable[[Session], Trace | None]
    buffer: bytearray
    linger: float


def mechanisms_for(known: Sequence[frozenset[str]]) -> tuple[Mechanism, ...]:
    """Return the SASL mechanisms to offer: bearer tokens only where every known upstream takes them."""
    return tuple(
        mechanism
        for mechanism in OFFERED_MECHANISMS
        if mechanism not in BEARER_MECHANISMS
        or (known and all(f"AUTH={mechanism}" in capabilities for capabilities in known))
    )


class Dialogue(abc.ABC):
    """One client's dialogue before login, and its first words after it."""

    protocol: ClassVar[Protocol]

    def __init__(self, connection: Connection, listener: Listener, services: Services) -> None:
        self.connection = connection
        self.session = connection.session
        self.listener = listener
        self.services = services
        self.trace: Trace | None = None
        self._bad_commands = 0
        self._last_refusal = "no_auth_attempts"
        self._mechanism = Mechanism.COMMAND

    # ---------------------------------------------------------------- what a protocol supplies

    @abc.abstractmethod
    async def greet(self) -> None:
        """Send the greeting."""

    @abc.abstractmethod
    async def read_login(self) -> Login:
        """Answer commands until the client has said who it is; raises SessionOver."""

    @abc.abstractmethod
    async def accept(self, accepted: Accepted) -> None:
        """Tell the client that its login succeeded."""

    @abc.abstractmethod
    async def goodbye(self, refusal: Refusal) -> None:
        """Tell the client why the connection ends."""

    @abc.abstractmethod
    async def _answer_refusal(self, refusal: Refusal) -> None:
        """Answer the login that is under way."""

    @abc.abstractmethod
    def core(self, signed_in: SignedIn) -> RelayCore:
        """Return the relay core for the session that begins now."""

    @staticmethod
    @abc.abstractmethod
    def farewell(reason: str) -> bytes:
        """Return the line that a client in the relay is told when the gateway ends its session."""

    @abc.abstractmethod
    def residual(self) -> bytes:
        """Return what the client sent behind its login; nothing is read before the relay any more."""

    @abc.abstractmethod
    def _complete(self, mechanism: Mechanism, user: bytes, authzid: bytes, secret: Secret) -> Login:
        """Return a login with what else this client has said."""

    @abc.abstractmethod
    def _next_line(self) -> SaslLine | BadCommand | None:
        """Return the client's next line of a SASL exchange, ``None`` if it is not complete."""

    @abc.abstractmethod
    def _feed(self, data: memoryview) -> None:
        """Hand bytes to the receiver."""

    # ---------------------------------------------------------------- what they share

    @property
    def credentials_allowed(self) -> bool:
        """Whether a password may be sent on this connection as it is now (RFC 9051 §11.1)."""
        return self.session.tls is not None or self.listener.plaintext_allowed

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The SASL mechanisms to offer."""
        return mechanisms_for(self.services.upstream_capabilities(self.session))

    async def send(self, data: bytes, shown: bytes | None = None) -> None:
        """Send to the client; raises SessionOver when it has gone.

        A trace sees ``shown`` in the place of what repeats bytes of the client's that may be secret.
        """
        if self.trace is not None:
            self.trace.upstream(data if shown is None else shown)
        try:
            await self.connection.stream.send_all(data)
        except trio.BrokenResourceError:
            raise SessionOver(Side.CLIENT, "reset") from None
        self.session.bytes_out += len(data)

    async def fill(self) -> None:
        """Receive more from the client; raises SessionOver at its end."""
        view = memoryview(self.services.buffer)[:READ_SIZE]
        try:
            count = await self.connection.stream.receive(view)
        except trio.BrokenResourceError:
            raise SessionOver(Side.CLIENT, "reset") from None
        if count == 0:
            raise self.left()
        self.session.bytes_in += count
        self._feed(view[:count])

    def left(self) -> SessionOver:
        """Return the end of a session whose client goes before it is logged in: why its last login was refused."""
        return SessionOver(Side.CLIENT, self._last_refusal)

    def note(self, said: bytes) -> None:
        """Show a trace what the client said, which the caller has freed of secrets."""
        if self.trace is not None:
            self.trace.client(said)

    def note_hidden(self) -> None:
        """Show a trace that the client said something that must not be shown.

        That is every answer of a SASL exchange, and every line that is no known command: a client
        whose AUTHENTICATE was refused may still send the response that it had ready.
        """
        self.note(HIDDEN + b"\r\n")

    async def refuse(self, refusal: Refusal) -> None:
        """Answer a login that did not succeed; raises SessionOver when the connection ends with it."""
        self._last_refusal = refusal.reason
        if self._mechanism in BEARER_MECHANISMS and refusal.reason in answers.COUNTED_REASONS:
            # RFC 7628 §3.2.3: the failure is a challenge first, which the client answers with a dummy or breaks off.
            await self.challenge(_BEARER_FAILURE[self._mechanism])
            if await self._sasl_line() == SaslLine(b"*"):
                refusal = answers.ABORTED
        await self._answer_refusal(refusal)

    async def _turn_down(self, refusal: Refusal) -> None:
        """Refuse a login that never becomes one."""
        self._last_refusal = refusal.reason
        self.services.emit(LoginRefused(self.session, refusal.reason))
        await self._answer_refusal(refusal)
        await self.count_bad()

    async def challenge(self, data: bytes) -> None:
        """Send a SASL challenge."""
        await self.send(b"+ %b\r\n" % base64.b64encode(data))

    async def _sasl_line(self) -> SaslLine | BadCommand:
        while (line := self._next_line()) is None:
            await self.fill()
        self.note_hidden()
        return line

    async def _sasl_login(self, name: bytes, initial: bytes | None) -> Login | None:
        """Run the exchange that a client asks for; return its login, ``None`` where it was turned down."""
        mechanism = next((one for one in self.mechanisms if one.encode() == name.upper()), None)
        if mechanism is None:
            await self._turn_down(answers.INVALID_MECHANISM)
            return None
        self._mechanism = mechanism
        try:
            credentials = await self._exchange(mechanism, initial)
        except sasl.SaslError as error:
            self._mechanism = Mechanism.COMMAND
            await self._turn_down(answers.SASL_REFUSALS[error.reason])
            return None
        return self._complete(mechanism, credentials.user, credentials.authzid, credentials.secret)

    async def _exchange(self, mechanism: Mechanism, initial: bytes | None) -> sasl.Credentials:
        """Run a SASL exchange; raises SaslError with the reason when it comes to nothing."""
        exchange = sasl.begin(mechanism)
        step = exchange.step(None if initial is None else sasl.decode_initial(initial))
        while not isinstance(step, sasl.Credentials):
            await self.challenge(step.data)
            line = await self._sasl_line()
            if isinstance(line, BadCommand):
                raise sasl.SaslError("invalid_base64")
            response = sasl.decode_line(line.data)
            if isinstance(response, sasl.Cancelled):
                raise sasl.SaslError("auth_aborted_by_client")
            step = exchange.step(response)
        return step

    async def count_bad(self) -> None:
        """Count a command that was not understood; ends the connection when there were too many."""
        self._bad_commands += 1
        verdict = self.services.gate.bad_command(self._bad_commands)
        if isinstance(verdict, Deny):
            self.services.emit(LimitStruck(self.session, verdict.rule, "deny"))
            await self.goodbye(verdict.refusal)
            raise SessionOver(Side.PROXY, verdict.refusal.reason)

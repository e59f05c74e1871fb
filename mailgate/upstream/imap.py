"""Signing in to an IMAP server (RFC 9051 §6.1, §6.2), in one round trip where it allows that."""

from __future__ import annotations

import base64
import functools
from typing import Final

from mailgate.errors import UpstreamFailed
from mailgate.model import Failure, Login, Mechanism, Protocol
from mailgate.upstream.leg import CHALLENGES, UNTAGGED_LIMIT, SignedIn, UpstreamLeg
from mailgate.wire import sasl
from mailgate.wire.imap import encode_arguments, encode_id
from mailgate.wire.imap_response import Response, ResponseReceiver, capability_tokens
from mailgate.wire.relay_imap import literal_mode

_BY_CODE: Final = {
    "LIMIT": Failure.LIMIT,
    "OVERQUOTA": Failure.LIMIT,
    "INUSE": Failure.IN_USE,
    "CANNOT": Failure.UNSUPPORTED,
    "PRIVACYREQUIRED": Failure.UNSUPPORTED,
    "UNAVAILABLE": Failure.AUTH_TEMPORARY,
    "SERVERBUG": Failure.AUTH_TEMPORARY,
    "CONTACTADMIN": Failure.AUTH_TEMPORARY,
}
_DROPPED: Final = {"BYE", "CAPABILITY", "ID"}


@functools.lru_cache(maxsize=64)
def _in_upper_case(tokens: tuple[bytes, ...]) -> frozenset[str]:
    """Return capabilities for comparison; each server says the same ones at every login."""
    return frozenset(token.decode("latin-1").upper() for token in tokens)


def failure_of(response: Response) -> Failure:
    """Return what a tagged NO or an untagged BYE to a login means (RFC 5530 §3)."""
    otherwise = Failure.AUTH_TEMPORARY if response.status == "BYE" else Failure.AUTH_REJECTED
    return _BY_CODE.get(response.code, otherwise)


class ImapLeg(UpstreamLeg):
    """See :class:`UpstreamLeg`."""

    protocol = Protocol.IMAP

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._receiver = ResponseReceiver()
        self._shown: tuple[bytes, ...] = ()
        self._untagged: list[bytes] = []
        self._untagged_size = 0

    def _feed(self, data: memoryview) -> None:
        self._receiver.receive(data)

    async def _next(self) -> Response:
        while (response := self._receiver.next()) is None:
            await self.fill()
        return response

    def _learn(self, response: Response) -> bool:
        """Take the capabilities that a response lists; return whether it lists any."""
        tokens = capability_tokens(response)
        if tokens is None:
            return False
        self._shown = tokens
        self.capabilities = _in_upper_case(tokens)
        return True

    # ---------------------------------------------------------------- until the login

    async def greet(self, known: frozenset[str] | None) -> None:
        """See :class:`UpstreamLeg`; an IMAP server's capabilities are always its own words of now."""
        greeting = await self._next()
        self._received = "banner"
        if greeting.tag != b"*" or greeting.status != "OK":
            if greeting.status == "BYE":
                raise self.failed(Failure.CONNECT, "the server greets with BYE")
            raise self.failed(Failure.PROTOCOL, "the server does not greet with OK")
        learnt = self._learn(greeting)
        if self.dialer.starts_tls:
            await self._start_tls()
            learnt = False
        if not learnt:
            await self._ask_capabilities()

    async def _start_tls(self) -> None:
        await self.send(b"T1 STARTTLS\r\n", "starttls")
        while (response := await self._next()).tag != b"T1":
            if response.status == "BYE":
                raise self.failed(Failure.TLS, "the server says BYE to STARTTLS")
        if response.status != "OK":
            raise self.failed(Failure.TLS, "the server refuses STARTTLS")
        if self._receiver.buffered:
            raise self.failed(Failure.TLS, "the server sent something in clear behind STARTTLS")
        await self.dialer.start_tls(self.stream, self.server)
        # Nothing that was said before TLS counts.
        self._receiver = ResponseReceiver()
        self.capabilities = frozenset()
        self._shown = ()

    async def _ask_capabilities(self) -> None:
        await self.send(b"C1 CAPABILITY\r\n", "capability")
        self._shown = ()
        while (response := await self._next()).tag != b"C1":
            if response.tag == b"*":
                self._keep(response)
        if response.status != "OK" or not (self._shown or self._learn(response)):
            raise self.failed(Failure.PROTOCOL, "the server does not tell its capabilities")
        self._received = "capability"

    # ---------------------------------------------------------------- the login

    async def sign_in(self, login: Login) -> SignedIn:
        """See :class:`UpstreamLeg`."""
        self.check_password(login)
        mechanism = self.choose(login, command="LOGINDISABLED" not in self.capabilities)
        # What was said before the login does not concern the client.
        self._shown = ()
        self._untagged.clear()
        self._untagged_size = 0
        said = b""
        if "ID" in self.capabilities and (pairs := encode_id(login.client_id or ())):
            said = b"I1 ID %b\r\n" % pairs
        if mechanism is Mechanism.COMMAND:
            accepted = await self._log_in(login, said)
        else:
            accepted = await self._authenticate(login, mechanism, said)
        before = self.capabilities
        if not self._learn(accepted) and not self._shown:
            await self._ask_capabilities()
        self._received = "login"
        return SignedIn(
            self.stream,
            self._receiver.take_residual(),
            tuple(self._untagged),
            self.capabilities or before,
            self._shown,
            self.server.name,
        )

    async def _log_in(self, login: Login, said: bytes) -> Response:
        """Sign in with LOGIN: quoted in one write, or with a literal for what cannot be quoted."""
        pieces = encode_arguments(
            (login.user, login.secret.reveal()),
            "sync" if (mode := literal_mode(self.capabilities)) == "none" else mode,
        )
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            head = said + b"L1 LOGIN" if number == 0 else b""
            await self.send(head + piece + (b"\r\n" if last else b""), "login")
            if not last:
                await self._go_on()
        response = await self._answer()
        if response is None:
            raise self.failed(Failure.PROTOCOL, "the server asks for more than a LOGIN holds")
        return self._accepted(response)

    async def _authenticate(self, login: Login, mechanism: Mechanism, said: bytes) -> Response:
        initial = sasl.initial_response(mechanism, login.user, login.authzid, login.secret)
        command = b"%bL1 AUTHENTICATE %b" % (said, mechanism.encode())
        if "SASL-IR" in self.capabilities:
            await self.send(b"%b %b\r\n" % (command, sasl.encode(initial)), "login")
        else:
            await self.send(command + b"\r\n", "login")
            await self._go_on()
            await self.send(base64.b64encode(initial) + b"\r\n")
        number = 0
        while (response := await self._answer()) is None:
            number += 1
            if number > CHALLENGES:
                raise self.failed(Failure.PROTOCOL, "the server does not end the SASL exchange")
            try:
                answer = base64.b64encode(sasl.respond(mechanism, number, login.secret))
            except sasl.SaslError:
                # The server asks for what this mechanism does not have: break off, and hear its NO or BAD.
                answer = b"*"
            await self.send(answer + b"\r\n")
        return self._accepted(response)

    async def _go_on(self) -> None:
        """Wait for the server to ask for the credentials; raises UpstreamFailed if it does not."""
        response = await self._answer()
        if response is not None:
            self._accepted(response)
            # Whoever is let in without a password is not the one who logs in here.
            raise self.failed(Failure.PROTOCOL, "the server accepts a login before it was sent")

    async def _answer(self) -> Response | None:
        """Return the login's tagged response, or None when the server asks to go on."""
        while True:
            response = await self._next()
            if response.tag == b"+":
                self._received = "continuation"
                return None
            if response.tag == b"L1":
                return response
            if response.tag == b"*":
                self._keep(response)
            elif response.tag != b"I1":
                raise self.failed(Failure.PROTOCOL, "a response to a command that was not sent")

    def _keep(self, response: Response) -> None:
        """Keep an untagged response for the client if it is one that concerns it."""
        if self._learn(response) or response.status in _DROPPED:
            if response.status == "BYE":
                raise self.failed(failure_of(response), "the server says BYE")
            return
        self._untagged_size += len(response.raw)
        if self._untagged_size > UNTAGGED_LIMIT:
            raise self.failed(Failure.PROTOCOL, "too many responses before the login's")
        self._untagged.append(response.raw)

    def _accepted(self, response: Response) -> Response:
        """Return a tagged OK; raise UpstreamFailed for anything else."""
        if response.status == "OK":
            return response
        if response.status == "NO":
            raise self.failed(failure_of(response), f"the server says NO [{response.code}]" if response.code else "NO")
        raise self.failed(Failure.PROTOCOL, "the server does not understand the login")

    async def say_goodbye(self) -> None:
        """See :class:`UpstreamLeg`."""
        try:
            await self.send(b"Z1 LOGOUT\r\n", "logout")
        except UpstreamFailed:
            # It went first, which is what was wanted.
            return

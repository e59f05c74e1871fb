"""Signing in to a POP3 server (RFC 1939 §4, RFC 2449, RFC 2595, RFC 5034, RFC 6856)."""

from __future__ import annotations

import base64
from typing import Final

from mailgate.errors import UpstreamFailed
from mailgate.model import Failure, Login, Mechanism, Protocol
from mailgate.stream import acknowledge_at_once
from mailgate.upstream.leg import CHALLENGES, SignedIn, UpstreamLeg
from mailgate.wire import sasl
from mailgate.wire.pop3 import COMMAND_LIMIT, Reply, ReplyReceiver

_BY_CODE: Final = {
    "AUTH": Failure.AUTH_REJECTED,
    "SYS/TEMP": Failure.AUTH_TEMPORARY,
    "SYS/PERM": Failure.UNSUPPORTED,
    "IN-USE": Failure.IN_USE,
    "LOGIN-DELAY": Failure.LIMIT,
}

PASSWORD_MECHANISMS: Final = {Mechanism.PLAIN, Mechanism.LOGIN}
"""Where a server has none of these, USER is tried even if it does not announce it: old ones do not."""


def capabilities_of(lines: tuple[bytes, ...]) -> frozenset[str]:
    """Return a CAPA reply's keywords in upper case, its SASL mechanisms as ``AUTH=`` each."""
    found: set[str] = set()
    for line in lines:
        words = line.decode("latin-1").upper().split()
        if words:
            found.add(words[0])
        if words[:1] == ["SASL"]:
            found.update(f"AUTH={mechanism}" for mechanism in words[1:])
    return frozenset(found)


class Pop3Leg(UpstreamLeg):
    """See :class:`UpstreamLeg`."""

    protocol = Protocol.POP3

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._receiver = ReplyReceiver()

    def _feed(self, data: memoryview) -> None:
        self._receiver.receive(data)

    async def _next(self) -> Reply:
        while (reply := self._receiver.next()) is None:
            await self.fill()
        return reply

    async def greet(self, known: frozenset[str] | None) -> None:
        """See :class:`UpstreamLeg`; POP3 does not greet with capabilities, so known ones save a round trip."""
        greeting = await self._next()
        self._received = "banner"
        if not greeting.ok:
            raise self.failed(Failure.CONNECT, "the server greets with -ERR")
        if self.dialer.starts_tls:
            await self.send(b"STLS\r\n", "stls")
            if not (await self._next()).ok:
                raise self.failed(Failure.TLS, "the server refuses STLS")
            if self._receiver.buffered:
                raise self.failed(Failure.TLS, "the server sent something in clear behind STLS")
            await self.dialer.start_tls(self.stream, self.server)
            # Nothing that was said before TLS counts.
            self._receiver = ReplyReceiver()
        if known is not None:
            self.capabilities = known
            return
        await self._ask_capabilities()

    async def _ask_capabilities(self) -> None:
        await self.send(b"CAPA\r\n", "capa")
        if not (await self._next()).ok:
            # A server older than CAPA (RFC 2449): it knows USER and PASS and promises nothing.
            self.capabilities = frozenset({"USER"})
            return
        while (block := self._receiver.next_block()) is None:
            await self.fill()
        self.capabilities = capabilities_of(block)
        self._received = "capa"

    async def sign_in(self, login: Login) -> SignedIn:
        """See :class:`UpstreamLeg`."""
        self.check_password(login)
        mechanism = self.choose(login, command="USER" in self.capabilities or not self.offered & PASSWORD_MECHANISMS)
        if login.utf8:
            await self.send(b"UTF8\r\n", "utf8")
            if not (await self._next()).ok:
                raise self.failed(Failure.UNSUPPORTED, "the server refuses UTF8")
        if login.language is not None and "LANG" in self.capabilities:
            # A language that the server does not have leaves its texts as they are.
            await self.send(b"LANG %b\r\n" % login.language, "lang")
            await self._next()
        if mechanism is Mechanism.COMMAND:
            reply = await self._user_and_password(login)
        else:
            reply = await self._authenticate(login, mechanism)
        if reply.continuation:
            raise self.failed(Failure.PROTOCOL, "the server asks for more than the login holds")
        if not reply.ok:
            failure = _BY_CODE.get(reply.code, Failure.AUTH_REJECTED)
            raise self.failed(failure, f"the server says -ERR [{reply.code}]" if reply.code else "the server says -ERR")
        self._received = "login"
        return SignedIn(self.stream, self._receiver.take_residual(), (), self.capabilities, (), self.server.name)

    async def _user_and_password(self, login: Login) -> Reply:
        user = b"USER %b\r\n" % login.user
        password = b"PASS %b\r\n" % login.secret.reveal()
        if "PIPELINING" in self.capabilities:
            await self.send(user + password, "login")
            # Dovecot's second answer waits until its first is acknowledged, which the kernel puts off for 40 ms.
            acknowledge_at_once(self.stream.socket)
            reply = await self._next()
            # What follows a refused USER is the answer to a PASS that could not be right.
            return await self._next() if reply.ok else reply
        await self.send(user, "user")
        reply = await self._next()
        if not reply.ok:
            return reply
        await self.send(password, "login")
        return await self._next()

    async def _authenticate(self, login: Login, mechanism: Mechanism) -> Reply:
        initial = sasl.initial_response(mechanism, login.user, login.authzid, login.secret)
        line = b"AUTH %b %b\r\n" % (mechanism.encode(), sasl.encode(initial))
        if len(line) <= COMMAND_LIMIT:
            await self.send(line, "login")
            reply = await self._next()
        else:
            # RFC 5034 §4: an initial response that does not fit is sent when it is asked for.
            await self.send(b"AUTH %b\r\n" % mechanism.encode(), "login")
            reply = await self._next()
            if reply.ok:
                # Whoever is let in without a password is not the one who logs in here.
                raise self.failed(Failure.PROTOCOL, "the server accepts a login before it was sent")
            if reply.continuation:
                await self.send(base64.b64encode(initial) + b"\r\n")
                reply = await self._next()
        for number in range(1, CHALLENGES + 1):
            if not reply.continuation:
                break
            try:
                answer = base64.b64encode(sasl.respond(mechanism, number, login.secret))
            except sasl.SaslError:
                # The server asks for what this mechanism does not have: break off, and hear its -ERR.
                answer = b"*"
            await self.send(answer + b"\r\n")
            reply = await self._next()
        return reply

    async def say_goodbye(self) -> None:
        """See :class:`UpstreamLeg`."""
        try:
            await self.send(b"QUIT\r\n", "quit")
        except UpstreamFailed:
            # It went first, which is what was wanted.
            return

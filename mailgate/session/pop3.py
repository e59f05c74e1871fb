"""The POP3 dialogue before login (RFC 1939 §4), with CAPA, STLS, AUTH, UTF8 and LANG.

Sources: RFC 2449 (CAPA, response codes), RFC 2595 (STLS), RFC 5034 (AUTH), RFC 6856 (UTF8, LANG).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from mailgate.model import Login, Mechanism, Protocol, Refusal, Secret, Side
from mailgate.policy import access, answers
from mailgate.session.dialogue import Accepted, Dialogue, SessionOver, SignedIn
from mailgate.wire import sasl
from mailgate.wire.framing import BadCommand, SaslLine
from mailgate.wire.pop3 import CommandReceiver, Pop3Command
from mailgate.wire.relay_pop3 import Pop3Relay

_LANGUAGE_RANGE = re.compile(rb"[A-Za-z0-9]{1,8}(?:-[A-Za-z0-9]{1,8})*\Z")
_SECRET_COMMANDS: Final = frozenset({"PASS", "AUTH", "APOP"})


class Pop3Dialogue(Dialogue):
    """See :class:`Dialogue`."""

    protocol = Protocol.POP3

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._receiver = CommandReceiver(self.services.limits)
        self._user: bytes | None = None
        self._utf8 = False
        self._language: bytes | None = None

    # ---------------------------------------------------------------- before login

    async def greet(self) -> None:
        """Send ``+OK``, without a timestamp: APOP needs a secret that a proxy does not have."""
        await self.send(f"+OK POP3 {self.services.hostname} ready\r\n".encode())

    def _capabilities(self) -> tuple[str, ...]:
        return access.pop3_capabilities(
            self.services.upstream_capabilities(self.session),
            tls_available=self.connection.can_start_tls,
            plaintext_ok=self.credentials_allowed,
            mechanisms=self.mechanisms,
        )

    def _offers(self, name: str) -> bool:
        return any(line.split()[0] == name for line in self._capabilities())

    async def read_login(self) -> Login:
        """Answer commands until PASS or AUTH is complete."""
        while True:
            item = self._receiver.next()
            if item is None:
                await self.fill()
            elif isinstance(item, BadCommand):
                await self._bad(item)
            else:
                handler = _COMMANDS.get(item.verb)
                if handler is None and item.verb not in access.KNOWN_VERBS[Protocol.POP3]:
                    self.note_hidden()
                    await self._say_bad("Unknown command")
                    continue
                self.note(item.verb.encode() + b"\r\n" if item.verb in _SECRET_COMMANDS else item.raw)
                if handler is None:
                    await self._say_bad("Log in first")
                elif (login := await handler(self, item)) is not None:
                    return login

    async def _bad(self, bad: BadCommand) -> None:
        self.note_hidden()
        text = "This is a POP3 server" if bad.foreign else bad.text
        await self.send(f"-ERR {text}\r\n".encode("ascii"))
        if bad.foreign or bad.fatal:
            raise SessionOver(Side.CLIENT, "protocol")
        await self.count_bad()

    async def _ok(self, text: str, *lines: str) -> None:
        block = "".join(f"{line}\r\n" for line in (*lines, ".")) if lines else ""
        await self.send(f"+OK {text}\r\n{block}".encode())

    async def _say_bad(self, text: str) -> None:
        await self.send(f"-ERR {text}\r\n".encode("ascii"))
        await self.count_bad()

    async def _capa(self, command: Pop3Command) -> Login | None:
        await self._ok("Capability list follows", *self._capabilities())
        return None

    async def _noop(self, command: Pop3Command) -> Login | None:
        await self._ok("Nothing done")
        return None

    async def _quit(self, command: Pop3Command) -> Login | None:
        await self._ok("Bye")
        raise self.left()

    async def _stls(self, command: Pop3Command) -> Login | None:
        if not self.connection.can_start_tls:
            active = self.session.tls is not None
            await self._say_bad("Command not permitted when TLS active" if active else "TLS is not available")
            return None
        if self._receiver.buffered:
            raise SessionOver(Side.CLIENT, "protocol")
        await self._ok("Begin TLS negotiation")
        await self.connection.start_tls()
        self._receiver = CommandReceiver(self.services.limits)
        self._user = self._language = None
        self._utf8 = False
        return None

    async def _utf8_mode(self, command: Pop3Command) -> Login | None:
        if command.argument or not self._offers("UTF8"):
            await self._say_bad("UTF8 is not available")
            return None
        self._utf8 = True
        await self._ok("UTF8 enabled")
        return None

    async def _lang(self, command: Pop3Command) -> Login | None:
        if not self._offers("LANG"):
            await self._say_bad("LANG is not available")
        elif not command.argument:
            await self._ok("Language list follows", "i-default Default language")
        elif command.argument == b"*":
            # RFC 6856 §3: any language will do, so the upstream need not hear of a wish.
            self._language = None
            await self._ok("i-default Default language")
        elif not _LANGUAGE_RANGE.match(command.argument):
            await self._say_bad("LANG takes a language tag")
        else:
            # The upstream decides which languages there are; it hears of the wish before the login.
            self._language = command.argument
            await self._ok(f"{command.argument.decode('ascii')} noted")
        return None

    async def _user_name(self, command: Pop3Command) -> Login | None:
        self._user = None
        if not self.credentials_allowed:
            await self._turn_down(answers.CLEARTEXT_DISABLED)
        elif not command.argument or sasl.has_control(command.argument):
            await self._turn_down(answers.INVALID_CREDENTIALS)
        else:
            self._user = command.argument
            # Every name is welcome here: the answer must not tell which ones exist.
            await self._ok("Send the password")
        return None

    async def _password(self, command: Pop3Command) -> Login | None:
        user, self._user = self._user, None
        self._mechanism = Mechanism.COMMAND
        if not self.credentials_allowed:
            await self._turn_down(answers.CLEARTEXT_DISABLED)
        elif user is None:
            await self._say_bad("USER first")
        elif sasl.has_control(command.argument):
            await self._turn_down(answers.INVALID_CREDENTIALS)
        else:
            return self._complete(Mechanism.COMMAND, user, b"", Secret(command.argument))
        return None

    async def _auth(self, command: Pop3Command) -> Login | None:
        if not self.credentials_allowed:
            await self._turn_down(answers.CLEARTEXT_DISABLED)
            return None
        name, _, initial = command.argument.strip(b" ").partition(b" ")
        if not name:
            # Outlook asks for the list of mechanisms so.
            await self._ok("Mechanisms follow", *(str(one) for one in self.mechanisms))
            return None
        return await self._sasl_login(name, initial.strip(b" ") or None)

    def _complete(self, mechanism: Mechanism, user: bytes, authzid: bytes, secret: Secret) -> Login:
        return Login(
            protocol=Protocol.POP3,
            user=user,
            secret=secret,
            mechanism=mechanism,
            authzid=authzid,
            utf8=self._utf8,
            language=self._language,
        )

    # ---------------------------------------------------------------- the outcome

    async def _answer_refusal(self, refusal: Refusal) -> None:
        await self.send(answers.pop3_reply(refusal))

    async def goodbye(self, refusal: Refusal) -> None:
        """Send ``-ERR``: POP3 has no other farewell."""
        await self.send(answers.pop3_reply(refusal))

    async def accept(self, accepted: Accepted) -> None:
        """Send ``+OK``."""
        await self._ok("Logged in")

    def core(self, signed_in: SignedIn) -> Pop3Relay:
        """Return the POP3 relay core."""
        return Pop3Relay(
            decide=self.services.gate.deciders[self.protocol],
            visible=access.filter_pop3_capabilities,
            verbs=access.KNOWN_VERBS[Protocol.POP3],
        )

    @staticmethod
    def farewell(reason: str) -> bytes:
        """Return nothing: RFC 1939 §3 has the server close without a response."""
        return b""

    def residual(self) -> bytes:
        """Return the bytes behind the login."""
        return self._receiver.take_residual()

    def _feed(self, data: memoryview) -> None:
        self._receiver.receive(data)

    def _next_line(self) -> SaslLine | BadCommand | None:
        return self._receiver.next_line()


_COMMANDS: Final[dict[str, Callable[[Pop3Dialogue, Pop3Command], Awaitable[Login | None]]]] = {
    "CAPA": Pop3Dialogue._capa,
    "NOOP": Pop3Dialogue._noop,
    "QUIT": Pop3Dialogue._quit,
    "STLS": Pop3Dialogue._stls,
    "UTF8": Pop3Dialogue._utf8_mode,
    "LANG": Pop3Dialogue._lang,
    "USER": Pop3Dialogue._user_name,
    "PASS": Pop3Dialogue._password,
    "AUTH": Pop3Dialogue._auth,
}

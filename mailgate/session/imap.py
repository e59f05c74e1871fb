"""The IMAP dialogue before login (RFC 9051 §6.1 and §6.2, RFC 3501), with ID (RFC 2971).

Everything that the client says before STARTTLS is forgotten after it, and a byte that arrives in
clear behind that command ends the connection: it would be the beginning of a command injection.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Final

from mailgate.model import Login, Mechanism, Protocol, Refusal, Secret, Side
from mailgate.policy import access, answers
from mailgate.session.dialogue import HIDDEN, Accepted, Dialogue, SessionOver, SignedIn, mechanisms_for
from mailgate.wire import sasl
from mailgate.wire.framing import BadCommand, SaslLine
from mailgate.wire.imap import Command, CommandReceiver, LiteralAnnounced
from mailgate.wire.relay_imap import ImapRelay

MAX_ID_PAIRS: Final = 30
"""RFC 2971 §3.3: a client may send at most 30 pairs."""

_SECRET_COMMANDS: Final = frozenset({"LOGIN", "AUTHENTICATE"})
_AUTHENTICATED_ONLY: Final = "Log in first"
_BROKEN_OFF: Final = frozenset({answers.INVALID_BASE64, answers.ABORTED})
"""RFC 9051 §6.2.2: an exchange that was cancelled or garbled is answered BAD."""


class ImapDialogue(Dialogue):
    """See :class:`Dialogue`."""

    protocol = Protocol.IMAP

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._receiver = CommandReceiver(self.services.limits)
        self._tag = b"*"
        self._client_id: tuple[tuple[bytes, bytes | None], ...] | None = None
        self._asked_capabilities = False

    # ---------------------------------------------------------------- before login

    async def greet(self) -> None:
        """Send ``* OK`` with the capabilities."""
        await self.send(f"* OK [CAPABILITY {self._capabilities()}] {self.services.hostname} ready\r\n".encode())

    def _capabilities(self) -> str:
        return _offered(
            tuple(self.services.upstream_capabilities(self.session)),
            self.connection.can_start_tls,
            self.credentials_allowed,
        )

    async def read_login(self) -> Login:
        """Answer commands until LOGIN or AUTHENTICATE is complete."""
        while True:
            item = self._receiver.next()
            if item is None:
                await self.fill()
            elif isinstance(item, LiteralAnnounced):
                await self.send(b"+ OK\r\n")
            elif isinstance(item, BadCommand):
                await self._bad(item)
            else:
                self._tag = item.tag
                handler = _COMMANDS.get(item.name)
                if handler is None and item.name not in access.KNOWN_VERBS[Protocol.IMAP]:
                    await self._not_understood(item.tag, "Unknown command")
                    continue
                secret = item.name in _SECRET_COMMANDS
                self.note(b"%b %b\r\n" % (item.tag, item.name.encode()) if secret else item.raw)
                if handler is None:
                    await self._say_bad(_AUTHENTICATED_ONLY)
                elif (login := await handler(self, item)) is not None:
                    return login

    async def _bad(self, bad: BadCommand) -> None:
        if bad.foreign:
            await self.send(b"* BYE This is an IMAP server\r\n")
            raise SessionOver(Side.CLIENT, "protocol")
        if bad.fatal:
            await self.send(f"* BYE {bad.text}\r\n".encode("ascii"))
            raise SessionOver(Side.CLIENT, "protocol")
        await self._not_understood(bad.tag or b"*", bad.text)

    async def _not_understood(self, tag: bytes, text: str) -> None:
        """Answer what is no command; its tag may be anything, even a password, and stays out of traces."""
        answer = f"BAD {text}\r\n".encode("ascii")
        self.note_hidden()
        await self.send(b"%b %b" % (tag, answer), shown=b"%b %b" % (HIDDEN, answer))
        await self.count_bad()

    async def _say(self, status: str, text: str) -> None:
        await self.send(b"%b %b\r\n" % (self._tag, f"{status} {text}".encode("ascii")))

    async def _say_bad(self, text: str) -> None:
        await self._say("BAD", text)
        await self.count_bad()

    async def _capability(self, command: Command) -> Login | None:
        if command.args:
            await self._say_bad("CAPABILITY takes no arguments")
            return None
        self._asked_capabilities = True
        await self.send(f"* CAPABILITY {self._capabilities()}\r\n".encode())
        await self._say("OK", "Capability completed")
        return None

    async def _noop(self, command: Command) -> Login | None:
        await self._say("OK", "NOOP completed")
        return None

    async def _logout(self, command: Command) -> Login | None:
        await self.send(b"* BYE Logging out\r\n")
        await self._say("OK", "Logout completed")
        raise self.left()

    async def _id(self, command: Command) -> Login | None:
        pairs = _id_pairs(command, keep_proxy_keys=self.listener.trusts(self.session.peer.address))
        if pairs is None:
            await self._say_bad("ID takes NIL or a list of up to 30 pairs of strings")
            return None
        self._client_id = pairs
        await self.send(b'* ID ("name" "mailgate")\r\n')
        await self._say("OK", "ID completed")
        return None

    async def _starttls(self, command: Command) -> Login | None:
        if command.args:
            await self._say_bad("STARTTLS takes no arguments")
            return None
        if not self.connection.can_start_tls:
            await self._say_bad("TLS is already active" if self.session.tls else "TLS is not available")
            return None
        if self._receiver.buffered:
            raise SessionOver(Side.CLIENT, "protocol")
        await self._say("OK", "Begin TLS negotiation now")
        await self.connection.start_tls()
        self._receiver = CommandReceiver(self.services.limits)
        self._client_id = None
        self._asked_capabilities = False
        return None

    async def _login(self, command: Command) -> Login | None:
        self._mechanism = Mechanism.COMMAND
        match command.args:
            case (bytes() as user, bytes() as password):
                pass
            case _:
                await self._say_bad("LOGIN takes a user name and a password")
                return None
        if not self.credentials_allowed:
            await self._turn_down(answers.CLEARTEXT_DISABLED)
            return None
        if sasl.has_control(user + password) or not user:
            await self._turn_down(answers.INVALID_CREDENTIALS)
            return None
        return self._complete(Mechanism.COMMAND, user, b"", Secret(password))

    async def _authenticate(self, command: Command) -> Login | None:
        match command.args:
            case (bytes() as name,):
                initial = None
            case (bytes() as name, bytes() as initial):
                pass
            case _:
                await self._say_bad("AUTHENTICATE takes a mechanism and perhaps an initial response")
                return None
        if not self.credentials_allowed:
            await self._turn_down(answers.CLEARTEXT_DISABLED)
            return None
        return await self._sasl_login(name, initial)

    def _complete(self, mechanism: Mechanism, user: bytes, authzid: bytes, secret: Secret) -> Login:
        return Login(
            protocol=Protocol.IMAP,
            user=user,
            secret=secret,
            mechanism=mechanism,
            authzid=authzid,
            tag=self._tag,
            client_id=self._client_id,
        )

    # ---------------------------------------------------------------- the outcome

    async def _answer_refusal(self, refusal: Refusal) -> None:
        await self.send(answers.imap_reply(refusal, self._tag, "BAD" if refusal in _BROKEN_OFF else "NO"))

    async def goodbye(self, refusal: Refusal) -> None:
        """Send ``* BYE``."""
        await self.send(answers.imap_reply(refusal, None, "BYE"))

    async def accept(self, accepted: Accepted) -> None:
        """Send the tagged OK with the upstream's capabilities, filtered.

        A client that asked for capabilities before login keeps those unless it is told again
        (many ignore the response code), so it is sent an untagged response as well.
        """
        shown = _visible(accepted.shown)
        pieces = list(accepted.untagged)
        if self._asked_capabilities:
            pieces.append(b"* CAPABILITY %b\r\n" % shown)
        pieces.append(b"%b OK [CAPABILITY %b] Logged in\r\n" % (self._tag, shown))
        await self.send(b"".join(pieces))

    def core(self, signed_in: SignedIn) -> ImapRelay:
        """Return the IMAP relay core."""
        return ImapRelay(
            decide=self.services.gate.deciders[self.protocol],
            visible=access.filter_capabilities,
            verbs=access.KNOWN_VERBS[Protocol.IMAP],
            capabilities=signed_in.capabilities,
        )

    @staticmethod
    def farewell(reason: str) -> bytes:
        """Return ``* BYE`` and why."""
        return answers.imap_reply(answers.farewell_for(reason), None, "BYE")

    def residual(self) -> bytes:
        """Return the bytes behind the login."""
        return self._receiver.take_residual()

    def _feed(self, data: memoryview) -> None:
        self._receiver.receive(data)

    def _next_line(self) -> SaslLine | BadCommand | None:
        return self._receiver.next_line()


@functools.lru_cache(maxsize=64)
def _offered(upstream: tuple[frozenset[str], ...], tls_available: bool, plaintext_ok: bool) -> str:
    """Return the capabilities before login, which are the same for nearly all clients."""
    return " ".join(
        access.greeting_capabilities(
            upstream, tls_available=tls_available, plaintext_ok=plaintext_ok, mechanisms=mechanisms_for(upstream)
        )
    )


@functools.lru_cache(maxsize=64)
def _visible(capabilities: tuple[bytes, ...]) -> bytes:
    """Return what a client may see of an upstream's capabilities, which are the same at every login."""
    return b" ".join(access.filter_capabilities(capabilities))


def _id_pairs(command: Command, *, keep_proxy_keys: bool) -> tuple[tuple[bytes, bytes | None], ...] | None:
    """Return an ID command's pairs, ``None`` if it is malformed.

    Keys that begin with ``x-`` are how proxies tell a server whose connection they carry: from a
    client that is not trusted to be a proxy they would be a lie that the upstream believes.
    """
    match command.args:
        case (None,):
            return ()
        case (tuple() as values,) if len(values) % 2 == 0 and len(values) <= 2 * MAX_ID_PAIRS:
            pass
        case _:
            return None
    pairs = []
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, bytes) or not (value is None or isinstance(value, bytes)):
            return None
        if keep_proxy_keys or not key.lower().startswith(b"x-"):
            pairs.append((key, value))
    return tuple(pairs)


_COMMANDS: Final[dict[str, Callable[[ImapDialogue, Command], Awaitable[Login | None]]]] = {
    "CAPABILITY": ImapDialogue._capability,
    "NOOP": ImapDialogue._noop,
    "LOGOUT": ImapDialogue._logout,
    "ID": ImapDialogue._id,
    "STARTTLS": ImapDialogue._starttls,
    "LOGIN": ImapDialogue._login,
    "AUTHENTICATE": ImapDialogue._authenticate,
}

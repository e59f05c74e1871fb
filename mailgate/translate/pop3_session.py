"""The TRANSACTION state of a POP3 client whose mail lies on an IMAP server (RFC 1939 §5, §6).

One coroutine reads commands and answers them in their order; what a client sends ahead waits in its
socket meanwhile, which is all that pipelining needs (RFC 2449 §6.6). Everything but messages is answered
from the frozen maildrop, and what a client deletes is a mark there until its QUIT.

A connection to the server that was lost is replaced when it is needed next; as long as the mailboxes are the
same ones, the client does not notice. What can be said of a message before its first byte went out becomes a
reply, and after that byte the only honest answer is the end of the connection.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, NoReturn, TypeVar
from typing import Protocol as Interface

import trio

from mailgate.config import Pop3Policy
from mailgate.errors import UpstreamFailed
from mailgate.events import CommandFinished, Emit, MaildropClosed, Trace
from mailgate.model import Deny, End, Protocol, Refusal, Session, Side, Verdict
from mailgate.policy import access, answers
from mailgate.stream import ByteStream
from mailgate.translate.backend import Backend
from mailgate.translate.deletion import Deletion, plan
from mailgate.translate.imap_client import ClientError, ImapClient, MailboxChanged, Vanished
from mailgate.translate.opening import Opened
from mailgate.translate.pop3_client import Over, Pop3Client
from mailgate.translate.pop3_message import begin_message, has_utf8_header, section_of, send_message
from mailgate.translate.refusals import refusal_for
from mailgate.translate.store import Memories
from mailgate.translate.store_backend import StoreFailed
from mailgate.translate.update import update
from mailgate.wire.dotted import MessageEncoder
from mailgate.wire.framing import BadCommand
from mailgate.wire.pop3 import Pop3Command

COMMANDS_AT_ONCE: Final = 50
"""Commands that are answered before other sessions have their turn, where all of them came at once: a millisecond."""

BAD_COMMANDS: Final = 20
"""Commands in a row that were wrong, after which a client is caught in a loop."""

AHEAD_LIMIT: Final = 256 * 1024
"""Bytes of messages that are asked for before the client does: so much may have to be read for nothing."""

AHEAD_MESSAGES: Final = 31
"""Messages that are asked for before the client does: 1,500 small ones in a second, at 20 ms to the server."""

LAST_WORDS: Final = 5.0
"""Seconds for QUIT's answer where the session was ended from outside while QUIT deleted."""

REMEMBER_SECONDS: Final = 5.0
"""How long the store may take for what is only kept to be faster the next time."""

NEEDS_UTF8: Final = Refusal("needs_utf8", "This message needs UTF8 before the login.", "", "UTF8")
"""What RFC 6856 §2.1 has a server say to a client that did not ask for UTF-8 in headers."""

T = TypeVar("T")

_ONE = re.compile(rb" *([0-9]{1,10}) *\Z")
_TWO = re.compile(rb" *([0-9]{1,10}) +([0-9]{1,10}) *\Z")


class Held(Interface):
    """The lock of a maildrop."""

    def keep(self) -> None:
        """Give way to nobody any more."""
        ...

    def release(self) -> None:
        """Let others have the maildrop; does nothing the second time."""
        ...


class Pop3Session(Pop3Client):
    """One client's session with its maildrop, from the accepted login to the end.

    ``held`` is the lock of the maildrop, let go at the end. A session is one of those that
    :class:`~mailgate.session.relay.Watch` knows, and ends when told to, but not in the middle of its UPDATE.
    """

    translated: Final = True
    untagged: Final = ()
    shown: Final = ()

    def __init__(
        self,
        session: Session,
        backend: Backend,
        opened: Opened,
        memories: Memories,
        policy: Pop3Policy,
        emit: Emit,
        buffer: bytearray,
        capabilities: tuple[str, ...],
        *,
        utf8: bool,
        held: Held,
    ) -> None:
        super().__init__(session, emit, buffer)
        self._backend = backend
        self._opened = opened
        self._maildrop = opened.maildrop
        self._memories = memories
        self._policy = policy
        self._capabilities = capabilities
        self._utf8 = utf8 or policy.utf8 == "passthrough"
        self._held_maildrop = held
        self._deletions: Sequence[Deletion | Refusal] | None = None
        # They hold for this connection: another server of the pool may be another make.
        self._planned: ImapClient | None = None
        self._scope = trio.CancelScope()
        self._bad = 0
        self._quitted = False
        # What was retrieved last, how many are asked for ahead of the next, and up to which number they were.
        self._before: tuple[int, int | None] = (0, None)
        self._ahead = 0
        self._asked = 0
        # What the client was told is gone, so that one that does not believe it is noticed.
        self._vanished: set[int] = set()
        # Sizes that were seen and are listed from the next session on: within one, a message has one size.
        self._measured: dict[int, int] = {}

    # ---------------------------------------------------------------- from outside

    def end(self, side: Side, reason: str) -> None:
        """End the session, with nothing deleted; one that updates its maildrop goes on until that is done."""
        self.outcome = self.outcome or End(side, reason)
        self._scope.cancel()

    async def _keep_alive(self) -> None:
        await self._backend.keep_alive()

    async def aclose(self) -> None:
        """Close the connection to the server, at once, and let the next session have the maildrop."""
        try:
            await self._backend.aclose()
        finally:
            self._held_maildrop.release()

    # ---------------------------------------------------------------- the session

    async def serve(
        self,
        stream: ByteStream,
        early: bytes,
        *,
        idle: float,
        decide: Callable[[str], Verdict],
        trace: Trace | None,
    ) -> End:
        """Answer the client's commands until it quits or goes; return who ended the session, and why.

        ``early`` is what it sent behind its login, ``idle`` the limit in seconds for its silence and for its taking
        what it is sent; ``decide`` is asked for each command.
        """
        self._begin_with(stream, early, idle, trace)
        end = End(Side.PROXY, "internal")
        try:
            with self._scope:
                while True:
                    await self._one(decide)
        except Over as over:
            # RFC 1939 §3: an idle client is not answered. One that was told why has been.
            end = over.end
        finally:
            self.sweep(0.0)
            if self._measured:
                # There was no QUIT.
                await self._remember()
        if self._quitted:
            # Its UPDATE is done, whoever wanted to end the session meanwhile and whether or not the client heard of it.
            return End(Side.CLIENT, "logged_out")
        return self.outcome or end

    async def _one(self, decide: Callable[[str], Verdict]) -> None:
        """Answer the next command."""
        while (item := self._receiver.next()) is None:
            await self._flush()
            await self._fill()
        began = trio.current_time()
        self._wrong = False
        verb, result = "other", "err"
        try:
            if isinstance(item, BadCommand):
                self._note(b"<hidden>\r\n")
                await self._refuse(item.text)
                if item.fatal:
                    await self._flush()
                    raise Over(Side.CLIENT, "protocol")
            else:
                self._note(item.raw)
                if item.verb in access.KNOWN_VERBS[Protocol.POP3]:
                    verb = item.verb
                verdict = decide(item.verb)
                if isinstance(verdict, Deny):
                    self._wrong, result = True, "refused"
                    await self._refuse(verdict.refusal)
                elif (handler := _COMMANDS.get(item.verb)) is None:
                    await self._refuse("Unknown command")
                elif await handler(self, item):
                    result = "ok"
        finally:
            # One that is broken off has not been answered well either.
            self.session.commands += 1
            self._emit(CommandFinished(self.session, verb, result, trio.current_time() - began))
        if self._quitted:
            await self._leave()
        self._bad = self._bad + 1 if self._wrong else 0
        if self._bad >= BAD_COMMANDS:
            await self._refuse(answers.TOO_MANY_BAD_COMMANDS)
            await self._flush()
            raise Over(Side.PROXY, answers.TOO_MANY_BAD_COMMANDS.reason)
        if self.session.commands % COMMANDS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()

    # ---------------------------------------------------------------- commands that the maildrop answers

    async def _stat(self, command: Pop3Command) -> bool:
        return await self._ok(f"{self._maildrop.count} {self._maildrop.octets}")

    async def _number(self, argument: bytes) -> int | None:
        """Return the number of a message that is there; the client was told otherwise where it is None."""
        match = _ONE.match(argument)
        number = int(match[1]) if match is not None else 0
        if match is None:
            await self._refuse("The number of a message is missing")
        elif not 1 <= number <= self._maildrop.total:
            await self._refuse("There is no such message")
        elif not self._maildrop.present(number):
            await self._refuse("This message is deleted")
        else:
            return number
        return None

    async def _list(self, command: Pop3Command) -> bool:
        drop = self._maildrop
        if command.argument.strip(b" "):
            number = await self._number(command.argument)
            return number is not None and await self._ok(f"{number} {drop.size(number)}")
        await self._say(b"+OK %d messages (%d octets)\r\n" % (drop.count, drop.octets))
        return await self._listing("LIST")

    async def _uidl(self, command: Pop3Command) -> bool:
        if command.argument.strip(b" "):
            number = await self._number(command.argument)
            return number is not None and await self._ok(f"{number} {self._maildrop.uidl(number).decode('ascii')}")
        await self._say(b"+OK Unique-id listing follows\r\n")
        return await self._listing("UIDL")

    async def _listing(self, kind: Literal["LIST", "UIDL"]) -> bool:
        for block in self._maildrop.lines(kind):
            await self._say(block)
        await self._say(b".\r\n")
        return True

    async def _dele(self, command: Pop3Command) -> bool:
        number = await self._number(command.argument)
        if number is None:
            return False
        if self._deletions is None or self._planned is not self._backend.current:
            # Now and not in QUIT's answer is when a client must hear of a policy that can never work here.
            try:
                self._deletions = await self._steadily(self._maildrop.folder(number), self._plan)
            except (ClientError, UpstreamFailed) as error:
                return await self._failed(error)
        deletion = self._deletions[self._maildrop.folder(number)]
        if isinstance(deletion, Refusal):
            return await self._refuse(deletion)
        self._maildrop.delete(number)
        return await self._ok("Marked to be deleted")

    async def _plan(self, client: ImapClient) -> Sequence[Deletion | Refusal]:
        deletions = await plan(client, self._backend.folders, self._policy)
        self._planned = client
        return deletions

    async def _rset(self, command: Pop3Command) -> bool:
        self._maildrop.reset()
        return await self._ok(f"{self._maildrop.count} messages ({self._maildrop.octets} octets)")

    async def _noop(self, command: Pop3Command) -> bool:
        return await self._ok("Nothing done")

    async def _last(self, command: Pop3Command) -> bool:
        if not self._policy.last:
            return await self._refuse("Unknown command")
        return await self._ok(str(self._maildrop.last))

    async def _capa(self, command: Pop3Command) -> bool:
        lines = "".join(f"{line}\r\n" for line in self._capabilities)
        await self._say(f"+OK Capability list follows\r\n{lines}.\r\n".encode("ascii"))
        return True

    async def _utf8_mode(self, command: Pop3Command) -> bool:
        # Some clients ask only now (RFC 6856 §2 wants it before the login), and lose nothing by an answer.
        if command.argument:
            return await self._refuse("UTF8 takes no argument")
        self._utf8 = True
        return await self._ok("UTF8 enabled")

    async def _lang(self, command: Pop3Command) -> bool:
        if not command.argument:
            await self._say(b"+OK Language list follows\r\ni-default Default language\r\n.\r\n")
            return True
        if command.argument in (b"*", b"i-default"):
            return await self._ok("i-default Default language")
        return await self._refuse("This language is not spoken here")

    # ---------------------------------------------------------------- messages

    async def _retr(self, command: Pop3Command) -> bool:
        number = await self._number(command.argument)
        if number is None:
            return False
        encoder = MessageEncoder(nul=self._nul)
        done = await self._message(number, encoder, None)
        if done:
            if self._policy.size == "cache" and encoder.octets != self._maildrop.size(number):
                self._measured[number] = encoder.octets
            self._maildrop.retrieved(number)
        return done

    async def _top(self, command: Pop3Command) -> bool:
        match = _TWO.match(command.argument)
        if match is None:
            return await self._refuse("TOP takes the number of a message and a number of lines")
        number = await self._number(match[1])
        if number is None:
            return False
        lines = int(match[2])
        return await self._message(number, MessageEncoder(nul=self._nul, body_lines=lines), lines)

    @property
    def _nul(self) -> bytes | None:
        return b"\x80" if self._policy.nul == "replace" else None

    async def _steadily(self, folder: int, use: Callable[[ImapClient], Awaitable[T]]) -> T:
        """Use the connection with a folder selected; one that turns out to be lost is replaced, once.

        Raises ClientError, UpstreamFailed.
        """
        try:
            try:
                return await use(await self._backend.client(folder))
            except ClientError:
                if self._backend.current.alive:
                    raise
            return await use(await self._backend.client(folder))
        finally:
            self._used = trio.current_time()

    async def _failed(self, error: ClientError | UpstreamFailed) -> bool:
        """Tell that the server did not do its part; the session ends where UIDs mean other messages now."""
        refusal = refusal_for(error)
        await self._refuse(refusal)
        if isinstance(error, MailboxChanged):
            await self._flush()
            raise Over(Side.SERVER, refusal.reason) from error
        return False

    async def _message(self, number: int, encoder: MessageEncoder, lines: int | None) -> bool:
        """Send a message, or its header and some lines; say ``-ERR`` where that is known before its first byte."""
        uid = self._maildrop.uid(number)

        async def begun(client: ImapClient) -> ImapClient | None:
            if not self._utf8 and await has_utf8_header(client, uid):
                return None
            await begin_message(client, uid, lines)
            return client

        try:
            client = await self._steadily(self._maildrop.folder(number), begun)
        except Vanished as vanished:
            # RFC 1939 has no word for it: the number stays, and each try is refused.
            self._wrong = number in self._vanished
            self._vanished.add(number)
            return await self._refuse(refusal_for(vanished))
        except (ClientError, UpstreamFailed) as error:
            return await self._failed(error)
        if client is None:
            return await self._refuse(NEEDS_UTF8)
        self._ask_ahead(number, lines, client)
        earlier, sent = self._take_held(), self.session.bytes_out
        begin = b"+OK Top of message\r\n" if lines is not None else b"+OK %d octets\r\n" % self._maildrop.size(number)
        try:
            await send_message(client, uid, encoder, lines, earlier + begin, self._send)
        except ClientError as error:
            if self.session.bytes_out == sent:
                await self._say(earlier)
                return await self._failed(error)
            # A final dot would make a whole message of what is not.
            raise Over(Side.SERVER, refusal_for(error).reason) from error
        finally:
            self._used = trio.current_time()
        return True

    def _ask_ahead(self, number: int, lines: int | None, client: ImapClient) -> None:
        """Have messages asked for before the client does, while it retrieves one after another.

        Each that it does in turn doubles how many, so that who looks at two of them does not cost the server thirty.
        They are asked for many at a time, once half of those that were are taken.
        """
        last, kind = self._before
        self._before = (number, lines)
        self._ahead = min(2 * self._ahead + 1, AHEAD_MESSAGES) if (number, lines) == (last + 1, kind) else 0
        if not client.ahead:
            self._asked = number
        if not self._ahead or lines or not self._utf8 or self._asked - number > self._ahead // 2:
            return
        drop = self._maildrop
        octets = sum(map(drop.size, range(number + 1, self._asked + 1)))
        for following in range(self._asked + 1, min(number + self._ahead, drop.total) + 1):
            if not drop.present(following) or drop.folder(following) != drop.folder(number):
                break
            octets += drop.size(following)
            if octets > AHEAD_LIMIT:
                break
            client.ask_body(drop.uid(following), section_of(lines))
            self._asked = following

    # ---------------------------------------------------------------- the end

    async def _quit(self, command: Pop3Command) -> bool:
        """Enter the UPDATE state, which goes on to its end whether or not the client waits for the answer."""
        # Whoever ended the session before this moment has ended it without an UPDATE.
        await trio.lowlevel.checkpoint_if_cancelled()
        began = trio.current_time()
        self._held_maildrop.keep()
        self._quitted = True
        with trio.CancelScope(shield=True):
            backend, policy = self._backend, self._policy
            planned = self._deletions if self._planned is backend.current else None
            outcome = await update(backend.current, self._maildrop, backend.folders, policy, backend.replace, planned)
            if outcome.asked:
                self._emit(
                    MaildropClosed(
                        self.session,
                        policy.delete,
                        outcome.removed,
                        outcome.kept,
                        outcome.unknown,
                        outcome.unseen,
                        outcome.detail,
                        trio.current_time() - began,
                    )
                )
            if outcome.ok and policy.delete in ("expunge", "trash"):
                self._opened.removed(self._maildrop.marked())
            await self._remember()
            # A client that has its answer may log in again at once.
            self._held_maildrop.release()
        self._replies.append(b"+OK Bye\r\n" if outcome.refusal is None else answers.pop3_reply(outcome.refusal))
        return outcome.refusal is None

    async def _leave(self) -> NoReturn:
        """Send QUIT's answer, and then take leave of the server, which no client has to wait for."""
        try:
            with trio.CancelScope(shield=self.ended) as scope:
                if self.ended:
                    scope.deadline = trio.current_time() + LAST_WORDS
                await self._flush()
        finally:
            with trio.CancelScope(shield=True):
                await self._backend.logout()
        raise Over(Side.CLIENT, "logged_out")

    async def _remember(self) -> None:
        """Keep what was learnt, which makes later sessions faster and their sizes exact, and nothing depends on."""
        measured, self._measured = self._measured, {}
        for number, octets in measured.items():
            self._opened.measured(number, octets)
        if measured or self._maildrop.count < self._maildrop.total:
            with suppress(StoreFailed), trio.move_on_after(REMEMBER_SECONDS, shield=True):
                await self._opened.remember(self._memories)


_COMMANDS: Final[dict[str, Callable[[Pop3Session, Pop3Command], Awaitable[bool]]]] = {
    "STAT": Pop3Session._stat,
    "LIST": Pop3Session._list,
    "UIDL": Pop3Session._uidl,
    "RETR": Pop3Session._retr,
    "TOP": Pop3Session._top,
    "DELE": Pop3Session._dele,
    "RSET": Pop3Session._rset,
    "NOOP": Pop3Session._noop,
    "LAST": Pop3Session._last,
    "CAPA": Pop3Session._capa,
    "UTF8": Pop3Session._utf8_mode,
    "LANG": Pop3Session._lang,
    "QUIT": Pop3Session._quit,
}

"""One connection, from its acceptance to its end: the gate, TLS, the session, and the boundary around them."""

from __future__ import annotations

import contextlib
import os

import trio

from mailgate import events
from mailgate.config import Listener
from mailgate.generation import Generation
from mailgate.model import Deny, End, Peer, Protocol, Refusal, Session, Side, State
from mailgate.net.tls import HandshakeFailed
from mailgate.policy import answers
from mailgate.session.dialogue import SessionOver
from mailgate.session.run import run_session
from mailgate.stream import SocketStream


class Connection:
    """One client's connection, as sessions see it."""

    __slots__ = ("_generation", "_listener", "_reception", "session", "stream")

    def __init__(
        self, reception: Reception, generation: Generation, listener: Listener, stream: SocketStream, session: Session
    ) -> None:
        self.stream = stream
        self.session = session
        self._reception = reception
        self._generation = generation
        self._listener = listener

    @property
    def can_start_tls(self) -> bool:
        """Whether STARTTLS or STLS may be offered now."""
        return self._listener.tls.startswith("starttls") and self.session.tls is None

    async def start_tls(self) -> None:
        """Do the TLS handshake and tell of its outcome; raises SessionOver when it fails."""
        emit = self._generation.services.emit
        began = trio.current_time()
        try:
            self.session.tls = await self._generation.accept_tls(self.stream, self._listener)
        except HandshakeFailed as failed:
            emit(events.TlsFailed(self.session, failed.reason))
            raise SessionOver(Side.CLIENT, "tls_handshake_not_finished") from None
        emit(events.TlsFinished(self.session, trio.current_time() - began))

    def ended(self, end: End) -> None:
        """Forget the session and tell of its end; once, whoever served it last."""
        session = self.session
        self._generation.gate.left(session.id)
        del self._reception.sessions[session.id]
        seconds = trio.current_time() - session.started
        self._generation.services.emit(events.SessionClosed(session, end.side, end.reason, seconds))


class Reception:
    """Serves connections; ``sessions`` is the table of the open ones, which it keeps.

    ``scopes`` is what each session runs in until its relay is taken over by the engine; ``closing`` says
    that sessions that are cancelled are because the gateway stops.
    """

    def __init__(self, emit: events.Emit, sessions: dict[str, Session]) -> None:
        self._emit = emit
        self.sessions = sessions
        self.scopes: dict[str, trio.CancelScope] = {}
        self.closing = False
        self._farewells: dict[str, Refusal] = {}

    def end(self, name: str, farewell: Refusal) -> None:
        """End a session that is not in a relay, and tell its client why where that is possible."""
        scope = self.scopes.get(name)
        if scope is not None:
            self._farewells[name] = farewell
            scope.cancel()

    def shed(self, name: str, rule: str) -> None:
        """End a session that is not in a relay, since it gives way to a newcomer by a limit's rule."""
        scope = self.scopes.get(name)
        if scope is not None:
            self._emit(events.LimitStruck(self.sessions[name], rule, "shed"))
            scope.cancel()

    async def serve(self, generation: Generation, listener: Listener, stream: SocketStream, peer: Peer) -> None:
        """Serve one connection from its acceptance to its end, as one of a generation's."""
        state = State.HANDSHAKE if listener.tls == "implicit" else State.LOGIN
        session = Session(os.urandom(8).hex(), listener.protocol, listener.name, peer, trio.current_time(), state)
        admission = generation.gate.admit(session.id, peer.address, session.started)
        if isinstance(admission.verdict, Deny):
            self._emit(events.LimitStruck(session, admission.verdict.rule, "deny"))
            if listener.tls != "implicit":
                # Where TLS comes first, a word would cost a handshake.
                await self._tell(listener, stream, admission.verdict.refusal)
            return
        for name in admission.shed:
            self.shed(name, admission.shed_rule)
        self.sessions[session.id] = session
        self._emit(events.SessionOpened(session))
        connection = Connection(self, generation, listener, stream, session)
        end: End | None = End(Side.PROXY, "internal")
        farewell: Refusal | None = None
        try:
            with trio.CancelScope() as scope:
                self.scopes[session.id] = scope
                end = await self._session(connection, listener, generation)
            if scope.cancelled_caught:
                farewell = self._farewells.get(session.id)
                if farewell is None:
                    farewell = answers.SHUTTING_DOWN if self.closing else answers.PROCESS_FULL
                end = End(Side.PROXY, farewell.reason)
        except trio.Cancelled:
            end = End(Side.PROXY, "shutting_down")
            raise
        except Exception as error:
            # The boundary around a session: what went wrong in one must not reach the others.
            farewell = answers.INTERNAL
            self._emit(events.CrashedSession(session, error))
        finally:
            del self.scopes[session.id]
            self._farewells.pop(session.id, None)
            if end is not None:
                connection.ended(end)
            else:
                # The engine has the socket: what was around it would only lie there until the session's end.
                del connection.stream
        if farewell is not None and session.state is State.LOGIN:
            # In the relay a line of our own could land inside a literal.
            await self._tell(listener, stream, farewell)
        await stream.aclose()

    async def _session(self, connection: Connection, listener: Listener, generation: Generation) -> End | None:
        if listener.tls == "implicit":
            try:
                await connection.start_tls()
            except SessionOver as over:
                return End(over.side, over.reason)
        return await run_session(connection, listener, generation.services)

    async def _tell(self, listener: Listener, stream: SocketStream, refusal: Refusal) -> None:
        """Tell a client why its connection ends, without waiting for one that does not listen."""
        reply = (
            answers.imap_reply(refusal, None, "BYE")
            if listener.protocol is Protocol.IMAP
            else answers.pop3_reply(refusal)
        )
        stream.deadline = trio.current_time() + 1
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            await stream.send_all(reply)

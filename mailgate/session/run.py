"""One client's session, read from top to bottom: greet, log in, find the upstream, relay.

Nothing here knows a protocol: what differs is in the :class:`Dialogue`. An upstream is opened only
for a complete login, and nothing passes between the two sides before it has accepted that login.
"""

from __future__ import annotations

import contextlib
import math

import trio

from mailgate.config import Listener
from mailgate.errors import UpstreamFailed
from mailgate.events import BytesRelayed, LimitStruck, LoginRefused, SessionEstablished
from mailgate.model import Deny, End, Login, Protocol, Refusal, Side, State
from mailgate.policy import answers
from mailgate.session.dialogue import Connection, Dialogue, Services, SessionOver, SignedIn, Translated
from mailgate.session.imap import ImapDialogue
from mailgate.session.pop3 import Pop3Dialogue
from mailgate.session.relay import Relay
from mailgate.session.streams import Pumps
from mailgate.stream import SocketStream
from mailgate.wire.relay import CopyRelay

ACCEPT_SECONDS = 5.0
"""What a client has at least to take the news that its login succeeded."""

DIALOGUES: dict[Protocol, type[Dialogue]] = {
    Protocol.IMAP: ImapDialogue,
    Protocol.POP3: Pop3Dialogue,
}


async def run_session(connection: Connection, listener: Listener, services: Services) -> End | None:
    """Serve one client until its session is over; return who ended it, and why.

    The connection is TLS already where the listener's TLS is implicit. The caller closes the
    client's stream; the upstream's is closed here, whatever happens. Between two sockets the engine
    takes over when the login was accepted: then this returns ``None`` at once, and the engine closes
    both and tells ``connection.ended``.
    """
    session, stream = connection.session, connection.stream
    session.state = State.LOGIN
    dialogue = DIALOGUES[session.protocol](connection, listener, services)
    dialogue.trace = services.trace(session)
    before_login = _BeforeLogin(dialogue, services)
    signed_in: SignedIn | Translated | None = None
    try:
        try:
            stream.deadline = trio.current_time() + listener.login_timeout
            try:
                await dialogue.greet()
                signed_in = await before_login.sign_in()
            except trio.TooSlowError:
                if stream.deadline > trio.current_time():
                    # It was not the client who was.
                    raise
                # The limit shows where the client stopped, so that a scanner and a slow human differ in the log.
                reason = "no_auth_attempts" if session.user is None else "auth_waiting_client"
                await _last_words(dialogue, answers.LOGIN_TIMEOUT)
                return End(Side.PROXY, reason)
            stream.deadline = math.inf
        except SessionOver as over:
            return End(over.side, over.reason)
        finally:
            services.emit(BytesRelayed(session, session.bytes_in, session.bytes_out))
        if signed_in.translated:
            return await _translate(dialogue, signed_in, services)
        return await _relay(dialogue, signed_in, services)
    finally:
        if signed_in is not None:
            await signed_in.aclose()


class _BeforeLogin:
    """The attempts of one client to sign in."""

    def __init__(self, dialogue: Dialogue, services: Services) -> None:
        self.dialogue = dialogue
        self.session = dialogue.session
        self.services = services

    async def sign_in(self) -> SignedIn | Translated:
        """Read logins until an upstream accepts one; raises SessionOver when the client has no more tries.

        The client's stream has a deadline, and raises ``trio.TooSlowError`` when it has come.
        """
        stream = self.dialogue.connection.stream
        while True:
            login = await self.dialogue.read_login()
            began = trio.current_time()
            # The client has done its part: from here on the upstream's own time limits count.
            left = stream.deadline - began
            stream.deadline = math.inf
            outcome = await self._attempt(login)
            if isinstance(outcome, Refusal):
                stream.deadline = trio.current_time() + left
                await self._refuse(outcome)
                continue
            # A client that does not read must not keep its upstream, nor one that was slow lose its login here.
            stream.deadline = trio.current_time() + max(left, ACCEPT_SECONDS)
            try:
                await self.dialogue.accept(outcome)
            except BaseException:
                await outcome.aclose()
                raise
            self.services.gate.logged_in(self.session.id)
            self.session.state = State.RELAY
            self.services.emit(SessionEstablished(self.session, trio.current_time() - began))
            return outcome

    async def _attempt(self, login: Login) -> SignedIn | Translated | Refusal:
        """Find the login's upstream and sign in there; return the reason for a refusal otherwise."""
        session, services = self.session, self.services
        session.user = login.user
        session.mechanism = login.mechanism
        session.client_id = login.client_id
        session.route = session.pool = session.server = None
        self.dialogue.trace = self.dialogue.trace or services.trace(session)
        try:
            route = await services.route(login, session)
            if route is None:
                return answers.NO_ROUTE
            session.route, session.pool = route.name, route.pool
            return await services.open_upstream(route, login, session)
        except UpstreamFailed as failed:
            return answers.refusal_for(failed.failure)

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer a failed attempt, after the delay that the gate asks for."""
        session, services = self.session, self.services
        counted = refusal.reason in answers.COUNTED_REASONS
        session.failures += counted
        services.emit(LoginRefused(session, refusal.reason))
        if not counted:
            await self.dialogue.refuse(refusal)
            return
        verdict, seconds = services.gate.login_failed(session.failures)
        if seconds:
            services.emit(LimitStruck(session, "failure_delay", "delay", seconds))
            with trio.fail_at(self.dialogue.connection.stream.deadline):
                await trio.sleep(seconds)
        await self.dialogue.refuse(refusal)
        if isinstance(verdict, Deny):
            services.emit(LimitStruck(session, verdict.rule, "deny"))
            await self.dialogue.goodbye(verdict.refusal)
            raise SessionOver(Side.PROXY, refusal.reason)


async def _last_words(dialogue: Dialogue, refusal: Refusal) -> None:
    """Tell a client why its connection ends, without waiting for one that does not listen."""
    dialogue.connection.stream.deadline = trio.current_time() + 1
    with contextlib.suppress(trio.TooSlowError):
        await dialogue.goodbye(refusal)


async def _translate(dialogue: Dialogue, translated: Translated, services: Services) -> End:
    """Have the client served by what translates for it."""
    listener = dialogue.listener
    services.watch.add(translated)
    try:
        return await translated.serve(
            dialogue.connection.stream,
            dialogue.residual(),
            idle=listener.idle_timeout,
            decide=services.gate.deciders[dialogue.session.protocol],
            trace=dialogue.trace,
        )
    finally:
        services.watch.remove(translated)


async def _relay(dialogue: Dialogue, signed_in: SignedIn, services: Services) -> End | None:
    """Relay between the client and the upstream that accepted it."""
    listener, connection = dialogue.listener, dialogue.connection
    relay = Relay(
        CopyRelay() if listener.inspect == "login" else dialogue.core(signed_in),
        dialogue.session,
        services.emit,
        idle=listener.idle_timeout,
        linger=services.linger,
        farewell=dialogue.farewell,
        trace=dialogue.trace,
    )
    client, upstream = connection.stream, signed_in.stream
    early = dialogue.residual(), signed_in.residual
    if isinstance(client, SocketStream) and isinstance(upstream, SocketStream):
        services.engine.adopt(relay, client.release(), upstream.release(), connection.ended, *early)
        return None
    return await Pumps(relay, client, upstream, services.watch, buffer=services.buffer).run(*early)

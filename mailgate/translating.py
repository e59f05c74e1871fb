"""POP3 sessions on IMAP servers, by one configuration: from an accepted login to an open maildrop.

What may be refused is refused in the order that costs least and tells least: only who could sign in at the server
hears of a delay or a lock. That the server limits a user is told before, since the sign-in is what it is to be spared.
What a client is shown is remembered before it is shown.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

import trio

from mailgate.config import Config, Pop3Policy, Pop3Store
from mailgate.errors import MailgateError, UpstreamFailed
from mailgate.events import Emit, LimitStruck, MaildropOpened, UpstreamRefused
from mailgate.ledger import Held, InUse, LoginDelays, MaildropLocks
from mailgate.model import Failure, Login, Protocol, Refusal, Route, Session, Side
from mailgate.policy import answers
from mailgate.session.dialogue import SignedIn
from mailgate.translate.backend import Backend
from mailgate.translate.imap_client import ClientError, ImapClient, Refused
from mailgate.translate.opening import open_maildrop
from mailgate.translate.pop3_session import Pop3Session
from mailgate.translate.refusals import NO_SUCH_FOLDER, refusal_for
from mailgate.translate.store import Store, open_store, owner_of
from mailgate.wire.mailbox_name import canonical, to_text, to_wire

CAPABILITIES: Final = ("TOP", "UIDL", "UTF8", "LANG", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE")
"""What a translated session can, whatever its server is."""

FOLDER_LIMIT: Final = 255
"""Octets of a mailbox that a client names: more than servers take, and little enough for any command's line."""

LIMITED_SECONDS: Final = 60.0
"""How long a server that limits or throttles a user is not asked again for that user: asking makes it worse."""

_LIMITED: Final = b"\0limited "
"""What stands before the owner's name in the table of times, where names have no NUL."""

NEVER: Final = "EXPIRE NEVER"
"""Retention (RFC 2449 §6.7): the gateway deletes nothing unasked, and what was shown once is shown from then on."""


class Translating:
    """The translation for one configuration; what it locks and remembers outlives it."""

    def __init__(
        self,
        config: Config,
        emit: Emit,
        buffer: bytearray,
        locks: MaildropLocks,
        delays: LoginDelays,
        store: Store,
    ) -> None:
        self._emit = emit
        self._buffer = buffer
        self._locks = locks
        self._delays = delays
        self._store = store
        self._separator = config.pop3.login_folder.encode()
        self._policies = {
            rule.name: rule.pop3 or config.pop3
            for rule in config.route
            if config.pool[rule.pool].protocol is Protocol.IMAP
        }

    def policy(self, route: Route, protocol: Protocol) -> Pop3Policy | None:
        """Return how a client's sessions are served by a route, ``None`` where they are relayed."""
        return self._policies.get(route.name) if protocol is Protocol.POP3 else None

    def rewritten(self, login: Login) -> tuple[Login, bytes] | None:
        """Return the login without the mailbox that its user's name carries, and that; ``None`` for an ordinary one."""
        if not self._separator or login.protocol is not Protocol.POP3:
            return None
        acting = split(login.authzid or login.user, self._separator)
        if acting is None:
            return None
        user, folder = acting
        if login.authzid:
            return dataclasses.replace(login, authzid=user), folder
        return dataclasses.replace(login, user=user), folder

    def capabilities(self, known: Iterable[frozenset[str]], routes: Iterable[str]) -> list[frozenset[str]]:
        """Return what POP3 clients are promised before login, from what is known of IMAP servers.

        ``routes`` are all that lead to some, also those to servers that were not heard of: delays are theirs.
        """
        delays = frozenset(self._policies[name].login_delay for name in routes)
        return [_promised(one, delays) for one in known]

    async def open(
        self,
        policy: Pop3Policy,
        login: Login,
        session: Session,
        dial: Callable[[], Awaitable[SignedIn]],
        folder: bytes | None,
    ) -> Pop3Session | Refusal:
        """Sign in at the server and open the maildrop; raises UpstreamFailed where the login itself fails.

        ``folder`` is the mailbox that the client asked for by its name, in the place of the policy's.
        """
        user = login.authzid or login.user
        if folder is None:
            folders = [to_wire(name) for name in policy.folders]
        elif (asked := asked_folder(folder)) is not None:
            folders = [asked]
        else:
            return NO_SUCH_FOLDER
        owner = owner_of(policy.realm, user)
        if left := self._delays.remaining(_LIMITED + owner, LIMITED_SECONDS):
            self._emit(LimitStruck(session, "server_limit", "deny", left))
            return refusal_for(Refused("NO", "LIMIT", ""), login_delay=policy.login_delay > 0)
        holder: list[Pop3Session] = []
        redial = functools.partial(self._client, dial, policy, login.utf8)
        client = await redial()
        began = trio.current_time()
        held: Held | None = None
        opened = False
        try:
            left = self._delays.remaining(owner, policy.login_delay)
            if left:
                self._emit(LimitStruck(session, "login_delay", "deny", left))
                return answers.LOGIN_DELAY
            try:
                held = await self._locks.take(
                    [b"\0".join((owner, canonical(one))) for one in folders],
                    conflict=policy.lock,
                    wait=policy.lock_wait,
                    give_way=lambda: _give_way(holder),
                )
            except InUse as busy:
                self._emit(LimitStruck(session, "maildrop_lock", "deny", busy.seconds))
                return answers.MAILDROP_IN_USE
            if held.waited:
                self._emit(LimitStruck(session, "maildrop_lock", "delay", held.waited))
            try:
                memories = self._store.of(owner)
                found = await open_maildrop(client, policy, memories, folders, time.time())
            except MailgateError as error:
                if isinstance(error, Refused) and error.code in ("LIMIT", "THROTTLED"):
                    self._delays.note(_LIMITED + owner)
                return self._failed(session, error, policy)
            drop = found.maildrop
            self._emit(
                MaildropOpened(session, drop.total, drop.octets, found.notes, trio.current_time() - began - held.waited)
            )
            backend = Backend(client, found.folders, redial, read_only=policy.read_only)
            served = Pop3Session(
                session,
                backend,
                found,
                memories,
                policy,
                self._emit,
                self._buffer,
                _after_login(policy),
                utf8=login.utf8,
                held=held,
            )
            if held.told:
                # The newcomer came while this session was being opened.
                return answers.MAILDROP_TAKEN
            holder.append(served)
            self._delays.note(owner)
            opened = True
            return served
        finally:
            if not opened:
                try:
                    await client.aclose()
                finally:
                    if held is not None:
                        held.release()

    async def _client(self, dial: Callable[[], Awaitable[SignedIn]], policy: Pop3Policy, utf8: bool) -> ImapClient:
        """Sign in at the server, as a client that shows UTF-8 if ``utf8``; raises UpstreamFailed."""
        signed_in = await dial()
        client = ImapClient(
            signed_in.stream,
            self._buffer,
            signed_in.capabilities,
            signed_in.residual,
            quirks=frozenset(policy.quirks),
        )
        if utf8 and "UTF8=ACCEPT" in client.capabilities:
            try:
                with suppress(Refused):
                    # It said that it can, and mail comes as it is all the same.
                    await client.enable("UTF8=ACCEPT")
            except ClientError as error:
                await client.aclose()
                raise UpstreamFailed(Failure.AUTH_TEMPORARY, "enable/login", str(error)) from error
            except BaseException:
                with trio.CancelScope(shield=True):
                    await client.aclose()
                raise
        return client

    def _failed(self, session: Session, error: MailgateError, policy: Pop3Policy) -> Refusal:
        """Tell why a maildrop could not be opened; the client never sees an empty one instead."""
        refusal = refusal_for(error, login_delay=policy.login_delay > 0)
        pool, server = session.pool or "", session.server or ""
        self._emit(UpstreamRefused(session, pool, server, Failure.INTERNAL, "maildrop/login", str(error), reached=True))
        return refusal


class Stores:
    """The stores of all configurations, each opened once: where it stays the same, a reload goes on with it."""

    def __init__(self) -> None:
        self._stores: dict[Pop3Store | None, Store] = {}

    def get(self, settings: Pop3Store | None) -> Store:
        """Return the store of these settings. Raises StoreFailed where a library for it is missing."""
        store = self._stores.get(settings)
        if store is None:
            store = self._stores[settings] = open_store(settings)
        return store

    async def aclose(self) -> None:
        """Close them all."""
        for store in self._stores.values():
            await store.aclose()


def split(user: bytes, sign: bytes) -> tuple[bytes, bytes] | None:
    """Return the user and the mailbox that a name such as ``anna+Archive@example.org`` carries, ``None`` if none.

    The mailbox stands behind the sign, before the domain or behind it; not behind it where the sign is one of domains'.
    """
    name, at, domain = user.rpartition(b"@")
    if at and sign not in name:
        if sign == b"-":
            return None
        domain, _, folder = domain.partition(sign)
        whole = name + at + domain
    elif at:
        name, _, folder = name.partition(sign)
        whole = name + at + domain if name else b""
    else:
        whole, _, folder = user.partition(sign)
    return (whole, folder) if whole and folder else None


def asked_folder(folder: bytes) -> bytes | None:
    """Return, in the wire's bytes, the mailbox that a client named, ``None`` where it can be none.

    Clients write what people read, in UTF-8, or what IMAP has on the wire; both are understood.
    """
    try:
        name = folder.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not name.isprintable() or len(folder) > FOLDER_LIMIT:
        return None
    return folder if name.isascii() and to_wire(to_text(folder)) == folder else to_wire(name)


def _give_way(holder: list[Pop3Session]) -> None:
    for session in holder:
        session.end(Side.PROXY, answers.MAILDROP_TAKEN.reason)


@functools.lru_cache(maxsize=64)
def _promised(known: frozenset[str], delays: frozenset[float]) -> frozenset[str]:
    waits = {f"LOGIN-DELAY {math.ceil(delay)}" for delay in delays}
    return frozenset(CAPABILITIES) | {NEVER} | waits | {one for one in known if one.startswith("AUTH=")}


def _after_login(policy: Pop3Policy) -> tuple[str, ...]:
    """Return what CAPA lists in a session (RFC 2449 §6)."""
    lines = [*CAPABILITIES, NEVER]
    if policy.login_delay:
        lines.append(f"LOGIN-DELAY {math.ceil(policy.login_delay)}")
    if policy.last:
        lines.append("LAST")
    lines.append("IMPLEMENTATION mailgate")
    return tuple(lines)

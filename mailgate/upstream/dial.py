"""Connections to mail servers: names, addresses, TLS and who may be trusted with a password."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import ssl
from typing import Final

import trio

from mailgate.config import Pool, Server
from mailgate.errors import UpstreamFailed
from mailgate.model import Failure
from mailgate.stream import SocketStream, keep_alive, probe_seconds
from mailgate.upstream.limit import StepLimit

ADDRESS_SECONDS: Final = 60.0
"""How long the addresses of a name are used again. The system's resolver knows the records' own
times but does not tell them; a minute keeps a thread hop off most logins and a move short."""

SESSION_SECONDS: Final = 3600.0
"""How long a TLS session is resumed: a server's certificate is looked at anew this often at least."""

ASK_SECONDS: Final = 60.0
"""How long after reading a TLS session none is read again: servers that take each one once, or none, cost little."""

ALPN_NAMES: Final = {"imap": ["imap"], "pop3": ["pop3"]}


def client_context(pool: Pool) -> ssl.SSLContext:
    """Return the TLS context for a pool's servers, to be made once and kept.

    Raises OSError or ssl.SSLError when a file cannot be used.
    """
    tls = pool.tls
    context = ssl.create_default_context(cafile=None if tls.ca == "system" else str(tls.ca))
    # A renegotiation would make writing wait for what is to be read, which a stream does not do.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if tls.pin or not tls.verify:
        # A pin stands in the place of authority and name; it is compared after the handshake.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        password = tls.key.password if tls.key is not None else None
        context.load_cert_chain(
            tls.certificate,
            tls.key.file if tls.key is not None else None,
            password=(lambda: password.read().reveal()) if password is not None else None,
        )
    context.set_alpn_protocols(ALPN_NAMES[pool.protocol])
    return context


class Resumption:
    """TLS sessions of a pool's servers, with which connections are resumed.

    Most of a handshake's cost is then saved on both sides: signatures, certificates, their chain.
    Python copies a session when it is read and when it is used, and a copy costs a fifth of
    a handshake. So one is read rarely and used by many connections; that these could be told to have
    the same client (RFC 8446 §C.4) is no news to a mail server.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, ssl.SSLSession]] = {}
        self._asked: dict[str, float] = {}

    def session(self, server: str, now: float) -> ssl.SSLSession | None:
        """Return a session for a new connection."""
        began, session = self._kept.get(server, (0.0, None))
        if session is not None and now - began >= SESSION_SECONDS:
            del self._kept[server]
            return None
        return session

    def refused(self, server: str) -> None:
        """Forget a session that the server did not take, if there was one."""
        self._kept.pop(server, None)

    def wants(self, server: str, now: float) -> bool:
        """Whether it is worth while to read a connection's session."""
        return server not in self._kept and now >= self._asked.get(server, now)

    def keep(self, server: str, session: ssl.SSLSession | None, now: float) -> None:
        """Keep a connection's session if it can be resumed, and want no other one for a while."""
        self._asked[server] = now + ASK_SECONDS
        if session is not None and (session.has_ticket or session.id):
            self._kept[server] = now, session


class Dialer:
    """Dials the servers of one pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._context = client_context(pool) if pool.tls.mode != "off" else None
        self._addresses: dict[str, tuple[float, list[tuple[int, str]]]] = {}
        self._resumption = Resumption()
        self._local = {server.name for server in pool.servers if server.address.loopback}

    @property
    def starts_tls(self) -> bool:
        """Whether TLS begins with STARTTLS or STLS."""
        return self.pool.tls.mode == "starttls"

    def may_carry_password(self, server: Server) -> bool:
        """Whether a password may be sent: inside TLS, not leaving the machine, or by permission."""
        return self._context is not None or server.name in self._local or self.pool.allow_plaintext_auth

    async def dial(self, server: Server, limit: StepLimit) -> SocketStream:
        """Return a connection, inside TLS where that is implicit; raises UpstreamFailed.

        ``limit`` has begun with the step of connecting.
        """
        stream = await self._connect(server, limit)
        keep_alive(stream.socket, probe_seconds(stream.socket))
        if self.pool.tls.mode == "implicit":
            limit.begin("tls/none", "TLS", self.pool.greeting_timeout)
            await self.start_tls(stream, server)
        return stream

    async def start_tls(self, stream: SocketStream, server: Server) -> None:
        """Do the TLS handshake on a connection, which is closed if it fails; raises UpstreamFailed."""
        tls = self.pool.tls
        if self._context is None:
            raise UpstreamFailed(Failure.TLS, "tls/none", "TLS is off for this pool", server.name)
        try:
            info = await stream.start_tls(
                self._context,
                server_side=False,
                server_hostname=tls.name or server.address.host or None,
                session=self._resumption.session(server.name, trio.current_time()),
            )
            if not info.resumed:
                self._resumption.refused(server.name)
            if tls.pin and not self._pinned(stream.peer_certificate):
                raise UpstreamFailed(
                    Failure.TLS, "tls/certificate", "the certificate is not the pinned one", server.name
                )
        except ssl.SSLCertVerificationError as error:
            stream.abort()
            raise UpstreamFailed(Failure.TLS, "tls/certificate", error.verify_message, server.name) from error
        except (ssl.SSLError, trio.BrokenResourceError, ValueError) as error:
            stream.abort()
            reason = getattr(error, "reason", None) or str(error)
            raise UpstreamFailed(Failure.TLS, "tls/none", reason, server.name) from error
        except BaseException:
            stream.abort()
            raise

    def keep_session(self, stream: SocketStream, server: Server) -> None:
        """Let later connections resume this one's TLS session. In TLS 1.3 a server offers that after the handshake."""
        if stream.tls is not None and self._resumption.wants(server.name, trio.current_time()):
            self._resumption.keep(server.name, stream.tls_session, trio.current_time())

    def _pinned(self, certificate: bytes | None) -> bool:
        fingerprint = hashlib.sha256(certificate or b"").hexdigest()
        return any(hmac.compare_digest(fingerprint, pin) for pin in self.pool.tls.pin)

    async def _connect(self, server: Server, limit: StepLimit) -> SocketStream:
        """Try the server's addresses in the resolver's order; raises UpstreamFailed if none answers."""
        errors: list[str] = []
        for family, address in await self._resolve(server, limit):
            try:
                # A gateway without a descriptor left reaches nobody; that must end neither the probe nor its worker.
                stream = limit.watch(SocketStream(socket.socket(family, socket.SOCK_STREAM)))
            except OSError as error:
                errors.append(_words(error))
                continue
            try:
                await stream.connect(address)
            except OSError as error:
                stream.abort()
                errors.append(_words(error))
            except BaseException:
                stream.abort()
                raise
            else:
                return stream
        raise UpstreamFailed(Failure.CONNECT, "connect/none", "; ".join(dict.fromkeys(errors)), server.name)

    async def _resolve(self, server: Server, limit: StepLimit) -> list[tuple[int, tuple[str, int] | str]]:
        address = server.address
        if address.path is not None:
            return [(socket.AF_UNIX, str(address.path))]
        now = limit.began
        known = self._addresses.get(address.host)
        if known is None or known[0] < now:
            try:
                with trio.fail_at(limit.deadline):
                    found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            except (OSError, RuntimeError) as error:
                # RuntimeError is what Python raises when the system has no thread left to ask in.
                reason = getattr(error, "strerror", None) or error
                raise UpstreamFailed(Failure.CONNECT, "dns/none", f"{address.host}: {reason}", server.name) from error
            known = (
                now + ADDRESS_SECONDS,
                [(family, str(sockaddr[0])) for family, _, _, _, sockaddr in found],
            )
            self._addresses[address.host] = known
        return [(family, (ip, address.port)) for family, ip in known[1]]


def _words(error: OSError) -> str:
    """Return an error in the system's words, without the address that Python adds."""
    return os.strerror(error.errno) if error.errno else str(error)

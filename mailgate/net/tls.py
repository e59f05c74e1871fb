"""TLS towards clients: contexts by profile, certificates by name, and their replacement while running.

A context is made once per listener profile and per certificate and lives as long as the process:
new certificates are loaded into it in place, so that session tickets issued before go on working.
Loading a pair that does not match would break a live context, hence each pair is tried in a
scratch context first.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import trio

from mailgate.config import KeyFile, KeyPair, Profile, Tls
from mailgate.errors import MailgateError
from mailgate.model import Protocol, TlsInfo
from mailgate.net import certificate as certificates
from mailgate.stream import SocketStream, tls_info
from mailgate.wire import hello

INTERMEDIATE_CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384"
)
"""Mozilla's intermediate list for TLS 1.2."""

LEGACY_CIPHERS: Final = "DEFAULT:@SECLEVEL=0"
"""What devices of the 2000s can: TLS 1.0 needs SHA-1 signatures, which OpenSSL 3 has at level 0 only."""

PLAIN_ANSWERS: Final = {
    "http": b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n",
    "imap": b"* BYE This port speaks TLS from the first byte\r\n",
    "pop3": b"-ERR This port speaks TLS from the first byte\r\n",
}

_REASONS: Final = (
    ("WRONG_VERSION_NUMBER", "not_tls"),
    ("NO_SHARED_CIPHER", "no_shared_cipher"),
    ("UNSUPPORTED_PROTOCOL", "protocol_version"),
    ("VERSION", "protocol_version"),
    ("UNKNOWN_CA", "unknown_certificate"),
    ("CERTIFICATE", "unknown_certificate"),
)
"""Parts of OpenSSL's reasons and our words for them; the first that fits counts."""


_FILE_REASONS: Final = {
    "KEY_VALUES_MISMATCH": "the key is not the certificate's",
    "EE_KEY_TOO_SMALL": "the key is too short for any profile but legacy",
}
"""What OpenSSL says of files that do not fit, in our words."""


class HandshakeFailed(MailgateError):
    """A client's TLS handshake did not succeed; ``reason`` as in ``events.TlsFailed``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TlsFilesError(MailgateError):
    """A certificate or key cannot be used; the text names the file and what is wrong."""


def _new_context(profile: Profile, protocol: Protocol) -> ssl.SSLContext:
    """Return a context without certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if profile == "modern":
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    elif profile == "intermediate":
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(INTERMEDIATE_CIPHERS)
    else:
        with warnings.catch_warnings():
            # Python warns of the old versions; the administrator who chose them is warned in the log.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers(LEGACY_CIPHERS)
    context.set_alpn_protocols([protocol.value])
    # Each ticket is a write of its own, which wakes the client. One for each connection lets all be resumed.
    context.num_tickets = 1
    return context


Use = tuple[Profile, Protocol]
"""What a context is for: a listener's profile and protocol."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate's file and its key's."""

    certificate: Path
    key: KeyFile

    def load(self, context: ssl.SSLContext) -> None:
        """Load into a context; raises TlsFilesError."""
        password = self.key.password
        asked = False

        def clear() -> bytes:
            nonlocal asked
            if asked or password is None:
                # OpenSSL would otherwise ask at the terminal of a server that has none.
                raise TlsFilesError(f"{self.key.file}: the key is encrypted; set its password in the configuration")
            asked = True
            try:
                return password.read().reveal()
            except KeyError as error:
                raise TlsFilesError(f"{self.key.file}: its password's variable {error} is not set") from None

        try:
            context.load_cert_chain(self.certificate, self.key.file, password=clear)
        except ssl.SSLError as error:
            wrong = ", or the wrong password" if asked else ""
            reason = error.reason or f"not a certificate and its key in PEM form{wrong}"
            reason = _FILE_REASONS.get(reason, reason)
            raise TlsFilesError(f"{self.certificate} and {self.key.file}: {reason}") from error
        except OSError as error:
            raise TlsFilesError(f"{error.filename or self.certificate}: {error.strerror or error}") from error

    def facts(self) -> certificates.Facts:
        """Return what is in the certificate; raises TlsFilesError."""
        try:
            return certificates.read(self.certificate)
        except (OSError, certificates.CertificateError) as error:
            raise TlsFilesError(f"{self.certificate}: {error}") from error

    def stamps(self) -> tuple[object, ...]:
        """Return what changes when a file is replaced."""
        found: list[object] = []
        for path in (self.certificate, self.key.file):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(found)


@dataclass(slots=True)
class _Identity:
    """The certificates for some host names, and the contexts they were loaded into."""

    names: tuple[str, ...]
    pairs: tuple[_Pair, ...]
    contexts: dict[Use, ssl.SSLContext] = field(default_factory=dict)
    stamps: tuple[object, ...] = ()
    loaded: tuple[object, ...] = ()
    kinds: tuple[str, ...] = ()
    ends: dict[str, datetime] = field(default_factory=dict)

    def load(self, uses: Collection[Use]) -> None:
        """Load the files into a context for each use, the one that is there where it can stay.

        Raises TlsFilesError and changes nothing if they are bad.
        """
        for profile in sorted({profile for profile, _ in uses}):
            for pair in self.pairs:
                # What is too weak for one profile may do for another, so each has its say.
                pair.load(_new_context(profile, Protocol.IMAP))
        facts = [pair.facts() for pair in self.pairs]
        kinds = tuple(one.key.partition(" ")[0] for one in facts)
        # A context keeps one certificate for each type of key: a new type would leave the old one beside it.
        kept = self.contexts if kinds == self.kinds else {}
        contexts = {use: kept.get(use) or _new_context(*use) for use in uses}
        for context in contexts.values():
            for pair in self.pairs:
                pair.load(context)
        self.contexts, self.kinds, self.loaded = contexts, kinds, self.stamps
        self.ends = {str(pair.certificate): one.not_after for pair, one in zip(self.pairs, facts, strict=True)}


def _pairs(settings: KeyPair, alternate: KeyPair | None) -> tuple[_Pair, ...]:
    pairs = [_Pair(settings.certificate, settings.key)]
    if alternate is not None:
        pairs.append(_Pair(alternate.certificate, alternate.key))
    return tuple(pairs)


class ServerTls:
    """All certificates of a configuration, for the profiles and protocols of its listeners.

    Those of an ``earlier`` one whose files are the same keep their contexts, and with them the
    session tickets that clients hold. ``renewed`` names the certificates among these whose files
    have new contents. Raises TlsFilesError if one cannot be used.
    """

    def __init__(self, settings: Tls, uses: Iterable[Use], earlier: ServerTls | None = None) -> None:
        self.settings = settings
        self._uses = tuple(dict.fromkeys(uses))
        self._default = _Identity((), _pairs(settings, settings.alternate))
        self._others = [_Identity(one.names, _pairs(one, one.alternate)) for one in settings.sni]
        self._exact: dict[str, _Identity] = {}
        self._wildcard: dict[str, _Identity] = {}
        for identity in self._others:
            for name in identity.names:
                table = self._wildcard if name.startswith("*.") else self._exact
                table.setdefault(name.removeprefix("*"), identity)
        known = {identity.pairs: identity for identity in earlier._identities()} if earlier is not None else {}
        self.renewed: list[str] = []
        for identity in self._identities():
            identity.stamps = _stamps(identity)
            kept = known.get(identity.pairs)
            if kept is not None:
                identity.contexts, identity.kinds, identity.ends = kept.contexts, kept.kinds, kept.ends
                identity.loaded = kept.loaded
                if identity.stamps != kept.loaded:
                    self.renewed += [str(pair.certificate) for pair in identity.pairs]
            if identity.stamps != identity.loaded or not identity.contexts.keys() >= set(self._uses):
                identity.load(self._uses)

    def _identities(self) -> Iterator[_Identity]:
        yield self._default
        yield from self._others

    def _for_name(self, name: str | None) -> _Identity:
        """Return the identity for a host name; the default's where it has none of its own."""
        if name is None:
            return self._default
        # A wildcard stands for one label (RFC 6125 §6.4.3).
        found = self._exact.get(name) or self._wildcard.get(name[name.find(".") :] if "." in name else "")
        return found or self._default

    # ---------------------------------------------------------------- handshakes

    async def accept(self, stream: SocketStream, protocol: Protocol, profile: Profile, timeout: float) -> TlsInfo:
        """Do a client's handshake within ``timeout`` seconds; raises HandshakeFailed.

        The ClientHello is read first without taking it: it chooses the certificate, and a client
        that offers other protocols only is refused with the alert that RFC 7301 §3.2 asks for.
        """
        limit = stream.deadline
        stream.deadline = min(limit, trio.current_time() + timeout)
        try:
            offered = await self._hello(stream, protocol)
            identity = self._for_name(offered.server_name)
            info = await stream.start_tls(identity.contexts[profile, protocol], server_side=True)
        except trio.TooSlowError:
            if stream.deadline == limit:
                # What this handshake is a part of is over, too.
                raise
            raise HandshakeFailed("timeout") from None
        except trio.BrokenResourceError:
            raise HandshakeFailed("closed") from None
        except ssl.SSLError as error:
            reason = error.reason or ""
            raise HandshakeFailed(next((word for part, word in _REASONS if part in reason), "other")) from error
        finally:
            stream.deadline = limit
        known = offered.server_name if identity is not self._default else None
        return info if known is None else tls_info(info.version, info.cipher, known, info.resumed)

    async def _hello(self, stream: SocketStream, protocol: Protocol) -> hello.ClientHello:
        seen = 0
        while True:
            data = await stream.peek(hello.HELLO_LIMIT, more_than=seen)
            result = hello.read_client_hello(data)
            if isinstance(result, hello.NotTls):
                await _refuse(stream, data, PLAIN_ANSWERS.get(result.kind, b""))
                raise HandshakeFailed("not_tls")
            if result is not None:
                break
            if len(data) <= seen:
                raise HandshakeFailed("closed")
            seen = len(data)
        if result.alpn is not None and protocol.encode() not in result.alpn:
            await _refuse(stream, data, hello.no_application_protocol_alert())
            raise HandshakeFailed("alpn")
        return result

    # ---------------------------------------------------------------- files

    def reload(self) -> list[str]:
        """Load what changed; return what is wrong, of which the old certificates stay in force."""
        problems = []
        for identity in self._identities():
            stamps = _stamps(identity)
            if stamps == identity.stamps:
                continue
            # A bad file is told of once and looked at again when it changes.
            identity.stamps = stamps
            try:
                identity.load(self._uses)
            except TlsFilesError as error:
                problems.append(str(error))
        return problems

    async def watch(self, tell: Callable[[list[str]], None]) -> None:
        """Look for changed files now and then until cancelled; ``tell`` hears of each round's problems.

        It is called with an empty list when something was loaded without any.
        """
        while True:
            await trio.sleep(self.settings.reload_interval)
            self.look(tell)

    def look(self, tell: Callable[[list[str]], None]) -> None:
        """Look for changed files once, as :meth:`watch` does."""
        before = [identity.stamps for identity in self._identities()]
        problems = self.reload()
        if before != [identity.stamps for identity in self._identities()]:
            tell(problems)

    def expiry(self) -> dict[str, datetime]:
        """Return when each certificate in force ends, by its file's path; no file is read, since scrapes ask for it."""
        return {path: end for identity in self._identities() for path, end in identity.ends.items()}


async def _refuse(stream: SocketStream, seen: bytes, answer: bytes) -> None:
    """Answer a client that is refused; what it sent is read, since unread bytes make a close destroy the answer."""
    await stream.receive(memoryview(bytearray(len(seen))))
    await stream.send_all(answer)


def _stamps(identity: _Identity) -> tuple[object, ...]:
    return tuple(pair.stamps() for pair in identity.pairs)

"""SASL as a proxy needs it: taking credentials from clients, giving them to upstreams.

Mechanisms: PLAIN (RFC 4616), LOGIN (draft-murchison-sasl-login), XOAUTH2, OAUTHBEARER (RFC 7628) and
EXTERNAL (RFC 4422 appendix A), which says as whom a client wants to act and leaves it to its
certificate to prove that it may.
Credentials that hold control characters are refused here, at the only door through which they
come, because the next protocol may be one that ends its lines with them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from mailgate.errors import RemoteProtocolError
from mailgate.model import Mechanism, Secret

# Python's own decoder takes too many signs of padding, even when it validates.
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class SaslError(RemoteProtocolError):
    """A SASL exchange came to nothing.

    ``reason`` is one of: invalid_base64, invalid_credentials, invalid_mech, auth_aborted_by_client.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the server says next, before base64."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client broke the exchange off with ``*``."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a client says it is; see ``model.Login``.

    Behind EXTERNAL only ``authzid`` says something, and an empty one means: whoever the certificate names.
    """

    user: bytes
    authzid: bytes
    secret: Secret


def has_control(value: bytes) -> bool:
    """Whether ``value`` holds an ASCII control character."""
    return _CONTROL.search(value) is not None


def encode(data: bytes) -> bytes:
    """Return ``data`` in base64; an empty initial response is ``=`` (RFC 4422 §5, RFC 5034 §4)."""
    return base64.b64encode(data) or b"="


def _decode(line: bytes) -> bytes:
    if not _BASE64.match(line):
        raise SaslError("invalid_base64")
    return base64.b64decode(line)


def decode_initial(argument: bytes) -> bytes:
    """Return the initial response behind a command's argument; ``=`` is an empty one."""
    return b"" if argument == b"=" else _decode(argument)


def decode_line(line: bytes) -> bytes | Cancelled:
    """Return the response in a line of an exchange, without its CRLF."""
    return Cancelled() if line == b"*" else _decode(line)


Steps = Generator[Challenge, bytes, Credentials]


class Exchange:
    """The server's side of one exchange: feed it responses, send what challenges it returns."""

    __slots__ = ("_begun", "_steps")

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._begun = False

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """Take the client's response, or its initial one (``None`` if it gave none).

        Raises SaslError when the credentials are not well-formed.
        """
        try:
            if not self._begun:
                self._begun = True
                challenge = next(self._steps)
                # A mechanism whose client speaks first has an empty first challenge, which an initial response
                # makes needless.
                return challenge if response is None else self._steps.send(response)
            return self._steps.send(response or b"")
        except StopIteration as end:
            credentials: Credentials = end.value
            return credentials


def _checked(user: bytes, authzid: bytes, secret: bytes) -> Credentials:
    if not user or has_control(user) or has_control(authzid) or has_control(secret):
        raise SaslError("invalid_credentials")
    return Credentials(user, b"" if authzid == user else authzid, Secret(secret))


def _plain() -> Steps:
    parts = (yield Challenge(b"")).split(b"\0")
    if len(parts) != 3:
        raise SaslError("invalid_credentials")
    authzid, user, password = parts
    return _checked(user, authzid, password)


def _login() -> Steps:
    # A client may give its name as an initial response, which answers the first challenge.
    user = yield Challenge(b"Username:")
    password = yield Challenge(b"Password:")
    return _checked(user, b"", password)


_BEARER = re.compile(rb"bearer +", re.IGNORECASE)


def _token(fields: list[bytes]) -> bytes:
    for field in fields:
        key, separator, value = field.partition(b"=")
        if separator and key.lower() == b"auth":
            match = _BEARER.match(value)
            if match is None:
                break
            return value[match.end() :]
    raise SaslError("invalid_credentials")


def _xoauth2() -> Steps:
    response = yield Challenge(b"")
    fields = response.split(b"\x01")
    if not response.endswith(b"\x01\x01") or not fields[0].startswith(b"user="):
        raise SaslError("invalid_credentials")
    return _checked(fields[0][len(b"user=") :], b"", _token(fields))


def _oauthbearer() -> Steps:
    response = yield Challenge(b"")
    header, separator, rest = response.partition(b"\x01")
    parts = header.split(b",")
    # RFC 5801 §4: the flag "p" asks for channel binding, which ends at the gateway.
    if not separator or not rest.endswith(b"\x01") or len(parts) != 3 or parts[0] not in (b"n", b"y") or parts[2]:
        raise SaslError("invalid_credentials")
    if not parts[1].startswith(b"a="):
        raise SaslError("invalid_credentials")
    return _checked(_saslname(parts[1][2:]), b"", _token(rest.split(b"\x01")))


def _saslname(value: bytes) -> bytes:
    """Decode RFC 5801's saslname, in which ``=2C`` stands for a comma and ``=3D`` for ``=``."""
    if re.search(rb"=(?!2C|3D)", value):
        raise SaslError("invalid_credentials")
    return value.replace(b"=2C", b",").replace(b"=3D", b"=")


def _external() -> Steps:
    authzid = yield Challenge(b"")
    if has_control(authzid):
        raise SaslError("invalid_credentials")
    return Credentials(b"", authzid, Secret(b""))


_MECHANISMS: Final = {
    Mechanism.EXTERNAL: _external,
    Mechanism.PLAIN: _plain,
    Mechanism.LOGIN: _login,
    Mechanism.XOAUTH2: _xoauth2,
    Mechanism.OAUTHBEARER: _oauthbearer,
}


def begin(mechanism: Mechanism) -> Exchange:
    """Begin an exchange; raises SaslError for a mechanism that cannot be taken from a client."""
    steps = _MECHANISMS.get(mechanism)
    if steps is None:
        raise SaslError("invalid_mech")
    return Exchange(steps())


def initial_response(mechanism: Mechanism, user: bytes, authzid: bytes, secret: Secret) -> bytes:
    """Return what a client of ``mechanism`` says first, before base64.

    For LOGIN this is the user name, and the password answers the next challenge; for EXTERNAL it is the
    authorization identity alone. Raises SaslError for a login that is no SASL mechanism.
    """
    if mechanism is Mechanism.EXTERNAL:
        return authzid
    if mechanism is Mechanism.LOGIN:
        return user
    if mechanism is Mechanism.XOAUTH2:
        return b"user=%b\x01auth=Bearer %b\x01\x01" % (user, secret.reveal())
    if mechanism is Mechanism.OAUTHBEARER:
        name = user.replace(b"=", b"=3D").replace(b",", b"=2C")
        return b"n,a=%b,\x01auth=Bearer %b\x01\x01" % (name, secret.reveal())
    if mechanism is Mechanism.PLAIN:
        return b"%b\0%b\0%b" % (authzid, user, secret.reveal())
    raise SaslError("invalid_mech")


def respond(mechanism: Mechanism, number: int, secret: Secret) -> bytes:
    """Return the answer to the ``number``-th challenge (from 1) behind an initial response.

    Only LOGIN has a regular one. The bearer mechanisms are challenged when they fail, and answer
    with a dummy so that the server can say so (RFC 7628 §3.2.3). Raises SaslError for any other.
    """
    if mechanism is Mechanism.LOGIN and number == 1:
        return secret.reveal()
    if mechanism is Mechanism.OAUTHBEARER and number == 1:
        return b"\x01"
    if mechanism is Mechanism.XOAUTH2 and number == 1:
        return b""
    raise SaslError("invalid_mech")

"""The models of TLS: what the gateway shows to clients, and what it asks of servers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mailgate.config.values import (
    Endpoint,
    FilePath,
    Flag,
    Key,
    Seconds,
    Settings,
    Texts,
    is_host_name,
)

Profile = Literal["modern", "intermediate", "legacy"]
UpstreamTlsMode = Literal["implicit", "starttls", "off"]
IMPLICIT_PORTS = frozenset({993, 995})
CLEAR_PORTS = frozenset({143, 110})
TLS_BY_PORT = "implicit on ports 993 and 995, starttls on 143 and 110; else it must be said"


def shown(default: str) -> dict[str, Any]:
    """Return the mark that holds what the reference says in the place of a computed default."""
    return {"x-default": default}


def tls_by_port(endpoints: tuple[Endpoint, ...]) -> UpstreamTlsMode | None:
    """Return the mode that well-known ports speak for (RFC 8314 §3), None when they do not agree."""
    ports = {endpoint.port for endpoint in endpoints}
    if ports and ports <= IMPLICIT_PORTS:
        return "implicit"
    if ports and ports <= CLEAR_PORTS:
        return "starttls"
    return None


def host_pattern(name: str) -> str:
    """Return a host name or ``*.`` wildcard in lower case; raise ValueError for anything else."""
    plain = name.removeprefix("*.").removesuffix(".")
    if not is_host_name(plain):
        raise ValueError(f'{name!r} is not a domain: write "example.org" or "*.example.org"')
    return name.removesuffix(".").lower()


class KeyPair(Settings):
    """A certificate with its chain, and its private key."""

    certificate: FilePath = Field(description="The certificate and its chain, PEM, the server's own first.")
    key: Key = Field(description="The private key, PEM: a path, or { file, password } when it is encrypted.")


class SniCertificate(KeyPair):
    """A certificate for clients that name one of these hosts (SNI, RFC 6066 §3)."""

    names: Texts = Field(
        min_length=1, description='Host names, exact or with one leading wildcard label ("*.example.org").'
    )
    alternate: KeyPair | None = Field(
        default=None, description="A second pair of the other key type, so that RSA stands beside ECDSA."
    )

    @field_validator("names")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host_pattern(name) for name in names)


class Tls(KeyPair):
    """The default certificate of every listener with TLS."""

    alternate: KeyPair | None = Field(
        default=None, description="A second pair of the other key type, so that RSA stands beside ECDSA."
    )
    profile: Profile = Field(
        default="intermediate",
        description="modern: TLS 1.3 alone. intermediate: TLS 1.2 and later. "
        "legacy: TLS 1.0 and later with weak ciphers, for devices that know nothing better.",
    )
    sni: tuple[SniCertificate, ...] = Field(
        default=(), max_length=10_000, description="Certificates for other host names."
    )
    reload_interval: Seconds = Field(
        default=10.0,
        ge=1.0,
        le=86400.0,
        description="How often the files of certificates and keys are looked at for a change.",
    )


class UpstreamTls(Settings):
    """How connections to a pool's servers are protected."""

    mode: UpstreamTlsMode = Field(
        default="implicit",
        json_schema_extra=shown(TLS_BY_PORT),
        description="implicit, starttls (needed, never falls back) or off.",
    )
    ca: Literal["system"] | FilePath = Field(
        default="system",
        description='Who vouches for the servers: "system", or a PEM file of certificate authorities.',
    )
    pin: Texts = Field(
        default=(),
        max_length=100,
        description="SHA-256 fingerprints of the servers' certificates (hexadecimal, colons allowed), "
        "in the place of a certificate authority and a name.",
    )
    name: str | None = Field(
        default=None,
        json_schema_extra=shown("the server's host"),
        description="The host name that the certificate must carry; also sent as SNI.",
    )
    verify: Flag = Field(default=True, description="false: any certificate will do. Only for tests.")
    certificate: FilePath | None = Field(default=None, description="A client certificate to show to the servers, PEM.")
    key: Key | None = Field(
        default=None,
        json_schema_extra=shown("the certificate's file"),
        description="The client certificate's private key: a path, or { file, password }.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_mode(cls, value: object) -> object:
        return {"mode": value} if isinstance(value, str) else value

    @field_validator("pin")
    @classmethod
    def _pins(cls, pins: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(pin.lower().removeprefix("sha256:").replace(":", "") for pin in pins)
        if any(len(pin) != 64 or set(pin) - set("0123456789abcdef") for pin in plain):
            raise ValueError("a pin is a SHA-256 fingerprint: 64 hexadecimal digits, colons allowed")
        return plain

    @field_validator("name")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        if name is not None and not is_host_name(name):
            raise ValueError("not a host name")
        return name

"""Certificates as files: making one that is good enough for a first try, and telling what is in one."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailgate.config.tls import host_pattern
from mailgate.errors import MailgateError


class CertificateError(MailgateError):
    """A certificate's file does not hold one, or cannot be made as asked."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an administrator asks of a certificate."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    key: str
    fingerprint: str


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(host_pattern(name.encode("idna").decode("ascii") if not name.isascii() else name))
    except ValueError as error:
        raise CertificateError(f"{name!r} is neither a host name nor an address") from error


def self_signed(names: Sequence[str], *, days: int, key_type: str = "ecdsa") -> tuple[bytes, bytes]:
    """Return a certificate for host names and addresses and its key, both PEM, valid from now.

    Raises CertificateError for what is no name.
    """
    if key_type not in ("ecdsa", "rsa"):
        raise CertificateError(f"{key_type!r} is not a key type: ecdsa or rsa")
    if not names:
        raise CertificateError("a certificate needs at least one name")
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if key_type == "rsa":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [_general_name(name) for name in names]
    # RFC 5280 allows a common name 64 characters; the names that count are the alternative ones.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(alternatives[0].value)[:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A client whose clock is a little behind would refuse one that begins this second.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def write(certificate_path: Path, key_path: Path, certificate: bytes, key: bytes, *, replace: bool = False) -> None:
    """Write a pair, the key with mode 0600 from its first moment.

    A file appears complete or not at all. Raises OSError, for a file that exists too unless ``replace``.
    """
    for path, data, mode in ((key_path, key, 0o600), (certificate_path, certificate, 0o644)):
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
            if replace:
                os.replace(draft, path)
            else:
                # Unlike a rename, a link never takes the place of a file.
                os.link(draft, path)
        finally:
            Path(draft).unlink(missing_ok=True)


def read(path: Path) -> Facts:
    """Return what is in the first certificate of a PEM file; raises OSError or CertificateError."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise CertificateError(f"{path}: holds no certificate in PEM form") from error
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in extension if isinstance(name, x509.DNSName | x509.IPAddress))
    except x509.ExtensionNotFound:
        names = ()
    public = certificate.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        kind = f"ECDSA {public.curve.name}"
    elif isinstance(public, rsa.RSAPublicKey):
        kind = f"RSA {public.key_size} bits"
    else:
        kind = type(public).__name__.removesuffix("PublicKey")
    return Facts(
        certificate.subject.rfc4514_string(),
        certificate.issuer.rfc4514_string(),
        names,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        kind,
        certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
    )


def describe(path: Path) -> str:
    """Return the facts of a certificate's file as lines for people; raises as :func:`read` does."""
    facts = read(path)
    left = facts.not_after - datetime.now(UTC)
    remaining = f"{left.days} days left" if left > timedelta() else "EXPIRED"
    return "\n".join(
        (
            f"subject      {facts.subject or '(none)'}",
            f"issuer       {facts.issuer or '(none)'}",
            f"names        {', '.join(facts.names) or '(none)'}",
            f"valid from   {facts.not_before:%Y-%m-%d %H:%M} UTC",
            f"valid until  {facts.not_after:%Y-%m-%d %H:%M} UTC ({remaining})",
            f"key          {facts.key}",
            f"SHA-256      {facts.fingerprint}",
        )
    )

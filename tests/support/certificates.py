"""Certificates for tests: made once for a test run, by an authority that nothing else knows."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate


@dataclass(frozen=True)
class Authority:
    """A certificate authority."""

    ca: trustme.CA

    def issue(self, *names: str, rsa: bool = False, parent: Path | None = None, stem: str = "server") -> Issued:
        """Return a certificate for these names; with ``parent`` its files are written there."""
        kind = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
        leaf = self.ca.issue_cert(*(names or ("127.0.0.1", "localhost")), key_type=kind)
        issued = Issued(leaf, parent or Path(), stem)
        if parent is not None:
            issued.write()
        return issued

    def write(self, folder: Path) -> Path:
        """Write the authority's own certificate and return its path."""
        path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return path

    def client(self, **options: object) -> ssl.SSLContext:
        """Return a client's context that trusts this authority alone."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        for name, value in options.items():
            setattr(context, name, value)
        return context


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    leaf: trustme.LeafCert
    folder: Path
    stem: str

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.stem}.pem"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.stem}.key"

    @property
    def der(self) -> bytes:
        return load_pem_x509_certificate(self.leaf.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.der).hexdigest()

    def write(self) -> None:
        """Write both files."""
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in self.leaf.cert_chain_pems))
        self.key.write_bytes(self.leaf.private_key_pem.bytes())

    def locked(self, password: str) -> Path:
        """Write the key encrypted and return its path."""
        key = load_pem_private_key(self.leaf.private_key_pem.bytes(), None)
        path = self.folder / f"{self.stem}.locked.key"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))
        )
        return path

    def server(self) -> ssl.SSLContext:
        """Return a server's context with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.leaf.configure_cert(context)
        return context


@cache
def authority() -> Authority:
    """Return the authority of this test run."""
    return Authority(trustme.CA())


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's context, without tickets that would lie unread at a far end, and its client's."""
    serving = authority().issue("localhost").server()
    serving.num_tickets = 0
    return serving, authority().client()


def write_short_key(folder: Path, stem: str = "short") -> tuple[Path, Path]:
    """Write a certificate with a key of 1024 bits, as old devices may need, and return both paths."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "printer.example.org")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    paths = folder / f"{stem}.pem", folder / f"{stem}.key"
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths

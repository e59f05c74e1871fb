"""Certificates as files: making one, writing it, and telling what is in one."""

from __future__ import annotations

import re
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from mailgate.net.certificate import CertificateError, describe, read, self_signed, write


@pytest.mark.parametrize(("key_type", "kind"), [("ecdsa", "ECDSA secp256r1"), ("rsa", "RSA 2048 bits")])
def test_a_pair_that_openssl_takes(key_type: str, kind: str, tmp_path: Path) -> None:
    paths = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate, key = self_signed(["mail.example.org", "127.0.0.1", "::1"], days=30, key_type=key_type)
    write(*paths, certificate, key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*paths)
    facts = read(paths[0])
    assert facts.names == ("mail.example.org", "127.0.0.1", "::1")
    assert (facts.subject, facts.issuer) == ("CN=mail.example.org", "CN=mail.example.org")
    assert facts.key == kind
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", facts.fingerprint)
    now = datetime.now(UTC)
    assert facts.not_before < now - timedelta(minutes=50)
    assert timedelta(days=29, hours=23) < facts.not_after - now <= timedelta(days=30)


def test_a_certificate_is_for_servers_alone() -> None:
    certificate = x509.load_pem_x509_certificate(self_signed(["mail.example.org"], days=1)[0])
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize(
    ("name", "written"),
    [("bücher.example", "xn--bcher-kva.example"), ("*.example.org", "*.example.org"), (("a" * 60 + ".example"), None)],
)
def test_names(name: str, written: str | None, tmp_path: Path) -> None:
    path = tmp_path / "c.pem"
    write(path, tmp_path / "k.pem", *self_signed([name], days=1))
    assert read(path).names == (written or name,)


@pytest.mark.parametrize(
    ("names", "key_type", "problem"),
    [
        ([], "ecdsa", "a certificate needs at least one name"),
        (["a"], "dsa", "'dsa' is not a key type: ecdsa or rsa"),
        (["ü" * 70], "ecdsa", "is neither a host name nor an address"),
        (["a b"], "ecdsa", "'a b' is neither a host name nor an address"),
        (["https://mail.example.org"], "ecdsa", "is neither a host name nor an address"),
    ],
)
def test_what_cannot_be_made(names: list[str], key_type: str, problem: str) -> None:
    with pytest.raises(CertificateError, match=problem):
        self_signed(names, days=1, key_type=key_type)


def test_a_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    write(tmp_path / "c.pem", tmp_path / "k.pem", b"certificate", b"key")
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "c.pem").stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pem", "k.pem"]


@pytest.mark.parametrize("there", ["c.pem", "k.pem"])
def test_files_are_replaced_only_when_asked(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write(tmp_path / "c.pem", tmp_path / "k.pem", b"certificate", b"key")
    assert (tmp_path / there).read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))
    write(tmp_path / "c.pem", tmp_path / "k.pem", b"certificate", b"key", replace=True)
    assert (tmp_path / "c.pem").read_bytes() == b"certificate"
    assert (tmp_path / "k.pem").read_bytes() == b"key"


def test_what_is_no_certificate(tmp_path: Path) -> None:
    path = tmp_path / "c.pem"
    path.write_bytes(b"nothing")
    with pytest.raises(CertificateError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: holds no certificate in PEM form"
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.pem")


def test_a_description_for_people(tmp_path: Path) -> None:
    path = tmp_path / "c.pem"
    write(path, tmp_path / "k.pem", *self_signed(["mail.example.org", "imap.example.org"], days=30))
    facts = read(path)
    assert describe(path).splitlines() == [
        "subject      CN=mail.example.org",
        "issuer       CN=mail.example.org",
        "names        mail.example.org, imap.example.org",
        f"valid from   {facts.not_before:%Y-%m-%d %H:%M} UTC",
        f"valid until  {facts.not_after:%Y-%m-%d %H:%M} UTC (29 days left)",
        "key          ECDSA secp256r1",
        f"SHA-256      {facts.fingerprint}",
    ]


def test_a_certificate_of_another_kind_without_names(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    then = datetime(2020, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(then)
        .not_valid_after(then + timedelta(days=1))
        .sign(key, None)
    )
    path = tmp_path / "c.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    lines = describe(path).splitlines()
    assert lines[:3] == ["subject      (none)", "issuer       (none)", "names        (none)"]
    assert lines[4:6] == ["valid until  2020-01-02 00:00 UTC (EXPIRED)", "key          Ed25519"]


def test_the_first_certificate_of_a_chain_counts(tmp_path: Path) -> None:
    first, key = self_signed(["first.example.org"], days=1)
    second, _ = self_signed(["second.example.org"], days=1)
    path = tmp_path / "c.pem"
    path.write_bytes(first + second)
    assert read(path).names == ("first.example.org",)
    assert load_pem_private_key(key, None).public_key() == x509.load_pem_x509_certificate(first).public_key()
    assert x509.load_pem_x509_certificate(first).fingerprint(hashes.SHA256()).hex(":").upper() == read(path).fingerprint

"""``check`` opens certificates and keys with OpenSSL, so that ``run`` does not stumble over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from mailgate.cli.pairs import exposed_keys, unusable_certificates
from mailgate.config import load
from tests.support.certificates import write_short_key

SOURCE = """
[tls]
certificate = "one.pem"
key = {key}
[[tls.sni]]
names = "other.example.org"
certificate = "two.pem"
key = "two.key"
alternate = {{ certificate = "one.pem", key = "{alternate}" }}
[[listener]]
name = "imaps"
protocol = "imap"
bind = "0.0.0.0:993"
[pool.main]
protocol = "imap"
servers = ["a.internal:993"]
tls = {{ ca = "{ca}", certificate = "{client}" }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(path / "ca.pem"))
    for name in ("one", "two"):
        pair = authority.issue_cert(f"{name}.example.org")
        pair.cert_chain_pems[0].write_to_path(str(path / f"{name}.pem"))
        pair.private_key_pem.write_to_path(str(path / f"{name}.key"))
        pair.private_key_and_cert_chain_pem.write_to_path(str(path / f"{name}.both"))
    key = serialization.load_pem_private_key((path / "one.key").read_bytes(), None)
    (path / "locked.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"canary-19d7"),
        )
    )
    (path / "garbage.pem").write_text("nothing")
    return path


def problems(
    folder: Path,
    environ: dict[str, str] | None = None,
    key: str = '"one.key"',
    alternate: str = "one.key",
    ca: str = "ca.pem",
    client: str = "one.both",
) -> list[tuple[str, str]]:
    path = folder / "mailgate.toml"
    path.write_text(SOURCE.format(key=key, alternate=alternate, ca=ca, client=client))
    environ = environ or {}
    found = unusable_certificates(load(path, environ), environ)
    assert "canary" not in repr(found)
    return [(problem.path, problem.message) for problem in found]


def test_pairs_that_fit(folder: Path) -> None:
    assert problems(folder) == []


def test_a_key_of_another_certificate(folder: Path) -> None:
    message = f"is not the key of {folder / 'one.pem'}"
    assert problems(folder, key='"two.key"', alternate="two.key") == [
        ("tls.key", message),
        ("tls.sni[0].alternate.key", message),
    ]


def test_an_encrypted_key(folder: Path) -> None:
    locked = '{ file = "locked.key", password = { env = "WORD" } }'
    assert problems(folder, {"WORD": "canary-19d7"}, key=locked) == []
    assert problems(folder, {"WORD": "canary-wrong"}, key=locked) == [("tls.key", "its password does not open it")]
    assert problems(folder, key='"locked.key"') == [("tls.key", "is encrypted: add its password")]
    assert problems(folder, {"WORD": "x" * 2000}, key=locked)[0][0] == "tls.key"


def test_files_that_are_something_else(folder: Path) -> None:
    assert problems(folder, ca="garbage.pem", client="garbage.pem") == [
        (
            "pool.main.tls.certificate",
            f"cannot be used with {folder / 'garbage.pem'}: both must be PEM",
        ),
        ("pool.main.tls.ca", "holds no certificates of authorities in PEM form"),
    ]


@pytest.mark.parametrize(
    ("other_listener", "wrong"),
    [
        ("", []),
        ('tls = "off"', []),
        ('tls = "starttls"', ["tls.certificate"]),
    ],
)
def test_a_short_key_needs_the_legacy_profile_everywhere(folder: Path, other_listener: str, wrong: list[str]) -> None:
    write_short_key(folder)
    source = SOURCE.format(key='"short.key"', alternate="one.key", ca="ca.pem", client="one.both")
    source = source.replace('"one.pem"\nkey', '"short.pem"\nkey').replace("bind =", 'profile = "legacy"\nbind =')
    if other_listener:
        source += f'[[listener]]\nname = "other"\nprotocol = "imap"\nbind = "127.0.0.1:1143"\n{other_listener}\n'
    path = folder / "mailgate.toml"
    path.write_text(source)
    found = unusable_certificates(load(path, {}), {})
    assert [problem.path for problem in found] == wrong
    assert all("its key is too short" in problem.message for problem in found)


@pytest.mark.parametrize(("mode", "told"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_keys_that_everyone_can_read_are_told_of(folder: Path, mode: int, told: bool) -> None:
    path = folder / "mailgate.toml"
    path.write_text(SOURCE.format(key='"one.key"', alternate="one.key", ca="ca.pem", client="one.both"))
    for name in ("one.key", "two.key"):
        (folder / name).chmod(0o600)
    (folder / "two.key").chmod(mode)
    warning = f"tls.sni[0].key: everyone on this machine can read {folder / 'two.key'}: chmod o-r"
    assert exposed_keys(load(path, {})) == ([warning] if told else [])

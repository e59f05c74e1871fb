"""Whether certificates and keys can be used: what ``check`` finds before ``run`` would."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from mailgate.config import Config, KeyFile, KeyPair, SniCertificate, Tls
from mailgate.config.checks import key, text
from mailgate.errors import ConfigProblem


def unusable_certificates(config: Config, environ: Mapping[str, str]) -> list[ConfigProblem]:
    """Return a problem for every pair of files that TLS would not take; the files must be readable."""
    found: list[ConfigProblem] = []
    for path, pair in _pairs(config):
        # A device from 2005 may need a key that today's level refuses; the legacy profile permits it. Every
        # listener loads every pair, so one with another profile would refuse it.
        found += _unusable(path, pair.certificate, pair.key, environ, weak=_uses_only_legacy(config))
    for name, pool in config.pool.items():
        path, tls = f"pool.{key(name)}.tls", pool.tls
        if tls.certificate is not None:
            found += _unusable(path, tls.certificate, tls.key, environ, weak=False)
        if isinstance(tls.ca, Path):
            try:
                ssl.create_default_context(cafile=tls.ca)
            except (ssl.SSLError, ValueError):
                message = "holds no certificates of authorities in PEM form"
                found.append(ConfigProblem(f"{path}.ca", text(tls.ca), message))
    return found


def exposed_keys(config: Config) -> list[str]:
    """Return a warning for every private key that whoever has an account on this machine could read."""
    keys = [(f"{path}.key", pair.key.file) for path, pair in _pairs(config)]
    keys += [
        (f"pool.{key(name)}.tls.key", pool.tls.key.file)
        for name, pool in config.pool.items()
        if pool.tls.key is not None
    ]
    return [
        f"{path}: everyone on this machine can read {file}: chmod o-r"
        for path, file in keys
        if file.stat().st_mode & stat.S_IROTH
    ]


def _pairs(config: Config) -> Iterator[tuple[str, KeyPair]]:
    if config.tls is None:
        return
    owners: list[tuple[str, Tls | SniCertificate]] = [
        ("tls", config.tls),
        *((f"tls.sni[{i}]", entry) for i, entry in enumerate(config.tls.sni)),
    ]
    for path, owner in owners:
        yield path, owner
        if owner.alternate is not None:
            yield f"{path}.alternate", owner.alternate


def _uses_only_legacy(config: Config) -> bool:
    default = config.tls.profile if config.tls is not None else None
    return all((listener.profile or default) == "legacy" for listener in config.listener if listener.tls != "off")


def _unusable(
    path: str, certificate: Path, key_file: KeyFile | None, environ: Mapping[str, str], *, weak: bool
) -> Iterator[ConfigProblem]:
    asked = False

    def password() -> bytes:
        nonlocal asked
        asked = True
        source = key_file.password if key_file is not None else None
        # Without a callback OpenSSL would ask on the terminal.
        return source.read(environ).reveal() if source is not None else b""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if weak:
        context.set_ciphers("DEFAULT@SECLEVEL=0")
    opened = key_file.file if key_file is not None else certificate
    try:
        context.load_cert_chain(certificate, opened, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield ConfigProblem(f"{path}.key", text(opened), f"is not the key of {certificate}")
        elif error.reason == "EE_KEY_TOO_SMALL":
            message = "its key is too short: only profile = legacy, on every listener with TLS, takes it"
            yield ConfigProblem(f"{path}.certificate", text(certificate), message)
        elif asked:
            has_password = key_file is not None and key_file.password is not None
            message = "its password does not open it" if has_password else "is encrypted: add its password"
            yield ConfigProblem(f"{path}.key", text(opened), message)
        else:
            detail = f" ({error.reason})" if error.reason else ""
            message = f"cannot be used with {opened}: both must be PEM{detail}"
            yield ConfigProblem(f"{path}.certificate", text(certificate), message)
    except ValueError as error:
        yield ConfigProblem(f"{path}.key", text(opened), f"its password cannot be used: {error}")

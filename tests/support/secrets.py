"""Looking for passwords where none may be: in every spelling that they may have been copied in."""

from __future__ import annotations

import base64
import json
import secrets
import urllib.parse
from collections.abc import Iterable


def canary() -> str:
    """Return a random password, long enough that no chance explains its being found."""
    return f"canary-{secrets.token_urlsafe(12)}"


def nasty_canary() -> str:
    """Return a random password with characters that each encoding writes in its own way."""
    return f'k"\\ %&é+/{secrets.token_urlsafe(12)}?=\u20ac'


def spellings(secret: str) -> dict[str, bytes]:
    """Return every form to look for: raw, URL, JSON, escaped, and base64 at its three offsets."""
    raw = secret.encode("utf-8")
    found = {
        "raw": raw,
        "latin-1": secret.encode("latin-1", "replace"),
        "URL": urllib.parse.quote(secret, safe="").encode("ascii"),
        "URL with slashes": urllib.parse.quote(secret).encode("ascii"),
        "form": urllib.parse.quote_plus(secret).encode("ascii"),
        "JSON": json.dumps(secret)[1:-1].encode("ascii"),
        "JSON, not ASCII": json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8"),
        "repr of str": repr(secret)[1:-1].encode("utf-8"),
        "repr of bytes": repr(raw)[2:-1].encode("ascii"),
        "IMAP quoted": raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"'),
        "hex": raw.hex().encode("ascii"),
    }
    for offset in range(3):
        # What surrounds the secret decides the first and last digits: only those between are its own.
        encoded = base64.b64encode(b"\0" * offset + raw)
        skipped = -(-offset * 8 // 6)
        kept = (offset + len(raw)) * 8 // 6
        found[f"base64 at offset {offset}"] = encoded[skipped:kept]
        found[f"URL-safe base64 at offset {offset}"] = encoded[skipped:kept].translate(bytes.maketrans(b"+/", b"-_"))
    return found


def leaks(data: bytes, known: Iterable[str]) -> list[str]:
    """Return how each known secret that is in ``data`` is written there."""
    return [form for secret in known for form, wanted in spellings(secret).items() if wanted in data]

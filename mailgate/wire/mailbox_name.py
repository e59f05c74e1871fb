"""Names of mailboxes: text in the configuration, modified UTF-7 on the wire (RFC 3501 §5.1.3).

Servers take modified UTF-7 until a client has enabled UTF8=ACCEPT (RFC 6855 §3); from then on names are UTF-8.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

_FOREIGN: Final = re.compile(r"[^ -~]+")
_SHIFTED: Final = re.compile(rb"&([A-Za-z0-9+,]*)-")


def to_wire(name: str, *, utf8: bool = False) -> bytes:
    """Return a mailbox's name as the server wants it, without quotes; ``utf8`` after UTF8=ACCEPT was enabled."""
    if utf8:
        return name.encode("utf-8")
    return _FOREIGN.sub(_shifted, name.replace("&", "&-")).encode("ascii")


def to_text(name: bytes) -> str:
    """Return a mailbox's name as people read it; what is no modified UTF-7 is shown as it is, never refused."""
    # What stands between the pieces in base64 has even places.
    return "".join(
        _unshifted(part) if index % 2 else part.decode("utf-8", "backslashreplace")
        for index, part in enumerate(_SHIFTED.split(name))
    )


def checked(name: bytes) -> bytes:
    """Return a mailbox's name from the wire's side, in which no other command can hide; raises ValueError."""
    if not name or any(one in name for one in b"\r\n\0"):
        raise ValueError("a mailbox's name has at least one byte, and neither CR, LF nor NUL")
    return name


def canonical(name: bytes) -> bytes:
    """Return the one spelling of a mailbox's name: INBOX is the same in any case (RFC 3501 §5.1), others are not."""
    return b"INBOX" if name.upper() == b"INBOX" else name


def _shifted(found: re.Match[str]) -> str:
    encoded = base64.b64encode(found[0].encode("utf-16-be", "surrogatepass"), b"+,")
    return f"&{encoded.rstrip(b'=').decode('ascii')}-"


def _unshifted(encoded: bytes) -> str:
    if not encoded:
        return "&"
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), b"+,").decode("utf-16-be")
    except (binascii.Error, UnicodeDecodeError):
        return f"&{encoded.decode('ascii')}-"

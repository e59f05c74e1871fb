"""The mails that the mail server holds and the client sends, and who may log in."""

from __future__ import annotations

SMALL, BIG = 1, 2
"""Numbers of the two messages in every mailbox."""

SMALL_SIZE = 4096

USERS = [(f"user{number}@example.org", f"word{number}") for number in range(8)]


def message(size: int) -> bytes:
    """Return a mail of about ``size`` bytes, with lines as an encoded attachment has them."""
    head = b"From: a@example.org\r\nTo: b@example.org\r\nSubject: bulk\r\nMIME-Version: 1.0\r\n\r\n"
    line = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAxMjM0\r\n"
    return head + line * ((size - len(head)) // len(line))

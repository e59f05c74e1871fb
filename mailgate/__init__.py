"""mailgate: a protocol-aware mail proxy and gateway for IMAP and POP3, on Trio."""

__version__ = "0.1.0"

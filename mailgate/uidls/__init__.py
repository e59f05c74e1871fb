"""Unique-ids across a migration: what an old POP3 server showed, whose message that is now, and what differs."""

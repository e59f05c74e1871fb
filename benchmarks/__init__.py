"""Measures what a login, a command, a byte and an idle session cost behind mailgate and behind its peers."""

"""Sockets, listeners, TLS towards clients, certificates."""

"""Connections to mail servers and signing in there."""

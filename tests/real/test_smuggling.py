"""Commands hidden where Dovecot and the gateway could disagree on where a command ends."""

from __future__ import annotations

import socket

import pytest

from tests.real.conftest import Gateway

pytestmark = pytest.mark.real

HIDDEN = b"\r\nb CREATE smuggled\r\nx "

# Dovecot answers each of these at the end of its line and takes what follows for the next command.
CARRIERS = [
    b"NOOP",
    b"CHECK",
    b"CAPABILITY",
    b"NAMESPACE",
    b"EXPUNGE",
    b"UID EXPUNGE 1",
    b"SUBSCRIBE x",
    b"RENAME x y",
    b"SELECT )",
    b"SELECT \x80",
    b"FETCH 1 FLAGS )",
    b'APPEND INBOX "x"',
    b"XFROB",
    b"UID FROB",
    b"IDLE",
    b"CLOSE",
]


@pytest.mark.parametrize("literal", [b"{%d}", b"{%d+}"])
def test_a_command_inside_a_literal_is_none(gateway: Gateway, user: tuple[str, str], literal: bytes) -> None:
    name, password = user
    for carrier in CARRIERS:
        with (
            socket.create_connection(("127.0.0.1", gateway.port("imap", "plain")), 30) as sock,
            sock.makefile("rb") as answers,
        ):
            sock.sendall(f'l LOGIN {name} "{password}"\r\ns SELECT INBOX\r\n'.encode())
            while not answers.readline().startswith(b"s OK"):
                pass
            hidden = b"DONE" + HIDDEN if carrier == b"IDLE" else HIDDEN
            sock.sendall(b"a %b %b\r\n" % (carrier, literal % len(hidden)))
            if literal.endswith(b"+}"):
                sock.sendall(hidden + b"\r\n")
            elif not answers.readline().startswith(b"+"):
                # A refusal: what would follow is no literal for anybody.
                continue
            else:
                sock.sendall(hidden + b"\r\n")
            sock.sendall(b'c LIST "" smuggled\r\nd LOGOUT\r\n')
            said = answers.read()
        assert b"d OK" in said, (carrier, said)
        assert b"smuggled" not in said, (carrier, said)

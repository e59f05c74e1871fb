"""An IMAP server with one small mailbox that does as it should, but for what a test has it do."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterable

Answer = Callable[["Talk", bytes], None]
"""Answers a command; what it is given are the connection and the command's arguments."""

PIECE = 65_536


class Talk:
    """One connection; ``tag`` is that of the command under way."""

    def __init__(self, server: HostileServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.tag = b""

    def say(self, *lines: bytes) -> None:
        self.sock.sendall(b"".join(line + b"\r\n" for line in lines))

    def ok(self, *lines: bytes, code: bytes = b"") -> None:
        """Say lines, and that the command is done."""
        self.say(*lines, self.tag + b" OK " + code + b"done")

    def flood(self, data: bytes) -> None:
        """Say the same for ever."""
        burst = data * max(1, PIECE // len(data))
        while True:
            self.sock.sendall(burst)

    def end(self) -> None:
        """Be gone."""
        raise ConnectionError


class HostileServer:
    """Listens until it is closed. ``answers`` are the commands that it answers in another way, by their names."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.capabilities = b"IMAP4rev1 UIDPLUS MOVE"
        self.messages = {1: message(1), 2: message(2), 3: message(3)}
        self.heard: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._socks: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Be honest again, to whoever comes, and drop those who are there."""
        self.answers = {}
        self.heard = []
        self.messages = {1: message(1), 2: message(2), 3: message(3)}
        self.drop()

    def drop(self) -> None:
        """Cut all connections."""
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._socks.clear()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.reset()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self._socks.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        talk = Talk(self, sock)
        user = b""
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as lines:
            talk.say(b"* OK [CAPABILITY " + self.capabilities + b"] ready")
            while line := lines.readline():
                talk.tag, _, rest = line.strip().partition(b" ")
                verb, _, arguments = rest.partition(b" ")
                if verb.upper() == b"UID":
                    second, _, arguments = arguments.partition(b" ")
                    verb += b" " + second
                name = verb.decode().upper()
                self.heard.append(name)
                if name == "LOGIN":
                    user = arguments.split()[0].strip(b'"')
                answer = self.answers.get(name) if user != b"honest" else None
                (answer or HONEST.get(name, _other))(talk, arguments)
                if name == "LOGOUT":
                    return


def message(number: int) -> bytes:
    """Return one of the messages that are there at first."""
    return b"Subject: %d\r\n\r\n" % number + b"line of message %d\r\n" % number * number


def row(uid: int, size: int, number: int = 1, flags: bytes = b"") -> bytes:
    """Return an ordinary FETCH response without its line's end."""
    return b"* %d FETCH (UID %d FLAGS (%b) RFC822.SIZE %d)" % (number, uid, flags, size)


def body(uid: int, data: bytes, number: int = 1) -> bytes:
    """Return a message as a FETCH response without its line's end."""
    return b"* %d FETCH (UID %d BODY[] {%d}\r\n%b)" % (number, uid, len(data), data)


def rows(talk: Talk) -> Iterable[bytes]:
    """Return the rows of what there is."""
    return (row(uid, len(data), number) for number, (uid, data) in enumerate(talk.server.messages.items(), 1))


def select(talk: Talk, arguments: bytes) -> None:
    talk.ok(
        b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)",
        b"* OK [PERMANENTFLAGS (\\Deleted \\Seen \\*)] ok",
        b"* %d EXISTS" % len(talk.server.messages),
        b"* OK [UIDVALIDITY 7] ok",
        b"* OK [UIDNEXT 100] ok",
        code=b"[READ-WRITE] ",
    )


def fetch(talk: Talk, arguments: bytes) -> None:
    uids, _, items = arguments.partition(b" ")
    if b"BODY" not in items:
        # By sequence numbers, or by UIDs up to the last.
        first, _, last = uids.partition(b":")
        every = list(rows(talk))
        talk.ok(*(every[int(first) - 1 : int(last)] if last.isdigit() else every[int(first) - 1 :]))
    else:
        uid = int(uids)
        talk.ok(*([body(uid, talk.server.messages[uid])] if uid in talk.server.messages else []))


def search(talk: Talk, arguments: bytes) -> None:
    wanted = re.search(rb"UID ([0-9:,]+)", arguments)
    named = {int(uid) for uid in re.findall(rb"[0-9]+", wanted[1])} if wanted else set(talk.server.messages)
    found = [] if b"DELETED" in arguments.replace(b"UNDELETED", b"") else sorted(named & talk.server.messages.keys())
    talk.ok(b"* SEARCH" + b"".join(b" %d" % uid for uid in found))


def expunge(talk: Talk, arguments: bytes) -> None:
    for uid in map(int, re.findall(rb"[0-9]+", arguments)):
        talk.server.messages.pop(uid, None)
    talk.ok()


def _other(talk: Talk, arguments: bytes) -> None:
    talk.ok()


HONEST: dict[str, Answer] = {
    "CAPABILITY": lambda talk, _: talk.ok(b"* CAPABILITY " + talk.server.capabilities),
    "LOGIN": lambda talk, _: talk.ok(code=b"[CAPABILITY " + talk.server.capabilities + b"] "),
    "SELECT": select,
    "FETCH": fetch,
    "UID FETCH": fetch,
    "UID SEARCH": search,
    "UID EXPUNGE": expunge,
    "LOGOUT": lambda talk, _: talk.ok(b"* BYE bye"),
}

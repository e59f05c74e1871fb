"""A relay core driven as a script: who says what, and what the other side then sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mailgate.model import ALLOW, Deny, Refusal, Verdict
from mailgate.wire.relay import Finished, RelayCore

NO_COMPRESS = Deny(Refusal("denied_command", "Command not available", pop3_code="SYS/PERM"), "denied_command")


def deny(*verbs: str) -> Callable[[str], Verdict]:
    """A command gate that refuses the given verbs."""
    return lambda verb: NO_COMPRESS if verb in verbs else ALLOW


@dataclass
class Script:
    """Feeds a core in pieces of ``step`` bytes, as its shell would, and collects what comes out.

    ``clock`` advances by a second with each call, so that times in ``finished`` tell the order.
    """

    core: RelayCore
    step: int = 1 << 30
    clock: float = 0.0
    upstream_got: bytearray = field(default_factory=bytearray)
    client_got: bytearray = field(default_factory=bytearray)
    finished: list[Finished] = field(default_factory=list)
    waiting: bytes = b""

    def client(self, data: bytes) -> bytes:
        """Send as the client; return what reached the upstream by it."""
        before = len(self.upstream_got)
        self.waiting += data
        self.clock += 1
        self._offer()
        return bytes(self.upstream_got[before:])

    def willing(self, data: bytes) -> bytes:
        """Send as the client to an upstream that asks for every literal; return what reached it."""
        before = len(self.upstream_got)
        self.client(data)
        while self.core.blocked and self.upstream_got.endswith(b"}\r\n"):
            self.upstream(b"+ go\r\n")
        return bytes(self.upstream_got[before:])

    def upstream(self, data: bytes) -> bytes:
        """Send as the upstream; return what reached the client by it."""
        before = len(self.client_got)
        self.clock += 1
        for at in range(0, len(data), self.step):
            piece = bytearray(data[at : at + self.step])
            self.core.upstream_sent(piece, len(piece), self.clock)
            self._collect()
            self._offer()
        return bytes(self.client_got[before:])

    def _offer(self) -> None:
        while (self.waiting or self.core.held) and not self.core.blocked and not self.core.fatal:
            piece = bytearray(self.waiting[: self.step])
            used = self.core.client_sent(piece, len(piece), self.clock)
            self.waiting = self.waiting[used:]
            self.core.delay = 0.0
            self._collect()

    def _collect(self) -> None:
        for piece in self.core.to_upstream:
            self.upstream_got += piece
        for piece in self.core.to_client:
            self.client_got += piece
        self.finished += self.core.finished
        self.core.to_upstream.clear()
        self.core.to_client.clear()
        self.core.finished.clear()

    @property
    def results(self) -> list[tuple[str, str]]:
        """Verb and result of all finished commands, in order."""
        return [(done.verb, done.result) for done in self.finished]

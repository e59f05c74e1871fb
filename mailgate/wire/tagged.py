"""Commands in flight by their tags, in little memory while there is at most one.

Most sessions have none under way, an idle one has its IDLE, and clients that wait for each answer have
one: it is kept by itself, and the tables of those that pipeline live only as long as they hold something.
"""

from __future__ import annotations

from mailgate.wire.relay import Outbox

Command = tuple[bytes, str, float]
"""A command in flight: its tag, its verb (``other`` if unknown), when it began in seconds."""


class TaggedCommands(Outbox):
    """The commands in flight of one session, for a core to build on.

    A tag that is in use may be used again, which RFC 9051 §2.2.1 forbids and some clients do all the same:
    its completions are matched in order.
    """

    __slots__ = ("_first", "_in_flight", "_others", "_repeated")

    def __init__(self, *, opaque: bool) -> None:
        super().__init__(opaque=opaque)
        self._in_flight = 0
        # The command that was sent while no other was in flight: older than all that are beside it.
        self._first: Command | None = None
        self._others: dict[bytes, Command] | None = None
        # Those whose tag is among the others already, oldest first.
        self._repeated: dict[bytes, list[Command]] | None = None

    def _note(self, command: Command) -> None:
        """Remember a command until its completion."""
        self._in_flight += 1
        if self._in_flight == 1:
            self._first = command
        elif self._others is None:
            self._others = {command[0]: command}
        elif self._others.setdefault(command[0], command) is not command:
            if self._repeated is None:
                self._repeated = {}
            self._repeated.setdefault(command[0], []).append(command)

    def _take(self, tag: bytes) -> Command | None:
        """Forget the oldest command with this tag and return it; ``None`` if there is none."""
        command = self._first
        if command is not None and command[0] == tag:
            self._first = None
        elif self._others is None or (command := self._others.pop(tag, None)) is None:
            return None
        else:
            if self._repeated is not None and (younger := self._repeated.get(tag)):
                self._others[tag] = younger.pop(0)
                if not younger:
                    del self._repeated[tag]
                self._repeated = self._repeated or None
            self._others = self._others or None
        self._in_flight -= 1
        return command

    def _uses(self, tag: bytes) -> bool:
        """Whether a command with this tag is in flight."""
        return (self._first is not None and self._first[0] == tag) or (self._others is not None and tag in self._others)

    def _awaits(self, verb: str) -> bool:
        """Whether a command with this verb is in flight."""
        commands = [self._first, *(self._others or {}).values()]
        commands += [command for same in (self._repeated or {}).values() for command in same]
        return any(command is not None and command[1] == verb for command in commands)

"""What the administration socket does, over all workers: whichever of them is asked, all of them answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from mailgate.model import Session, State
from mailgate.observe.log import shown
from mailgate.observe.trace import Tracer
from mailgate.policy import answers
from mailgate.reception import Reception
from mailgate.session.relay import Watch
from mailgate.workers.bus import Bus, Reply
from mailgate.workers.packets import Message

BY: Final = "admin socket"

Audit = Callable[[str, dict[str, object]], None]
Deed = Callable[[], Awaitable[dict[str, object]]]
"""Does what concerns the whole gateway; returns what it has to tell."""


class Administration:
    """The part of one worker, ``slot``: it asks all over the bus, and answers for its own sessions and traces."""

    def __init__(
        self,
        bus: Bus,
        slot: int,
        reception: Reception,
        watch: Watch,
        tracer: Tracer,
        audit: Audit,
        reload: Deed,
        upgrade: Deed,
    ) -> None:
        self.reload = reload
        self.upgrade = upgrade
        self._bus = bus
        self._slot = slot
        self._reception = reception
        self._watch = watch
        self._tracer = tracer
        self._audit = audit
        bus.answer("sessions", self._own_sessions)
        bus.answer("kick", self._kick_own)
        bus.answer("traces", self._own_traces)
        bus.answer("trace", self._join)
        bus.answer("untrace", self._leave)

    # ---------------------------------------------------------------- sessions

    async def sessions(self) -> dict[str, object]:
        """Return the sessions of all workers, the oldest first, and which workers did not answer."""
        replies = await self._bus.ask_all("sessions")
        found = [one for reply in replies for one in reply.answer.get("sessions", [])]
        return {"sessions": sorted(found, key=lambda one: -one["seconds"]), "missing": _missing(replies)}

    async def kick(self, *, session: str | None = None, user: str | None = None) -> dict[str, object]:
        """End a session, or all sessions of a user; return how many there were."""
        replies = await self._bus.ask_all("kick", session=session, user=user)
        kicked = sum(reply.answer.get("kicked", 0) for reply in replies)
        if kicked:
            self._audit("sessions kicked", {"kicked": kicked, "kicked_session": session, "user": user, "by": BY})
        return {"kicked": kicked, "missing": _missing(replies)}

    async def _own_sessions(self, facts: Message) -> Message:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        return {"sessions": [self._facts(session, now) for session in self._reception.sessions.values()]}

    def _facts(self, session: Session, now: float) -> dict[str, object]:
        return {
            "id": session.id,
            "worker": self._slot,
            "protocol": session.protocol.value,
            "listener": session.listener,
            "address": session.peer.address,
            "port": session.peer.port,
            "user": shown(session.user),
            "pool": session.pool,
            "server": session.server,
            "state": session.state.value,
            "seconds": round(now - session.started, 3),
            "bytes_in": session.bytes_in,
            "bytes_out": session.bytes_out,
        }

    async def _kick_own(self, facts: Message) -> Message:
        await trio.lowlevel.checkpoint()
        name, user = facts["session"], facts["user"]
        wanted = [
            session
            for session in self._reception.sessions.values()
            if session.id == name or (user is not None and _same_user(session, user))
        ]
        for session in wanted:
            if session.state is not State.RELAY or not self._watch.end(session, answers.KICKED.reason):
                self._reception.end(session.id, answers.KICKED)
        return {"kicked": len(wanted)}

    # ---------------------------------------------------------------- traces

    async def start_trace(
        self, *, user: str | None, address: str | None, seconds: float, bodies: bool
    ) -> dict[str, object]:
        """Begin a trace in all workers; return its facts. Raises MailgateError with what is wrong."""
        facts = self._tracer.start(user=user, address=address, seconds=seconds, by=BY, bodies=bodies)
        await self._bus.ask_all("trace", **facts)
        return facts

    async def stop_trace(self, name: str) -> bool:
        """End a trace in all workers; return whether there was one."""
        if name in self._tracer:
            # Who hears of it first tells the log; the others are told of what is over.
            self._tracer.stop(name, BY)
            await self._bus.ask_all("untrace", id=name, silent=True)
            return True
        replies = await self._bus.ask_all("untrace", id=name, silent=False)
        return any(reply.answer.get("stopped") for reply in replies)

    async def traces(self) -> list[dict[str, object]]:
        """Return the traces that run: each worker has the same, except for one that ended in a full disk."""
        await trio.lowlevel.checkpoint()
        return self._tracer.list()

    async def catch_up(self) -> None:
        """Take part in the traces that were begun before this worker was."""
        for reply in await self._bus.ask_all("traces"):
            for facts in reply.answer.get("traces", []):
                await self._join(facts)

    async def _own_traces(self, facts: Message) -> Message:
        await trio.lowlevel.checkpoint()
        return {"traces": self._tracer.list()}

    async def _join(self, facts: Message) -> Message:
        await trio.lowlevel.checkpoint()
        self._tracer.join(
            name=facts["id"],
            user=facts["user"],
            address=facts["address"],
            seconds=facts["remaining"],
            bodies=facts["bodies"],
            by=facts["by"],
            path=Path(facts["file"]),
        )
        return {}

    async def _leave(self, facts: Message) -> Message:
        await trio.lowlevel.checkpoint()
        return {"stopped": self._tracer.stop(facts["id"], BY, silent=facts["silent"])}


def _missing(replies: list[Reply]) -> list[Mapping[str, object]]:
    return [{"worker": reply.worker, "error": reply.error} for reply in replies if reply.error]


def _same_user(session: Session, user: str) -> bool:
    own = session.user.decode("utf-8", "backslashreplace") if session.user is not None else None
    return own is not None and own.casefold() == user.casefold()

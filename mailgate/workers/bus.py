"""How one worker asks all workers, itself included: through the supervisor, or alone in its process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from mailgate.errors import MailgateError
from mailgate.workers.packets import Channel, Message
from mailgate.workers.questions import ASK_SECONDS

PATIENCE: Final = ASK_SECONDS + 2.0
"""How long a worker waits for the supervisor to hand on answers, in seconds; that one itself waits for ASK_SECONDS. It
may hang, and whoever asks over HTTP shall hear so before giving up (the commands do after 10)."""

Handler = Callable[[Message], Awaitable[Message]]
"""Answers one kind of question; a MailgateError that it raises is the answer as well."""

Order = Callable[[Message, Sequence[int]], Awaitable[None]]
"""Does what the supervisor says; the descriptors are its own to close."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one worker said. ``error`` says why there is no answer."""

    worker: int
    answer: Message = field(default_factory=dict)
    error: str = ""


class Bus(Protocol):
    """Asks all workers."""

    def answer(self, kind: str, handler: Handler) -> None:
        """Answer one kind of question from now on."""
        ...

    async def ask_all(self, kind: str, **facts: object) -> list[Reply]:
        """Ask every worker; one that died or does not answer in time has a reply with an error."""
        ...


Failed = Callable[[Exception], None]
"""Told of an error in a handler that is mailgate's own; who asked hears only that there was one."""


async def _alive(facts: Message) -> Message:
    """Answer that this worker's loop turns."""
    await trio.lowlevel.checkpoint()
    return {}


class AloneBus:
    """The bus of a gateway that has its process for itself."""

    def __init__(self, failed: Failed, slot: int = 0) -> None:
        self._handlers: dict[str, Handler] = {}
        self._failed = failed
        self._slot = slot

    def answer(self, kind: str, handler: Handler) -> None:
        """Answer one kind of question from now on."""
        self._handlers[kind] = handler

    async def ask_all(self, kind: str, **facts: object) -> list[Reply]:
        """Ask the only worker that there is."""
        handler = self._handlers.get(kind)
        if handler is None:
            return [Reply(self._slot, error=f"does not know what {kind} is")]
        try:
            return [Reply(self._slot, await handler(facts))]
        except MailgateError as error:
            return [Reply(self._slot, error=str(error))]
        except Exception as error:
            # One question that goes wrong must not end a worker's sessions.
            self._failed(error)
            return [Reply(self._slot, error="met an error of mailgate's own; its traceback is in the log")]


@dataclass(slots=True)
class _Asked:
    replies: list[Reply] = field(default_factory=list)
    done: trio.Event = field(default_factory=trio.Event)


class WorkerBus:
    """The bus of a worker: every question goes through the supervisor, which alone knows who lives.

    ``orders`` says who does what the supervisor tells this worker, by its word.
    """

    def __init__(self, channel: Channel, slot: int, failed: Failed) -> None:
        self.orders: dict[str, Order] = {}
        self._channel = channel
        self._slot = slot
        self._own = AloneBus(failed, slot)
        self._own.answer("alive", _alive)
        self._asked: dict[int, _Asked] = {}
        self._wanted: dict[int, tuple[trio.Event, list[Message]]] = {}
        self._numbers = itertools.count(1)
        self._to_send = trio.Event()
        self._gone = False

    def answer(self, kind: str, handler: Handler) -> None:
        """Answer one kind of question from now on."""
        self._own.answer(kind, handler)

    def tell(self, word: str, **facts: object) -> None:
        """Tell the supervisor something; when it is gone, nobody hears it."""
        self._channel.put({"word": word} | facts)
        if self._channel.waiting:
            self._to_send.set()

    async def ask_all(self, kind: str, **facts: object) -> list[Reply]:
        """Ask every worker; one that died or does not answer in time has a reply with an error."""
        if self._gone:
            return await self._own.ask_all(kind, **facts)
        number = next(self._numbers)
        asked = self._asked[number] = _Asked()
        self.tell("ask", number=number, kind=kind, facts=facts)
        try:
            with trio.move_on_after(PATIENCE) as scope:
                await asked.done.wait()
        finally:
            del self._asked[number]
        if scope.cancelled_caught:
            asked.replies.append(Reply(self._slot, error="the supervisor does not answer"))
        return sorted(asked.replies, key=lambda reply: reply.worker)

    async def want(self, word: str) -> Message:
        """Ask the supervisor to do something; return its answer. Raises MailgateError when it is gone."""
        if self._gone:
            raise MailgateError("the supervisor is gone")
        number = next(self._numbers)
        done, answers = self._wanted[number] = trio.Event(), []
        self.tell(word, number=number)
        try:
            await done.wait()
        finally:
            del self._wanted[number]
        if not answers:
            raise MailgateError("the supervisor is gone")
        return answers[0]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the supervisor is gone, then return; questions and orders are done side by side."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            task_status.started()
            await self._read(nursery)
            nursery.cancel_scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._channel.socket)
            try:
                found = self._channel.receive()
            except EOFError:
                break
            for message, descriptors in found:
                self._take(message, descriptors, nursery)
        self._gone = True
        for asked in self._asked.values():
            asked.done.set()
        for done, _ in self._wanted.values():
            done.set()

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send = trio.Event()
            while self._channel.waiting:
                await trio.lowlevel.wait_writable(self._channel.socket)
                self._channel.flush()

    def _take(self, message: Message, descriptors: Sequence[int], nursery: trio.Nursery) -> None:
        match message:
            case {"word": "asked", "ask": int() as ask, "kind": str() as kind, "facts": dict() as facts}:
                nursery.start_soon(self._reply, ask, kind, facts)
            case {"word": "reply", "number": int() as number, "worker": int() as slot}:
                if number in self._asked:
                    reply = Reply(slot, message.get("answer") or {}, message.get("error") or "")
                    self._asked[number].replies.append(reply)
            case {"word": "answered", "number": int() as number}:
                if number in self._asked:
                    self._asked[number].done.set()
            case {"word": "done", "number": int() as number}:
                if number in self._wanted:
                    done, answers = self._wanted[number]
                    answers.append(message)
                    done.set()
            case {"word": str() as word} if word in self.orders:
                nursery.start_soon(self.orders[word], message, descriptors)
                return
        for one in descriptors:
            os.close(one)

    async def _reply(self, ask: int, kind: str, facts: Message) -> None:
        (reply,) = await self._own.ask_all(kind, **facts)
        self.tell("reply", ask=ask, answer=reply.answer, error=reply.error)

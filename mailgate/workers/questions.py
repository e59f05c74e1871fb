"""Questions of workers to all workers, as the supervisor hands them on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mailgate.workers.packets import Message
from mailgate.workers.worker import Worker

ASK_SECONDS: Final = 5.0
"""How long workers have to answer a question of one of them."""


@dataclass(slots=True)
class Ask:
    """A question that is under way: who asks, under which number, and who has still to answer."""

    asker: Worker
    number: int
    waiting: set[Worker]
    deadline: float


class Questions:
    """The questions that are under way; moments are told by the caller. ``numbers`` of them were given out already."""

    def __init__(self, numbers: int = 0) -> None:
        self.open: dict[int, Ask] = {}
        self.numbers = numbers

    def ask(self, asker: Worker, number: int, kind: object, facts: object, all_: Iterable[Worker], now: float) -> None:
        """Hand a question of one worker to all."""
        self.numbers += 1
        # One that starts has no sessions and hears too late.
        waiting = {one for one in all_ if one.state != "starting" and not one.deaf}
        self.open[self.numbers] = ask = Ask(asker, number, waiting, now + ASK_SECONDS)
        question = {"word": "asked", "ask": self.numbers, "kind": kind, "facts": facts}
        for worker in list(waiting):
            if not worker.channel.put(question):
                self._reply(worker, self.numbers, ask, {"error": "hangs"})
        if not waiting:
            self._answered(self.numbers, ask)

    def reply(self, worker: Worker, number: int, said: Message) -> None:
        """Hand a worker's answer to the one that asked; one that nobody waits for counts for nothing."""
        ask = self.open.get(number)
        if ask is not None and worker in ask.waiting:
            self._reply(worker, number, ask, said)

    def forget(self, worker: Worker) -> None:
        """End what a worker that has died asked, and answer what it was asked."""
        for number, ask in list(self.open.items()):
            if ask.asker is worker:
                del self.open[number]
            else:
                self.reply(worker, number, {"error": "died"})

    def give_up(self, error: str) -> None:
        """End all questions; those that have not answered have this error."""
        for number, ask in list(self.open.items()):
            for worker in list(ask.waiting):
                self._reply(worker, number, ask, {"error": error})

    def expire(self, now: float) -> None:
        """End the questions whose time is over."""
        for number, ask in list(self.open.items()):
            if now >= ask.deadline:
                self._answered(number, ask)

    def _reply(self, worker: Worker, number: int, ask: Ask, said: Message) -> None:
        """Hand a worker's answer to the one that asked."""
        ask.waiting.discard(worker)
        ask.asker.channel.put({"word": "reply", "number": ask.number, "worker": worker.slot} | said)
        if not ask.waiting:
            self._answered(number, ask)

    def _answered(self, number: int, ask: Ask) -> None:
        """End a question; those that did not answer are told of."""
        if self.open.pop(number, None) is None:
            return
        for worker in ask.waiting:
            late = {"word": "reply", "number": ask.number, "worker": worker.slot}
            ask.asker.channel.put(late | {"error": f"no answer within {ASK_SECONDS:g} s"})
        ask.asker.channel.put({"word": "answered", "number": ask.number})

"""A worker's bus, with the other end in the test's hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from mailgate.errors import MailgateError
from mailgate.workers.bus import PATIENCE, AloneBus, Reply, WorkerBus
from mailgate.workers.packets import Channel, Message, channels

failures: list[str] = []


def failed(error: Exception) -> None:
    failures.append(repr(error))


class Told:
    def __init__(self, channel: Channel, bus: WorkerBus) -> None:
        self.channel = channel
        self.bus = bus
        self.found: list[Message] = []

    async def hears(self) -> Message:
        while not self.found:
            await trio.lowlevel.wait_readable(self.channel.socket)
            self.found += [message for message, _ in self.channel.receive()]
        return self.found.pop(0)


@asynccontextmanager
async def running() -> AsyncIterator[Told]:
    ours, theirs = channels()
    bus = WorkerBus(theirs, 1, failed)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            yield Told(ours, bus)
            nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def double(facts: Message) -> Message:
    await trio.lowlevel.checkpoint()
    if facts["number"] is None:
        raise MailgateError("no number")
    return {"doubled": 2 * facts["number"] ** 2 // facts["number"]}


async def test_alone_it_asks_itself() -> None:
    bus = AloneBus(failed)
    bus.answer("double", double)
    assert await bus.ask_all("double", number=2) == [Reply(0, {"doubled": 4})]
    assert await bus.ask_all("double", number=None) == [Reply(0, error="no number")]
    own = "met an error of mailgate's own; its traceback is in the log"
    assert await bus.ask_all("double", number=0) == [Reply(0, error=own)]
    assert failures == ["ZeroDivisionError('integer division or modulo by zero')"]
    assert await bus.ask_all("treble") == [Reply(0, error="does not know what treble is")]


async def test_a_question_is_answered() -> None:
    async with running() as told:
        told.bus.answer("double", double)
        told.channel.put({"word": "asked", "ask": 7, "kind": "double", "facts": {"number": 3}})
        assert await told.hears() == {"word": "reply", "ask": 7, "answer": {"doubled": 6}, "error": ""}
        told.channel.put({"word": "asked", "ask": 8, "kind": "double", "facts": {"number": None}})
        assert await told.hears() == {"word": "reply", "ask": 8, "answer": {}, "error": "no number"}


async def test_answers_are_gathered_until_the_supervisor_says_that_there_are_no_more() -> None:
    async with running() as told, trio.open_nursery() as nursery:
        replies: list[list[Reply]] = []

        async def ask(number: int) -> None:
            replies.append(await told.bus.ask_all("double", number=number))

        nursery.start_soon(ask, 1)
        first = await told.hears()
        nursery.start_soon(ask, 2)
        second = await told.hears()
        assert first.items() >= {"word": "ask", "kind": "double", "facts": {"number": 1}}.items()
        told.channel.put({"word": "reply", "number": second["number"], "worker": 0, "answer": {"doubled": 4}})
        told.channel.put({"word": "reply", "number": first["number"], "worker": 1, "error": "died"})
        told.channel.put({"word": "reply", "number": first["number"], "worker": 0, "answer": {"doubled": 2}})
        told.channel.put({"word": "reply", "number": 99, "worker": 0, "answer": {"nobody": "asked"}})
        told.channel.put({"word": "answered", "number": first["number"]})
        told.channel.put({"word": "answered", "number": second["number"]})
    assert sorted(replies, key=len) == [
        [Reply(0, {"doubled": 4})],
        [Reply(0, {"doubled": 2}), Reply(1, error="died")],
    ]


async def test_a_large_answer_goes_both_ways() -> None:
    async def large(facts: Message) -> Message:
        await trio.lowlevel.checkpoint()
        return {"sessions": ["x" * 1000] * 3000}

    async with running() as told:
        told.bus.answer("sessions", large)
        told.channel.put({"word": "asked", "ask": 1, "kind": "sessions", "facts": {}})
        reply = await told.hears()
        assert len(reply["answer"]["sessions"]) == 3000


async def test_orders_are_obeyed_and_descriptors_of_unknown_ones_closed() -> None:
    async with running() as told:
        obeyed = trio.Event()

        async def obey(order: Message, descriptors: Sequence[int]) -> None:
            await trio.lowlevel.checkpoint()
            assert order["number"] == 15
            assert list(descriptors) == []
            obeyed.set()

        told.bus.orders["signal"] = obey
        told.channel.put({"word": "unknown"}, [0])
        told.channel.put({"word": "signal", "number": 15})
        await obeyed.wait()


async def test_what_the_supervisor_does_is_awaited() -> None:
    async with running() as told, trio.open_nursery() as nursery:
        answers: list[Message] = []

        async def want() -> None:
            answers.append(await told.bus.want("reload"))

        nursery.start_soon(want)
        number = (await told.hears())["number"]
        told.channel.put({"word": "done", "number": number, "changed": []})
        told.channel.put({"word": "done", "number": number + 1, "changed": ["for nobody"]})
    assert [answer["changed"] for answer in answers] == [[]]


async def test_a_supervisor_that_is_gone() -> None:
    ours, theirs = channels()
    bus = WorkerBus(theirs, 1, failed)
    bus.answer("double", double)
    outcome: list[object] = []

    async def want() -> None:
        with pytest.raises(MailgateError, match="gone"):
            await bus.want("reload")
        outcome.append("refused")

    async def ask() -> None:
        outcome.append(await bus.ask_all("double", number=1))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(want)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            ours.close()
            await bus.run()
    assert sorted(outcome, key=str) == [[], "refused"]
    # From now on it speaks for itself.
    assert await bus.ask_all("double", number=1) == [Reply(1, {"doubled": 2})]
    await want()
    theirs.close()


async def test_a_supervisor_that_hangs_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = channels()
    bus = WorkerBus(theirs, 1, failed)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        ours.put({"word": "reply", "number": 1, "worker": 0, "answer": {"doubled": 4}, "error": ""})
        began = trio.current_time()
        replies = await bus.ask_all("double", number=2)
        assert trio.current_time() - began == pytest.approx(PATIENCE)
        assert replies == [Reply(0, {"doubled": 4}), Reply(1, error="the supervisor does not answer")]
        nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()

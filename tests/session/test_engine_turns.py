"""The relay engine and everybody else: turns between relays, Trio's own tasks and sockets, timers, other runs."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import trio
import trio.testing

from mailgate.events import CommandFinished, Event
from mailgate.model import ALLOW, Delay, End, Side, Verdict
from mailgate.session.engine import TRIO_SECONDS, _epoll_that_watches
from mailgate.wire.relay import CopyRelay
from tests.support.yard import Link, Yard, command, imap_core, raw_socket, read, serving

pytestmark = pytest.mark.usefixtures("way")


class Busy:
    """Keeps a relay busy all the time, from a thread of its own, until it is left."""

    def __init__(self, link: Link) -> None:
        # Descriptors of their own, since Trio's are the test's.
        self._up, self._down = (raw_socket(far)._sock.dup() for far in (link.upstream, link.client))
        for sock in (self._up, self._down):
            sock.setblocking(True)
            sock.settimeout(0.05)
        self._over = False
        self.taken = 0
        self._threads = [threading.Thread(target=one) for one in (self._send, self._take)]

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._up.close()
        self._down.close()

    def _send(self) -> None:
        data = b"* 1 EXISTS\r\n" * 2000
        while not self._over:
            try:
                self._up.send(data)
            except TimeoutError:
                continue

    def _take(self) -> None:
        while not self._over:
            try:
                self.taken += len(self._down.recv(65536))
            except TimeoutError:
                continue


PATIENCE = 50 * TRIO_SECONDS
"""What is done within some turns is surely done within this, on a machine that has other things to do."""


async def test_commands_beside_a_transfer_have_their_turn() -> None:
    async with serving() as yard:
        bulk, single = await yard.link(CopyRelay()), await yard.link(imap_core())
        turns = yard.count_turns()
        worst = 0
        with Busy(bulk) as busy:
            await trio.sleep(0.1)
            for number in range(50):
                before = turns[0]
                single_client, single_upstream = (raw_socket(far)._sock for far in (single.client, single.upstream))
                single_client.send(b"a%d NOOP\r\n" % number)
                await trio.lowlevel.wait_readable(single_upstream)
                worst = max(worst, turns[0] - before)
                single_upstream.recv(100)
                single_upstream.send(b"a%d OK done\r\n" % number)
                await read(single.client, 10 + len(str(number)) + 1)
            assert busy.taken > 0
        # The command itself is served in the next turn; what is more comes from when this test has its turn.
        assert worst < 2000
    assert len(yard.finished) == 50


async def test_trios_tasks_have_their_turn_beside_relays_that_are_always_busy() -> None:
    async with serving() as yard:
        bulk, single = await yard.link(CopyRelay()), await yard.link(imap_core())
        told = trio.Event()
        at = [0.0]

        def emit(event: Event) -> None:
            if isinstance(event, CommandFinished):
                at[0] = trio.current_time()
                told.set()

        yard.emit = emit
        with Busy(bulk):
            await trio.sleep(0.05)
            for _ in range(5):
                began = trio.current_time()
                await trio.sleep(0.05)
                assert trio.current_time() - began < 0.05 + PATIENCE
            # An event that is set by what a relay tells.
            raw_socket(single.client)._sock.send(b"a NOOP\r\n")
            raw_socket(single.upstream)._sock.send(b"a OK done\r\n")
            await told.wait()
            assert trio.current_time() - at[0] < PATIENCE
            # A socket of Trio's own.
            one, other = trio.socket.socketpair()
            with one, other:
                for _ in range(20):
                    began = trio.current_time()
                    await one.send(b"x")
                    assert await other.recv(1) == b"x"
                    assert trio.current_time() - began < PATIENCE
            began = trio.current_time()
            await trio.to_thread.run_sync(time.sleep, 0.01)
            assert trio.current_time() - began < 0.01 + PATIENCE


async def test_threads_and_signals_wake_trio_at_once_while_the_engine_waits() -> None:
    async with serving() as yard:
        await yard.link(imap_core())
        began = time.monotonic()
        await trio.to_thread.run_sync(time.sleep, 0.05)
        assert time.monotonic() - began < 0.05 + PATIENCE
        token = trio.lowlevel.current_trio_token()
        seen = trio.Event()
        thread = threading.Timer(0.05, lambda: trio.from_thread.run_sync(seen.set, trio_token=token))
        thread.start()
        with trio.fail_after(5):
            await seen.wait()
        thread.join()
        with trio.open_signal_receiver(signal.SIGUSR1) as signals, trio.fail_after(5):
            sender = threading.Timer(0.05, signal.raise_signal, [signal.SIGUSR1])
            sender.start()
            async for number in signals:
                assert number == signal.SIGUSR1
                break
        sender.join()


async def test_an_event_set_by_what_was_put_off_is_not_slept_over() -> None:
    """A relay that was put off tells something when Trio is about to wait for long."""
    async with serving() as yard:
        link = await yard.link(imap_core())
        finished = trio.Event()
        count = [0]

        def emit(event: Event) -> None:
            count[0] += isinstance(event, CommandFinished)
            if count[0] == 300:
                finished.set()

        yard.emit = emit
        raw_socket(link.client)._sock.send(b"x\r\n" * 300)
        with trio.fail_after(5):
            await finished.wait()


@pytest.mark.parametrize("busy", [False, True])
async def test_timers_keep_their_time(busy: bool) -> None:
    async with serving() as yard:
        delays, lingers = await yard.link(imap_core(decide_quickly)), await yard.link(imap_core(), linger=0.2)
        bulk = await yard.link(CopyRelay())

        async def check() -> None:
            raw_socket(lingers.client)._sock.send(b"a NOOP\r\n")
            await read(lingers.upstream, 8)
            began = trio.current_time()
            raw_socket(delays.client)._sock.send(b"a SELECT inbox\r\n")
            await lingers.client.send_eof()
            await read(delays.upstream, 16)
            assert 0.1 <= trio.current_time() - began < 0.1 + PATIENCE
            await lingers.ended.wait()
            assert 0.2 <= trio.current_time() - began < 0.2 + PATIENCE

        if busy:
            with Busy(bulk):
                await check()
        else:
            await check()
    assert lingers.ends == [End(Side.CLIENT, "closed")]


def decide_quickly(verb: str) -> Verdict:
    return Delay(0.1, "test") if verb == "SELECT" else ALLOW


async def test_an_idle_engine_does_nothing(way: str) -> None:
    async with serving() as yard:
        for _ in range(10):
            await yard.link(imap_core())
        await trio.sleep(0.05)
        turns = yard.count_turns()
        used = time.process_time()
        await trio.sleep(0.5)
        assert turns[0] <= 3
        assert time.process_time() - used < 0.2


@pytest.mark.parametrize("wakes", [False, True])
async def test_trio_is_woken_by_a_lone_command_only_if_it_has_something_to_do(wakes: bool) -> None:
    async with serving() as yard, trio.open_nursery() as nursery:
        link = await yard.link(imap_core())
        told = trio.Event()
        yard.emit = lambda event: told.set() if wakes else None
        nursery.start_soon(told.wait)
        await trio.sleep(0.01)
        raw_socket(link.client)._sock.send(b"one\r\n")
        began = time.monotonic()
        yard.engine.serve_while_trio_waits(10 * TRIO_SECONDS)
        waited = time.monotonic() - began
        assert waited >= (1 if wakes else 10) * TRIO_SECONDS - 0.002
        assert not wakes or waited < 9 * TRIO_SECONDS
        told.set()


def test_the_epoll_of_another_run_is_not_taken_for_ours(way: str) -> None:
    if way == "task":
        pytest.skip("it is not looked for then")
    found: dict[str, int | None] = {}
    barrier = threading.Barrier(2, timeout=10)

    async def look(name: str) -> None:
        yard = Yard()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(yard.engine.run)
            await trio.testing.wait_all_tasks_blocked()
            barrier.wait()
            found[name] = yard.engine._trio
            link = await yard.link(imap_core())
            await command(link, b"a")
            barrier.wait()
            nursery.cancel_scope.cancel()
        yard.check()

    threads = [threading.Thread(target=trio.run, args=(look, name)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found.values())) == 2
    assert -1 not in found.values()


def test_an_epoll_that_is_not_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _epoll_that_watches(1 << 20) is None

    def refuse(path: str) -> list[str]:
        raise PermissionError(path)

    monkeypatch.setattr("os.listdir", refuse)
    assert _epoll_that_watches(0) is None

"""The descriptor engine: the relays of a worker, driven by callbacks from the worker's own epoll.

After the login a session has no task, no nursery and no cancel scope any more: it is two sockets, a
:class:`~mailgate.session.relay.Relay` with its core, and the little state here. Where Trio would only wait,
the engine waits, and calls back for each socket that has something (see :meth:`Engine.run`). Compared with a task for
each direction that halves the cost of a command and of an idle session. The price is that what a coroutine says by
where it waits is said here by which sockets are asked for.

The rules, for each pair of sockets:

- A burst is read into the buffer that all sessions share, handed to the relay, and what the relay has
  for either side is sent at once. What a socket does not take is copied (``backlog``) and sent when it can be.
- While an upstream has a backlog its client is not read; while a client has one, its upstream is not. So
  memory per session is bounded by one burst in each direction.
- ``_arrange`` is the only place that says what is asked for of epoll, and when the end has come.

Nothing here knows a protocol or decides why a session ends.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import re
import select
import socket
import ssl
from collections.abc import Callable
from itertools import count
from typing import Final

import trio

from mailgate.model import End, Side
from mailgate.session.relay import NOBODY, Relay, Watch
from mailgate.stream import BURST, LONE
from mailgate.wire.relay import Buffer

TURNS: Final = 8
"""How often the sockets are asked again before the other tasks of the worker run: while there is work, going
through Trio each time costs as much as a command."""

EVENTS: Final = 64
"""Sockets that are served in one turn at most, so that no turn lasts for long."""

TRIO_SECONDS: Final = 0.01
"""How long Trio's tasks may wait at most while relays have something all the time, in case that what a relay
tells wakes one of them. A hundred turns of Trio in a second cost next to nothing."""

DEADLINE_SLACK: Final = 0.001
"""Seconds by which a deadline may seem to be earlier than it was: the clock was read a moment after Trio did."""

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_LOST: Final = select.EPOLLHUP | select.EPOLLERR

Done = Callable[[End], None]
"""Told once when a relay is over; both sockets are closed then."""


class _Leg:
    """One of a pair's two sockets."""

    __slots__ = ("asked", "backlog", "broken", "fd", "for_client", "more", "pair", "sock", "tls")

    def __init__(self, sock: socket.socket, pair: _Pair, *, for_client: bool) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.pair = pair
        self.for_client = for_client
        self.backlog: bytearray | None = None
        self.broken = False
        self.more = False
        """Whether TLS has something to tell already, of which epoll will not: bytes, the end or an error."""
        self.asked = _IN
        """What epoll is asked for; -1 when it is not asked at all."""


class _Pair:
    """A relay's two sockets."""

    __slots__ = ("calm", "client", "done", "due", "engine", "relay", "upstream")

    def __init__(
        self, engine: Engine, relay: Relay, client: socket.socket, upstream: socket.socket, done: Done
    ) -> None:
        self.engine = engine
        self.relay = relay
        self.client = _Leg(client, self, for_client=True)
        self.upstream = _Leg(upstream, self, for_client=False)
        self.done = done
        self.calm = True
        """Whether both sockets are read and none has a backlog."""
        self.due = math.inf
        """The last moment that a timer was set for."""

    def wake(self) -> None:
        """See :class:`~mailgate.session.relay.Shell`. An error here ends this relay and does not reach who ended it."""
        try:
            self.engine._finish(self)
        except Exception as error:
            self.engine._crash(self, error)


class Engine:
    """Moves the bytes of all relays that it is given, in its own :meth:`run`."""

    def __init__(self, buffer: bytearray, watch: Watch) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._watch = watch
        self._epoll = select.epoll()
        self._legs: dict[int, _Leg] = {}
        self._again: dict[_Leg, None] = {}
        self._timers: list[tuple[float, int, _Pair]] = []
        self._order = count()
        self._nudge = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._trio = -1
        self._turning = False
        self._touched = False
        self._failed: Exception | None = None

    def __len__(self) -> int:
        """Return how many relays there are."""
        return len(self._legs) // 2

    def close(self) -> None:
        """End all relays, and serve none any more."""
        for leg in list(self._legs.values()):
            if leg.for_client:
                leg.pair.relay.end(Side.PROXY, "shutting_down")
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._nudge)

    def adopt(
        self,
        relay: Relay,
        client: socket.socket,
        upstream: socket.socket,
        done: Done,
        early_client: bytes = b"",
        early_upstream: bytes = b"",
    ) -> None:
        """Take over a relay and both of its sockets, which are non-blocking, until it is over.

        ``early_client`` is what the client sent behind its login, ``early_upstream`` what the
        upstream sent behind its acceptance; both come before anything else.
        """
        pair = _Pair(self, relay, client, upstream, done)
        legs = (pair.client, pair.upstream)
        self._legs.update((leg.fd, leg) for leg in legs)
        self._watch.add(relay)
        relay.shell = pair
        if self._epoll.closed:
            relay.end(Side.PROXY, "shutting_down")
            return
        now = trio.current_time()
        try:
            for leg in legs:
                self._epoll.register(leg.fd, leg.asked)
                if leg.tls and leg.sock.pending():  # type: ignore[attr-defined]
                    leg.more = True
                    self._look_again(leg)
            if early_client:
                relay.client_said(early_client, now)
                self._pass(pair, now)
            if early_upstream and not relay.over:
                relay.upstream_sent(bytearray(early_upstream), len(early_upstream), now)
                self._pass(pair, now)
        except Exception as error:
            self._crash(pair, error)

    # ---------------------------------------------------------------- the task

    async def run(self) -> None:
        """Serve until cancelled; then the relays that are left are cut off.

        Where it can be found out which epoll Trio itself waits for, the relays are served from where
        Trio would wait: then no task is woken for a command.
        """
        guest = _Guest(self)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._keep_time)
                fd = _epoll_that_watches(self._nudge)
                if fd is None:
                    await self._serve_as_task()
                else:
                    self._epoll.register(fd, _IN)
                    self._trio = fd
                    trio.lowlevel.add_instrument(guest)
                    await trio.sleep_forever()
        finally:
            if self._trio >= 0:
                trio.lowlevel.remove_instrument(guest)
            self.close()

    async def _serve_as_task(self) -> None:
        """Wait for the epoll as for any descriptor: what works wherever Trio does."""
        fd = self._epoll.fileno()
        while True:
            for _ in range(TURNS):
                ready = self._epoll.poll(0, EVENTS)
                if not ready and not self._again:
                    break
                self._turn(ready, trio.current_time())
            else:
                await trio.lowlevel.checkpoint()
                continue
            await trio.lowlevel.wait_readable(fd)

    async def _keep_time(self, task_status: trio.TaskStatus[None]) -> None:
        """Tell relays when their moment has come, and look at everything anew when nudged."""
        task_status.started()
        while True:
            with trio.move_on_at(self._timers[0][0] if self._timers else math.inf):
                await trio.lowlevel.wait_readable(self._nudge)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._nudge)
            if self._failed is not None:
                raise self._failed
            self._tick()
            if self._again:
                self._turn([], trio.current_time())

    def serve_while_trio_waits(self, timeout: float) -> None:
        """Serve until Trio has something to do, for ``timeout`` seconds at most; Trio looks for it next."""
        poll = self._epoll.poll
        now = trio.current_time()
        if timeout <= 0:
            self._turn(poll(0, EVENTS), now)
            return
        until = now + timeout
        latest = math.inf
        while True:
            put_off = bool(self._again)
            ready = poll(0 if put_off else min(until, latest) - now, EVENTS)
            now = trio.current_time()
            if self._turn(ready, now):
                return
            if latest == math.inf and (ready or put_off):
                # What a relay told may have woken a task, which must not wait for long.
                latest = now + TRIO_SECONDS
            if latest <= now < until and not self._touched and not _has_work(until):
                latest = math.inf
            elif now >= until or now >= latest or self._touched:
                # Trio would wait for as long as it had meant to.
                self._touched = False
                self._wake_trio()
                return

    def _turn(self, ready: list[tuple[int, int]], now: float) -> bool:
        """Serve each socket that has something, and those that were put off; return whether Trio has something."""
        legs = self._legs
        trio_is_ready = False
        self._turning = True
        for fd, events in ready:
            leg = legs.get(fd)
            if leg is not None:
                self._serve(leg, events, now)
            else:
                trio_is_ready = trio_is_ready or fd == self._trio
        if self._again:
            put_off, self._again = self._again, {}
            for leg in put_off:
                if legs.get(leg.fd) is leg:
                    self._resume(leg, now)
        self._turning = False
        return trio_is_ready

    def _serve(self, leg: _Leg, events: int, now: float) -> None:
        """Do what a socket is ready for. An error here ends its relay and no other."""
        pair = leg.pair
        try:
            if events & _OUT:
                self._send_backlog(leg, now)
            if not leg.asked & _IN:
                if events & _LOST:
                    self._lost(leg, now)
            elif events & ~_OUT:
                self._receive(leg, now)
            self._pass(pair, now)
        except Exception as error:
            self._crash(pair, error)

    def _resume(self, leg: _Leg, now: float) -> None:
        """Go on with a socket whose turn was over."""
        pair = leg.pair
        relay = pair.relay
        try:
            if leg.for_client and relay.ready:
                relay.again(now)
            elif leg.asked & _IN:
                self._receive(leg, now)
            self._pass(pair, now)
        except Exception as error:
            self._crash(pair, error)

    def fail(self, error: Exception) -> None:
        """Let ``run`` raise an error."""
        self._failed = error
        self._wake_trio()

    def _wake_trio(self) -> None:
        """Let Trio's wait end, or not begin."""
        os.eventfd_write(self._nudge, 1)

    def _look_again(self, leg: _Leg) -> None:
        """Serve a socket in the next turn, though epoll may not tell of it."""
        self._again[leg] = None
        if not self._turning:
            self._wake_trio()

    def _tick(self) -> None:
        """Tell the relays whose moment has come."""
        now = trio.current_time()
        while self._timers and self._timers[0][0] <= now:
            pair = heapq.heappop(self._timers)[2]
            if self._legs.get(pair.client.fd) is not pair.client:
                continue
            try:
                if pair.relay.due <= now:
                    pair.relay.tick(now)
                self._pass(pair, now)
            except Exception as error:
                self._crash(pair, error)

    # ---------------------------------------------------------------- reading

    def _receive(self, leg: _Leg, now: float) -> None:
        """Read one burst and hand it over, or tell the relay of the end."""
        relay = leg.pair.relay
        reason = "closed"
        try:
            size = self._read(leg)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            size = 0
        except OSError:
            size, reason = 0, "reset"
        if not size and leg.broken:
            reason = "reset"
        if leg.for_client:
            if size:
                relay.client_sent(self._buffer, size, now)
            else:
                relay.client_left(reason, now)
        elif size:
            relay.upstream_sent(self._buffer, size, now)
        else:
            relay.upstream_left(reason)

    def _read(self, leg: _Leg) -> int:
        """Read what is there; return how much, 0 at the end. Raises what sockets and TLS raise."""
        sock = leg.sock
        if not leg.tls:
            return sock.recv_into(self._buffer)
        leg.more = False
        read = sock.read  # type: ignore[attr-defined]
        size: int = read(BURST, self._buffer)
        if size <= LONE:
            # A lone command or answer, behind which nothing follows at once; epoll tells if something does.
            return size
        view = self._view
        try:
            while size < BURST:
                more = read(BURST - size, view[size:])
                if not more:
                    break
                size += more
            else:
                leg.more = bool(sock.pending())  # type: ignore[attr-defined]
                if leg.more:
                    self._look_again(leg)
                return size
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return size
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # The next call tells of it again.
            pass
        except OSError:
            # OpenSSL tells of an error once and of the end from then on.
            leg.broken = True
        # What ended TLS need not have ended the connection, and epoll only tells of that.
        leg.more = True
        self._look_again(leg)
        return size

    def _lost(self, leg: _Leg, now: float) -> None:
        """Note a connection that was lost while it was not read; what it may still hold is read in its turn."""
        if leg.for_client:
            leg.pair.relay.client_lost(now)
        self._ask(leg, -1)

    # ---------------------------------------------------------------- sending

    def _pass(self, pair: _Pair, now: float) -> None:
        """Send what the relay has for either side: upstream first, as views into the buffer may be among it."""
        relay = pair.relay
        core = relay.core
        if core.to_upstream and self._send(pair.upstream, relay.for_upstream()) < 0:
            relay.upstream_deaf(now)
        if core.to_client:
            sent = self._send(pair.client, relay.for_client())
            if sent < 0:
                relay.client_deaf(now)
            else:
                relay.delivered(sent, now)
        if relay.stalled or not pair.calm:
            self._arrange(pair, now)

    def _send(self, leg: _Leg, data: Buffer) -> int:
        """Send, and keep what does not go at once; return what went, -1 if nothing ever will."""
        size = len(data)
        if leg.backlog is not None:
            leg.backlog += data
            return 0
        try:
            sent = leg.sock.send(data) if size else 0
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError:
            return -1
        if sent < size:
            leg.backlog = bytearray(memoryview(data)[sent:])
            leg.pair.calm = False
        return sent

    def _send_backlog(self, leg: _Leg, now: float) -> None:
        """Go on with what a socket did not take before. TLS takes a piece whole or wants the same one again."""
        backlog = leg.backlog
        if backlog is None:
            return
        relay = leg.pair.relay
        try:
            sent = leg.sock.send(backlog)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        except OSError:
            leg.backlog = None
            if leg.for_client:
                relay.client_deaf(now)
            else:
                relay.upstream_deaf(now)
            return
        if leg.for_client:
            relay.delivered(sent, now)
        if sent < len(backlog):
            del backlog[:sent]
        else:
            leg.backlog = None

    # ---------------------------------------------------------------- what is asked for, and the end

    def _arrange(self, pair: _Pair, now: float) -> None:
        """Ask epoll for what the relay waits for, and see whether it is over."""
        relay, client, upstream = pair.relay, pair.client, pair.upstream
        relay.sending = client.backlog is not None
        if relay.over:
            self._finish(pair)
            return
        if relay.ready and upstream.backlog is None and client.backlog is None:
            # The core has said enough for now: other sessions have their turn.
            self._look_again(client)
        # Answers of the gateway's own wait with the client's backlog: more of its commands would only add to them.
        reads = not relay.stalled and upstream.backlog is None and client.backlog is None
        self._ask(client, (_IN if reads else 0) | (_OUT if client.backlog is not None else 0))
        reads = client.backlog is None
        self._ask(upstream, (_IN if reads else 0) | (_OUT if upstream.backlog is not None else 0))
        pair.calm = client.asked == upstream.asked == _IN
        if (due := relay.due) != pair.due:
            pair.due = due
            if due < math.inf:
                heapq.heappush(self._timers, (due, next(self._order), pair))
                self._wake_trio()

    def _ask(self, leg: _Leg, events: int) -> None:
        """Ask epoll for these events of a socket: for none but its loss with 0, for nothing at all with -1."""
        asked = leg.asked
        if events == asked or (asked < 0 and not events):
            return
        if events < 0:
            self._epoll.unregister(leg.fd)
        elif asked < 0:
            self._epoll.register(leg.fd, events)
        else:
            self._epoll.modify(leg.fd, events)
        leg.asked = events
        if leg.more and events > 0 and events & _IN:
            # Its turn came while it was not to be read.
            self._look_again(leg)

    def _crash(self, pair: _Pair, error: Exception) -> None:
        """Contain an error of the gateway's own."""
        pair.relay.crashed(error)
        self._finish(pair)

    def _finish(self, pair: _Pair) -> None:
        """Tell the client why, close both sockets, and say so to whom it concerns; once."""
        relay = pair.relay
        if relay.shell is NOBODY:
            return
        relay.shell = NOBODY
        self._touched = True
        for leg in (pair.client, pair.upstream):
            self._legs.pop(leg.fd, None)
        self._watch.remove(relay)
        try:
            relay.sending = pair.client.backlog is not None
            end, line = relay.last_words()
            if line and self._send(pair.client, line) == len(line):
                relay.session.bytes_out += len(line)
            relay.tell_bytes()
        except Exception as error:
            relay.crashed(error)
            end = End(Side.PROXY, "internal")
        finally:
            for leg in (pair.client, pair.upstream):
                _close(leg)
                # What refers to itself would stay until a collection of garbage.
                del leg.pair
        pair.done(end)


class _Guest(trio.abc.Instrument):
    """Serves an engine's relays in the place where Trio would only wait."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def before_io_wait(self, timeout: float) -> None:
        """See ``Engine.serve_while_trio_waits``."""
        engine = self._engine
        try:
            engine.serve_while_trio_waits(timeout)
        except Exception as error:
            # Trio would log it and go on without the relays.
            engine.fail(error)


def _epoll_that_watches(fd: int) -> int | None:
    """Return the process's epoll that has this descriptor, by what the kernel tells of it (proc(5), ``fdinfo``)."""
    entry = re.compile(rf"^tfd:\s+{fd} ", re.MULTILINE)
    try:
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                    with open(f"/proc/self/fdinfo/{name}") as file:
                        if entry.search(file.read()):
                            return int(name)
            except FileNotFoundError:
                # It was the one that lists them.
                continue
    except OSError:
        return None
    return None


def _has_work(until: float) -> bool:
    """Return whether Trio has a task to run, or an earlier deadline than the one that it meant to wait for."""
    state = trio.lowlevel.current_statistics()
    return state.tasks_runnable > 0 or trio.current_time() + state.seconds_to_next_deadline < until - DEADLINE_SLACK


def _close(leg: _Leg) -> None:
    """Close a socket, telling a TLS peer so without waiting for it."""
    if leg.tls and leg.backlog is None:
        with contextlib.suppress(OSError, ValueError):
            leg.sock.unwrap()  # type: ignore[attr-defined]
    leg.sock.close()

"""The exclusive lock of a maildrop (RFC 1939 §4), over all workers of one machine.

Sessions of one worker wait for each other in the order in which they came. Between workers the kernel knows who has a
lock and tells nobody when it is free: the first in each worker's queue looks again and again, at most four times a
second. What is told over the bus is only that a session shall give way.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Literal, Protocol

import trio

from mailgate.errors import MailgateError
from mailgate.ledger.register import Register

Conflict = Literal["wait", "refuse", "takeover", "off"]
"""What happens to a session that wants a maildrop that another one has: it waits, or is refused at once, or the other
one is told to give way; with ``off`` there is no lock."""

FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.25
"""Seconds between two looks whether another worker has freed a maildrop; each pause is half as long again as the one
before."""

TELL_SECONDS: Final = 1.0
"""How long to wait for all workers to have told a session to give way: one of them may hang."""

GIVE_WAY: Final = "give_way"
"""The question over the bus; its fact ``place`` says of which maildrop."""


class InUse(MailgateError):
    """Another session has the maildrop; ``seconds`` is how long it was waited for."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the maildrop is in use by another session")
        self.seconds = seconds


class Peers(Protocol):
    """The other workers, and this one: what is needed of :class:`mailgate.workers.bus.Bus`."""

    def answer(self, kind: str, handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        """Answer one kind of question from now on."""

    async def ask_all(self, kind: str, **facts: object) -> object:
        """Ask every worker."""


class Held:
    """A maildrop that a session has, from :meth:`MaildropLocks.take` to :meth:`release`, or as a context.

    ``frees`` free what it is made of. ``waited`` is how many seconds it was waited for, ``told`` whether the session
    was told to give way, which may happen before it has begun.
    """

    __slots__ = ("_give_way", "frees", "told", "waited")

    def __init__(self, give_way: Callable[[], None]) -> None:
        self.waited = 0.0
        self.told = False
        self.frees: list[Callable[[], None]] = []
        self._give_way: Callable[[], None] | None = give_way

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def keep(self) -> None:
        """Be told by nobody any more to give way, since QUIT was read and what it deletes must not be broken off."""
        self._give_way = None

    def release(self) -> None:
        """Let others have the maildrop; does nothing the second time."""
        self._give_way = None
        while self.frees:
            self.frees.pop()()

    def give_way(self) -> None:
        """Tell the session to end, once, unless it does so already."""
        tell, self._give_way = self._give_way, None
        if tell is not None:
            self.told = True
            tell()


class _Maildrop:
    """What a session of this process has or waits for; ``sessions`` is how many do either."""

    __slots__ = ("holder", "sessions", "turn")

    def __init__(self) -> None:
        self.turn = trio.Semaphore(1, max_value=1)
        """Who has it has the lock in this process, and alone may ask for the kernel's."""
        self.holder: Held | None = None
        self.sessions = 0


class MaildropLocks:
    """The maildrops that the sessions of this worker have; ``peers`` are all workers, this one among them."""

    def __init__(self, register: Register, peers: Peers) -> None:
        self._register = register
        self._peers = peers
        self._maildrops: dict[int, _Maildrop] = {}
        peers.answer(GIVE_WAY, self._asked_to_give_way)

    def __len__(self) -> int:
        return len(self._maildrops)

    async def take(
        self, keys: Iterable[bytes], *, conflict: Conflict, wait: float, give_way: Callable[[], None]
    ) -> Held:
        """Lock all of what a maildrop is made of: say, a key of realm, user and mailbox for each mailbox.

        All workers give the same keys to the same things. ``wait`` is for how many seconds to wait for other sessions
        to end. ``give_way`` is called, at any time until :meth:`Held.keep` or :meth:`Held.release`, when a session with
        ``takeover`` wants one of them: it must return at once, and this session must end soon, with nothing deleted.
        Raises InUse; OSError where the kernel is out of memory.
        """
        held = Held(give_way)
        await trio.lowlevel.checkpoint_if_cancelled()
        if conflict == "off":
            return held
        began = trio.current_time()
        try:
            # All sessions take what they need in the same order, so that no two wait for each other.
            for place in sorted(set(map(self._register.place, keys))):
                await self._take(place, held, conflict, began, began + wait)
        except BaseException:
            held.release()
            raise
        return held

    async def _take(self, place: int, held: Held, conflict: Conflict, began: float, deadline: float) -> None:
        maildrop = self._maildrops.setdefault(place, _Maildrop())
        maildrop.sessions += 1
        mine = False
        try:
            mine = _free_now(maildrop.turn)
            if not (mine and self._register.lock(place)):
                if conflict == "refuse":
                    raise InUse(0.0)
                with trio.move_on_at(deadline) as scope:
                    if conflict == "takeover":
                        await self._tell(place)
                    if not mine:
                        await maildrop.turn.acquire()
                        mine = True
                    await self._until_locked(place)
                held.waited = trio.current_time() - began
                if scope.cancelled_caught:
                    raise InUse(held.waited)
        except BaseException:
            self._leave(place, mine)
            raise
        maildrop.holder = held
        held.frees.append(functools.partial(self._free, place))

    async def _until_locked(self, place: int) -> None:
        pause = FIRST_PAUSE
        while not self._register.lock(place):
            await trio.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def _free(self, place: int) -> None:
        self._register.unlock(place)
        self._maildrops[place].holder = None
        self._leave(place, True)

    def _leave(self, place: int, mine: bool) -> None:
        """Let the next one have its turn, and forget a maildrop that nobody here has or waits for."""
        maildrop = self._maildrops[place]
        maildrop.sessions -= 1
        if mine:
            maildrop.turn.release()
        if not maildrop.sessions:
            del self._maildrops[place]

    # ---------------------------------------------------------------- giving way

    async def _tell(self, place: int) -> None:
        """Have the session that has a maildrop give way, whichever worker it belongs to.

        It is told once: of two sessions that want the maildrop of a third, one has it and does not lose it to the
        other.
        """
        holder = self._maildrops[place].holder
        if holder is not None:
            holder.give_way()
        else:
            with trio.move_on_after(TELL_SECONDS):
                await self._peers.ask_all(GIVE_WAY, place=place)

    async def _asked_to_give_way(self, facts: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        maildrop = self._maildrops.get(facts["place"])
        if maildrop is not None and maildrop.holder is not None:
            maildrop.holder.give_way()
        return {}


def _free_now(turn: trio.Semaphore) -> bool:
    try:
        turn.acquire_nowait()
    except trio.WouldBlock:
        return False
    return True

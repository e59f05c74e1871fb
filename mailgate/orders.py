"""What a worker does when its supervisor says so, and what it asks of its supervisor."""

from __future__ import annotations

import base64
import math
import pickle
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from mailgate.config import Config
from mailgate.doors import Place
from mailgate.errors import ConfigError, ConfigProblem, MailgateError
from mailgate.net.listener import ListenError
from mailgate.workers.bus import WorkerBus
from mailgate.workers.packets import Message

if TYPE_CHECKING:
    from mailgate.app import Gateway


class Orders:
    """The part of a gateway that makes it one of a supervisor's workers.

    ``leave_within`` is how many seconds its sessions may stay after it was told to leave.
    """

    def __init__(self, gateway: Gateway, bus: WorkerBus) -> None:
        self.leave_within = math.inf
        self._gateway = gateway
        self._bus = bus
        self._applying = trio.Lock()
        bus.orders |= {"signal": self._take_signal, "apply": self._apply}

    @contextmanager
    def signals(self) -> Iterator[AsyncIterator[int]]:
        """Return the signals that the supervisor hands on, until the end of the context."""
        # Orders are few, and none may wait for another to be obeyed.
        self._hand_on, handed_on = trio.open_memory_channel[int](100)
        with self._hand_on, handed_on:
            yield handed_on

    async def obey(self) -> None:
        """Do what the supervisor says until it is gone; then drain and end, since nobody would replace this worker."""
        gateway = self._gateway
        async with trio.open_nursery() as nursery:
            await nursery.start(self._bus.run)
            self._bus.tell("ready")
            nursery.start_soon(gateway.administration.catch_up)
        gateway.log.error("the supervisor is gone, this worker ends too", sessions=len(gateway.sessions))
        # Another gateway may be started at once, and needs every address.
        for door in gateway.doors.open:
            door.gone.set()
        await self._hand_on.send(signal.SIGTERM)

    async def _take_signal(self, order: Message, descriptors: Sequence[int]) -> None:
        self.leave_within = float(order.get("seconds", math.inf))
        await self._hand_on.send(int(order["number"]))

    async def _apply(self, order: Message, descriptors: Sequence[int]) -> None:
        """Put a configuration into force that the supervisor has accepted; its sockets come with it."""
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        handed = {(kind, endpoint): sock for (kind, endpoint), sock in zip(order["doors"], sockets, strict=True)}

        def take(place: Place) -> socket.socket:
            sock = handed.pop((place.kind, str(place.endpoint)), None)
            if sock is None:
                raise ListenError(f"{place.endpoint} was not handed over")
            sock.setblocking(False)
            return sock

        error = ""
        async with self._applying:
            try:
                # Only the supervisor, which is this same program, has the other end of this connection.
                config: Config = pickle.loads(base64.b64decode(order["config"]))  # noqa: S301
                self._gateway.log.debug("configuration reloaded", changed=await self._gateway.adopt(config, take))
            except MailgateError as failed:
                error = str(failed)
        for sock in handed.values():
            sock.close()
        self._bus.tell("applied", error=error)

    async def reload(self) -> dict[str, object]:
        """Have the configuration read again; return what that changed. Raises ConfigError or MailgateError."""
        match answer := await self._bus.want("reload"):
            case {"problems": list() as problems}:
                raise ConfigError([ConfigProblem(*problem) for problem in problems])
            case {"error": str() as error}:
                raise MailgateError(error)
        return {"changed": answer["changed"], "warnings": answer["warnings"]}

    async def upgrade(self) -> dict[str, object]:
        """Have new code take over from the supervisor; return its version. Raises MailgateError."""
        answer = await self._bus.want("upgrade")
        if "error" in answer:
            raise MailgateError(str(answer["error"]))
        return {key: answer[key] for key in ("version", "before", "leaving")}

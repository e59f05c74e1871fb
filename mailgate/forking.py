"""How a worker begins: as a fork of the supervisor, which hands it what all of them share."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from mailgate.doors import Door
from mailgate.errors import MailgateError
from mailgate.garbage import spare_what_lasts
from mailgate.heritage import Heritage
from mailgate.observe.log import flush
from mailgate.workers.packets import Channel, channels
from mailgate.workers.worker import Worker

if TYPE_CHECKING:
    from mailgate.supervisor import Supervisor

HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)
"""The signals that the supervisor hears."""

STOPS: Final = (signal.SIGTERM, signal.SIGINT)
"""Those of them that stop the gateway."""


def fork(supervisor: Supervisor, slot: int) -> Worker:
    """Start a worker, and return what the supervisor has of it. Raises OSError where the system has no room for it."""
    ours, theirs = channels()
    pid = -1
    # The child must not write a signal of its own into the socket that wakes this process.
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        flush()
        pid = os.fork()
        if not pid:
            ours.close()
            _be_worker(supervisor, slot, theirs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        theirs.close()
        if pid < 0:
            ours.close()
    return Worker(slot, pid, ours, time.monotonic())


def _be_worker(supervisor: Supervisor, slot: int, channel: Channel) -> None:
    """Be the worker, in the process that was just forked, which ends here."""
    status = 1
    logger = supervisor.log
    try:
        for number in STOPS:
            # They reach every process of a terminal's group or a service's; the supervisor says what they mean.
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        supervisor.disown()
        # What the supervisor made is hardly ever searched here, so its pages stay shared.
        spare_what_lasts()
        made = supervisor.made
        heritage = Heritage(
            slot=slot,
            doors=[Door(door.place, door.socket) for door in supervisor.doors.open],
            tls=made.tls,
            upstreams=made.upstreams,
            ear=supervisor.ear,
            channel=channel,
            cells=supervisor.cells,
            ledger=supervisor.ledger,
            register=supervisor.register,
        )
        logger = heritage.named(logger, made.config)
        supervisor.work(made.config, logger, heritage)
        status = 0
    except (MailgateError, OSError) as error:
        channel.put({"word": "failed", "error": str(error)})
    except BaseException as error:
        logger.error("a worker met an error of mailgate's own", exc_info=error)
    finally:
        with contextlib.suppress(Exception):
            flush()
        # What the parent would do at its end is not for this process to do.
        os._exit(status)

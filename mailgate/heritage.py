"""What a worker has from its supervisor, and what both do in the same way."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from mailgate.config import Config, Log
from mailgate.doors import Door
from mailgate.errors import ConfigError, ConfigProblem, MailgateError
from mailgate.events import Emit, Event
from mailgate.ledger import Ledger, Register
from mailgate.net.tls import ServerTls
from mailgate.observe.cells import SharedCells
from mailgate.upstream.pool import Upstreams
from mailgate.workers.packets import Channel

LEAVE: Final = signal.SIGQUIT
"""What a worker is told that shall accept no more but keep its sessions to their end."""

SPARE_FILES: Final = 200
"""Open files beside the two sockets of each session: listeners, probes, scrapes, traces, the interpreter's own."""

Load = Callable[[], Config]
"""Reads the configuration again; raises ConfigError with everything that is wrong."""

Logger = structlog.stdlib.BoundLogger
Relog = Callable[[Log], Logger]
"""Returns a logger with other settings."""


class Ear:
    """Where events of upstreams go: these are made before the worker that they belong to."""

    def __init__(self) -> None:
        self.listener: Emit | None = None

    def __call__(self, event: Event) -> None:
        """Hand an event on."""
        if self.listener is not None:
            self.listener(event)


@dataclass(frozen=True, slots=True)
class Heritage:
    """What a worker has from the supervisor; ``slot`` is its number, which no other living worker has.

    ``cells`` is what all of them count into, each in the part of its slot; the ``ledger`` has the counts of limits,
    the ``register`` the locks of maildrops and the times of logins.
    """

    slot: int
    doors: list[Door]
    tls: ServerTls | None
    upstreams: Upstreams
    ear: Ear
    channel: Channel
    cells: SharedCells
    ledger: Ledger
    register: Register

    def named(self, logger: Logger, config: Config) -> Logger:
        """Return a logger whose lines say which worker they are of, where there is more than one."""
        return logger.bind(worker=self.slot) if config.workers > 1 else logger


Work = Callable[[Config, Logger, Heritage], None]
"""What a worker does from its fork to its end; raises MailgateError or OSError when it cannot."""


@contextlib.contextmanager
def refusing(path: str, logger: Logger) -> Iterator[None]:
    """Make whatever goes wrong a reason to refuse a configuration: running sessions must not suffer from it."""
    try:
        yield
    except ConfigError:
        raise
    except (MailgateError, OSError) as error:
        raise ConfigError([ConfigProblem(path, "", f"cannot be used: {error}")]) from error
    except Exception as error:
        logger.error("reload failed", exc_info=error)
        problem = ConfigProblem(path, "", "met an error of mailgate's own; its traceback is in the log")
        raise ConfigError([problem]) from error


def allow_files(sessions: int, logger: Logger, workers: Collection[int] = ()) -> None:
    """Raise the limit on open files to what so many sessions need, as far as this process may.

    Workers inherit it; those that run already are named by their ``workers`` pids.
    """
    needed = 2 * sessions + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        logger.warning("too few open files", allowed=allowed, needed=needed, sessions=sessions)

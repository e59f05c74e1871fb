"""What one program hands to the next when the supervisor executes new code in its place.

The process stays: its pid, its children, its open files. Which files these are and what they mean is written as
JSON into a file in memory, and an environment variable tells the new program its descriptor. The same is shown
before to a trial: the new program as a child, which makes everything from it that can fail, and ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from mailgate.errors import MailgateError

VARIABLE: Final = "MAILGATE_HANDOVER"
"""The environment variable that holds the descriptor."""

FORMAT: Final = 1
"""Changes when an earlier program's handover cannot be understood any more; the trial finds out."""

AGAIN_SECONDS: Final = 5.0
"""How long new code that could not begin waits until it tries again; workers of the earlier code serve meanwhile."""


class HandoverError(MailgateError):
    """What was handed over cannot be understood."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class HandedSocket(_Facts):
    """A listening socket: what it is for, and where it listens as a configuration writes that."""

    kind: str
    endpoint: str
    descriptor: int


class HandedPacket(_Facts):
    """A packet that its worker has not been sent yet."""

    data: bytes
    descriptors: tuple[int, ...] = ()


class HandedWorker(_Facts):
    """A worker that goes on, and the supervisor's end of its channel, with what is under way there.

    ``began`` and ``leave_by`` are moments of the monotonic clock, which is the same for all processes.
    """

    slot: int
    pid: int
    state: str
    began: float
    leave_by: float | None
    channel: int
    unsent: tuple[HandedPacket, ...] = ()
    incoming: bytes = b""
    incoming_descriptors: tuple[int, ...] = ()


class Handover(_Facts):
    """Everything that the next program needs.

    ``questions`` is how many numbers were given to questions, ``wanted`` who waits to hear how the upgrade went: a
    worker's pid and its number for that. In a ``trial`` nothing of it may be changed.
    """

    format: int = FORMAT
    version: str
    trial: bool
    slots: int
    questions: int
    sockets: tuple[HandedSocket, ...]
    workers: tuple[HandedWorker, ...]
    ledger: tuple[int, ...]
    cells: int
    maildrops: tuple[int, ...] = ()
    wanted: tuple[tuple[int, int], ...] = ()

    @property
    def descriptors(self) -> list[int]:
        """All descriptors that are handed over."""
        found = [self.cells, *self.ledger, *self.maildrops, *(one.descriptor for one in self.sockets)]
        for worker in self.workers:
            found += [worker.channel, *worker.incoming_descriptors]
            found += [one for packet in worker.unsent for one in packet.descriptors]
        return found

    def write(self) -> int:
        """Return the descriptor of a file in memory that holds all of this; closed on exec unless made inheritable."""
        memory = os.memfd_create("mailgate-handover", os.MFD_CLOEXEC)
        with open(os.dup(memory), "wb") as file:
            file.write(self.model_dump_json().encode())
        return memory


def received(environment: MutableMapping[str, str]) -> Handover | None:
    """Return what an earlier program hands over, or None if there is none. Raises HandoverError.

    It is there for another look until :func:`taken`.
    """
    value = environment.get(VARIABLE)
    if value is None:
        return None
    try:
        memory = int(value)
        data = os.pread(memory, os.fstat(memory).st_size, 0)
        handed = Handover.model_validate_json(data)
    except (ValueError, OSError, ValidationError) as error:
        raise HandoverError(f"what an earlier mailgate hands over cannot be read: {error}") from error
    if handed.format != FORMAT:
        raise HandoverError(
            f"mailgate {handed.version} hands over in format {handed.format}, but this one knows {FORMAT} only: restart"
        )
    return handed


def taken(environment: MutableMapping[str, str], handed: Handover) -> None:
    """Note that a handover was taken: from here on this program is the one that hands on."""
    os.close(int(environment.pop(VARIABLE)))
    for descriptor in handed.descriptors:
        os.set_inheritable(descriptor, False)


def command() -> list[str]:
    """Return the command that this program was started with, for new code to be started in the same way.

    A script is executed itself, so that its first line says which interpreter runs it: where a link to an environment
    was switched, that is another one. A module is run by the interpreter by the name that it was called by.
    """
    script = Path(sys.argv[0])
    with contextlib.suppress(OSError, ValueError):
        at = sys.orig_argv.index(sys.argv[0])
        with script.open("rb") as file:
            first = file.readline(1024)
        options = first.decode("utf-8", "replace").strip().split(maxsplit=1)[1:]
        if first.startswith(b"#!") and os.access(script, os.X_OK) and sys.orig_argv[1:at] in ([], options):
            return [str(script.absolute()), *sys.orig_argv[at + 1 :]]
    return [sys.executable, *sys.orig_argv[1:]]


def execute(arguments: Sequence[str], descriptors: Sequence[int], environment: dict[str, str]) -> None:
    """Execute a program in the place of this one, with these descriptors open; raises OSError where that fails."""
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        for stream in (sys.stdout, sys.stderr):
            # A full disk under the log is no reason to refuse.
            with contextlib.suppress(OSError):
                stream.flush()
        os.execve(arguments[0], list(arguments), environment)  # noqa: S606
    finally:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)


@contextlib.contextmanager
def begun_again(say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Have new code that cannot begin try again, for ever, as long as it has not taken what was handed to it.

    If it ended, the workers of the earlier code, which serve well, would end with it. Signals that end a
    process do so between two tries.
    """
    try:
        yield
    except Exception as error:
        try:
            handed = received(os.environ)
        except HandoverError:
            raise error from None
        if handed is None or handed.trial:
            raise
        with contextlib.suppress(OSError):
            say(f"the new code cannot begin, the earlier workers go on serving; trying again: {error}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        sleep(AGAIN_SECONDS)
        # The descriptors are inheritable still: nobody has taken them.
        arguments = command()
        os.execve(arguments[0], arguments, dict(os.environ))  # noqa: S606

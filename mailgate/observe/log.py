"""The log: one line for each session's end, and one for each thing that an administrator must see.

Lines go to standard error through structlog, readable on a terminal and JSON elsewhere. User names
are bytes that a client chose: they are shown escaped, so that they cannot forge a line.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mailgate import events
from mailgate.model import Failure, Secret, Session

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_HARMLESS: Final = frozenset({int, float, bool, type(None)})
"""Types of values that cannot hold anything of a client's or an upstream's words."""

_SECRET_KEY = re.compile(r"pass|secret|token|credential|authorization", re.IGNORECASE)


def shown(value: bytes | None) -> str | None:
    """Return bytes of a client's as text that holds no control character and no undecodable byte."""
    if value is None:
        return None
    text = value.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else _printable(text)


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


@functools.lru_cache(maxsize=256)
def _secret_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of a line's keys that sound like secrets; few kinds of lines are most of a log."""
    return tuple(key for key in keys if _SECRET_KEY.search(key))


def redact(logger: WrappedLogger, method: str, entry: EventDict) -> EventDict:
    """Hide what looks like a secret by its name or its type: the second line of defence.

    The first is that secrets are never given to the log.
    """
    for key in _secret_keys(tuple(entry)):
        entry[key] = "Secret(…)"
    for key, value in entry.items():
        kind = type(value)
        if kind is str:
            # What an upstream said may be in a text; it must not move a terminal's cursor or begin a line.
            if not value.isprintable():
                entry[key] = _printable(value)
        elif kind not in _HARMLESS:
            entry[key] = _redacted(value)
    return entry


def _redacted(value: object) -> object:
    """Return what a line may show of a value that is neither plain text nor harmless."""
    if isinstance(value, str):
        return value if value.isprintable() else _printable(value)
    if isinstance(value, bytes):
        return shown(value)
    return "Secret(…)" if isinstance(value, Secret) else value


def without_gaps(logger: WrappedLogger, method: str, entry: EventDict) -> EventDict:
    """Leave out what is not known: for people it is noise, while a program wants every key in every line."""
    return {key: value for key, value in entry.items() if value is not None}


def heading(logger: WrappedLogger, method: str, entry: EventDict) -> EventDict:
    """Let each line for programs begin with when, how bad and what, so that columns of them can be read."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    level = "error" if method == "exception" else method
    return {"timestamp": now, "level": level, "event": entry.pop("event"), **entry}


def explained(logger: WrappedLogger, method: str, entry: EventDict) -> EventDict:
    """Turn what a line says of an exception or a stack into text; nearly all lines say nothing of either."""
    if "stack_info" in entry:
        entry = structlog.processors.StackInfoRenderer()(logger, method, entry)
    if "exc_info" in entry:
        entry = structlog.processors.format_exc_info(logger, method, entry)
    return entry


_as_json = json.JSONEncoder(default=repr).encode


class _Lines:
    """Writes lines to a stream; one that cannot be written is dropped.

    Mail must go on where a disk is full or the program that read the log has ended. As soon as lines can be written
    again, one says how many could not be.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropped = 0

    def msg(self, line: str) -> None:
        """Write one line."""
        try:
            # In one write: a line's text and its end must not be torn apart, and each write is a system call.
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            structlog.get_logger().error("lines of the log could not be written", lines=dropped)

    debug = info = warning = error = critical = exception = log = msg


def flush() -> None:
    """Write what is left in the buffers of standard output and error, before a fork or an exec would lose or double it.

    What cannot be written is no reason not to go on.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def configure(
    form: Literal["json", "text"] | None, level: str, stream: TextIO | None = None
) -> structlog.stdlib.BoundLogger:
    """Set logging up for the process and return the logger; ``form`` None chooses by the stream."""
    stream = stream or sys.stderr
    text = form == "text" or (form is None and stream.isatty())
    for_people: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        redact,
        structlog.processors.StackInfoRenderer(),
        without_gaps,
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
    for_programs: list[Processor] = [redact, explained, heading, lambda logger, method, entry: _as_json(entry)]
    structlog.configure(
        processors=for_people if text else for_programs,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=functools.partial(_Lines, stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(name)s: %(message)s", force=True)
    # What ``get_logger`` returns would put itself together anew for every line.
    logger: structlog.stdlib.BoundLogger = structlog.get_logger().bind()
    return logger


class SessionLog:
    """An observer of events that writes the log's lines."""

    hears: Final = frozenset(
        {
            events.SessionClosed,
            events.MaildropOpened,
            events.MaildropClosed,
            events.LoginRefused,
            events.UpstreamRefused,
            events.TlsFailed,
            events.LimitStruck,
            events.CrashedSession,
        }
    )
    """The events that have a line."""

    def __init__(self, logger: structlog.stdlib.BoundLogger) -> None:
        self._log = logger

    def use(self, logger: structlog.stdlib.BoundLogger) -> None:
        """Write to another logger from now on: one that was returned earlier keeps its own settings."""
        self._log = logger

    def __call__(self, event: events.Event) -> None:
        """Write the line of an event that has one."""
        session = event.session
        match event:
            case events.SessionClosed(side=side, reason=reason, seconds=seconds):
                self._log.info(
                    "session",
                    **self._summary(session),
                    side=side.value,
                    reason=reason,
                    seconds=round(seconds, 3),
                )
            case events.LoginRefused(reason=reason):
                self._log.warning("login refused", **self._who(session), reason=reason, failures=session.failures)
            case events.UpstreamRefused(pool=pool, server=server, failure=failure, state=state, detail=detail):
                # That a password was wrong is told as "login refused"; here it would hide what is broken.
                level = logging.INFO if failure is Failure.AUTH_REJECTED else logging.WARNING
                self._log.log(
                    level,
                    "upstream failed",
                    **self._who(session),
                    pool=pool,
                    upstream=server,
                    failure=failure.value,
                    state=state,
                    detail=detail,
                )
            case events.TlsFailed(reason=reason):
                self._log.info("TLS failed", **self._who(session), reason=reason)
            case events.LimitStruck(rule=rule, action=action, seconds=seconds):
                self._log.info("limit", **self._who(session), rule=rule, action=action, seconds=round(seconds, 3))
            case events.MaildropOpened(messages=messages, octets=octets, notes=notes, seconds=seconds):
                # Each poll of each client opens one, which nobody reads line by line.
                self._log.log(
                    logging.WARNING if notes else logging.DEBUG,
                    "maildrop opened",
                    **self._who(session),
                    messages=messages,
                    octets=octets,
                    notes=", ".join(notes) or None,
                    seconds=round(seconds, 3),
                )
            case events.MaildropClosed():
                # Whoever asks where a message is finds here which session deleted how many, and how.
                self._log.log(
                    logging.WARNING if event.kept else logging.INFO,
                    "maildrop updated",
                    **self._who(session),
                    policy=event.policy,
                    removed=event.removed,
                    kept=event.kept,
                    unknown=event.unknown,
                    unseen=event.unseen,
                    detail=event.detail or None,
                    seconds=round(event.seconds, 3),
                )
            case events.CrashedSession(error=error):
                self._log.error("session crashed", **self._who(session), exc_info=error)

    def _who(self, session: Session) -> dict[str, object]:
        return {
            "session": session.id,
            "protocol": session.protocol.value,
            "listener": session.listener,
            "address": session.peer.address,
            "port": session.peer.port,
            "user": shown(session.user),
        }

    def _summary(self, session: Session) -> dict[str, object]:
        tls = session.tls
        client = dict(session.client_id or ()).get(b"name")
        return self._who(session) | {
            "mechanism": session.mechanism.value if session.mechanism else None,
            "route": session.route,
            "pool": session.pool,
            "upstream": session.server,
            "tls": f"{tls.version} {tls.cipher}" if tls else None,
            "sni": tls.server_name if tls else None,
            "client": shown(client),
            "bytes_in": session.bytes_in,
            "bytes_out": session.bytes_out,
            "commands": session.commands,
            "failures": session.failures,
        }

"""The log's lines: what is in them, and what a client or an upstream cannot put there."""

from __future__ import annotations

import errno
import io
import json
import logging
from typing import Any

import pytest

from mailgate import events
from mailgate.model import Failure, Mechanism, Peer, Protocol, Secret, Session, Side, State, TlsInfo
from mailgate.observe.log import SessionLog, configure, flush, shown
from tests.support.gateway import logging_as_before  # noqa: F401


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_session(**facts: Any) -> Session:
    return Session("5e5510", Protocol.IMAP, "imaps", Peer("192.0.2.1", 4711), 0.0, **facts)


def told(event: events.Event, level: str = "info") -> dict[str, Any]:
    """Return the line of an event; an empty one if it has none."""
    stream = io.StringIO()
    SessionLog(configure("json", level, stream))(event)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 1
    return json.loads(lines[0]) if lines else {}  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (b"joe", "joe"),
        ("jörg".encode(), "jörg"),
        (b"j\xffe", "j\\xffe"),
        (b"joe\r\nlevel=error", "joe\\r\\nlevel=error"),
        (b"\x1b[2J", "\\x1b[2J"),
        ("a\u202eb\u2028".encode(), "a\\u202eb\\u2028"),
    ],
)
def test_bytes_of_clients_are_shown_without_control_characters(value: bytes | None, text: str | None) -> None:
    assert shown(value) == text


def test_the_line_of_a_session() -> None:
    session = a_session(
        state=State.RELAY,
        tls=TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", "mail.example.org"),
        user=b"joe",
        mechanism=Mechanism.PLAIN,
        route="default",
        pool="main",
        server="imap1:993",
        client_id=((b"name", b"Mutt"), (b"version", None)),
        bytes_in=10,
        bytes_out=20,
        commands=3,
    )
    line = told(events.SessionClosed(session, Side.CLIENT, "logged_out", 12.34567))
    assert line.pop("timestamp")
    assert line == {
        "event": "session",
        "level": "info",
        "session": "5e5510",
        "protocol": "imap",
        "listener": "imaps",
        "address": "192.0.2.1",
        "port": 4711,
        "user": "joe",
        "mechanism": "PLAIN",
        "route": "default",
        "pool": "main",
        "upstream": "imap1:993",
        "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
        "sni": "mail.example.org",
        "client": "Mutt",
        "bytes_in": 10,
        "bytes_out": 20,
        "commands": 3,
        "failures": 0,
        "side": "client",
        "reason": "logged_out",
        "seconds": 12.346,
    }


def test_the_line_of_a_session_that_never_said_anything() -> None:
    line = told(events.SessionClosed(a_session(), Side.PROXY, "no_auth_attempts", 60))
    assert [line[key] for key in ("user", "mechanism", "tls", "sni", "client", "upstream")] == [None] * 6


@pytest.mark.parametrize(
    ("event", "level", "facts"),
    [
        (
            events.LoginRefused(a_session(failures=2), "auth_failed"),
            "warning",
            {"reason": "auth_failed", "failures": 2},
        ),
        (
            events.UpstreamRefused(a_session(), "main", "imap1:993", Failure.TIMEOUT, "login/banner", "no answer"),
            "warning",
            {
                "pool": "main",
                "upstream": "imap1:993",
                "failure": "timeout",
                "state": "login/banner",
                "detail": "no answer",
            },
        ),
        (
            events.UpstreamRefused(a_session(), "main", "imap1:993", Failure.AUTH_REJECTED, "login/banner", "NO"),
            "info",
            {"failure": "auth_rejected"},
        ),
        (events.TlsFailed(a_session(), "alpn"), "info", {"reason": "alpn"}),
        (
            events.MaildropOpened(a_session(), 3, 4711, ("uids_not_sticky", "no_emailid"), 0.12345),
            "warning",
            {"messages": 3, "octets": 4711, "notes": "uids_not_sticky, no_emailid", "seconds": 0.123},
        ),
        (
            events.MaildropClosed(a_session(), "expunge", 5, 0, 0, 0, "", 0.12345),
            "info",
            {"policy": "expunge", "removed": 5, "kept": 0, "unknown": 0, "unseen": 0, "detail": None, "seconds": 0.123},
        ),
        (
            events.MaildropClosed(a_session(), "trash", 5, 3, 2, 1, "UpstreamLost", 60),
            "warning",
            {"policy": "trash", "removed": 5, "kept": 3, "unknown": 2, "unseen": 1, "detail": "UpstreamLost"},
        ),
        (
            events.LimitStruck(a_session(), "half_open", "shed", 1.23456),
            "info",
            {"rule": "half_open", "action": "shed", "seconds": 1.235},
        ),
    ],
)
def test_lines_of_other_events(event: events.Event, level: str, facts: dict[str, Any]) -> None:
    line = told(event)
    assert line.items() >= ({"level": level, "session": "5e5510", "address": "192.0.2.1"} | facts).items()


@pytest.mark.parametrize(
    "event",
    [
        events.SessionOpened(a_session()),
        events.TlsFinished(a_session(), 0.1),
        events.SessionEstablished(a_session(), 0.1),
        events.CommandFinished(a_session(), "NOOP", "ok", 0.1),
        events.BytesRelayed(a_session(), 1, 2),
        events.UpstreamConnected(a_session(), "main", "imap1", 0.1),
        # At this level.
        events.MaildropOpened(a_session(), 3, 4711, (), 0.1),
    ],
)
def test_what_has_no_line(event: events.Event) -> None:
    assert told(event) == {}


def test_a_crash_shows_where_it_came_from() -> None:
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError as error:
        line = told(events.CrashedSession(a_session(), error))
    assert line["level"] == "error"
    assert "test_a_crash_shows_where_it_came_from" in line["exception"]
    assert line["exception"].endswith("ZeroDivisionError: oops")


HOSTILE = b'joe" reason=ok\r\n{"event": "session"}\x1b[2J\xff'


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_user_name_cannot_forge_a_line(form: Any) -> None:
    stream = io.StringIO()
    SessionLog(configure(form, "info", stream))(events.LoginRefused(a_session(user=HOSTILE), "auth_failed"))
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert text.isascii()
    if form == "json":
        assert json.loads(text)["user"] == 'joe" reason=ok\\r\\n{"event": "session"}\\x1b[2J\\\\xff'
    else:
        # A value with spaces stands in quotes, so that what is in it is not read as a field.
        assert "user='joe\" reason=ok" in text


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_an_upstream_said_cannot_move_the_cursor(form: Any) -> None:
    stream = io.StringIO()
    event = events.UpstreamRefused(a_session(), "main", "a", Failure.PROTOCOL, "x/y", "NO [\x1b[2J\nx]")
    SessionLog(configure(form, "info", stream))(event)
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_are_hidden_by_name_and_by_type(form: Any) -> None:
    stream = io.StringIO()
    logger = configure(form, "info", stream)
    logger.info(
        "x",
        password="hunter2",
        access_token=b"hunter2",
        client_secret="hunter2",
        Authorization="hunter2",
        credentials=("hunter2",),
        other=Secret(b"hunter2"),
        user=b"joe",
    )
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("Secret") == 6
    assert "joe" in stream.getvalue()


@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [
        ("json", Terminal(), True),
        ("text", io.StringIO(), False),
        (None, Terminal(), False),
        (None, io.StringIO(), True),
    ],
)
def test_the_form_follows_the_stream(form: Any, stream: io.StringIO, is_json: bool) -> None:
    configure(form, "info", stream).info("hello", number=1)
    assert stream.getvalue().startswith("{") is is_json
    assert ("\x1b[" in stream.getvalue()) is (stream.isatty() and not is_json)


def test_a_line_for_programs_begins_with_its_heading_and_has_every_key() -> None:
    line = told(events.LoginRefused(a_session(), "invalid_mech"))
    assert list(line)[:4] == ["timestamp", "level", "event", "session"]
    assert line["user"] is None


def test_a_line_for_people_has_what_is_known_in_the_order_of_the_event() -> None:
    stream = io.StringIO()
    SessionLog(configure("text", "info", stream))(events.LoginRefused(a_session(failures=1), "invalid_mech"))
    assert stream.getvalue().split("login refused", 1)[1].split() == [
        "session=5e5510",
        "protocol=imap",
        "listener=imaps",
        "address=192.0.2.1",
        "port=4711",
        "reason=invalid_mech",
        "failures=1",
    ]


def test_the_level() -> None:
    stream = io.StringIO()
    logger = configure("json", "warning", stream)
    logger.info("quiet")
    logger.warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_libraries_speak_there_too() -> None:
    stream = io.StringIO()
    configure("json", "info", stream)
    logging.getLogger("mailgate.http").warning("odd request")
    logging.getLogger("mailgate.http").info("quiet")
    assert stream.getvalue() == "mailgate.http: odd request\n"


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info").info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"


class FullDisk(io.StringIO):
    """A stream that takes nothing while it is ``full``."""

    full = True

    def flush(self) -> None:
        if self.full:
            self.seek(0)
            self.truncate()
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_stops_nothing_and_says_so_later() -> None:
    stream = FullDisk()
    logger = configure("json", "info", stream)
    logger.info("one")
    logger.bind(worker=1).info("two")
    assert stream.getvalue() == ""
    stream.full = False
    logger.info("three")
    logger.info("four")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["three", "lines of the log could not be written", "four"]
    assert (lines[1]["level"], lines[1]["lines"]) == ("error", 2)


def test_what_is_left_in_buffers_and_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", FullDisk())
    monkeypatch.setattr("sys.stderr", FullDisk())
    flush()

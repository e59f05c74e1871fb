"""The shared words: a secret that stays one, addresses as text, and errors that name what they must."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from mailgate.errors import ConfigError, ConfigProblem, MailgateError, RemoteProtocolError, UpstreamFailed
from mailgate.model import Failure, Login, Mechanism, Peer, Protocol, Secret, Session

SECRET = Secret(b"hunter2")
LOGIN = Login(Protocol.IMAP, b"joe", SECRET, Mechanism.PLAIN)


@pytest.mark.parametrize(
    "text",
    [
        repr(SECRET),
        str(SECRET),
        f"{SECRET}",
        f"{SECRET:>20}",
        f"{SECRET!r}",
        f"{LOGIN}",
        f"{[SECRET]}",
        "%s" % SECRET,  # noqa: UP031
        str(dataclasses.asdict(Session("x", Protocol.IMAP, "imaps", Peer("unix", 0), 0.0))),
    ],
)
def test_a_secret_is_never_shown(text: str) -> None:
    assert "hunter2" not in text


def test_a_secret_is_revealed_when_asked() -> None:
    assert SECRET.reveal() == b"hunter2"
    assert str(SECRET) == "Secret(…)"


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_does_not_leave_the_process(leave: object) -> None:
    with pytest.raises(TypeError, match="not written to disk"):
        leave(SECRET)  # type: ignore[operator]


def test_secrets_compare_by_value_and_have_no_hash() -> None:
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    assert not Secret(b"")
    assert Secret(b"0")
    with pytest.raises(TypeError, match="unhashable"):
        hash(SECRET)


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        (Peer("192.0.2.1", 4711), "192.0.2.1:4711"),
        (Peer("2001:db8::1", 4711), "[2001:db8::1]:4711"),
        (Peer("unix", 0), "unix:0"),
    ],
)
def test_peers_as_text(peer: Peer, text: str) -> None:
    assert str(peer) == text


def test_sessions_are_told_apart_by_identity() -> None:
    one, other = (Session("x", Protocol.IMAP, "imaps", Peer("unix", 0), 0.0) for _ in range(2))
    assert one != other
    assert len({one, other}) == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            UpstreamFailed(Failure.TIMEOUT, "login/banner", "no answer within 30 s", "imap1:993"),
            "timeout (state=login/banner): no answer within 30 s",
        ),
        (
            ConfigError(
                [
                    ConfigProblem("listener[0].tls", "maybe", "must be one of: implicit, off"),
                    ConfigProblem("pool", "", "is missing"),
                ]
            ),
            "listener[0].tls = maybe: must be one of: implicit, off\npool: is missing",
        ),
        (RemoteProtocolError("line too long"), "line too long"),
    ],
)
def test_errors_as_text(error: MailgateError, text: str) -> None:
    assert str(error) == text


def test_errors_keep_their_facts() -> None:
    failed = UpstreamFailed(Failure.TLS, "tls/none", "x", "imap1")
    assert (failed.failure, failed.state, failed.detail, failed.server) == (Failure.TLS, "tls/none", "x", "imap1")
    problem = ConfigProblem("a", "b", "c")
    assert ConfigError([problem]).problems == (problem,)

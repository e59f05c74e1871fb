"""A configuration out of a few words, and the ports that this process may have."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from mailgate.cli import quickstart
from mailgate.cli.quickstart import Quickstart, Url, has_ipv6, may_bind
from mailgate.config import Config, parse
from mailgate.model import Protocol


def built(plan: Quickstart) -> Config:
    return parse(plan.to_toml(), base=Path("/x"), environ={})


@pytest.mark.parametrize(
    ("url", "scheme", "endpoint"),
    [
        ("imaps://mail.example.org", "imaps", "mail.example.org:993"),
        ("IMAP://Mail.Example.org/", "imap", "mail.example.org:143"),
        ("pop3s://10.0.0.1", "pop3s", "10.0.0.1:995"),
        ("pop3://[::1]:1110", "pop3", "[::1]:1110"),
    ],
)
def test_url_is_read(url: str, scheme: str, endpoint: str) -> None:
    read = Url.parse(url)
    assert (read.scheme, str(read.endpoint)) == (scheme, endpoint)
    assert (read.protocol, read.implicit) == (Protocol(scheme.rstrip("s")), scheme.endswith("s"))


@pytest.mark.parametrize(
    "url",
    [
        "", "mail.example.org", "mail.example.org:993", "imaps://", "imaps://a/b", "imaps://a?b", "imaps://a#b",
        "imaps://a:0", "imaps://a:x", "imaps://a:99999", "imaps://[::1", "smtp://a", "imaps://a b",
        "imaps://user:canary@a", "imaps://:canary@a",
    ],
)  # fmt: skip
def test_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Url.parse(url)
    assert "canary" not in str(caught.value)


def test_the_usual_ports_are_used_where_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "may_bind", lambda port: True)
    monkeypatch.setattr(quickstart, "has_ipv6", lambda: True)
    config = built(Quickstart.of(["imaps://mail.example.org"], []))
    assert [(listener.name, listener.tls, list(map(str, listener.bind))) for listener in config.listener] == [
        ("imaps", "implicit", ["0.0.0.0:993", "[::]:993"]),
        ("imap", "starttls", ["0.0.0.0:143", "[::]:143"]),
        ("pop3s", "implicit", ["0.0.0.0:995", "[::]:995"]),
        ("pop3", "starttls", ["0.0.0.0:110", "[::]:110"]),
    ]
    assert [(rule.name, rule.match.protocol, rule.pool) for rule in config.route] == [
        ("imap", Protocol.IMAP, "imap"),
        ("pop3", Protocol.POP3, "imap"),
    ]
    assert config.pool["imap"].tls.mode == "implicit"
    assert config.warnings == ()


def test_ports_above_1024_are_used_where_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "may_bind", lambda port: port != 110)
    monkeypatch.setattr(quickstart, "has_ipv6", lambda: False)
    plan = Quickstart.of(["imap://mail.example.org", "pop3://mail.example.org"], [])
    assert [str(bind) for listener in built(plan).listener for bind in listener.bind] == [
        "0.0.0.0:1993",
        "0.0.0.0:1143",
        "0.0.0.0:1995",
        "0.0.0.0:1110",
    ]
    assert plan.notes[0] == (
        "Mail programs connect to imaps on 0.0.0.0:1993; imap on 0.0.0.0:1143; pop3s on 0.0.0.0:1995; "
        "pop3 on 0.0.0.0:1110."
    )
    assert "1000 above them" in plan.notes[1]
    assert {pool.tls.mode for pool in built(plan).pool.values()} == {"starttls"}
    assert built(plan).warnings == ()


@pytest.mark.parametrize(("host", "mode"), [("localhost", "off"), ("[::1]", "off"), ("10.0.0.1", "starttls")])
def test_only_towards_this_machine_nothing_is_hidden(host: str, mode: str) -> None:
    plan = Quickstart.of([f"imap://{host}:1143"], ["imaps://127.0.0.1:1"])
    assert built(plan).pool["imap"].tls.mode == mode


def test_several_places_to_listen_are_grouped_by_scheme() -> None:
    plan = Quickstart.of(["imaps://a"], ["imaps://127.0.0.1:1", "imap://127.0.0.1:2", "imaps://127.0.0.2:1"])
    assert [list(map(str, listener.bind)) for listener in built(plan).listener] == [
        ["127.0.0.1:1", "127.0.0.2:1"],
        ["127.0.0.1:2"],
    ]


def test_pop3_clients_of_an_imap_server_alone() -> None:
    plan = Quickstart.of(["imaps://a"], ["pop3s://127.0.0.1:1"])
    config = built(plan)
    assert [(rule.name, rule.pool) for rule in config.route] == [("pop3", "imap")]
    assert config.pool["imap"].protocol is Protocol.IMAP
    assert config.warnings == ()
    assert any("POP3 clients are served from the IMAP server" in note for note in plan.notes)


def test_a_pop3_server_of_its_own_serves_the_pop3_clients() -> None:
    plan = Quickstart.of(["imaps://a", "pop3s://b"], ["imaps://127.0.0.1:1", "pop3s://127.0.0.1:2"])
    assert [(rule.name, rule.pool) for rule in built(plan).route] == [("imap", "imap"), ("pop3", "pop3")]
    assert not any("POP3 clients are served" in note for note in plan.notes)


def test_a_pop3_server_alone_has_no_imap_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "may_bind", lambda port: True)
    assert {listener.protocol for listener in built(Quickstart.of(["pop3s://a"], [])).listener} == {Protocol.POP3}


def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    plan = Quickstart.of(["imaps://a"], ["imaps://127.0.0.1:1"])
    assert plan.needs_certificate
    plan = plan.with_certificate(Path("/c"), Path('/k"x'))
    config = built(plan)
    assert not plan.needs_certificate
    assert config.tls is not None
    assert (config.tls.certificate, config.tls.key.file) == (Path("/c"), Path('/k"x'))


def test_the_authority_or_the_pin_reach_the_pool() -> None:
    listen = ["imaps://127.0.0.1:1"]
    assert built(Quickstart.of(["imaps://a"], listen, ca=Path("/ca.pem"))).pool["imap"].tls.ca == Path("/ca.pem")
    assert built(Quickstart.of(["imaps://a"], listen, pin="AB" * 32)).pool["imap"].tls.pin == ("ab" * 32,)


@pytest.mark.parametrize(
    ("upstreams", "listen", "options", "message"),
    [
        (["imaps://a", "imap://b"], [], {}, "several servers need a file"),
        (["pop3s://a"], ["imaps://b"], {}, "needs an --upstream that speaks imap"),
        (["imaps://a", "pop3s://a"], ["imaps://b"], {}, "no --listen is for pop3"),
        (["imaps://a"], ["b"], {}, "^--listen: a server is written"),
        (["imaps://a"], [], {"key": Path("k")}, "--certificate and --key go together"),
        (["imaps://a"], [], {"ca": Path("c"), "pin": "p"}, "exclude each other"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    upstreams: list[str], listen: list[str], options: dict[str, Path], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Quickstart.of(upstreams, listen, **options)  # type: ignore[arg-type]


def test_a_port_that_is_taken_counts_as_allowed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert may_bind(taken.getsockname()[1])
    assert may_bind(0)


def test_a_port_without_the_right_to_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(quickstart.socket, "socket", Refusing)
    assert not may_bind(143)
    assert not has_ipv6()

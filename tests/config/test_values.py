"""Endpoints, durations, sizes and secrets: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mailgate.config import Endpoint, KeyFile, SecretSource
from mailgate.config.values import (
    format_duration,
    format_size,
    is_host_name,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("0.0.0.0:993", "0.0.0.0", 993, "0.0.0.0:993"),
        ("[::]:993", "::", 993, "[::]:993"),
        ("[2001:DB8:0::1]:1", "2001:db8::1", 1, "[2001:db8::1]:1"),
        ("Mail.Example.ORG:65535", "mail.example.org", 65535, "mail.example.org:65535"),
        ("mail_1.internal:143", "mail_1.internal", 143, "mail_1.internal:143"),
    ],
)
def test_endpoint_is_read(text: str, host: str, port: int, shown: str) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.host, endpoint.port, endpoint.path, str(endpoint)) == (host, port, None, shown)
    assert Endpoint.parse(shown) == endpoint


def test_unix_endpoint_is_read() -> None:
    endpoint = Endpoint.parse("unix:/run/mailgate/imap.sock")
    assert endpoint == Endpoint("", 0, Path("/run/mailgate/imap.sock"))
    assert str(endpoint) == "unix:/run/mailgate/imap.sock"
    assert endpoint.loopback


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("localhost", "the port is missing"),
        ("localhost:", "number from 1 to 65535"),
        ("localhost:0", "number from 1 to 65535"),
        ("localhost:65536", "number from 1 to 65535"),
        ("localhost:+1", "number from 1 to 65535"),
        ("localhost:٣", "number from 1 to 65535"),
        ("localhost:000143", "number from 1 to 65535"),
        ("::1:143", "stands in brackets"),
        ("[::1]", r"\[address\]:port"),
        ("[::1:143", r"\[address\]:port"),
        ("[mail.example.org]:143", "not an IPv6 address"),
        (":143", "not an address"),
        ("10.0.0.256:143", "not an address"),
        ("a b:143", "not an address"),
        ("-x.example:143", "not an address"),
        (f"{'a' * 64}.example:143", "not an address"),
        (f"{'a.' * 130}example:143", "not an address"),
        ("unix:relative.sock", "absolute"),
        (f"unix:/{'x' * 107}", "at most 107 bytes"),
        ("unix:/a\0b", "at most 107 bytes"),
    ],
)
def test_endpoint_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("LOCALHOST.:1", True),
        ("10.0.0.1:1", False),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("localhost.example.org:1", False),
        ("127.0.0.1.example.org:1", False),
    ],
)
def test_endpoint_knows_loopback(text: str, loopback: bool) -> None:
    assert Endpoint.parse(text).loopback is loopback


@given(st.text(max_size=40))
def test_endpoint_raises_only_value_error_and_reads_what_it_shows(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (31, 31.0),
        (0.5, 0.5),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("31m", 1860.0),
        ("31min", 1860.0),
        ("1h30m", 5400.0),
        ("1 h 30 m", 5400.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
    ],
)
def test_duration_is_read(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "30", "s", "30 fortnights", "-30s", "1h-30m", "٣s", True, None, [30], float("inf"), float("nan")],
)
def test_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(value)


@given(st.floats(min_value=0, max_value=1e9, allow_nan=False).map(lambda x: round(x, 3)))
def test_duration_is_shown_as_it_is_read(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-12)


def test_duration_is_shown_in_the_largest_unit() -> None:
    shown = [format_duration(seconds) for seconds in (0.0, 0.5, 59.0, 60.0, 5400.0, 3600.0, 86400.0)]
    assert shown == ["0s", "0.5s", "59s", "1m", "90m", "1h", "1d"]


@pytest.mark.parametrize(
    ("value", "size"), [(7, 7), ("7", 7), ("64 KiB", 65536), ("1MiB", 1 << 20), ("2 GiB", 2 << 30)]
)
def test_size_is_read(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "KiB", "1 KB", "1.5 KiB", "-1", True, 1.0, None])
def test_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a size is"):
        parse_size(value)


@given(st.integers(min_value=0, max_value=1 << 40))
def test_size_is_shown_as_it_is_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a", True),
        ("a.b.", True),
        ("xn--bcher-kva.example", True),
        ("", False),
        (".", False),
        ("a..b", False),
        ("bücher", False),
    ],
)
def test_host_name(name: str, good: bool) -> None:
    assert is_host_name(name) is good


def test_secret_is_read_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    for content, secret in (
        (b"hunter2\n", b"hunter2"),
        (b"hunter2\r\n", b"hunter2"),
        (b"two\nlines", b"two\nlines"),
        (b" x ", b" x "),
    ):
        tmp_path.joinpath("secret").write_bytes(content)
        assert SecretSource(file=tmp_path / "secret").read({}).reveal() == secret


def test_secret_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SecretSource(env="WORD").read({"WORD": "pässword"}).reveal() == "pässword".encode()
    monkeypatch.setenv("MAILGATE_TEST_WORD", "abc")
    assert SecretSource(env="MAILGATE_TEST_WORD").read().reveal() == b"abc"


def test_secret_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        SecretSource(file=tmp_path / "missing").read({})
    with pytest.raises(KeyError):
        SecretSource(env="WORD").read({})


@pytest.mark.parametrize("value", [{}, {"file": "/x", "env": "Y"}, {"env": "not a name"}, {"env": ""}, "hunter2"])
def test_secret_source_is_refused_without_showing_it(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        SecretSource.model_validate(value)
    assert "hunter2" not in str(caught.value)


def test_key_may_be_a_path_alone() -> None:
    assert KeyFile.model_validate("/x/key.pem") == KeyFile(file=Path("/x/key.pem"))

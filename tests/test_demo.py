from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mailgate import demo
from mailgate.net import certificate


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mailgate", "demo", *arguments], capture_output=True, text=True, timeout=90
    )


def test_once_reads_real_mail_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run("--once")
    assert done.returncode == 0, done.stderr
    assert "Read 4 messages through the gateway, with IMAP over TLS:" in done.stdout
    assert "Read 4 messages through the gateway, with POP3 over TLS:" in done.stdout
    assert done.stdout.count("Hello, World! (from friend@example.com, 1980 bytes)") == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_taken_ports_are_replaced_by_free_ones() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        ports = demo.choose_ports((0, wanted, 0, 0, 0))
    found = {ports.upstream, ports.imaps, ports.imap, ports.pop3s, ports.metrics}
    assert len(found) == 5
    assert wanted not in found
    assert 0 not in found


def test_a_sample_server_that_cannot_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with (
            pytest.raises(demo.DemoError, match=r"does not start: OSError: .*address already in use"),
            demo.sample_server(taken.getsockname()[1], tmp_path),
        ):
            pytest.fail("it started")


def test_reading_from_a_gateway_that_is_not_there_fails(tmp_path: Path) -> None:
    authority = tmp_path / "c.pem"
    certificate.write(authority, tmp_path / "k.pem", *certificate.self_signed(["localhost"], days=1))
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(demo.DemoError, match="reading mail through the gateway with IMAP failed"):
            demo.read_mail(unused.getsockname()[1], authority)
        with pytest.raises(demo.DemoError, match="reading mail through the gateway with POP3 failed"):
            demo.read_pop3(unused.getsockname()[1], authority)

"""Numbers of several worker processes: exact from whichever answers, also when one of them was killed."""

from __future__ import annotations

import contextlib
import imaplib
import os
import signal
from pathlib import Path

import pytest

from tests.real.conftest import Gateway, soon
from tests.support.servers import Dovecot, free_ports, mailgate

pytestmark = pytest.mark.real


def test_nothing_that_was_counted_is_lost_with_a_worker(
    server: Dovecot, authority: Path, user: tuple[str, str], tmp_path: Path
) -> None:
    mail, metrics = free_ports(2)
    config = f"""
workers = 2
[tls]
certificate = "{authority}"
key = "{authority.with_name("key.pem")}"
[metrics]
bind = "127.0.0.1:{metrics}"
[[listener]]
name = "imaps"
protocol = "imap"
bind = ["127.0.0.1:{mail}"]
tls = "implicit"
[[route]]
pool = "main"
[pool.main]
protocol = "imap"
servers = ["127.0.0.1:{server.imap}"]
tls = "off"
"""
    with mailgate(tmp_path, config, [mail, metrics]) as program:
        gateway = Gateway(program, tmp_path, authority, {}, metrics)

        def client() -> imaplib.IMAP4_SSL:
            one = imaplib.IMAP4_SSL("localhost", mail, ssl_context=gateway.context, timeout=20)
            one.login(*user)
            one.noop()
            return one

        def logins() -> float:
            return gateway.metric("mailgate_logins_total", result="ok")

        def use(count: int) -> None:
            for _ in range(count):
                assert client().logout()[0] == "BYE"

        soon(lambda: gateway.metric("mailgate_workers") == 2)
        use(20)
        # Twenty scrapes, so that both workers answer some.
        for _ in range(20):
            assert logins() == gateway.metric("mailgate_worker_logins_total") == 20
            assert gateway.metric("mailgate_commands_total", verb="NOOP", result="ok") == 20
        staying = [client() for _ in range(6)]
        assert gateway.metric("mailgate_sessions_open", state="relay") == 6
        os.kill(program.workers()[0], signal.SIGKILL)
        soon(lambda: gateway.metric("mailgate_worker_exits_total", reason="SIGKILL") == 1)
        soon(lambda: gateway.metric("mailgate_workers") == 2)
        left = 0
        for one in staying:
            with contextlib.suppress(imaplib.IMAP4.error, OSError):
                left += one.noop()[0] == "OK"
        assert gateway.metric("mailgate_sessions_open", state="relay") == left
        assert gateway.metric("mailgate_worker_sessions") == left
        assert logins() == 26
        use(10)
        assert logins() == gateway.metric("mailgate_worker_logins_total") == 36
        assert gateway.metric("mailgate_reloads_total") == 0
        program.process.send_signal(signal.SIGHUP)
        soon(lambda: gateway.metric("mailgate_reloads_total", result="ok") == 1)
        assert gateway.metric("process_resident_memory_bytes", worker="supervisor") > 1_000_000
        for one in staying:
            with contextlib.suppress(OSError):
                one.shutdown()

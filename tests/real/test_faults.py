"""Upstreams that are down, hang, talk nonsense or die in the middle, and clients that do: through real sockets."""

from __future__ import annotations

import imaplib
import poplib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.conftest import Gateway
from tests.support.servers import free_ports, mailgate

pytestmark = pytest.mark.real

Behaviour = Callable[[socket.socket], None]
PROTOCOLS = ("imap", "pop3")


class Fake:
    """An upstream whose behaviour a test sets; it serves one connection at a time for each thread."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = hang
        self.received: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(20)
            try:
                self.behaviour(sock)
            except OSError:
                # The gateway went first, as some tests want.
                return

    def close(self) -> None:
        self._listening.close()


def read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1)
        if not data:
            raise ConnectionError
        line += data
    return line


def hang(sock: socket.socket) -> None:
    while sock.recv(65_536):
        continue


def says(*greetings: bytes) -> Behaviour:
    def behaviour(sock: socket.socket) -> None:
        for greeting in greetings:
            sock.sendall(greeting)
        hang(sock)

    return behaviour


def imap_that(after_login: Behaviour) -> Behaviour:
    """An IMAP server that accepts everybody, and then does as told."""

    def behaviour(sock: socket.socket) -> None:
        sock.sendall(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
        while b"LOGIN" not in (line := read_line(sock)):
            sock.sendall(b"* CAPABILITY IMAP4rev1 LITERAL+\r\n" + line.split()[0] + b" OK done\r\n")
        sock.sendall(line.split()[0] + b" OK [CAPABILITY IMAP4rev1 LITERAL+] welcome\r\n")
        after_login(sock)

    return behaviour


def pop3_that(after_login: Behaviour) -> Behaviour:
    """A POP3 server that accepts everybody, and then does as told."""

    def behaviour(sock: socket.socket) -> None:
        sock.sendall(b"+OK ready\r\n")
        while True:
            line = read_line(sock)
            if line.startswith(b"CAPA"):
                sock.sendall(b"+OK\r\nUSER\r\nTOP\r\nUIDL\r\n.\r\n")
                continue
            sock.sendall(b"+OK\r\n")
            if line.startswith(b"PASS"):
                break
        after_login(sock)

    return behaviour


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    running = Fake()
    yield running
    running.close()


@pytest.fixture(scope="module")
def faulty(fake: Fake, authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("faulty")
    imap, pop3, down, metrics = free_ports(4)
    config = f"""
[metrics]
bind = "127.0.0.1:{metrics}"
"""
    for name, protocol, port, target in (
        ("imap", "imap", imap, fake.port),
        ("pop3", "pop3", pop3, fake.port),
        ("down", "imap", down, free_ports(1)[0]),
    ):
        config += f"""
[[listener]]
name = "{name}"
protocol = "{protocol}"
bind = ["127.0.0.1:{port}"]
tls = "off"
[[route]]
match.listener = ["{name}"]
pool = "{name}"
[pool.{name}]
protocol = "{protocol}"
servers = ["127.0.0.1:{target}"]
tls = "off"
connect_timeout = "500ms"
greeting_timeout = "500ms"
login_timeout = "1s"
"""
    ports = {("imap", "plain", "off"): imap, ("pop3", "plain", "off"): pop3, ("down", "plain", "off"): down}
    with mailgate(folder, config, [imap, pop3, down, metrics]) as program:
        yield Gateway(program, folder, authority, ports, metrics)
        assert program.output().count("Traceback") == 0


@contextmanager
def client(gateway: Gateway, protocol: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port(protocol, "plain")), 20) as sock:
        read_line(sock)
        yield sock


def log_in(sock: socket.socket, protocol: str) -> bytes:
    """Log in and return the answer to it."""
    if protocol == "pop3":
        sock.sendall(b"USER alice\r\n")
        assert read_line(sock).startswith(b"+OK")
        sock.sendall(b"PASS secret\r\n")
        return read_line(sock)
    sock.sendall(b"a LOGIN alice secret\r\n")
    while not (line := read_line(sock)).startswith(b"a "):
        assert line.startswith(b"* ")
    return line


UNAVAILABLE = {
    "imap": b"a NO [UNAVAILABLE] The mail server is not available at the moment.\r\n",
    "pop3": b"-ERR [SYS/TEMP] The mail server is not available at the moment.\r\n",
    "down": b"a NO [UNAVAILABLE] The mail server is not available at the moment.\r\n",
}


def test_a_server_that_is_down_is_told_as_a_passing_failure(faulty: Gateway) -> None:
    with client(faulty, "down") as sock:
        assert log_in(sock, "down") == UNAVAILABLE["down"]
        # The client may try again on the same connection.
        assert log_in(sock, "down") == UNAVAILABLE["down"]
    assert '"failure": "connect", "state": "connect/none", "detail": "Connection refused"' in faulty.program.output()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "behaviour",
    [
        hang,
        says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        says(b"\x15\x03\x01\x00\x02\x02\x28"),
        says(b"* PREAUTH welcome\r\n"),
        says(b"* BYE full\r\n"),
        says(b"-ERR full\r\n"),
        says(b"x" * 2_000_000),
        says(b"* OK hello\r\n", b"* nonsense\r\n" * 50_000),
        says(b"+OK hello\r\n", b"nonsense\r\n" * 50_000),
        says(b"\0\xff\r\n" * 100),
        lambda sock: None,
    ],
    ids=["hangs", "HTTP", "TLS", "PREAUTH", "BYE", "-ERR", "endless line", "IMAP noise", "POP3 noise", "NUL", "closes"],
)
def test_a_server_that_hangs_or_talks_nonsense_fails_the_login_in_time(
    faulty: Gateway, fake: Fake, protocol: str, behaviour: Behaviour
) -> None:
    fake.behaviour = behaviour
    with client(faulty, protocol) as sock:
        assert log_in(sock, protocol) == UNAVAILABLE[protocol]


def test_a_server_that_dies_in_a_literal_ends_the_session_after_its_last_byte(faulty: Gateway, fake: Fake) -> None:
    def dies(sock: socket.socket) -> None:
        read_line(sock)
        sock.sendall(b"* 1 FETCH (BODY[] {1000}\r\n" + b"x" * 400)

    fake.behaviour = imap_that(dies)
    with client(faulty, "imap") as sock:
        assert log_in(sock, "imap").startswith(b"a OK")
        sock.sendall(b"b FETCH 1 BODY[]\r\n")
        got = b"".join(iter(lambda: sock.recv(65_536), b""))
    # A farewell in the middle of a literal would be taken for mail, so there is none.
    assert got == b"* 1 FETCH (BODY[] {1000}\r\n" + b"x" * 400


def test_a_server_that_dies_in_a_message_ends_the_pop3_session_after_its_last_byte(faulty: Gateway, fake: Fake) -> None:
    def dies(sock: socket.socket) -> None:
        read_line(sock)
        sock.sendall(b"+OK 1000 octets\r\nSubject: x\r\n\r\nhalf a li")

    fake.behaviour = pop3_that(dies)
    with client(faulty, "pop3") as sock:
        assert log_in(sock, "pop3").startswith(b"+OK")
        sock.sendall(b"RETR 1\r\n")
        got = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert got == b"+OK 1000 octets\r\nSubject: x\r\n\r\nhalf a li"


def test_a_quit_behind_which_the_client_leaves_still_reaches_the_server(faulty: Gateway, fake: Fake) -> None:
    updated = threading.Event()
    let_go = threading.Event()

    def slow(sock: socket.socket) -> None:
        assert read_line(sock) == b"DELE 1\r\n"
        sock.sendall(b"+OK\r\n")
        assert read_line(sock) == b"QUIT\r\n"
        let_go.wait(10)
        sock.sendall(b"+OK bye\r\n")
        updated.set()

    fake.behaviour = pop3_that(slow)
    with client(faulty, "pop3") as sock:
        assert log_in(sock, "pop3").startswith(b"+OK")
        sock.sendall(b"DELE 1\r\nQUIT\r\n")
    let_go.set()
    assert updated.wait(10)


def test_both_sides_may_send_much_at_once(faulty: Gateway, fake: Fake) -> None:
    size = 10 << 20
    answer = b"* 1 FETCH (BODY[] {%d}\r\n" % size + b"y" * size + b")\r\n"
    arrived = bytearray()

    def busy(sock: socket.socket) -> None:
        def swallow() -> None:
            while len(arrived) < size + 2:
                arrived.extend(sock.recv(262_144))

        assert read_line(sock) == b"b APPEND INBOX {%d}\r\n" % size
        sock.sendall(b"+ go on\r\n")
        reading = threading.Thread(target=swallow)
        reading.start()
        sock.sendall(answer)
        reading.join()
        sock.sendall(b"b OK appended\r\n")

    fake.behaviour = imap_that(busy)
    with client(faulty, "imap") as sock:
        assert log_in(sock, "imap").startswith(b"a OK")
        upload = b"b APPEND INBOX {%d+}\r\n" % size + b"z" * size + b"\r\n"
        sending = threading.Thread(target=sock.sendall, args=(upload,))
        sending.start()
        wanted = len(answer) + len(b"b OK appended\r\n")
        got = bytearray()
        while len(got) < wanted:
            data = sock.recv(262_144)
            assert data, f"the end came after {len(got)} bytes"
            got += data
        sending.join()
    assert got == answer + b"b OK appended\r\n"
    assert arrived == b"z" * size + b"\r\n"


def test_a_password_that_would_forge_a_line_is_refused_before_any_server_hears_of_it(
    faulty: Gateway, fake: Fake
) -> None:
    def told(sock: socket.socket) -> None:
        fake.received.append(sock.recv(65_536))

    fake.received.clear()
    fake.behaviour = told
    with client(faulty, "imap") as sock:
        sock.sendall(b"a LOGIN alice {11+}\r\nx\r\nb DELETE\r\n")
        assert read_line(sock).startswith(b"a NO [CANNOT] Control characters")
    assert fake.received == []


def test_clients_of_the_library_see_the_failure_as_one(faulty: Gateway, fake: Fake) -> None:
    fake.behaviour = hang
    with (
        imaplib.IMAP4("127.0.0.1", faulty.port("imap", "plain"), timeout=20) as connection,
        pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"),
    ):
        connection.login("alice", "secret")
    pop = poplib.POP3("127.0.0.1", faulty.port("pop3", "plain"), timeout=20)
    pop.user("alice")
    with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
        pop.pass_("secret")
    pop.quit()

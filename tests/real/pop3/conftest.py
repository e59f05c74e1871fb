"""Mail servers behind IMAP, each with a gateway before it that speaks POP3."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import certificates, secrets, stores
from tests.support.forwarder import Forwarder, forwarding
from tests.support.pop3_client import Pop3
from tests.support.servers import Program, free_ports, mailgate
from tests.support.stores import Store

DOORS = {
    "pop3s": ("implicit", "store", ""),
    "pop3": ("starttls", "store", ""),
    "unseen": ("off", "store", 'mark_seen = "never"'),
    "exact": ("off", "store", 'size = "exact"'),
    "forwarded": ("off", "forwarded", ""),
    "flagging": ("off", "forwarded", 'without_uidplus = "flag"'),
    "untrusted": ("off", "untrusted", ""),
}
"""The listeners: the client's TLS, the pool, and what the route says of POP3."""

LOCK_SECONDS = 2.0


@dataclass
class Translated:
    """A store, the gateway before it, and a forwarder between both for one of the doors."""

    store: Store
    program: Program
    ports: dict[str, int]
    authority: Path
    forwarder: Forwarder

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def connect(self, door: str = "pop3s") -> Pop3:
        """Connect, and have TLS where the door has it."""
        client = Pop3(self.ports[door], self.context if door == "pop3s" else None)
        return client.stls(self.context) if door == "pop3" else client

    def login(self, user: str, door: str = "pop3s") -> Pop3:
        return self.connect(door).login(user, self.store.users[user])


def configuration(ports: dict[str, int], pools: dict[str, str], authority: Path) -> str:
    """Write the configuration of a gateway with these doors and these pools (their settings by name)."""
    text = f"""\
hostname = "gate.example.org"
[tls]
certificate = "{authority}"
key = "{authority.with_name("key.pem")}"
[limits]
failure_delay = "50ms"
sessions_per_address = 1000
half_open_per_address = 500
[pop3]
lock_wait = "{LOCK_SECONDS:.0f}s"
"""
    for name, port in ports.items():
        tls, pool, policy = DOORS[name]
        text += f'[[listener]]\nname = "{name}"\nprotocol = "pop3"\nbind = ["127.0.0.1:{port}"]\ntls = "{tls}"\n'
        text += f'[[route]]\nmatch.listener = ["{name}"]\npool = "{pool}"\npop3 = {{ {policy} }}\n'
    return text + "".join(f'[pool.{name}]\nprotocol = "imap"\n{settings}\n' for name, settings in pools.items())


@pytest.fixture(scope="session", params=stores.NAMES)
def store(request: pytest.FixtureRequest, authority: Path) -> Iterator[Store]:
    """A real mail server; every test runs with each of them."""
    with stores.running(request.param, authority, authority.with_name("key.pem")) as running:
        yield running


@pytest.fixture(scope="session")
def gate(store: Store, authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translated]:
    """A gateway before the store; in what it has written no password may be."""
    folder = tmp_path_factory.mktemp(f"pop3-{store.name}")
    ports = dict(zip(DOORS, free_ports(len(DOORS)), strict=True))
    unknown = certificates.authority().issue("localhost").server()
    with forwarding(store.imap) as forwarder, forwarding(store.imap, unknown) as untrusted:
        pools = {
            "store": f'servers = ["127.0.0.1:{store.imap}"]\ntls = "off"',
            "forwarded": f'servers = ["127.0.0.1:{forwarder.port}"]\ntls = "off"',
            "untrusted": f'servers = ["localhost:{untrusted.port}"]\ntls = {{ mode = "implicit", ca = "{authority}" }}',
        }
        with mailgate(folder, configuration(ports, pools, authority), [*ports.values()]) as program:
            yield Translated(store, program, ports, authority, forwarder)
        written = program.output().encode()
    assert secrets.leaks(written, set(store.users.values())) == []
    assert b"Traceback" not in written


@pytest.fixture
def user(store: Store) -> str:  # type: ignore[override]
    """A new user with an empty mailbox."""
    return store.new_user()


@pytest.fixture
def forwarder(gate: Translated) -> Iterator[Forwarder]:
    """What lies between the gateway and the server at the door ``forwarded``; transparent at first."""
    gate.forwarder.restore()
    yield gate.forwarder
    gate.forwarder.cut()
    gate.forwarder.restore()

"""``mailgate run --upstream``: a whole configuration out of a few words on the command line.

The result is TOML, read like any file: so every check applies, and what ``--print`` shows is what
a newcomer puts into a file when the command line becomes too small.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mailgate.config import Endpoint
from mailgate.config.checks import text
from mailgate.model import Protocol

# Where clients connect when ports below 1024 are not allowed: 1993 for 993, and so on.
UNPRIVILEGED_OFFSET: Final = 1000


@dataclass(frozen=True, slots=True)
class Url:
    """A place and what is spoken there, as ``imaps://mail.example.org:993``."""

    scheme: str
    endpoint: Endpoint

    @classmethod
    def parse(cls, url: str) -> Url:
        """Read a URL; a missing port is the scheme's own. Raises ValueError without quoting it."""
        wrong = "a server is written imaps://host, imap://host, pop3s://host or pop3://host, with :port behind it"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError(f"{wrong}; the port is not a number from 1 to 65535") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"{wrong}; a user or password does not belong there, clients bring theirs")
        scheme = parts.scheme.lower()
        if scheme not in SCHEMES or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(wrong)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(scheme, Endpoint.parse(f"{host}:{SCHEMES[scheme].port if port is None else port}"))

    @property
    def protocol(self) -> Protocol:
        """What is spoken there."""
        return SCHEMES[self.scheme].protocol

    @property
    def implicit(self) -> bool:
        """Whether TLS begins with the first byte."""
        return SCHEMES[self.scheme].implicit


@dataclass(frozen=True, slots=True)
class _Scheme:
    protocol: Protocol
    implicit: bool
    port: int


# RFC 8314 §3 for the ports; "imap" is RFC 5092's scheme, "pop3" is what everyone writes for RFC 2384's "pop".
SCHEMES: Final = {
    "imaps": _Scheme(Protocol.IMAP, True, 993),
    "imap": _Scheme(Protocol.IMAP, False, 143),
    "pop3s": _Scheme(Protocol.POP3, True, 995),
    "pop3": _Scheme(Protocol.POP3, False, 110),
}


@dataclass(frozen=True, slots=True)
class Quickstart:
    """What to run, before it is a configuration."""

    upstreams: tuple[Url, ...]
    listeners: tuple[tuple[str, tuple[Url, ...]], ...]
    notes: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    pin: str | None = None
    metrics: str | None = None

    @classmethod
    def of(
        cls,
        upstreams: Sequence[str],
        listen: Sequence[str],
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
        pin: str | None = None,
        metrics: str | None = None,
    ) -> Quickstart:
        """Make a plan of command line options; raises ValueError saying which one is wrong."""
        servers = tuple(_option("--upstream", url) for url in upstreams)
        protocols = [server.protocol for server in servers]
        if len(set(protocols)) != len(protocols):
            raise ValueError("--upstream is given once for IMAP and once for POP3; several servers need a file")
        if (certificate is None) != (key is None):
            raise ValueError("--certificate and --key go together")
        if ca is not None and pin is not None:
            raise ValueError("--ca and --pin exclude each other: a pin names the certificate itself")
        behind = _behind(protocols)
        places, notes = _asked_listeners(listen, behind) if listen else _usual_listeners(behind)
        if any(url.protocol is not behind[url.protocol] for _, urls in places for url in urls):
            notes += ("POP3 clients are served from the IMAP server; --print shows how, and [pop3] changes it.",)
        if certificate is None:
            notes += (
                "Using a certificate made on the fly, which mail programs warn about; "
                "give your own with --certificate and --key.",
            )
        return cls(servers, places, notes, certificate, key, ca, pin, metrics)

    @property
    def needs_certificate(self) -> bool:
        """Whether a certificate must still be made."""
        return self.certificate is None

    def with_certificate(self, certificate: Path, key: Path) -> Quickstart:
        """Return the same plan with a certificate."""
        return replace(self, certificate=certificate, key=key)

    def to_toml(self) -> str:
        """Return the plan as the text of a configuration file."""
        lines = ["[tls]"]
        lines.append(f"certificate = {text(self.certificate or '/etc/mailgate/tls/fullchain.pem')}")
        lines.append(f"key = {text(self.key or '/etc/mailgate/tls/privkey.pem')}")
        for name, urls in self.listeners:
            binds = ", ".join(text(url.endpoint) for url in urls)
            tls = "implicit" if urls[0].implicit else "starttls"
            lines += ["", "[[listener]]", f"name = {text(name)}", f"protocol = {text(urls[0].protocol)}"]
            lines += [f"bind = [{binds}]", f"tls = {text(tls)}"]
        for server in self.upstreams:
            lines += ["", f"[pool.{server.protocol}]", f"protocol = {text(server.protocol)}"]
            lines += [f"servers = [{text(server.endpoint)}]", f"tls = {self._upstream_tls(server)}"]
        behind = _behind([server.protocol for server in self.upstreams])
        for protocol in dict.fromkeys(urls[0].protocol for _, urls in self.listeners):
            lines += ["", "[[route]]", f"name = {text(protocol)}"]
            lines += [f"match = {{ protocol = {text(protocol)} }}", f"pool = {text(behind[protocol])}"]
        if self.metrics is not None:
            lines += ["", "[metrics]", f"bind = {text(self.metrics)}"]
        return "\n".join(lines) + "\n"

    def _upstream_tls(self, server: Url) -> str:
        if not server.implicit and server.endpoint.loopback:
            return '"off"'
        mode = "implicit" if server.implicit else "starttls"
        extra = f", ca = {text(self.ca)}" if self.ca is not None else ""
        extra += f", pin = [{text(self.pin)}]" if self.pin is not None else ""
        return f"{{ mode = {text(mode)}{extra} }}"


def _behind(protocols: Sequence[Protocol]) -> dict[Protocol, Protocol]:
    """Return for each protocol that clients may speak which of the servers' protocols is behind it."""
    behind = {protocol: protocol for protocol in protocols}
    if Protocol.IMAP in behind:
        behind.setdefault(Protocol.POP3, Protocol.IMAP)
    return behind


def _option(option: str, url: str) -> Url:
    try:
        return Url.parse(url)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _asked_listeners(
    listen: Sequence[str], behind: Mapping[Protocol, Protocol]
) -> tuple[tuple[tuple[str, tuple[Url, ...]], ...], tuple[str, ...]]:
    places: dict[str, tuple[Url, ...]] = {}
    for url in listen:
        place = _option("--listen", url)
        if place.protocol not in behind:
            raise ValueError(f"--listen {place.scheme}:// needs an --upstream that speaks {place.protocol}")
        places[place.scheme] = (*places.get(place.scheme, ()), place)
    for protocol in dict.fromkeys(behind.values()):
        if all(behind[SCHEMES[scheme].protocol] is not protocol for scheme in places):
            raise ValueError(f"no --listen is for {protocol}, so its --upstream would never be used")
    return tuple(places.items()), _where(places)


def _usual_listeners(
    behind: Mapping[Protocol, Protocol],
) -> tuple[tuple[tuple[str, tuple[Url, ...]], ...], tuple[str, ...]]:
    schemes = [scheme for scheme, about in SCHEMES.items() if about.protocol in behind]
    allowed = all(may_bind(SCHEMES[scheme].port) for scheme in schemes)
    hosts = ["0.0.0.0", *(["::"] if has_ipv6() else [])]  # noqa: S104  (a mail server serves everyone)
    places = {}
    for scheme in schemes:
        port = SCHEMES[scheme].port + (0 if allowed else UNPRIVILEGED_OFFSET)
        places[scheme] = tuple(Url(scheme, Endpoint(host, port)) for host in hosts)
    notes = _where(places)
    if not allowed:
        notes += ("The usual ports need root or CAP_NET_BIND_SERVICE, so these are 1000 above them.",)
    return tuple(places.items()), notes


def _where(places: dict[str, tuple[Url, ...]]) -> tuple[str, ...]:
    shown = [f"{scheme} on {', '.join(str(url.endpoint) for url in urls)}" for scheme, urls in places.items()]
    return (f"Mail programs connect to {'; '.join(shown)}.",)


def may_bind(port: int) -> bool:
    """Whether this process has the right to listen on ``port``; one that is taken counts as allowed."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EPERM)
        return True


def has_ipv6() -> bool:
    """Whether the machine has IPv6 at all; kernels and containers without it are common."""
    try:
        with contextlib.closing(socket.socket(socket.AF_INET6, socket.SOCK_STREAM)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True

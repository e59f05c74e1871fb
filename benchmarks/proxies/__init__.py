"""The proxies that are compared: each module has the configuration of one, and starts it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxies import dovecot, haproxy, mailgate, nginx, perdition, stunnel
from benchmarks.site import UPSTREAMS, Site, Way

Start = Callable[[Path, Site, str], contextlib.AbstractContextManager[Way]]


@dataclass(frozen=True)
class Proxy:
    """How one proxy is called and started, and what it can do."""

    title: str
    start: Start
    program: tuple[str, ...] = ()
    """What tells its version."""
    upstreams: tuple[str, ...] = UPSTREAMS
    most_idle: int = 1_000_000
    """How many idle sessions it is asked to hold: a process or thread each is a matter of hundreds."""
    basic: bool = False
    """Whether it is in every run; the others are in full ones."""


PROXIES: dict[str, Proxy] = {
    "mailgate": Proxy("**mailgate**", mailgate.commands, basic=True),
    "login-only": Proxy("mailgate, login-only", mailgate.login),
    "two-workers": Proxy("mailgate, two workers", mailgate.two_workers),
    "dovecot": Proxy("Dovecot proxy", dovecot.start, ("dovecot", "--version"), basic=True),
    "nginx": Proxy("nginx mail", nginx.start, ("nginx", "-v"), upstreams=("plain",), basic=True),
    "haproxy": Proxy("HAProxy", haproxy.start, ("haproxy", "-v"), basic=True),
    "stunnel": Proxy("stunnel", stunnel.start, ("stunnel", "-version"), upstreams=("plain",), most_idle=500),
    "perdition": Proxy("Perdition", perdition.start, ("perdition", "--help"), most_idle=200),
}
MAILGATE = "mailgate"

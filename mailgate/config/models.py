"""The models of the configuration file, one class per table.

Every option is described here and nowhere else: the JSON schema, ``check --print`` and the tables
of docs/configuration.md are made from these classes. What one field can know about itself is
checked here, what needs a second field is checked in :mod:`mailgate.config.checks`, so that every
problem carries the path of the key that is to be changed.
"""

from __future__ import annotations

import ipaddress
import os
import platform
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mailgate.config.pattern import Pattern
from mailgate.config.pop3 import Pop3Policy, Pop3Settings, Pop3Store, merged
from mailgate.config.tls import (
    TLS_BY_PORT,
    KeyPair,
    Profile,
    SniCertificate,
    Tls,
    UpstreamTls,
    UpstreamTlsMode,
    host_pattern,
    shown,
    tls_by_port,
)
from mailgate.config.values import (
    Count,
    Endpoint,
    Endpoints,
    FilePath,
    Flag,
    KeyFile,
    Name,
    Networks,
    Seconds,
    Settings,
    Size,
    Texts,
    is_host_name,
    one_or_many,
)
from mailgate.model import Protocol

ListenerTls = Literal["implicit", "starttls", "starttls-optional", "off"]
MOST_WORKERS = 16
"""Workers where the file does not say how many: on a large machine mail is seldom alone, and each asks every server."""

IDLE_DEFAULT = {Protocol.IMAP: 1860.0, Protocol.POP3: 600.0}


class Listener(Settings):
    """Where mail clients connect."""

    name: Name = Field(description="Its name in logs, metrics and routes.")
    protocol: Protocol = Field(description="What clients speak here.")
    bind: Endpoints = Field(description='Where it listens: "0.0.0.0:993", "[::]:993", "unix:/run/mailgate/imap.sock".')
    tls: ListenerTls = Field(
        default_factory=lambda data: tls_by_port(data.get("bind", ())) or "implicit",
        json_schema_extra=shown(TLS_BY_PORT),
        description="implicit: TLS from the first byte. starttls: in clear until STARTTLS or STLS, "
        "which is needed before login. starttls-optional: offered, not needed. off: never.",
    )
    profile: Profile | None = Field(
        default=None,
        json_schema_extra=shown("as in [tls]"),
        description="The TLS profile of this listener alone, so that one old device does not lower the rest.",
    )
    inspect: Literal["commands", "login"] = Field(
        default="commands",
        description="commands: every command is framed, counted and filtered. "
        "login: after login bytes are only copied.",
    )
    allow_plaintext_auth: Flag = Field(
        default_factory=lambda data: (
            data.get("tls") in ("off", "starttls-optional")
            and all(endpoint.loopback for endpoint in data.get("bind", ()))
        ),
        json_schema_extra=shown("true when every bind is loopback or a Unix socket, else false"),
        description="Whether passwords are taken without TLS (only with tls = off or starttls-optional).",
    )
    trusted: Networks = Field(
        default=(),
        max_length=1000,
        description="Networks of proxies and webmail whose word is believed: the x-* pairs of their "
        "IMAP ID command reach the upstream.",
    )
    idle_timeout: Seconds = Field(
        default_factory=lambda data: IDLE_DEFAULT[data.get("protocol", Protocol.IMAP)],
        le=604800.0,
        json_schema_extra=shown("31m for imap, 10m for pop3"),
        description="How long a session may be silent after login; at least 30m for imap, 10m for pop3.",
    )
    login_timeout: Seconds = Field(
        default=60.0, ge=1.0, le=3600.0, description="How long a client may take until it is logged in."
    )
    handshake_timeout: Seconds = Field(
        default=10.0, ge=0.1, le=300.0, description="How long a TLS handshake with a client may take."
    )

    @property
    def plaintext_allowed(self) -> bool:
        """Whether a password may come without TLS."""
        return self.allow_plaintext_auth and self.tls in ("off", "starttls-optional")

    def trusts(self, address: str) -> bool:
        """Whether a client's address is in one of the trusted networks; a Unix socket's never is."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.trusted)

    @property
    def follows_port(self) -> bool:
        """Whether the ports alone say how TLS is used."""
        return tls_by_port(self.bind) is not None


class Server(Settings):
    """One mail server of a pool; a string is short for { address = … }."""

    address: Endpoint = Field(description='"host:port", "[address]:port" or "unix:/path".')
    name: str = Field(
        default_factory=lambda data: str(data.get("address", "")),
        json_schema_extra=shown("the address"),
        min_length=1,
        max_length=128,
        pattern=r"^[ -~]*$",
        description="Its name in logs and metrics.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_address(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError('a server is "host:port" or { address = "host:port", name = "…" }')  # noqa: TRY004
        return {"address": value} if isinstance(value, str | Endpoint) else value


ServerEntry = Annotated[Server, BeforeValidator(lambda value: value, json_schema_input_type=Endpoint | Server)]
ServerEntries = Annotated[
    tuple[ServerEntry, ...],
    BeforeValidator(
        one_or_many, json_schema_input_type=Endpoint | Annotated[tuple[ServerEntry, ...], Field(min_length=1)]
    ),
]
UpstreamTlsEntry = Annotated[
    UpstreamTls, BeforeValidator(lambda value: value, json_schema_input_type=UpstreamTlsMode | UpstreamTls)
]


class Pool(Settings):
    """Servers that hold the same mail. Its name is its key: ``[pool.NAME]``."""

    name: str = Field(default="", exclude=True, json_schema_extra={"x-internal": True})
    protocol: Protocol = Field(description="What the servers speak.")
    servers: ServerEntries = Field(
        min_length=1, max_length=1000, description="The servers: addresses, or { address, name } each."
    )
    tls: UpstreamTlsEntry = Field(
        default_factory=UpstreamTls,
        json_schema_extra=shown("implicit or starttls by port, the system's certificate authorities"),
        description="A table, or the mode alone.",
    )
    balance: Literal["round-robin"] = Field(
        default="round-robin",
        description="round-robin: each login goes to the next server, those that were lately unreachable come last.",
    )
    allow_plaintext_auth: Flag = Field(
        default=False,
        description="Whether passwords may go to servers without TLS (tls = off). "
        "Loopback addresses and Unix sockets need no permission.",
    )
    connect_timeout: Seconds = Field(
        default=5.0, ge=0.1, le=300.0, description="How long one server may take to accept a connection."
    )
    greeting_timeout: Seconds = Field(
        default=10.0, ge=0.1, le=300.0, description="How long its TLS handshake and greeting may take."
    )
    login_timeout: Seconds = Field(
        default=30.0, ge=0.1, le=300.0, description="How long a login may take, over all servers tried."
    )

    @model_validator(mode="after")
    def _mode_by_port(self) -> Pool:
        if "mode" not in self.tls.model_fields_set:
            mode = tls_by_port(tuple(server.address for server in self.servers))
            if mode is not None:
                tls = self.tls.model_copy(update={"mode": mode})
                # The model is frozen for everybody else; here it is still being made.
                self.__dict__["tls"] = tls
        return self


class Match(Settings):
    """What a login must be for a route to take it: every key that is given must hold."""

    user: Texts = Field(default=(), description="User names, whole and without regard to case.")
    domain: Texts = Field(
        default=(),
        description='What stands behind the last @ of the user name; "*.example.org" '
        "stands for every name below example.org.",
    )
    regex: str | None = Field(
        default=None,
        max_length=1000,
        description="A regular expression that the whole user name must match, its domain in lower case.",
    )
    listener: Texts = Field(default=(), description="Names of listeners.")
    protocol: Protocol | None = Field(default=None, description="What the client speaks.")

    @property
    def catches_all_users(self) -> bool:
        """Whether no condition is on the user name."""
        return not (self.user or self.domain or self.regex is not None)

    @field_validator("user")
    @classmethod
    def _users(cls, users: tuple[str, ...]) -> tuple[str, ...]:
        if any(not user or "*" in user for user in users):
            raise ValueError("a user is a whole name; for patterns there are domain and regex")
        return users

    @field_validator("domain")
    @classmethod
    def _domains(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host_pattern(domain) for domain in domains)

    @field_validator("regex")
    @classmethod
    def _regex(cls, regex: str | None) -> str | None:
        if regex is not None:
            Pattern(regex)
        return regex


class RouteRule(Settings):
    """Where logins go. The first route whose match holds wins; one without match takes everyone."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\[\]-]*$", max_length=64)] = Field(
        default="",
        validate_default=False,
        json_schema_extra=shown("route[0], route[1] …"),
        description="Its name in logs and in `mailgate route`.",
    )
    match: Match = Field(default_factory=Match, json_schema_extra=shown("everyone"), description="Whom it takes.")
    pool: str = Field(description="The pool that the logins go to.")
    pop3: Pop3Policy | None = Field(
        default=None,
        json_schema_extra=shown("as in [pop3]"),
        description="How its POP3 clients are served where the pool speaks imap.",
    )


class LimitSettings(Settings):
    """What one client, one address and all together may do."""

    sessions: Count = Field(default=20_000, description="Connections in all, over all workers.")
    sessions_per_address: Count = Field(
        default=100, description="Connections from one address (IPv6: one /64 network)."
    )
    half_open: Count = Field(
        default=2_000, description="Connections before login in all; over it the oldest is closed."
    )
    half_open_per_address: Count = Field(
        default=50, description="Connections before login from one address; over it the oldest is closed."
    )
    failures_per_session: Count = Field(
        default=3, le=100, description="Failed logins, after which a connection is closed."
    )
    failure_delay: Seconds = Field(
        default=2.0,
        ge=0.0,
        le=300.0,
        description="How long the answer to a connection's first failed login waits; doubles with each one.",
    )
    failure_delay_max: Seconds = Field(default=15.0, ge=0.0, le=300.0, description="The longest such delay.")
    bad_commands: Count = Field(
        default=10, le=1000, description="Bad commands before login, after which a connection is closed."
    )
    line: Size = Field(
        default=65_536,
        ge=8_192,
        le=1 << 20,
        description="Bytes of a line before login; a legal IMAP ID command has up to 31,841.",
    )
    literal: Size = Field(default=16_384, ge=1_024, le=1 << 20, description="Bytes of a literal before login (IMAP).")
    total: Size = Field(
        default=262_144,
        ge=16_384,
        le=1 << 24,
        description="Bytes that a client may send in all before it is logged in.",
    )


class Metrics(Settings):
    """The HTTP listener for /metrics, /healthz and /readyz."""

    bind: Endpoint = Field(description="Where it listens; everyone who can connect can read.")


class Admin(Settings):
    """The Unix socket that `mailgate trace`, `reload`, `upgrade`, `sessions` and `kick` talk to."""

    socket: FilePath = Field(description="Its path; it is made with mode 0600.")


class Log(Settings):
    """What is logged to standard error, and how."""

    format: Literal["json", "text"] | None = Field(
        default=None,
        json_schema_extra=shown("text on a terminal, else json"),
        description="json: one object per line. text: for people.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important kind of line that is still logged."
    )


class TraceSettings(Settings):
    """Protocol traces of single users or addresses, for finding out what a client does."""

    directory: FilePath | None = Field(
        default=None,
        json_schema_extra=shown("no traces"),
        description="Where traces are written; made with mode 0700, files with mode 0600.",
    )


class Shutdown(Settings):
    """How the gateway stops."""

    drain: Seconds = Field(
        default=10.0,
        ge=1.0,
        le=86400.0,
        description="How long sessions may go on after SIGTERM. Idle ones are told to go over the first half of it, "
        "the others when their commands are answered; POP3 sessions may reach QUIT.",
    )
    upgrade_drain: Seconds = Field(
        default=3600.0,
        ge=1.0,
        le=604800.0,
        description="How long sessions may go on after an upgrade in the workers that had them before. Idle ones are "
        "told to go over the first half of it; what is left at its end drains as after SIGTERM.",
    )


def _machine_name() -> str:
    name = platform.node()
    return name if is_host_name(name) else "localhost"


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


class Config(Settings):
    """The tables of the file, and what belongs to none of them.

    :func:`mailgate.config.parse` makes one and checks what lies between its parts as well.
    """

    hostname: str = Field(
        default_factory=_machine_name,
        json_schema_extra=shown("the machine's"),
        description="What mailgate calls itself in greetings.",
    )
    workers: Annotated[int, Field(strict=True, ge=1, le=64)] = Field(
        default_factory=_cores,
        json_schema_extra=shown(f"one for each core that it may use, at most {MOST_WORKERS}"),
        description="Processes that serve clients side by side; more than the machine has cores gain nothing.",
    )
    listener: tuple[Listener, ...] = Field(min_length=1, max_length=1000, description="Where mail clients connect.")
    tls: Tls | None = Field(default=None, description="The certificate; needed by every listener with TLS.")
    pool: dict[Name, Pool] = Field(min_length=1, description="The mail servers behind the gateway, by name.")
    route: tuple[RouteRule, ...] = Field(
        default=(),
        max_length=10_000,
        json_schema_extra=shown("with a single pool: everyone to it"),
        description="Which login goes where.",
    )
    pop3: Pop3Settings = Field(default_factory=Pop3Settings, description="POP3 clients on IMAP servers.")
    limits: LimitSettings = Field(default_factory=LimitSettings, description="Limits.")
    metrics: Metrics | None = Field(default=None, description="Metrics and health over HTTP.")
    admin: Admin | None = Field(default=None, description="Administration over a Unix socket.")
    log: Log = Field(default_factory=Log, description="Logging.")
    trace: TraceSettings = Field(default_factory=TraceSettings, description="Protocol traces.")
    shutdown: Shutdown = Field(default_factory=Shutdown, description="Stopping.")

    @field_validator("hostname")
    @classmethod
    def _hostname(cls, hostname: str) -> str:
        if not is_host_name(hostname):
            raise ValueError("not a host name")
        return hostname

    @model_validator(mode="after")
    def _names_from_keys(self) -> Config:
        # The model is frozen for everybody else; here it is still being made.
        self.__dict__["pool"] = {name: pool.model_copy(update={"name": name}) for name, pool in self.pool.items()}
        rules = self.route
        if not rules and len(self.pool) == 1:
            rules = (RouteRule(name="default", pool=next(iter(self.pool))),)
        self.__dict__["route"] = tuple(
            rule.model_copy(
                update={
                    "name": rule.name or f"route[{index}]",
                    "pop3": None if rule.pop3 is None else merged(self.pop3, rule.pop3),
                }
            )
            for index, rule in enumerate(rules)
        )
        return self

    def translates(self, listener: Listener, rule: RouteRule) -> bool:
        """Whether POP3 clients of this listener are served from IMAP servers by this route."""
        return listener.protocol is Protocol.POP3 and self.pool[rule.pool].protocol is Protocol.IMAP

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but should make an administrator think, one sentence each."""
        from mailgate.config.checks import warnings

        return warnings(self)

    def masked_toml(self) -> str:
        """Return this configuration as TOML with every default written out; it holds no secrets."""
        from mailgate.config.show import to_toml

        return to_toml(self)


__all__ = [
    "Admin",
    "Config",
    "Endpoint",
    "KeyFile",
    "KeyPair",
    "LimitSettings",
    "Listener",
    "ListenerTls",
    "Log",
    "Match",
    "Metrics",
    "Pool",
    "Pop3Policy",
    "Pop3Settings",
    "Pop3Store",
    "Profile",
    "RouteRule",
    "Server",
    "Shutdown",
    "SniCertificate",
    "Tls",
    "TraceSettings",
    "UpstreamTls",
    "UpstreamTlsMode",
]

"""The configuration: a TOML text becomes frozen values, or a list of everything wrong with it.

:func:`parse` is pure unless it is asked to look at files; :func:`load` reads one and also looks whether
those that it names are there. Relative paths count from the configuration's own folder.
"""

from mailgate.config.models import (
    Admin,
    Config,
    KeyPair,
    LimitSettings,
    Listener,
    ListenerTls,
    Log,
    Match,
    Metrics,
    Pool,
    Profile,
    RouteRule,
    Server,
    Shutdown,
    SniCertificate,
    Tls,
    TraceSettings,
    UpstreamTls,
    UpstreamTlsMode,
)
from mailgate.config.pattern import Pattern
from mailgate.config.pop3 import Pop3Policy, Pop3Settings, Pop3Store
from mailgate.config.read import load, parse
from mailgate.config.show import json_schema, reference
from mailgate.config.values import Endpoint, KeyFile, Network, SecretSource

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
    "Network",
    "Pattern",
    "Pool",
    "Pop3Policy",
    "Pop3Settings",
    "Pop3Store",
    "Profile",
    "RouteRule",
    "SecretSource",
    "Server",
    "Shutdown",
    "SniCertificate",
    "Tls",
    "TraceSettings",
    "UpstreamTls",
    "UpstreamTlsMode",
    "json_schema",
    "load",
    "parse",
    "reference",
]

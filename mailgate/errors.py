"""The exceptions of mailgate: whose fault it is decides which one is raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mailgate.model import Failure


class MailgateError(Exception):
    """The root of every exception that mailgate raises on purpose."""


class RemoteProtocolError(MailgateError):
    """The peer broke a protocol's rules.

    ``str()`` names the rule without quoting the peer's bytes, since those may hold a password.
    """


class UpstreamFailed(MailgateError):
    """A login could not be taken to an upstream.

    ``state`` tells how far it came, as ``sent/received`` (``"login/banner"``: the login was sent,
    the banner was the last thing heard). ``detail`` is for the log: no secrets, no client bytes.
    """

    def __init__(self, failure: Failure, state: str, detail: str, server: str = "") -> None:
        super().__init__(f"{failure} (state={state}): {detail}")
        self.failure = failure
        self.state = state
        self.detail = detail
        self.server = server


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong in a configuration.

    ``path`` is the key in TOML's dotted form (``listener[0].tls``), ``value`` what stands there
    (secrets masked), ``message`` what would be right.
    """

    path: str
    value: str
    message: str

    def __str__(self) -> str:
        shown = f" = {self.value}" if self.value else ""
        return f"{self.path}{shown}: {self.message}"


class ConfigError(MailgateError):
    """A configuration cannot be used; ``problems`` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

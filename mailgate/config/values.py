"""The small values that a configuration is made of: endpoints, durations, sizes, paths, secrets.

Each of them is written by people, so each says what would be right when it is wrong. Nothing here
opens a file except :meth:`SecretSource.read`, which whoever needs the secret calls when it is
needed: a parsed configuration holds no secret.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from mailgate.model import Secret

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|m|h|d)")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*(B|KiB|MiB|GiB)?")
_SIZE_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# sun_path of unix(7) holds 108 bytes, the last of which ends the name.
_UNIX_PATH_BYTES: Final = 107


class Settings(BaseModel):
    """The root of all models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def is_host_name(text: str) -> bool:
    """Whether ``text`` is a DNS name in ASCII (RFC 1123 §2.1; underscores are tolerated)."""
    name = text.removesuffix(".")
    if not name or len(name) > 253:
        return False
    return all(_HOST_LABEL.fullmatch(label) for label in name.split("."))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where something listens or is reached: a host and a port, or the path of a Unix socket.

    ``host`` is an address without brackets or a DNS name; ``path`` is set only for Unix sockets,
    whose ``host`` is empty and whose ``port`` is 0. ``str()`` gives the form that a configuration
    holds.
    """

    host: str
    port: int
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``host:port``, ``[address]:port`` or ``unix:/path``; raise ValueError otherwise."""
        if text.startswith("unix:"):
            return cls._unix(text.removeprefix("unix:"))
        if text.startswith("["):
            host, bracket, port = text[1:].partition("]:")
            if not bracket:
                raise ValueError('an IPv6 endpoint is written "[address]:port"')
            try:
                host = str(ipaddress.IPv6Address(host))
            except ValueError:
                raise ValueError("not an IPv6 address between the brackets") from None
        else:
            host, colon, port = text.rpartition(":")
            if not colon:
                raise ValueError('the port is missing: write "host:port" or "unix:/path"')
            if ":" in host:
                raise ValueError('an IPv6 address stands in brackets: "[address]:port"')
            host = _checked_host(host)
        # isdecimal alone would let digits of other scripts in.
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
            raise ValueError("the port must be a number from 1 to 65535")
        return cls(host, int(port))

    @classmethod
    def _unix(cls, text: str) -> Endpoint:
        if not text.startswith("/"):
            raise ValueError('a Unix socket is written "unix:/absolute/path"')
        if "\0" in text or len(os.fsencode(text)) > _UNIX_PATH_BYTES:
            raise ValueError(f"the path of a Unix socket has at most {_UNIX_PATH_BYTES} bytes")
        return cls("", 0, Path(text))

    @property
    def loopback(self) -> bool:
        """Whether what is sent here cannot leave the machine."""
        if self.path is not None or self.host.lower().rstrip(".") == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: object) -> Endpoint:
            if isinstance(value, Endpoint):
                return value
            if not isinstance(value, str):
                raise ValueError('an endpoint is a string: "host:port" or "unix:/path"')  # noqa: TRY004
            return cls.parse(value)

        return core_schema.no_info_plain_validator_function(validate, serialization=core_schema.to_string_ser_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": "string",
            "title": "Endpoint",
            "description": "host:port, [IPv6 address]:port or unix:/path",
            "pattern": r"^(unix:/.+|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|[^:\[\]]+:[0-9]{1,5})$",
        }


def _checked_host(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    # A name of digits and dots alone is a mistyped address, which a resolver would be asked in vain.
    if not is_host_name(host) or host.replace(".", "").isdigit():
        every = '; to listen on every address, write "0.0.0.0" or "[::]"' if host in ("", "*") else ""
        raise ValueError(f"not an address and not a host name{every}")
    return host.lower()


def parse_duration(value: object) -> float:
    """Return seconds from a number or from text such as ``"31m"``, ``"1h30m"`` or ``"500ms"``."""
    wrong = 'a duration is a number of seconds or text such as "30s", "31m" or "1h30m"'
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(wrong)  # noqa: TRY004  (pydantic reports ValueError, not TypeError)
    if isinstance(value, str):
        parts = _DURATION_PART.findall(value)
        if not parts or _DURATION_PART.sub("", value).strip():
            raise ValueError(wrong)
        value = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if not math.isfinite(value):
        raise ValueError(wrong)
    return float(value)


def format_duration(seconds: float) -> str:
    """Return the shortest text that :func:`parse_duration` reads back as ``seconds``."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _DURATION_UNITS[unit] == 0:
            return f"{int(seconds / _DURATION_UNITS[unit])}{unit}"
    # By way of Decimal because neither repr nor "g" keeps clear of exponents.
    return f"{Decimal(repr(seconds)):f}".removesuffix(".0") + "s"


def parse_size(value: object) -> int:
    """Return bytes from a whole number or from text such as ``"64 KiB"``."""
    wrong = 'a size is a number of bytes or text such as "64 KiB"'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(wrong)  # noqa: TRY004
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(wrong)
    return int(match[1]) * _SIZE_UNITS[match[2] or "B"]


def format_size(size: int) -> str:
    """Return the shortest text that :func:`parse_size` reads back as ``size``."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]} {unit}"
    return f"{size} B"


def reads(info: FieldInfo, reader: object) -> bool:
    """Whether an option is read by ``reader``, such as :func:`parse_size`."""
    return any(isinstance(item, BeforeValidator) and item.func is reader for item in info.metadata)


def _resolve(path: Path, info: ValidationInfo) -> Path:
    if "\0" in str(path) or str(path) == ".":
        raise ValueError("not the path of a file")
    base = (info.context or {}).get("base")
    return base / path if isinstance(base, Path) else path


def one_or_many(value: object) -> object:
    """Return a list of what stands alone; a table alone is left, since it is more likely a mistake."""
    return value if isinstance(value, list | tuple | dict) else [value]


def _network(value: object) -> object:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    if isinstance(value, str):
        try:
            return ipaddress.ip_network(value)
        except ValueError as error:
            hint = "; the part behind the prefix must be zero" if "host bits" in str(error) else ""
            raise ValueError(f'a network is written "10.0.0.0/8" or "2001:db8::/32"{hint}') from None
    raise ValueError('a network is a string such as "10.0.0.0/8"')


Seconds = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=float | str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number"}, {"type": "string"}],
            "title": "Duration",
            "description": 'seconds, or text such as "500ms", "30s", "31m", "1h30m"',
        }
    ),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size, json_schema_input_type=int | str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "title": "Size",
            "description": 'bytes, or text such as "64 KiB"',
        }
    ),
]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
FilePath = Annotated[Path, AfterValidator(_resolve)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
IpNetwork = Annotated[
    Network,
    BeforeValidator(_network),
    WithJsonSchema({"type": "string", "title": "Network", "description": '"10.0.0.0/8" or "2001:db8::/32"'}),
]
Networks = Annotated[
    tuple[IpNetwork, ...],
    BeforeValidator(one_or_many, json_schema_input_type=IpNetwork | tuple[IpNetwork, ...]),
]
Endpoints = Annotated[
    tuple[Endpoint, ...],
    Field(min_length=1),
    BeforeValidator(
        one_or_many, json_schema_input_type=Endpoint | Annotated[tuple[Endpoint, ...], Field(min_length=1)]
    ),
]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(one_or_many, json_schema_input_type=str | tuple[str, ...]),
]


class SecretSource(Settings):
    """Where a secret is read from: a file or an environment variable, never the configuration."""

    file: FilePath | None = Field(
        default=None, description="A file that holds the secret; one line end at its end is dropped."
    )
    env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_literal(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(  # noqa: TRY004
                'a secret does not stand in the configuration: write { file = "/path" } or { env = "VARIABLE" }'
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> SecretSource:
        if (self.file is None) == (self.env is None):
            raise ValueError('give either file = "/path" or env = "VARIABLE"')
        return self

    def read(self, environ: Mapping[str, str] | None = None) -> Secret:
        """Return the secret as it stands now.

        Raises OSError when the file cannot be read and KeyError when the variable is not set.
        ``environ`` is the process's own environment by default.
        """
        if self.file is not None:
            content = self.file.read_bytes()
            return Secret(content.removesuffix(b"\n").removesuffix(b"\r"))
        assert self.env is not None
        return Secret(os.fsencode((os.environ if environ is None else environ)[self.env]))


class KeyFile(Settings):
    """A private key in PEM form, and the password that opens it when it is encrypted."""

    file: FilePath = Field(description="The private key, PEM.")
    password: SecretSource | None = Field(
        default=None, description="Where the password of an encrypted key is read from."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str | Path) else value


Key = Annotated[KeyFile, BeforeValidator(lambda value: value, json_schema_input_type=Path | KeyFile)]

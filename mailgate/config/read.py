"""From TOML text to a :class:`Config`, or to everything that is wrong with it at once."""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mailgate.config.checks import Draft, key, problems, suggestion, text
from mailgate.config.models import (
    Admin,
    Config,
    LimitSettings,
    Listener,
    Metrics,
    Pool,
    Pop3Settings,
    Pop3Store,
    RouteRule,
    Server,
    TraceSettings,
)
from mailgate.config.show import headings
from mailgate.config.values import SecretSource, Settings, format_duration, format_size, parse_size, reads
from mailgate.errors import ConfigError, ConfigProblem

# Values of such keys, and of the tables they hold, are not shown whatever else is wrong with them.
_SECRET_KEY: Final = re.compile(r"pass|secret|token|credential|api_?key|private", re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(//[^/@:\s]*:)[^/@\s]*@")
_SHOWN_LENGTH: Final = 60
_MASK: Final = "…"
_TYPES: Final = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be a string",
    "path_type": "must be a string: the path of a file",
    "tuple_type": "must be an array",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}

_PATTERNS: Final[dict[type[Settings] | None, str]] = {
    SecretSource: "must be the name of an environment variable",
    Server: "must be printable ASCII",
}

Location = tuple[int | str, ...]


def parse(source: str, *, base: Path, environ: Mapping[str, str], files: bool = False) -> Config:
    """Return the configuration that the TOML text ``source`` describes.

    Relative paths count from ``base``. ``environ`` must hold the variables that secrets are read
    from. With ``files`` every file that is named must be readable; else none is looked at. Raises
    ConfigError with all problems.
    """
    parts, found, config = _examine(source, base, environ)
    if files:
        for location, part in parts.items():
            found += _missing_files(_path(location), part)
    if config is None or found:
        raise ConfigError(found)
    return config


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Return the configuration in the file ``path``, whose folder is the base of relative paths.

    Beyond what :func:`parse` checks, every file that the configuration names must be readable.
    Raises ConfigError with all problems.
    """
    try:
        source = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError([ConfigProblem(str(path), "", _reason(error))]) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([ConfigProblem(f"line {line}", "", "a TOML file must be UTF-8")]) from None
    return parse(source, base=path.absolute().parent, environ=environ, files=True)


def _examine(
    source: str, base: Path, environ: Mapping[str, str]
) -> tuple[dict[Location, Settings], list[ConfigProblem], Config | None]:
    """Return the parts that are valid in themselves, the problems, and the whole if it is valid."""
    try:
        raw = tomllib.loads(source)
    except RecursionError:
        raise ConfigError([ConfigProblem("file", "", "is nested too deeply")]) from None
    except ValueError as error:
        raise ConfigError([_syntax_problem(error)]) from None
    found: list[ConfigProblem] = []
    pools = raw.get("pool")
    for name, pool in pools.items() if isinstance(pools, dict) else ():
        if isinstance(pool, dict) and "name" in pool:
            message = f"unknown key; a pool's name is its key, here {key(name)}"
            found.append(ConfigProblem(f"pool.{key(name)}.name", "", message))
    config: Config | None = None
    try:
        config = Config.model_validate(raw, context={"base": base})
    except ValidationError as error:
        found += _describe(error, raw)
    parts = _valid_parts(raw, base)
    found += problems(_draft(raw, parts))
    for location, part in parts.items():
        found += _missing_variables(_path(location), part, environ)
    return parts, found, config


def _syntax_problem(error: ValueError) -> ConfigProblem:
    match = re.search(r"\(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
    message = str(error)[: match.start()].strip() if match else "holds a value that TOML does not know"
    where = f"line {match[1]}, column {match[2]}" if match and match[1] else "end of file" if match else "file"
    return ConfigProblem(where, "", f"not valid TOML: {message[:1].lower()}{message[1:]}")


def _valid_parts(raw: Mapping[str, Any], base: Path) -> dict[Location, Settings]:
    """Return the tables that are valid in themselves, by their place."""
    candidates: list[tuple[Location, Any]] = []
    for name, value in raw.items():
        if name in ("listener", "route") and isinstance(value, list):
            candidates += [((name, index), item) for index, item in enumerate(value)]
        elif name == "pool" and isinstance(value, dict):
            candidates += [((name, pool), item) for pool, item in value.items()]
        else:
            candidates.append(((name,), value))
    candidates += [((name,), {}) for name in ("limits", "pop3", "trace") if name not in raw]
    parts: dict[Location, Settings] = {}
    for location, value in candidates:
        model = _model_at(location)
        if model is None:
            continue
        try:
            parts[location] = model.model_validate(value, context={"base": base})
        except ValidationError:
            # Already told: the same table is a part of the whole that was validated before.
            continue
    return parts


def _draft(raw: Mapping[str, Any], parts: Mapping[Location, Settings]) -> Draft:
    draft = Draft(has_tls="tls" in raw, has_admin="admin" in raw)
    for location, part in parts.items():
        place = location[-1]
        match part:
            case Listener() if isinstance(place, int):
                draft.listeners[place] = part
            case RouteRule() if isinstance(place, int):
                draft.routes[place] = part
            case Pool() if isinstance(place, str):
                draft.pools[place] = part
            case LimitSettings():
                draft.limits = part
            case Metrics():
                draft.metrics = part
            case Pop3Settings():
                draft.pop3 = part
            case TraceSettings():
                draft.trace = part
    listeners, routes, pools = _list(raw, "listener"), _list(raw, "route"), raw.get("pool")
    for table in listeners:
        if isinstance(table, dict):
            draft.listener_names.add(str(table.get("name")))
    for index, table in enumerate(routes):
        if isinstance(table, dict) and isinstance(table.get("pool"), str):
            draft.route_pools[index] = table["pool"]
    draft.pool_names.update(pools if isinstance(pools, dict) else ())
    draft.complete = (len(listeners), len(routes)) == (len(draft.listeners), len(draft.routes))
    return draft


def _list(raw: Mapping[str, Any], name: str) -> list[Any]:
    value = raw.get(name)
    return value if isinstance(value, list) else []


def _describe(error: ValidationError, raw: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield a problem for each place that pydantic complains of, in our words."""
    messages: dict[Location, list[str]] = {}
    shown: dict[Location, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        if detail["type"] == "default_factory_not_called":
            # Only says that a default follows an option which is told of by itself.
            continue
        location = _real_location(detail, raw)
        if detail["type"] == "too_short" and _value_at(location, raw):
            # Counts only valid elements, and the invalid ones are told of by themselves.
            continue
        shown[location] = "" if detail["type"] == "missing" else _shown(location, raw)
        messages.setdefault(location, []).append(_message(detail, location, raw))
    for location, alternatives in messages.items():
        yield ConfigProblem(_path(location), shown[location], ", or ".join(dict.fromkeys(alternatives)))


def _real_location(detail: ErrorDetails, raw: Mapping[str, Any]) -> Location:
    """Return the place without what pydantic adds for the branches of a union and for keys."""
    location: list[int | str] = []
    at: Any = raw
    for part in detail["loc"]:
        inside = (isinstance(at, dict) and part in at) or (
            isinstance(at, list) and isinstance(part, int) and part < len(at)
        )
        if not inside:
            if detail["type"] == "missing":
                location.append(part)
            break
        location.append(part)
        at = at[part]
    return tuple(location)


def _message(detail: ErrorDetails, location: Location, raw: Mapping[str, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    last = str(location[-1]) if location else ""
    model = _model_at(location[:-1])
    if kind == "missing":
        info = model.model_fields.get(last) if model is not None else None
        return f"is missing. {info.description or ''}".rstrip() if info is not None else "is missing"
    if kind == "extra_forbidden":
        return _unknown_key(location)
    if kind == "value_error":
        return str(context["error"])
    if kind in ("literal_error", "enum"):
        expected = str(context["expected"]).replace("'", '"')
        value = _value_at(location, raw)
        known = re.findall(r'"([^"]*)"', expected)
        return f"must be {expected}" + (suggestion(value, known) if isinstance(value, str) else "")
    if kind == "string_pattern_mismatch":
        if last == "login_folder":
            return "must be one of + % / = # -"
        return _PATTERNS.get(model, "must start with a letter or digit; then letters, digits, - _ and .")
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = context["ge"] if kind == "greater_than_equal" else context["le"]
        is_size = model is not None and reads(model.model_fields[last], parse_size)
        shown = format_duration(bound) if isinstance(bound, float) else format_size(bound) if is_size else str(bound)
        return f"must be at {'least' if kind == 'greater_than_equal' else 'most'} {shown}"
    if kind == "tuple_type" and isinstance(_value_at(location, raw), dict) and _model_at((*location, 0)) is not None:
        return f"must be an array of tables: write [[{_path(location)}]]"
    if kind == "dict_type" and isinstance(_value_at(location, raw), list):
        return f"must be tables with a name each: write [{_path(location)}.NAME]"
    if kind in ("too_long", "string_too_long"):
        return f"is too long: at most {context['max_length']}"
    return _TYPES.get(kind, detail["msg"][:1].lower() + detail["msg"][1:])


def _unknown_key(location: Location) -> str:
    word = str(location[-1])
    model = _model_at(location[:-1])
    known = _option_names(model) if model is not None else []
    hint = suggestion(word, known)
    if not hint:
        below = (found for found in headings(Config, "", is_many=False) if found[1] is not Config)
        homes = [heading for heading, table in below if word in _option_names(table)]
        # The table that is least deep is the one that most people mean.
        homes.sort(key=lambda home: (home.count("."), home.strip("[")))
        hint = f"; it belongs to {', '.join(homes)}" if homes else ""
    return f"unknown key{hint}" if hint else f"unknown key; known here: {', '.join(known)}"


def _option_names(model: type[BaseModel]) -> list[str]:
    return [name for name, info in model.model_fields.items() if not info.exclude]


def _model_at(location: Location) -> type[Settings] | None:
    """Return the model of the table at a place of the configuration, None where there is none."""
    model: type[Settings] | None = Config
    is_element = False
    for part in location:
        if is_element:
            is_element = False
            continue
        info = model.model_fields.get(str(part)) if model is not None else None
        if info is None:
            return None
        model = _model_of(info.annotation)
        is_element = get_origin(info.annotation) in (tuple, dict)
    return model


def _model_of(annotation: Any) -> type[Settings] | None:
    """Return the model inside an annotation such as ``tuple[Listener, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    origin = get_origin(annotation)
    if origin not in (Annotated, Union, types.UnionType, tuple, dict):
        return None
    arguments = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    return next((model for model in map(_model_of, arguments) if model is not None), None)


def _path(location: Location) -> str:
    """Return a place in the dotted form of TOML's keys, ``listener[0].tls``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{key(part)}"
    return path.lstrip(".") or "file"


def _value_at(location: Location, raw: Any) -> Any:
    for part in location:
        raw = raw[part]
    return raw


def _shown(location: Location, raw: Mapping[str, Any]) -> str:
    """Return the value at a place in one short line, or a mask where a secret might stand."""
    if any(_SECRET_KEY.search(str(part)) for part in location):
        return _MASK
    value = _value_at(location, raw)
    if isinstance(value, dict | list):
        # A table's own values are shown where they are wrong; as a whole it may hold a secret.
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    shown = text(_URL_PASSWORD.sub(rf"\g<1>{_MASK}@", value)) if isinstance(value, str) else str(value)
    return shown if len(shown) <= _SHOWN_LENGTH else f"{shown[: _SHOWN_LENGTH - 1]}{_MASK}"


def _options(path: str, model: BaseModel) -> Iterator[tuple[str, BaseModel, object]]:
    """Yield every option below ``model`` with its path, the table it stands in, and its value."""
    for name in _option_names(type(model)):
        value = getattr(model, name)
        inner = f"{path}.{name}"
        yield inner, model, value
        if isinstance(value, BaseModel):
            yield from _options(inner, value)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _options(f"{inner}[{index}]", item)


def _missing_variables(path: str, part: Settings, environ: Mapping[str, str]) -> Iterator[ConfigProblem]:
    for option, _, value in _options(path, part):
        if isinstance(value, SecretSource) and value.env is not None and value.env not in environ:
            yield ConfigProblem(f"{option}.env", text(value.env), "this environment variable is not set")


def _missing_files(path: str, part: Settings) -> Iterator[ConfigProblem]:
    for option, owner, value in _options(path, part):
        if not isinstance(value, Path):
            continue
        made = isinstance(owner, Admin | Pop3Store | TraceSettings)
        try:
            if made:
                if not value.parent.is_dir():
                    yield ConfigProblem(option, text(value), f"there is no folder {value.parent}")
            else:
                with value.open("rb") as file:
                    file.read(1)
        except OSError as error:
            yield ConfigProblem(option, text(value), _reason(error))


def _reason(error: OSError) -> str:
    return f"cannot be read: {error.strerror or type(error).__name__}"

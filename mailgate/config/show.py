"""A configuration written out: as TOML with every default, as JSON schema, as reference tables."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mailgate.config.checks import key, text
from mailgate.config.models import Config, Match
from mailgate.config.values import (
    Endpoint,
    KeyFile,
    SecretSource,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    reads,
)

# Tables that read better on one line than under a heading of their own.
_INLINE: Final = (KeyFile, SecretSource, Match)


def to_toml(config: Config) -> str:
    """Return ``config`` as TOML that parses to an equal configuration.

    Every default is written out; an option without a value stands in a comment. There are no
    secrets in a configuration, only the places that they are read from.
    """
    return "\n".join(_table("", config, heading="")).strip() + "\n"


def json_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of the configuration file, for editors."""
    schema = Config.model_json_schema(mode="validation")
    schema["$defs"]["Pool"]["properties"].pop("name")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "mailgate configuration",
    }


def reference() -> dict[str, str]:
    """Return the reference of every table as Markdown, by the table's heading in TOML."""
    places: dict[type[BaseModel], list[str]] = {}
    for heading, model in headings(Config, "", is_many=False):
        places.setdefault(model, []).append(heading)
    return {", ".join(found): "\n".join(_reference_table(model)) for model, found in places.items()}


def headings(model: type[BaseModel], path: str, *, is_many: bool) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield a model and those below it, each with the heading of its table in TOML."""
    yield (f"[[{path}]]" if is_many else f"[{path}]") if path else "top level", model
    for name, info in _fields(model):
        inner = _inner_model(info.annotation)
        if inner is not None:
            origin = get_origin(info.annotation)
            inner_path = f"{path}.{name}".lstrip(".") + (".NAME" if origin is dict else "")
            yield from headings(inner, inner_path, is_many=origin is tuple)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    return ((name, info) for name, info in model.model_fields.items() if not info.exclude)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) not in (Annotated, Union, types.UnionType, tuple, dict):
        return None
    return next((model for model in map(_inner_model, get_args(annotation)) if model is not None), None)


def _reference_table(model: type[BaseModel]) -> Iterator[str]:
    yield (model.__doc__ or "").splitlines()[0]
    yield ""
    yield "| Option | Value | Default | |"
    yield "|---|---|---|---|"
    for name, info in _fields(model):
        cells = (f"`{name}`", _kind(info), _default(info), info.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(info: FieldInfo) -> str:
    """Return what an option's value is, in words."""
    if reads(info, parse_duration):
        return "duration"
    if reads(info, parse_size):
        return "size"
    for item in info.metadata:
        if isinstance(item, BeforeValidator) and item.json_schema_input_type is not PydanticUndefined:
            return _annotation_words(item.json_schema_input_type)
    return _annotation_words(info.annotation)


def _annotation_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for item in arguments[1:]:
            if isinstance(item, BeforeValidator) and item.json_schema_input_type is not PydanticUndefined:
                return _annotation_words(item.json_schema_input_type)
        return _annotation_words(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and len(arguments) == 2:
            return _annotation_words(arguments[0])
        words = [_annotation_words(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if origin is tuple:
        return f"list of {_annotation_words(arguments[0])}"
    if origin is dict:
        return "tables by name"
    if hasattr(annotation, "__members__"):
        return ", ".join(f"`{member.value}`" for member in annotation)
    named = {bool: "true, false", int: "number", str: "text", Path: "file", Endpoint: "endpoint"}
    if annotation in named:
        return named[annotation]
    return "table" if issubclass(annotation, BaseModel) else "network"


def _default(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    if isinstance(extra, dict) and "x-default" in extra:
        return str(extra["x-default"])
    if info.is_required():
        return "required"
    if info.default_factory is not None:
        return "see the table"
    if info.default is None or info.default is PydanticUndefined:
        return "none"
    return f"`{_value(info.default, info)}`" if info.default != () else "none"


def _table(path: str, model: BaseModel, heading: str) -> Iterator[str]:
    """Yield the lines of a table: its own options first, then the tables inside it."""
    if heading:
        yield ""
        yield heading
    inner: list[tuple[str, BaseModel, str]] = []
    for name, info in _fields(type(model)):
        value = getattr(model, name)
        inner_path = f"{path}.{name}".lstrip(".")
        if isinstance(value, BaseModel) and not isinstance(value, _INLINE):
            inner.append((inner_path, value, f"[{inner_path}]"))
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel) and name != "servers":
            inner += [(inner_path, item, f"[[{inner_path}]]") for item in value]
        elif isinstance(value, dict):
            for item_name, item in value.items():
                item_path = f"{inner_path}.{key(item_name)}"
                inner.append((item_path, item, f"[{item_path}]"))
        elif value is None:
            yield f"# {name}: {_default(info)}"
        else:
            yield f"{name} = {_value(value, info)}"
    for inner_path, item, inner_heading in inner:
        yield from _table(inner_path, item, inner_heading)


def _value(value: object, info: FieldInfo) -> str:
    """Return one value in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return text(format_duration(value))
    if isinstance(value, int):
        return text(format_size(value)) if reads(info, parse_size) else str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item, info) for item in value) + "]"
    if isinstance(value, BaseModel):
        pairs = [(name, getattr(value, name), inner) for name, inner in _fields(type(value))]
        body = ", ".join(f"{name} = {_value(item, inner)}" for name, item, inner in pairs if item not in (None, ()))
        return f"{{ {body} }}" if body else "{}"
    return text(value)

"""Configurations written out: the result reads back, and the documents tell the truth."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.config import Config, json_schema, parse, reference
from tests.config.samples import BASE, SMALLEST, read

DOCS = Path(__file__).parents[2] / "docs"
SAMPLE = DOCS.joinpath("mailgate.toml").read_text()
ENVIRON = {"NET_KEY_PASSWORD": "canary-51c2"}


def test_a_printed_configuration_reads_back() -> None:
    for source in (SMALLEST, SAMPLE):
        config = read(source, ENVIRON)
        assert read(config.masked_toml(), ENVIRON) == config
        assert read(config.masked_toml(), ENVIRON).masked_toml() == config.masked_toml()


def test_a_printed_configuration_holds_every_option_and_no_secret() -> None:
    printed = read(SAMPLE, ENVIRON).masked_toml()
    assert "canary" not in printed
    for model in (
        Config,
        *(type(part) for part in (read(SAMPLE, ENVIRON).listener[0], read(SAMPLE, ENVIRON).limits)),
    ):
        for name, info in model.model_fields.items():
            if not info.exclude:
                assert re.search(rf"(^|# |\[){name}\b", printed, re.MULTILINE), name
    assert "# profile: as in [tls]" in printed
    assert 'idle_timeout = "31m"' in printed
    assert 'line = "64 KiB"' in printed


@given(st.text(min_size=1, max_size=20), st.floats(1800, 604800).map(lambda seconds: round(seconds, 2)))
def test_any_text_and_time_reads_back(user: str, seconds: float) -> None:
    config = read(SMALLEST)
    rule = config.route[0].model_copy(
        update={"match": config.route[0].match.model_copy(update={"user": (user.replace("*", "-"),)})}
    )
    listener = config.listener[0].model_copy(update={"idle_timeout": seconds})
    config = config.model_copy(update={"route": (rule,), "listener": (listener,)})
    try:
        printed = config.masked_toml().encode().decode()
    except UnicodeEncodeError:
        return
    assert parse(printed, base=BASE, environ={}) == config


def test_the_sample_is_valid_and_its_options_are_known() -> None:
    config = read(SAMPLE, ENVIRON)
    assert [listener.name for listener in config.listener] == ["imaps", "imap", "pop3s", "printers"]
    assert [warning.split(":")[0] for warning in config.warnings] == ['listener[3] "printers"']


def test_the_reference_holds_the_table_of_every_model() -> None:
    page = DOCS.joinpath("configuration.md").read_text()
    for heading, table in reference().items():
        title = "Top level" if heading == "top level" else "`" + heading.replace(", ", "`, `") + "`"
        assert f"### {title}\n\n{table}\n" in page, (
            f"docs/configuration.md is not what the models say of {heading}: "
            "put the output of `mailgate schema --reference` there"
        )
    assert page.count("\n### ") == len(reference())


def test_every_option_has_a_description() -> None:
    for heading, table in reference().items():
        for row in table.splitlines()[4:]:
            assert len(row.replace("\\|", "").split("|")) == 6, (heading, row)
            assert row.split("|")[-2].strip(), (heading, row)


def test_the_examples_in_the_reference_are_valid() -> None:
    page = DOCS.joinpath("configuration.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert examples
    for example in examples:
        assert read(example).warnings == ()


def test_the_schema_is_json_and_names_what_the_parser_knows() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    assert "name" not in schema["$defs"]["Pool"]["properties"]
    assert {"type": "string"}.items() <= schema["$defs"]["Endpoint"].items() if "Endpoint" in schema["$defs"] else True


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"hostname": 3}, False),
        ({"hostnme": "a"}, False),
        ({"metrics": {"bind": "localhost"}}, False),
        ({"metrics": {"bind": "localhost:1"}}, True),
        ({"limits": {"line": "64 KiB"}}, True),
        ({"limits": {"line": []}}, False),
        ({"limits": {"failure_delay": "2s"}}, True),
        ({"pool": {"a": {"protocol": "imap", "servers": ["a:1"], "tls": "off"}}}, True),
        ({"pool": {"a": {"protocol": "imap", "servers": ["a:1"], "weight": 1}}}, False),
        (
            {"pool": {"a": {"protocol": "imap", "servers": [{"address": "a:1"}], "tls": {"mode": "off"}}}},
            True,
        ),
        ({"pool": {"a": {"protocol": "imap", "servers": ["a"], "tls": "off"}}}, False),
        ({"pool": {"a": {"protocol": "smtp", "servers": ["a:1"], "tls": "off"}}}, False),
        ({"pool": {"a": {"protocol": "imap", "servers": [], "tls": "off"}}}, False),
    ],
)
def test_an_editor_with_the_schema_agrees_with_the_parser(change: dict[str, Any], valid: bool) -> None:
    document = tomllib.loads(SAMPLE) | change
    assert is_valid(json_schema(), document, json_schema()) is valid


def is_valid(schema: dict[str, Any], value: object, root: dict[str, Any]) -> bool:
    """Whether ``value`` satisfies ``schema``: the part of JSON schema that ours is written in."""
    known = {"$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description"}
    known |= {"enum", "format", "items", "maxItems", "maxLength", "maximum", "minItems", "minLength"}
    known |= {"minProperties", "minimum", "pattern", "patternProperties", "properties", "propertyNames"}
    known |= {"required", "title", "type", "x-default", "x-internal"}
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return is_valid(root["$defs"][name], value, root)
    if "anyOf" in schema and not any(is_valid(branch, value, root) for branch in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    types = {"string": str, "integer": int, "number": int | float, "boolean": bool, "array": list}
    types |= {"object": dict, "null": type(None)}
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(
            is_valid(schema.get("items", {}), item, root) for item in value
        )
    if isinstance(value, dict):
        return _is_valid_object(schema, value, root)
    return True


def _is_valid_object(schema: dict[str, Any], value: dict[str, Any], root: dict[str, Any]) -> bool:
    if not set(schema.get("required", [])) <= set(value):
        return False
    for key, item in value.items():
        patterns = schema.get("patternProperties", {}).items()
        named = [inner for pattern, inner in patterns if re.search(pattern, key)]
        inner = schema.get("properties", {}).get(key, named[0] if named else schema.get("additionalProperties", True))
        if inner is False or (isinstance(inner, dict) and not is_valid(inner, item, root)):
            return False
    return True

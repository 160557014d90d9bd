from typing import Any

import pytest

from atlas_dagster.errors import ConfigError, MissingVariableError
from atlas_dagster.protocol.config import resolve, validate, variables

SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["host"],
    "properties": {
        "host": {"type": "string"},
        "port": {"type": "integer", "minimum": 1},
        "ratio": {"type": ["null", "number"]},
        "ssl": {"type": "boolean"},
        "either": {"type": ["string", "integer"]},
        "tables": {"type": "array", "items": {"type": "integer"}},
        "password": {"type": "string", "airbyte_secret": True, "pattern": "^[a-z]+$"},
        "mode": {"type": "string", "enum": ["fast", "slow"]},
        "login": {
            "type": "object",
            "oneOf": [
                {
                    "title": "Token",
                    "required": ["kind", "token"],
                    "properties": {"kind": {"const": "token"}, "token": {"type": "string"}},
                },
                {
                    "title": "Age",
                    "required": ["kind", "age"],
                    "properties": {"kind": {"const": "age"}, "age": {"type": "integer"}},
                },
            ],
        },
    },
}


def resolved(config: dict[str, Any], **environ: str) -> dict[str, Any]:
    return resolve({"host": "h"} | config, schema=SPEC, environ=environ, where="shop")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("port", "5432", 5432),
        ("ratio", "1e5", 100000.0),
        ("ratio", "3", 3),
        ("ssl", "true", True),
        ("tables", "[1, 2]", [1, 2]),
        # What is declared as text stays text.
        ("host", "1e5", "1e5"),
        ("host", "0x1F", "0x1F"),
        ("host", "None", "None"),
        ("host", "null", "null"),
        ("host", "007", "007"),
        ("host", "", ""),
        ("either", "5", "5"),
        ("host", "{{ env.OTHER }}", "{{ env.OTHER }}"),
    ],
)
def test_a_template_takes_the_declared_type(field: str, text: str, value: Any) -> None:
    found = resolved({field: "{{ env.X }}"}, X=text)[field]
    assert found == value
    assert type(found) is type(value)


def test_a_template_inside_a_text_stays_text() -> None:
    config = {"host": "db-{{env.X}}.{{ env.Y }}:{{ X }}"}
    assert resolved(config, X="1", Y="\\1")["host"] == "db-1.\\1:{{ X }}"


def test_templates_in_lists_and_one_of_several_forms() -> None:
    config = {"tables": [1, "{{ env.N }}"], "login": {"kind": "age", "age": "{{ env.N }}"}}
    assert resolved(config, N="30") == {
        "host": "h",
        "tables": [1, 30],
        "login": {"kind": "age", "age": 30},
    }


def test_values_written_in_yaml_keep_their_types() -> None:
    written = {"host": "None", "port": 1, "ssl": False, "ratio": None}
    assert resolved(written) == written


def test_missing_variables_are_named() -> None:
    config = {"host": "{{ env.B }}", "tables": ["{{ env.A }}"], "port": "{{ env.C }}"}
    assert variables(config) == {"A", "B", "C"}
    with pytest.raises(MissingVariableError, match=r"^shop: the environment variable A, B is not"):
        resolved(config, C="1")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"hots": 1}, "shop: the connector has no config field 'hots'; did you mean 'host'?"),
        ({"xyzzy": 1}, "shop: the connector has no config field 'xyzzy'; it has: host, port, "),
        ({"port": "x"}, "shop: config field 'port' must be of type integer, not string."),
        ({"port": 0}, "shop: config field 'port' breaks the rule minimum: 1."),
        ({"ssl": 1}, "shop: config field 'ssl' must be of type boolean, not integer."),
        ({"mode": "quick"}, 'shop: config field \'mode\' must be one of "fast", "slow".'),
        ({"tables": [1, "a"]}, "shop: config field 'tables.1' must be of type integer, not string"),
        ({"login": {}}, "shop: config field 'login"),
    ],
)
def test_what_does_not_fit(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(config)
    assert str(caught.value).startswith(sentence)


def test_a_missing_field() -> None:
    with pytest.raises(ConfigError, match=r"^shop: config field 'host' is missing;"):
        resolve({}, schema=SPEC, environ={}, where="shop")


def test_internal_keys_pass() -> None:
    assert resolved({"_limit": 5})["_limit"] == 5


def test_templates_pass_before_they_are_replaced() -> None:
    config = {
        "host": "h",
        "port": "{{ env.P }}",
        "mode": "{{ env.M }}",
        "login": {"kind": "age", "age": "{{ env.A }}"},
    }
    validate(config, schema=SPEC, where="shop")
    with pytest.raises(ConfigError, match="'ssl' must be of type boolean"):
        validate({**config, "ssl": "yes"}, schema=SPEC, where="shop")


@pytest.mark.parametrize("field", ["password", "port", "mode", "tables", "login", "ssl", "ratio"])
def test_secret_values_are_never_told(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved({field: "{{ env.SECRET }}"}, SECRET="Hunter22!")
    assert "Hunter22" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "string", "pattern": r"^\p{L}+$"},
        {"type": "str"},
        {"type": ["null", "str"], "minLength": "3"},
        {"required": True},
        {"$ref": "#/definitions/missing"},
        {"oneOf": [{"type": "str"}, {"type": "integer"}]},
    ],
)
def test_a_rule_that_cannot_be_understood_is_left_to_check(rule: Any) -> None:
    properties = {"a": rule, "b": {"type": "integer", "minimum": 1}}
    schema = {"type": "object", "required": ["b"], "properties": properties}
    config = {"a": "{{ env.A }}", "b": 1}
    assert resolve(config, schema=schema, environ={"A": "12"}, where="x") == {"a": "12", "b": 1}
    for wrong in ({"a": "12"}, {"a": "12", "b": "no"}, {"b": 0}):
        with pytest.raises(ConfigError, match=r"x: config field 'b' (is missing|must be|breaks)"):
            validate(wrong, schema=schema, where="x")


def test_a_broken_rule_beside_a_type_nobody_knows() -> None:
    schema = {"properties": {"a": {"type": "str", "enum": ["x"]}}}
    with pytest.raises(ConfigError, match="'a' must be one of \"x\""):
        validate({"a": "y"}, schema=schema, where="x")

from typing import Any

import pytest

from atlas_dagster.config.templates import variables
from atlas_dagster.config.validation import resolve, validate
from atlas_dagster.errors import ConfigError, InvalidConfigError, MissingVariableError
from atlas_dagster_tests.listening import CallbackListener

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
    with pytest.raises(MissingVariableError, match=r"^shop: .*\bA, B\b"):
        resolved(config, C="1")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"hots": 1}, "shop: the connector has no config field 'hots'; did you mean 'host'?"),
        ({"Host": 1}, "shop: the connector has no config field 'Host'; did you mean 'host'?"),
        ({"pasword": 1}, "shop: the connector has no config field 'pasword'; did you mean"),
        (
            {"login": {"kind": "age", "aeg": 5}},
            "shop: the connector has no config field 'login.aeg'; did you mean 'age'?",
        ),
        (
            {"login": {"kind": "agr", "age": 5}},
            "shop: config field 'login' must be one of the 2 options: "
            'Token (kind: "token"), Age (kind: "age").',
        ),
        ({"login": {"kind": "age", "age": "x"}}, "shop: config field 'login.age' must be of type"),
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
    with pytest.raises(ConfigError, match=r"^shop: .*'host'"):
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
    with pytest.raises(ConfigError, match=r"'ssl' .*boolean"):
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


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        resolve(
            {"hots": "h", "port": "x", "login": {"kind": "age"}, "mode": "quick"},
            schema=SPEC | {"required": ["host", "ssl"]},
            environ={},
            where="shop",
        )
    assert str(caught.value).splitlines() == [
        "shop: the connector has no config field 'hots'; did you mean 'host'?",
        "Also: config field 'ssl' is missing; the connector requires it.",
        "Also: config field 'port' must be of type integer, not string.",
        'Also: config field \'mode\' must be one of "fast", "slow".',
        "Also: config field 'login.age' is missing; the connector requires it.",
    ]
    assert [field for field, _ in caught.value.faults] == [
        *("hots", "ssl", "port", "mode", "login.age"),
    ]
    assert caught.value.field == "hots"


# What goes to the connector all the same


def warned(config: dict[str, Any], schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    found = resolve(
        config,
        schema=schema,
        environ={},
        where="shop",
        listener=CallbackListener(warning=said.append),
    )
    return found, said


def test_a_field_like_no_other_is_passed_on() -> None:
    found, said = warned(
        {"host": "h", "xyzzy": 1, "login": {"kind": "age", "age": 1, "x": 2}}, SPEC
    )
    assert (found["xyzzy"], found["login"]["x"]) == (1, 2)
    assert said == [
        "shop: the connector's SPEC has no config field 'xyzzy'; it is passed on unchanged.",
        "shop: the connector's SPEC has no config field 'login.x'; it is passed on unchanged.",
    ]


def test_a_closed_object_is_no_reason_to_refuse_a_field() -> None:
    closed = SPEC | {"additionalProperties": False}
    assert warned({"host": "h", "xyzzy": 1}, closed)[0]["xyzzy"] == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [("repository", "repositories"), ("branch", "branches"), ("account_id", "account_ids")],
)
def test_an_old_name_that_the_connector_migrates(old: str, new: str) -> None:
    schema = {"required": [new], "properties": {new: {"type": "array"}, "token": {}}}
    found, said = warned({old: "a/b"}, schema)
    assert found == {old: "a/b"}
    assert said == [
        f"shop: the connector's SPEC has no config field '{old}' (did you mean '{new}'?); "
        "it is passed on unchanged."
    ]


@pytest.mark.parametrize("name", ["additionalProperties", "unknown"])
def test_a_required_field_that_the_spec_does_not_define(name: str) -> None:
    schema = {"required": ["a", name], "properties": {"a": {"type": "string"}}}
    assert warned({"a": "x"}, schema) == ({"a": "x"}, [])
    with pytest.raises(InvalidConfigError, match="'a' is missing"):
        warned({}, schema)


def test_a_required_field_of_one_form_is_one() -> None:
    form = {"properties": {"b": {"type": "string"}}}
    schema = {"required": ["b"], "properties": {"a": {}}, "oneOf": [form]}
    with pytest.raises(InvalidConfigError, match="'b' is missing"):
        warned({"a": 1}, schema)


def test_a_config_that_suits_two_forms() -> None:
    forms = [{"title": "A", "properties": {"a": {}}}, {"title": "B", "properties": {"b": {}}}]
    schema = {"properties": {"login": {"type": "object", "oneOf": forms}}}
    assert warned({"login": {}}, schema)[0] == {"login": {}}


def test_nothing_is_looked_at_where_that_is_off() -> None:
    config = {"hots": "{{ env.X }}", "port": "x"}
    found = resolve(config, schema=SPEC, environ={"X": "h"}, where="shop", check=False)
    assert found == {"hots": "h", "port": "x"}

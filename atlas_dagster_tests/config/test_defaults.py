"""Defaults of a SPEC, as a form fills them in."""

from typing import Any

import pytest

from atlas_dagster.config.defaults import with_defaults
from atlas_dagster.config.validation import resolve

TOKEN = {
    "title": "Token",
    "required": ["kind", "token"],
    "properties": {
        "kind": {"const": "token"},
        "token": {"type": "string"},
        "retries": {"type": "integer", "default": 3},
    },
}
AGE = {
    "title": "Age",
    "required": ["kind", "age"],
    "properties": {"kind": {"enum": ["age"], "default": "age"}, "age": {"type": "integer"}},
}


def field(schema: Any, config: Any = None, *, required: bool = False) -> Any:
    """What becomes of a config with, or without, the field."""
    whole = {"properties": {"f": schema}, "required": ["f"] if required else []}
    found = with_defaults({} if config is None else {"f": config}, whole)
    return found.get("f")


@pytest.mark.parametrize("default", [1000, 0, False, [1], {"a": 1}, "x"])
def test_an_absent_field_takes_its_default(default: Any) -> None:
    assert field({"default": default}) == default
    assert field({"default": default}, "own") == "own"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"type": "integer", "default": None},
        {"type": "string", "default": ""},
        {"type": "integer", "default": "many"},
        {"type": "string", "default": "soon", "pattern": "^[0-9]+$"},
        {"const": "x"},
        True,
    ],
)
def test_a_field_without_a_default_that_fits_stays_absent(schema: Any) -> None:
    assert field(schema) is None


def test_a_config_that_says_null_means_it() -> None:
    assert with_defaults({"f": None}, {"properties": {"f": {"default": 1}}}) == {"f": None}


def test_objects_that_are_there_or_required() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "default": 5}, "o": {}}}
    assert field(schema) is None
    assert field(schema, {}) == {"n": 5}
    assert field(schema, {"o": 1}) == {"o": 1, "n": 5}
    assert field(schema, required=True) == {"n": 5}
    assert field({"type": "object", "properties": {"n": {}}}, required=True) is None
    assert field({"type": "array", "items": schema}, [{}, {"n": 1}]) == [{"n": 5}, {"n": 1}]


def test_the_chosen_option_of_a_choice() -> None:
    choice = {"type": "object", "oneOf": [TOKEN, AGE]}
    assert field(choice) is None
    assert field(choice, {"kind": "token", "token": "t"}) == {
        "kind": "token",
        "token": "t",
        "retries": 3,
    }
    assert field(choice, {"kind": "age"}) == {"kind": "age"}
    assert field(choice, {"kind": "{{ env.K }}"}) == {"kind": "{{ env.K }}"}


def test_what_says_which_option_it_is_is_filled_in_where_one_fits() -> None:
    choice = {"type": "object", "oneOf": [TOKEN, AGE]}
    assert field(choice, {"token": "t"}) == {"kind": "token", "token": "t", "retries": 3}
    assert field(choice, {"age": 3}) == {"kind": "age", "age": 3}
    assert field(choice, {"other": 3}) == {"other": 3}
    assert field(choice, {}) == {}
    assert field({"oneOf": [TOKEN, TOKEN]}, {"token": "t"}) == {"token": "t"}


def test_defaults_count_for_what_is_required_and_are_copies() -> None:
    schema = {"required": ["count"], "properties": {"count": {"type": "integer", "default": 9}}}
    assert resolve({}, schema=schema, environ={}, where="x") == {"count": 9}
    listed: dict[str, Any] = {"properties": {"a": {"default": []}}}
    with_defaults({}, listed)["a"].append(1)
    assert with_defaults({}, listed) == {"a": []}

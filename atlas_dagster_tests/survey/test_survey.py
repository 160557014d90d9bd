"""A sample of what `make connectors` runs over all, and the configs it makes."""

from typing import Any

import pytest
from jsonschema import Draft7Validator

from atlas_dagster_tests.survey.__main__ import GENERIC, survey
from atlas_dagster_tests.survey.dummy_config import dummy_config


@pytest.mark.pypi
def test_a_real_connector_says_nothing_generic() -> None:
    """One from its manifest; ``runners/test_python_runner.py`` has one from its package."""
    said = dict(survey("wheel:source-nasa"))
    assert list(said) == ["spec", "check", "discover"]
    assert " runs from its " in said["spec"]
    assert not [text for text in said.values() if GENERIC.search(text)]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "examples": ["YYYY-MM-DD"]},
        {"type": "string", "pattern": r"^[\w.-]+/[\w.-]+$"},
        {"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$"}, "minItems": 2},
        {"type": ["null", "integer"], "minimum": 5},
        {"type": "string", "enum": ["a", "b"]},
        {
            "type": "object",
            "required": ["credentials", "start_date"],
            "properties": {
                "start_date": {"type": "string", "format": "date-time"},
                "credentials": {
                    "type": "object",
                    "oneOf": [
                        {
                            "required": ["token"],
                            "properties": {
                                "auth_type": {"const": "Token"},
                                "token": {"type": "string"},
                            },
                        },
                        {"required": ["password"]},
                    ],
                },
            },
        },
    ],
)
def test_a_dummy_config_fits_its_spec(schema: dict[str, Any]) -> None:
    Draft7Validator(schema).validate(dummy_config(schema))


@pytest.mark.parametrize(
    ("text", "is_generic"),
    [
        ("source-x: Something went wrong in the connector. See the logs for more details.", True),
        ("source-x ended with exit code 1 and reported no error; see its log", True),
        ("source-x: KeyError: 'count'", False),
        ("3 streams", False),
    ],
)
def test_what_is_generic(text: str, is_generic: bool) -> None:
    assert bool(GENERIC.search(text)) is is_generic

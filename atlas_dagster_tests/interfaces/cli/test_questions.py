"""The questions of ``atlas init``, answered line by line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from atlas_dagster.config.form import Field, form
from atlas_dagster.config.validation import validate
from atlas_dagster.interfaces.cli.questions import Questions, parse_answer

SPEC = {
    "type": "object",
    "required": ["host", "port", "auth"],
    "properties": {
        "host": {"type": "string", "order": 0},
        "port": {"type": "integer", "default": 5432, "order": 1},
        "auth": {
            "type": "object",
            "order": 2,
            "oneOf": [
                {
                    "title": "None",
                    "required": ["method"],
                    "properties": {"method": {"const": "none"}},
                },
                {
                    "title": "Password",
                    "required": ["method", "password"],
                    "properties": {
                        "method": {"const": "password"},
                        "user": {"type": "string"},
                        "password": {"type": "string", "airbyte_secret": True},
                    },
                },
            ],
        },
        "schemas": {"type": "array", "items": {"type": "string"}},
        "mode": {"type": "string", "enum": ["fast", "slow"]},
        "tls": {"type": "boolean"},
    },
}


def answered(
    *lines: str, before: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, str], str]:
    """The config, the secrets, and what was shown."""
    questions = Questions("shop", environ or {})

    @click.command()
    def ask() -> None:
        config = questions.ask(form(SPEC), before or {})
        click.echo(f"\nCONFIG {json.dumps(config)}")

    result = CliRunner().invoke(ask, input="".join(f"{line}\n" for line in lines))
    assert result.exit_code == 0, result.output
    config = json.loads(result.output.partition("CONFIG ")[2])
    validate(config, schema=SPEC, where="shop")
    return config, questions.secrets, result.output


def test_defaults_and_the_first_choice_are_taken_with_enter() -> None:
    config, secrets, _ = answered("db", "", "", "")
    assert config == {"host": "db", "port": 5432, "auth": {"method": "none"}}
    assert secrets == {}


def test_a_secret_is_kept_apart_and_never_shown() -> None:
    config, secrets, shown = answered("db", "5433", "2", "hunter22", "user", "me", "")
    assert config["auth"] == {
        "method": "password",
        "password": "{{ env.SHOP_AUTH_PASSWORD }}",
        "user": "me",
    }
    assert secrets == {"SHOP_AUTH_PASSWORD": "hunter22"}
    assert "hunter22" not in shown


def test_a_secret_may_be_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.write_text('{"a":\n 1}\n')
    nothing = tmp_path / "nothing"
    _, secrets, shown = answered("db", "", "2", f"@{nothing}", f"@{key}", "", "")
    assert secrets == {"SHOP_AUTH_PASSWORD": '{"a":\n 1}'}
    assert "cannot be read" in shown


def test_a_secret_that_is_in_the_environment_need_not_be_typed() -> None:
    config, secrets, _ = answered("db", "", "2", "", "", "", environ={"SHOP_AUTH_PASSWORD": "x"})
    assert config["auth"]["password"] == "{{ env.SHOP_AUTH_PASSWORD }}"
    assert secrets == {}


def test_optional_fields_are_asked_for_on_request() -> None:
    config, _, shown = answered(
        "db",
        "",
        "1",
        "schemas, tls modus",
        "schemas mode tls",
        "public, sales",
        "warp",
        "fast",
        "yes",
    )
    assert config["schemas"] == ["public", "sales"]
    assert config["mode"] == "fast"
    assert config["tls"] is True
    assert "There is no field modus." in shown
    assert "mode must be one of fast, slow." in shown


def test_answers_are_offered_again() -> None:
    before = {
        "host": "old",
        "port": 1,
        "auth": {"method": "password", "password": "{{ env.SHOP_AUTH_PASSWORD }}"},
        "tls": False,
    }
    config, _, _ = answered(
        *("", "2", "", "", "", "", ""), before=before, environ={"SHOP_AUTH_PASSWORD": "x"}
    )
    assert config == before | {"port": 2}


def field(**given: Any) -> Field:
    return Field(
        **{"name": "it", "title": "", "description": "", "required": True, "secret": False} | given
    )


@pytest.mark.parametrize(
    ("given", "text", "value"),
    [
        ({"kind": "integer"}, " 12 ", 12),
        ({"kind": "number"}, "1.5", 1.5),
        ({"kind": "boolean"}, "No", False),
        ({"kind": "array", "item": "integer"}, "1, 2,", [1, 2]),
        ({"kind": "array"}, '["a, b"]', ["a, b"]),
        ({"kind": "array", "item": "object"}, '[{"a": 1}]', [{"a": 1}]),
        ({"kind": "object"}, '{"a": 1}', {"a": 1}),
        ({"kind": "string"}, "007", "007"),
    ],
)
def test_texts_become_values(given: dict[str, Any], text: str, value: Any) -> None:
    assert parse_answer(field(**given), text) == value


@pytest.mark.parametrize(
    ("given", "text", "why"),
    [
        ({"kind": "integer"}, "1.5", "must be a number"),
        ({"kind": "boolean"}, "maybe", "must be true or false"),
        ({"kind": "object"}, "[]", "must be a JSON object"),
        ({"kind": "array", "item": "object"}, "a, b", "must be JSON"),
        ({"kind": "array", "values": ("a",)}, "a, b", "must be one of a"),
    ],
)
def test_what_a_value_should_be_is_said(given: dict[str, Any], text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_answer(field(**given), text)

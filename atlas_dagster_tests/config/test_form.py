"""A SPEC as a form: what is asked, in which order, and what each field may be."""

from typing import Any

from atlas_dagster.config.form import Field, form


def fields(required: list[str] | None = None, **properties: Any) -> tuple[Field, ...]:
    return form({"type": "object", "required": required or [], "properties": properties})


def one(schema: dict[str, Any]) -> Field:
    (field,) = fields(it=schema)
    return field


def test_required_fields_come_first_then_those_with_an_order() -> None:
    found = fields(
        ["late", "first"],
        optional={"order": 0},
        plain={},
        late={"order": 5},
        first={"order": 1},
    )
    assert [field.name for field in found] == ["first", "late", "optional", "plain"]
    assert [field.required for field in found] == [True, True, False, False]


def test_a_field_for_people() -> None:
    field = one(
        {
            "type": "string",
            "title": "Start date",
            "description": 'UTC, see <a href="https://a.example">the\ndocs</a> &amp; more: a < b.',
            "examples": ["2024-01-01T00:00:00Z"],
            "default": "2020-01-01T00:00:00Z",
            "airbyte_secret": True,
            "multiline": True,
        }
    )
    assert field.title == "Start date"
    assert field.description == "UTC, see the docs & more: a < b."
    assert field.examples == ("2024-01-01T00:00:00Z",)
    assert field.default == "2020-01-01T00:00:00Z"
    assert field.secret
    assert field.multiline


def test_kinds() -> None:
    assert one({"type": "integer"}).kind == "integer"
    assert one({"type": ["null", "number"]}).kind == "number"
    assert one({"type": "boolean"}).kind == "boolean"
    assert one({}).kind == "string"
    assert one({"anyOf": [{"type": "string"}, {"type": "null"}]}).kind == "string"
    listed = one({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}})
    assert (listed.kind, listed.item, listed.values) == ("array", "string", ("a", "b"))
    assert one({"type": "string", "enum": ["x", "y"]}).values == ("x", "y")


def test_objects_have_fields() -> None:
    field = one(
        {
            "type": "object",
            "required": ["id"],
            "properties": {"id": {"type": "string"}, "note": {"type": "string"}},
        }
    )
    assert field.kind == "object"
    assert [(each.name, each.required) for each in field.fields] == [("id", True), ("note", False)]


def test_a_choice_between_objects() -> None:
    field = one(
        {
            "type": "object",
            "oneOf": [
                {
                    "title": "OAuth",
                    "required": ["auth_type", "token"],
                    "properties": {
                        "auth_type": {"type": "string", "const": "oauth"},
                        "token": {"type": "string", "airbyte_secret": True},
                    },
                },
                {
                    "title": "Key",
                    "properties": {
                        "auth_type": {"enum": ["key"], "default": "key"},
                        "key": {"type": "string"},
                    },
                },
            ],
        }
    )
    assert field.kind == "choice"
    assert [option.title for option in field.options] == ["OAuth", "Key"]
    assert [option.constants for option in field.options] == [
        {"auth_type": "oauth"},
        {"auth_type": "key"},
    ]
    assert [[f.name for f in option.fields] for option in field.options] == [["token"], ["key"]]
    assert field.options[0].fields[0].secret


def test_hidden_fields_and_constants_are_not_asked_for() -> None:
    assert fields(a={"airbyte_hidden": True}, b={"const": 1}) == ()


def test_anything_may_be_malformed() -> None:
    assert form({}) == ()
    assert form({"properties": []}) == ()
    assert fields(a=None) == ()
    assert one({"oneOf": [None, {"type": "null"}], "examples": "x", "order": "1"}).examples == (
        "x",
    )

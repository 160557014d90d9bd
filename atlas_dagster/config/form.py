"""A SPEC as a form: fields for people to read or to fill in.

A form leaves out hidden and constant fields; :mod:`atlas_dagster.config.validation` validates a
config by the JSON schema. ``title``, ``order``, ``airbyte_secret``, ``airbyte_hidden`` and
``multiline`` are Airbyte's own keywords (docs ``connector-specification-reference.md``).
"""

import re
from collections.abc import Mapping
from html import unescape
from typing import Any, Literal

from msgspec import Struct

Kind = Literal["string", "integer", "number", "boolean", "array", "object", "choice"]

_TAG = re.compile(r"</?[A-Za-z][^>]*>")
_KINDS: dict[str, Kind] = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "array": "array",
    "object": "object",
}


class Option(Struct, frozen=True):
    """One option of a choice. Its ``constants`` identify it in the config."""

    title: str
    description: str
    constants: dict[str, Any]
    fields: "tuple[Field, ...]"


class Field(Struct, frozen=True, kw_only=True):
    """One field of a config.

    ``default`` is None if there is none. ``values`` are the allowed values, if the SPEC lists them.
    ``item`` is the kind of an array's items. ``fields`` belong to an object, ``options`` to a
    choice.
    """

    name: str
    title: str
    description: str
    kind: Kind
    required: bool
    secret: bool
    multiline: bool = False
    default: Any = None
    examples: tuple[Any, ...] = ()
    values: tuple[Any, ...] = ()
    item: Kind = "string"
    fields: "tuple[Field, ...]" = ()
    options: tuple[Option, ...] = ()


def form(schema: Mapping[str, Any]) -> tuple[Field, ...]:
    """Return the fields of a SPEC's ``connectionSpecification``, required ones first."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return ()
    required = schema.get("required") or ()
    ordered = sorted(
        (item for item in properties.items() if isinstance(item[1], Mapping)),
        key=lambda item: (item[0] not in required, _sort_key(item[1])),
    )
    return tuple(
        _build_field(name, found, name in required)
        for name, found in ordered
        if not found.get("airbyte_hidden") and "const" not in found
    )


def _build_field(name: str, schema: Mapping[str, Any], required: bool) -> Field:
    options = _build_options(schema)
    item = schema.get("items")
    values = schema.get("enum")
    if not values and isinstance(item, Mapping) and schema.get("type") == "array":
        values = item.get("enum")
    return Field(
        name=name,
        title=str(schema.get("title") or name),
        description=_strip_tags(schema.get("description")),
        kind="choice" if options else _find_kind(schema),
        required=required,
        secret=bool(schema.get("airbyte_secret")),
        multiline=bool(schema.get("multiline")),
        default=schema.get("default"),
        examples=_to_tuple(schema.get("examples")),
        values=tuple(values) if isinstance(values, list) else (),
        item=_find_kind(item) if isinstance(item, Mapping) else "string",
        fields=form(schema),
        options=options,
    )


def _build_options(schema: Mapping[str, Any]) -> tuple[Option, ...]:
    """Return the objects in ``oneOf`` or ``anyOf``, without other types such as null."""
    found = schema.get("oneOf") or schema.get("anyOf") or ()
    objects = [each for each in found if isinstance(each, Mapping) and each.get("properties")]
    return tuple(
        Option(
            title=str(each.get("title") or f"Option {number}"),
            description=_strip_tags(each.get("description")),
            constants=find_constants(each["properties"]),
            fields=tuple(f for f in form(each) if f.name not in find_constants(each["properties"])),
        )
        for number, each in enumerate(objects, 1)
    )


def find_constants(properties: Any) -> dict[str, Any]:
    """Return the fields with one allowed value: a ``const``, or an ``enum`` in older SPECs."""
    found = {}
    for name, schema in properties.items() if isinstance(properties, Mapping) else ():
        if not isinstance(schema, Mapping):
            continue
        if "const" in schema:
            found[name] = schema["const"]
        elif isinstance(schema.get("enum"), list) and len(schema["enum"]) == 1:
            found[name] = schema["enum"][0]
    return found


def collect_properties(schema: Any) -> dict[str, Any]:
    """Return the schemas of all properties of an object, including those of its options."""
    if not isinstance(schema, Mapping):
        return {}
    found: dict[str, Any] = {}
    for keyword in ("oneOf", "anyOf", "allOf"):
        options = schema.get(keyword)
        for option in options if isinstance(options, list) else ():
            found = collect_properties(option) | found
    own = schema.get("properties")
    return found | (dict(own) if isinstance(own, Mapping) else {})


def find_property(schema: Mapping[str, Any], key: str) -> Any:
    """Return the schema of a property, also inside ``oneOf``, ``anyOf`` and ``allOf``."""
    return collect_properties(schema).get(key, {})


def required_names(schema: Mapping[str, Any]) -> set[str]:
    required = schema.get("required")
    names = required if isinstance(required, list) else ()
    return {name for name in names if isinstance(name, str)}


def _find_kind(schema: Mapping[str, Any]) -> Kind:
    declared = schema.get("type")
    if declared is None:
        alternatives = [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]
        declared = [each.get("type") for each in alternatives if isinstance(each, Mapping)]
    names = declared if isinstance(declared, list) else [declared]
    known = [_KINDS[name] for name in names if name in _KINDS]
    if known:
        return known[0]
    return "object" if schema.get("properties") else "string"


def _sort_key(schema: Mapping[str, Any]) -> float:
    order = schema.get("order")
    return float(order) if isinstance(order, int | float) else float("inf")


def _to_tuple(found: Any) -> tuple[Any, ...]:
    if isinstance(found, list):
        return tuple(found)
    return () if found is None else (found,)


def _strip_tags(text: Any) -> str:
    """Return the text of a description, which is HTML, without its tags."""
    return " ".join(unescape(_TAG.sub("", str(text or ""))).split())

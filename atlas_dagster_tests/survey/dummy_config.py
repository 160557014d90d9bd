"""A config that fits a SPEC and reaches no one's data."""

import re
from collections.abc import Mapping
from typing import Any

#: Nothing of it exists: names below ``invalid`` never resolve (RFC 2606).
_HOST = "atlas.invalid"
_BY_FORMAT = {
    "date": "2024-01-01",
    "date-time": "2024-01-01T00:00:00Z",
    "uri": f"https://{_HOST}",
    "url": f"https://{_HOST}",
    "email": f"nobody@{_HOST}",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
#: The first that a SPEC's pattern allows is taken.
_TEXTS = (
    "dummy",
    "1",
    "12345678901",
    *_BY_FORMAT.values(),
    "2024-01-01T00:00:00.000Z",
    "2024-01-01T00:00:00",
    "2024-01-01 00:00:00",
    "atlas/dummy",
    "sk_test_dummy",
    _HOST,
    f"https://{_HOST}/",
    "s3://dummy/dummy",
    "P1D",
    "00" * 16,
)


def dummy_config(schema: Mapping[str, Any]) -> Any:
    """A value that fits ``schema``: its constants, defaults and examples, else made up.

    Of an object only what is required, and of several options the first.
    """
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for combined in ("oneOf", "anyOf"):
        if schema.get(combined):
            base = {key: value for key, value in schema.items() if key != combined}
            return dummy_config(_merged(base, schema[combined][0]))
    for part in schema.get("allOf", ()):
        schema = _merged({k: v for k, v in schema.items() if k != "allOf"}, part)
    if "default" in schema and schema["default"] not in (None, ""):
        return schema["default"]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next(each for each in kind if each != "null")
    match kind:
        case "object":
            properties = schema.get("properties", {})
            wanted = [*schema.get("required", ())]
            wanted += [n for n, v in properties.items() if "const" in v and n not in wanted]
            return {name: dummy_config(properties.get(name, {})) for name in wanted}
        case "array":
            fewest = max(1, schema.get("minItems", 1))
            return [dummy_config(schema.get("items", {}))] * fewest
        case "integer" | "number":
            return _first_example(schema) or schema.get("minimum", 1)
        case "boolean":
            return False
    example = _first_example(schema)
    wanted = [example] if isinstance(example, str) else []
    wanted += [_BY_FORMAT[schema["format"]]] if schema.get("format") in _BY_FORMAT else []
    pattern = str(schema.get("pattern", ""))
    return next((text for text in (*wanted, *_TEXTS) if _fits(text, pattern)), "dummy")


def _fits(text: str, pattern: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return True


def _first_example(schema: Mapping[str, Any]) -> Any:
    examples = schema.get("examples") or [schema.get("example")]
    return examples[0] if isinstance(examples, list) else examples


def _merged(base: Mapping[str, Any], option: Mapping[str, Any]) -> dict[str, Any]:
    properties = {**base.get("properties", {}), **option.get("properties", {})}
    required = [*base.get("required", ()), *option.get("required", ())]
    merged = {**base, **option}
    return {**merged, "properties": properties, "required": required} if properties else merged

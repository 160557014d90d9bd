"""Fill in the defaults of a SPEC, as the form of the Airbyte platform does.

Connectors rely on them: source-faker reads ``config["count"]``, which its SPEC does not require.
"""

import copy
from collections.abc import Mapping
from typing import Any

from atlas_dagster.config.faults import is_valid
from atlas_dagster.config.form import find_constants, required_names


def with_defaults(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with the defaults of absent fields, at the top and in objects.

    Absent required objects are created. In a choice, the defaults are those of the option that the
    config matches. If only one option matches, its constants are filled in, too.
    """
    filled = dict(config)
    option = _matching_option(config, schema)
    for each in (schema, option):
        properties = each.get("properties")
        if not isinstance(properties, Mapping):
            continue
        required = required_names(each)
        fixed = find_constants(properties) if each is option else {}
        for name, found in properties.items():
            if not isinstance(found, Mapping):
                continue
            if name in filled:
                filled[name] = _fill_inside(filled[name], found)
            elif name in fixed:
                filled[name] = fixed[name]
            elif (default := _valid_default(found)) is not None:
                filled[name] = _fill_inside(default, found)
            elif name in required and (inner := with_defaults({}, found)):
                filled[name] = inner
    return filled


def _fill_inside(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return with_defaults(value, schema)
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, Mapping):
        return [_fill_inside(item, items) for item in value]
    return value


def _valid_default(schema: Mapping[str, Any]) -> Any:
    """Return the default; None if it is missing, invalid, or an empty text (as in a form)."""
    default = schema.get("default")
    if default in (None, "") or not is_valid(default, schema):
        return None
    return copy.deepcopy(default)


def _matching_option(config: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the option that ``config`` matches; empty if there are none or several."""
    options = [
        option
        for option in schema.get("oneOf") or schema.get("anyOf") or ()
        if isinstance(option, Mapping) and isinstance(option.get("properties"), Mapping)
    ]
    identifying = {name for option in options for name in find_constants(option["properties"])}
    if identifying & set(config):
        fitting = [o for o in options if _has_constants(config, find_constants(o["properties"]))]
    else:
        fitting = [option for option in options if config and _can_be(config, option)]
    return fitting[0] if len(fitting) == 1 else {}


def _has_constants(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
    return bool(fixed) and all(config.get(name, value) == value for name, value in fixed.items())


def _can_be(config: Mapping[str, Any], option: Mapping[str, Any]) -> bool:
    """Return whether a ``config`` without any option's constants can be of ``option``."""
    properties = option["properties"]
    optional = {
        name
        for name, found in properties.items()
        if isinstance(found, Mapping) and _valid_default(found) is not None
    }
    required = required_names(option) & set(properties)
    missing = required - optional - set(find_constants(properties)) - set(config)
    return set(config) <= set(properties) and not missing

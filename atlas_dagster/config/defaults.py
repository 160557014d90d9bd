"""Fill in the defaults of a SPEC, as the form of the Airbyte platform does.

Connectors rely on them: source-faker reads ``config["count"]``, which its SPEC does not require.
"""

import copy
from collections.abc import Mapping
from typing import Any

from atlas_dagster.config.faults import is_valid
from atlas_dagster.config.form import constants, required_of


def with_defaults(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with the defaults of absent fields, at the top and in objects.

    Required objects that are absent are created. In a choice, the defaults of the chosen option
    count. If only one option fits, its constants are filled in, too.
    """
    filled = dict(config)
    option = _chosen(config, schema)
    for each in (schema, option):
        properties = each.get("properties")
        if not isinstance(properties, Mapping):
            continue
        required = required_of(each)
        fixed = constants(properties) if each is option else {}
        for name, found in properties.items():
            if not isinstance(found, Mapping):
                continue
            if name in filled:
                filled[name] = _inside(filled[name], found)
            elif name in fixed:
                filled[name] = fixed[name]
            elif (default := _default(found)) is not None:
                filled[name] = _inside(default, found)
            elif name in required and (inner := with_defaults({}, found)):
                filled[name] = inner
    return filled


def _inside(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return with_defaults(value, schema)
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, Mapping):
        return [_inside(item, items) for item in value]
    return value


def _default(schema: Mapping[str, Any]) -> Any:
    """Return the default; None if it is missing, invalid, or an empty text (as in a form)."""
    default = schema.get("default")
    if default in (None, "") or not is_valid(default, schema):
        return None
    return copy.deepcopy(default)


def _chosen(config: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the option that ``config`` matches; empty if that is unclear."""
    options = [
        option
        for option in schema.get("oneOf") or schema.get("anyOf") or ()
        if isinstance(option, Mapping) and isinstance(option.get("properties"), Mapping)
    ]
    identifying = {name for option in options for name in constants(option["properties"])}
    if identifying & set(config):
        fitting = [option for option in options if _says(config, constants(option["properties"]))]
    else:
        fitting = [option for option in options if config and _fits(config, option)]
    return fitting[0] if len(fitting) == 1 else {}


def _says(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
    return bool(fixed) and all(config.get(name, value) == value for name, value in fixed.items())


def _fits(config: Mapping[str, Any], option: Mapping[str, Any]) -> bool:
    """Whether ``config``, without the constants of any option, may be ``option``."""
    properties = option["properties"]
    own = {
        name
        for name, found in properties.items()
        if isinstance(found, Mapping) and _default(found) is not None
    }
    needed = required_of(option) & set(properties)
    return set(config) <= set(properties) and needed - own - set(constants(properties)) <= set(
        config
    )

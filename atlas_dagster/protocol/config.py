"""A connector's config: ``{{ env.X }}`` replaced as text, typed and checked by the SPEC.

Declarations hold templates; values exist only in the process that runs the connector. Dagster's own
templating is bypassed on purpose: it would turn ``1e5``, ``0x1F`` and ``None`` into other things
and a missing variable into nothing.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from jsonschema import Draft7Validator, TypeChecker
from jsonschema.exceptions import UndefinedTypeCheck, ValidationError, best_match
from jsonschema.validators import extend

from atlas_dagster.errors import InvalidConfigError, MissingVariableError

_TEMPLATE = re.compile(r"\{\{\s*env\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
#: Keys the CDK takes besides its SPEC (CDK ``schema_helpers.py``, internal config keys).
_INTERNAL_KEYS = {"_limit", "_page_size"}
_TYPES = Draft7Validator.TYPE_CHECKER

_Rule = Callable[..., Iterator[ValidationError] | None]


class _LenientTypes(TypeChecker):
    """Any value is of a type that JSON schema does not have."""

    def is_type(self, instance: Any, type: str) -> bool:
        try:
            return bool(_TYPES.is_type(instance, type))
        except UndefinedTypeCheck:
            return True


def _lenient(rule: _Rule) -> _Rule:
    """``rule``, which holds where it cannot be judged, such as a regex that is none in Python."""

    def check(*args: Any) -> Iterator[ValidationError]:
        # A connector's SPEC can be wrong in any way, and jsonschema fails in as many.
        with suppress(Exception):
            yield from rule(*args) or ()

    return check


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft7Validator,
    validators={name: _lenient(rule) for name, rule in Draft7Validator.VALIDATORS.items()},
    type_checker=_LenientTypes(),
)


def variables(value: Any) -> set[str]:
    """Names of the environment variables that ``value`` refers to."""
    if isinstance(value, str):
        return set(_TEMPLATE.findall(value))
    if isinstance(value, Mapping):
        return set().union(*(variables(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(variables(item) for item in value))
    return set()


def require_variables(config: Mapping[str, Any], *, environ: Mapping[str, str], where: str) -> None:
    """Raises MissingVariableError where ``config`` refers to a variable that is not set."""
    missing = sorted(variables(config) - set(environ))
    if missing:
        names = ", ".join(missing)
        raise MissingVariableError(
            f"{where}: the environment variable {names} is not set; set it where Dagster's steps "
            "run (in the shell or .env beside dagster.yaml), or change config in defs.yaml."
        )


def resolve(
    config: Mapping[str, Any],
    *,
    schema: Mapping[str, Any],
    environ: Mapping[str, str],
    where: str,
) -> dict[str, Any]:
    """The config to hand to the connector.

    A string that is one template and nothing else takes the type the SPEC declares there
    (``port: "{{ env.DB_PORT }}"`` becomes a number); everything else stays text. Values from the
    environment are checked like written ones. ``where`` names the connection in messages.

    Raises:
        MissingVariableError: a variable is not set.
        InvalidConfigError: the result does not fit the SPEC.
    """
    require_variables(config, environ=environ, where=where)
    resolved = _substitute(dict(config), schema, environ)
    assert isinstance(resolved, dict)
    validate(resolved, schema=schema, where=where)
    return resolved


def validate(config: Mapping[str, Any], *, schema: Mapping[str, Any], where: str) -> None:
    """Check ``config`` against the SPEC's JSON schema (draft 7).

    Templates not replaced yet pass as any value, and a rule that cannot be understood holds: CHECK
    will judge. Secret values never enter the message.

    Raises:
        InvalidConfigError: naming the field, what is wrong with it and what is allowed.
    """
    instance = {key: value for key, value in config.items() if key not in _INTERNAL_KEYS}
    _refuse_unknown_fields(instance, schema, where)
    errors = [
        error
        for error in _Validator(dict(schema)).iter_errors(instance)
        if not (isinstance(error.instance, str) and _TEMPLATE.search(error.instance))
    ]
    if variables(instance):
        # A oneOf cannot be judged while a member of it is still a template.
        errors = [error for error in errors if not variables(error.instance)]
    worst = best_match(errors)
    if worst is not None:
        field = _field(worst)
        raise InvalidConfigError(f"{where}: {_sentence(worst, field)}", field)


def _refuse_unknown_fields(
    config: Mapping[str, Any], schema: Mapping[str, Any], where: str
) -> None:
    """An unknown top-level field is most likely a typo, though most SPECs would let it pass."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return
    if any(keyword in schema for keyword in ("oneOf", "anyOf", "allOf", "patternProperties")):
        return
    for field in config:
        if field not in properties:
            near = difflib.get_close_matches(field, list(properties), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(properties)}."
            raise InvalidConfigError(
                f"{where}: the connector has no config field '{field}'; {hint}", str(field)
            )


def _field(error: ValidationError) -> str:
    """Where it is; empty for the config as a whole."""
    path = [str(part) for part in error.absolute_path]
    if error.validator == "required":
        rule: Any = error.validator_value
        instance: Any = error.instance
        path.append(next(name for name in rule if name not in instance))
    return ".".join(path)


def _sentence(error: ValidationError, field: str) -> str:
    subject = f"config field '{field}'" if field else "config"
    rule: Any = error.validator_value
    match error.validator:
        case "required":
            return f"{subject} is missing; the connector requires it."
        case "type":
            wanted = rule if isinstance(rule, str) else " or ".join(rule)
            return f"{subject} must be of type {wanted}, not {_type_name(error.instance)}."
        case "enum":
            allowed = ", ".join(json.dumps(value) for value in rule)
            return f"{subject} must be one of {allowed}."
        case "const":
            return f"{subject} must be {json.dumps(rule)}."
        case "oneOf" | "anyOf":
            titles = [str(option.get("title")) for option in rule if "title" in option]
            allowed = f": {', '.join(titles)}" if titles else ""
            return f"{subject} must be one of the {len(rule)} forms{allowed}."
        case "additionalProperties":
            return f"{subject} has a field the connector does not know."
        case _:
            return f"{subject} breaks the rule {error.validator}: {rule}."


def _type_name(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object"}
    names |= {list: "array", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _substitute(value: Any, schema: Any, environ: Mapping[str, str]) -> Any:
    schema = schema if isinstance(schema, Mapping) else {}
    if isinstance(value, str):
        whole = _TEMPLATE.fullmatch(value.strip())
        if whole:
            return _typed(environ[whole.group(1)], schema)
        return _TEMPLATE.sub(lambda match: environ[match.group(1)], value)
    if isinstance(value, Mapping):
        return {
            key: _substitute(item, property_schema(schema, key), environ)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_substitute(item, schema.get("items"), environ) for item in value]
    return value


def property_schema(schema: Mapping[str, Any], key: str) -> Any:
    """The schema of a property, looked for through ``oneOf`` and its kin."""
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    for keyword in ("oneOf", "anyOf", "allOf"):
        for option in schema.get(keyword) or ():
            if isinstance(option, Mapping) and key in (option.get("properties") or {}):
                return option["properties"][key]
    return {}


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    declared = schema.get("type")
    types = [declared] if isinstance(declared, str) else list(declared or ())
    if "string" in types or not types:
        return text
    try:
        value = json.loads(text)
        fits = any(_TYPES.is_type(value, name) for name in types)
    except (ValueError, UndefinedTypeCheck):
        return text
    return value if fits else text

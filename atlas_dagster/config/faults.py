"""Find all faults of a config by its SPEC.

SPECs contain errors, and connectors accept more fields than their SPEC lists: old names, which they
migrate, and undocumented fields. So an unlisted field is a fault only if it is probably a typo, and
a rule that cannot be evaluated is ignored. CHECK finds the other faults.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from jsonschema import Draft7Validator, TypeChecker
from jsonschema.exceptions import UndefinedTypeCheck, ValidationError, best_match
from jsonschema.validators import extend
from msgspec import Struct
from rapidfuzz.distance import OSA

from atlas_dagster.config.form import collect_properties, find_constants, find_property
from atlas_dagster.config.templates import TEMPLATE, variables
from atlas_dagster.wording import closest_match

#: Keys that the CDK accepts in addition to the SPEC (CDK ``schema_helpers.py``).
_INTERNAL_KEYS = {"_limit", "_page_size"}
_TYPES = Draft7Validator.TYPE_CHECKER
#: (maximum length of a name, number of edits up to which another name is a typo of this name).
_EDITS = ((2, 0), (5, 1), (1_000, 2))

_Rule = Callable[..., Iterator[ValidationError] | None]


class ConfigFault(Struct, frozen=True):
    """A fault of a config. ``field`` is its keys joined by dots; empty for the whole config."""

    field: str
    sentence: str


class Findings(Struct, frozen=True):
    """Faults, which make the config invalid, and warnings."""

    faults: tuple[ConfigFault, ...]
    warnings: tuple[ConfigFault, ...]


class _LenientTypes(TypeChecker):
    """Accepts any value for a type that JSON schema does not know."""

    def is_type(self, instance: Any, type: str) -> bool:
        try:
            return bool(_TYPES.is_type(instance, type))
        except UndefinedTypeCheck:
            return True


def _lenient(rule: _Rule) -> _Rule:
    """Return ``rule``, but ignored if it cannot be evaluated, such as an invalid regex."""

    def check(*args: Any) -> Iterator[ValidationError]:
        # jsonschema fails in many ways at an invalid SPEC.
        with suppress(Exception):
            yield from rule(*args) or ()

    return check


def _required(_: Any, names: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Check only names that the SPEC defines (airbytehq/airbyte#76942)."""
    if not isinstance(instance, Mapping) or not isinstance(names, list):
        return
    listed = collect_properties(schema)
    for name in names:
        if name not in instance and (name in listed or not listed):
            yield ValidationError("missing", path=[name])


def _anything(*_: Any) -> None:
    """Accept unlisted fields; :func:`_find_unlisted` finds them."""


_RULES: Mapping[str, _Rule] = {
    **Draft7Validator.VALIDATORS,
    "required": _required,
    "additionalProperties": _anything,
    # A config that matches two options is valid, because the SPEC is ambiguous.
    "oneOf": Draft7Validator.VALIDATORS["anyOf"],
}
_Validator = extend(  # type: ignore[no-untyped-call]
    Draft7Validator,
    validators={name: _lenient(rule) for name, rule in _RULES.items()},
    type_checker=_LenientTypes(),
)


def is_valid(value: Any, schema: Mapping[str, Any]) -> bool:
    return bool(_Validator(dict(schema)).is_valid(value))


def find_faults(config: Mapping[str, Any], schema: Mapping[str, Any]) -> Findings:
    """Return all faults and warnings of ``config``. A template is valid for any type.

    Sentences never contain values, because these may be secret.
    """
    instance = {key: value for key, value in config.items() if key not in _INTERNAL_KEYS}
    faults: list[ConfigFault] = []
    warnings: list[ConfigFault] = []
    meant: dict[str, str] = {}  # listed field -> unlisted field that probably means it
    for path, field, listed in _find_unlisted(instance, schema):
        name = _join(path, field)
        near, is_typo = _guess_listed_name(field, listed)
        if near is not None:
            meant[_join(path, near)] = field
        if near is not None and is_typo:
            hint = f"did you mean '{near}'?"
            faults.append(ConfigFault(name, f"the connector has no config field '{name}'; {hint}"))
            continue
        near = near or closest_match(field, listed, cutoff=0.5)
        hint = f" (did you mean '{near}'?)" if near else ""
        text = (
            f"the connector's SPEC has no config field '{name}'{hint}; it is passed on unchanged."
        )
        warnings.append(ConfigFault(name, text))
    for error in _Validator(dict(schema)).iter_errors(instance):
        for each in _expand(error):
            fault = _build_fault(each)
            # A field with an old name is not missing, and the loop above reported typos.
            if fault not in faults and not (each.validator == "required" and fault.field in meant):
                faults.append(fault)
    return Findings(tuple(faults), tuple(warnings))


def _find_unlisted(
    value: Any, schema: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, list[str]]]:
    """Yield each field that the SPEC does not list: (path, field, listed fields at this path)."""
    if isinstance(value, list) and isinstance(schema, Mapping):
        for number, item in enumerate(value):
            yield from _find_unlisted(item, schema.get("items"), (*path, str(number)))
    if not isinstance(value, Mapping) or not isinstance(schema, Mapping):
        return
    listed = collect_properties(schema)
    is_open = "patternProperties" in schema or isinstance(
        schema.get("additionalProperties"), Mapping
    )
    if not listed or is_open:
        return
    for field, item in value.items():
        if field in listed:
            yield from _find_unlisted(item, find_property(schema, field), (*path, field))
        else:
            yield path, str(field), [name for name in listed if isinstance(name, str)]


def _guess_listed_name(field: str, listed: list[str]) -> tuple[str | None, bool]:
    """Return the listed name that ``field`` probably means, and whether ``field`` is a typo.

    A singular for a plural, or the reverse, is not a typo, but the name in an older version.
    """
    for name in listed:
        if _normalize(name) == _normalize(field):
            return name, True
    for name in listed:
        if field in _singulars(name) or name in _singulars(field):
            return name, False
    edits = next(edits for length, edits in _EDITS if len(field) <= length or length == 1_000)
    near = min(listed, key=lambda name: OSA.distance(field, name))
    if OSA.distance(field, near) > edits or _mask_digits(field) == _mask_digits(near):
        return None, False
    return near, True


def _normalize(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).casefold()


def _mask_digits(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _singulars(name: str) -> set[str]:
    endings = (("ies", "y"), ("es", ""), ("s", ""))
    return {name.removesuffix(many) + one for many, one in endings if name.endswith(many)}


def _expand(error: ValidationError) -> Iterator[ValidationError]:
    """Yield ``error``; for a choice, the errors of the chosen option."""
    instance: Any = error.instance
    if isinstance(instance, str) and TEMPLATE.search(instance):
        return
    if error.validator not in ("oneOf", "anyOf"):
        yield error
        return
    options: Any = error.validator_value
    chosen = [n for n, option in enumerate(options) if _is_chosen(option, instance)]
    if len(chosen) == 1:
        for inner in error.context or ():
            if inner.schema_path[0] == chosen[0]:
                yield from _expand(inner)
    elif not variables(instance):
        # With a template, the option may depend on a variable.
        deepest = best_match([error])
        yield error if deepest is None or isinstance(instance, Mapping) else deepest


def _is_chosen(option: Any, instance: Any) -> bool:
    if not isinstance(option, Mapping) or not isinstance(instance, Mapping):
        return False
    fixed = find_constants(option.get("properties"))
    return bool(fixed) and all(instance.get(name) == value for name, value in fixed.items())


def _build_fault(error: ValidationError) -> ConfigFault:
    field = ".".join(str(part) for part in error.absolute_path)
    subject = f"config field '{field}'" if field else "config"
    return ConfigFault(field, f"{subject} {_describe_error(error)}")


def _describe_error(error: ValidationError) -> str:
    rule: Any = error.validator_value
    match error.validator:
        case "required":
            return "is missing; the connector requires it."
        case "type":
            wanted = rule if isinstance(rule, str) else " or ".join(rule)
            return f"must be of type {wanted}, not {_type_name(error.instance)}."
        case "enum":
            allowed = ", ".join(json.dumps(value) for value in rule)
            return f"must be one of {allowed}."
        case "const":
            return f"must be {json.dumps(rule)}."
        case "oneOf" | "anyOf":
            return f"must be one of the {len(rule)} options{_list_options(rule)}."
        case _:
            return f"breaks the rule {error.validator}: {rule}."


def _list_options(options: list[Any]) -> str:
    """List the options by title and constants."""
    options_text = []
    for option in options:
        if isinstance(option, Mapping) and "title" in option:
            fixed = find_constants(option.get("properties"))
            which = ", ".join(f"{name}: {json.dumps(value)}" for name, value in fixed.items())
            options_text.append(f"{option['title']} ({which})" if which else str(option["title"]))
    return f": {', '.join(options_text)}" if options_text else ""


def _type_name(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object"}
    names |= {list: "array", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _join(path: tuple[str, ...], field: str) -> str:
    return ".".join((*path, field))

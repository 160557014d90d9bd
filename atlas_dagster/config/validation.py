"""Replace ``{{ env.X }}`` in a connector's config, and validate it by the SPEC.

Declarations contain templates; values exist only in the process that runs the connector. Atlas does
not use Dagster's templating: it would change ``1e5``, ``0x1F`` and ``None``, and replace a missing
variable by nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import UndefinedTypeCheck

from atlas_dagster.config.defaults import with_defaults
from atlas_dagster.config.faults import find_faults
from atlas_dagster.config.form import find_property
from atlas_dagster.config.templates import TEMPLATE, variables
from atlas_dagster.errors import InvalidConfigError, MissingVariableError
from atlas_dagster.listener import SILENT, Listener

_TYPES = Draft7Validator.TYPE_CHECKER


def require_variables(config: Mapping[str, Any], *, environ: Mapping[str, str], where: str) -> None:
    """Raise MissingVariableError if ``config`` refers to a variable that is not set."""
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
    listener: Listener = SILENT,
    check: bool = True,
) -> dict[str, Any]:
    """Return the config for the connector.

    A text that is exactly one template gets the type that the SPEC declares
    (``port: "{{ env.DB_PORT }}"`` becomes a number); other texts stay texts. Values from the
    environment are validated like literal values. Absent fields get the SPEC's defaults.

    Args:
        config: the declaration.
        schema: the SPEC's.
        environ: the values for the templates.
        where: the connection, for messages.
        listener: gets a warning for each suspicious field that is passed on to the connector.
        check: if False, the config is not validated and gets no defaults.

    Raises:
        MissingVariableError: a variable is not set.
        InvalidConfigError: the result does not fit the SPEC.
    """
    require_variables(config, environ=environ, where=where)
    resolved = _substitute(dict(config), schema, environ)
    assert isinstance(resolved, dict)
    if not check:
        return resolved
    validate(resolved, schema=schema, where=where, listener=listener)
    return with_defaults(resolved, schema)


def validate(
    config: Mapping[str, Any],
    *,
    schema: Mapping[str, Any],
    where: str,
    listener: Listener = SILENT,
) -> None:
    """Validate ``config``, with defaults, by the SPEC's JSON schema (draft 7).

    ``listener`` gets a warning for each suspicious field that is passed on to the connector.

    Raises:
        InvalidConfigError: the message names each faulty field and the allowed values.
    """
    found = find_faults(with_defaults(config, schema), schema)
    for warning in found.warnings:
        listener.warning(f"{where}: {warning.sentence}")
    if found.faults:
        first, *others = (fault.sentence for fault in found.faults)
        raise InvalidConfigError(
            "\n".join([f"{where}: {first}", *(f"Also: {other}" for other in others)]),
            found.faults[0].field,
            [(fault.field, fault.sentence) for fault in found.faults],
        )


def _substitute(value: Any, schema: Any, environ: Mapping[str, str]) -> Any:
    schema = schema if isinstance(schema, Mapping) else {}
    if isinstance(value, str):
        template = TEMPLATE.fullmatch(value.strip())
        if template:
            return _parse_typed(environ[template.group(1)], schema)
        return TEMPLATE.sub(lambda match: environ[match.group(1)], value)
    if isinstance(value, Mapping):
        return {
            key: _substitute(item, find_property(schema, key), environ)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_substitute(item, schema.get("items"), environ) for item in value]
    return value


def _parse_typed(text: str, schema: Mapping[str, Any]) -> Any:
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

"""Errors of declarations as one sentence with file, line and field."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.automation.cron import Schedule
from atlas_dagster.orchestration.automation.maintenance import MaintenanceConfig
from atlas_dagster.orchestration.dagster_internals import (
    DagsterUnresolvableSymbolError,
    ResolutionException,
    find_defs_or_component_yaml,
)
from atlas_dagster.orchestration.definitions.discovery import DiscoveryConfig
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.connection import StreamSelection
from atlas_dagster.wording import closest_match, validation_message

#: The location of a field in Dagster's messages: its path, then file and line.
_LOCATION = re.compile(r"(?P<path>.*) at .+:(?P<line>\d+)", re.DOTALL)
#: The types of a union, which pydantic inserts between the parts of a path.
_UNION_TYPES = re.compile(r"(?<=\.)(?:[a-z-]+\[[^.]*\]|str|none)(?=\.|$)")
#: The start of Dagster's messages about templates: file, line and path of the field.
_TEMPLATE = re.compile(r".+:(?P<line>\d+) - (?:attributes\.)?(?P<path>\S+)\n")

#: The fields of a connection that have fields themselves.
_NESTED: Mapping[str, type[BaseModel]] = {
    "streams": StreamSelection,
    "executor": ExecutorConfig,
    "maintenance": MaintenanceConfig,
    "discovery": DiscoveryConfig,
    "schedule": Schedule,
}


def describe_error(error: BaseException, folder: Path) -> str:
    """Describe in one sentence an error that occurred while ``folder`` was loaded."""
    file = find_defs_or_component_yaml(folder)
    where = f"{folder.name}/{file.name}" if file else folder.name
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case AtlasError():
                return str(cause)
            case ValidationError():
                return f"{where}{_describe_field(cause)}"
            case yaml.MarkedYAMLError() if cause.problem_mark is not None:
                mark = cause.problem_mark
                return f"{where}, line {mark.line + 1}: this is not valid YAML ({cause.problem})."
            case UnicodeDecodeError() if file is not None:
                line = cause.object[: cause.start].count(b"\n") + 1
                byte = f"0x{cause.object[cause.start]:02x}"
                return (
                    f"{where}, line {line}: the file is not UTF-8 (byte {byte}); save it as UTF-8."
                )
            case ResolutionException() if placed := _TEMPLATE.match(str(cause)):
                reason = str(cause).strip().rpartition("\n")[2].rpartition("Error: ")[2]
                return f"{where}, line {placed['line']}: field '{placed['path']}': {reason}."
            case ImportError() | DagsterUnresolvableSymbolError():
                what = str(cause).removesuffix(".")
                return f"{where}: {what}; check the type and that its package is installed."
        if cause.__cause__ is None and cause.__context__ is None:
            break
        cause = cause.__cause__ or cause.__context__
    if file is not None and not file.read_text(encoding="utf-8", errors="replace").strip():
        return f"{where}: the file is empty; give it a type and attributes."
    return f"{where}: {type(cause).__name__}: {' '.join(str(cause).split())}"


def _describe_field(error: ValidationError) -> str:
    errors = error.errors()
    # If a union accepts text or an object, pydantic first reports that an object is not text.
    objects = [
        e for e in errors if not (e["type"] == "string_type" and isinstance(e["input"], dict))
    ]
    first = (objects or errors)[0]
    path, line = _parse_location(".".join(str(part) for part in first["loc"]))
    where = f", line {line}: " if line else ": "
    field = path[-1] if path else ""
    if first["type"] == "extra_forbidden":
        known = list(AirbyteConnection.model().model_fields)
        nested = [_NESTED[part] for part in path[:-1] if part in _NESTED]
        if nested:
            known = list(nested[0].model_fields)
        elif "attributes" not in path[:-1]:
            known = ["type", "attributes", "requirements", "post_processing"]
        near = closest_match(field, known)
        hint = f"did you mean '{near}'?" if near else f"the fields are {', '.join(known)}."
        return f"{where}there is no field '{field}'; {hint}"
    if first["type"] == "missing":
        return f"{where}the field '{field}' is missing."
    path = path[1:] if path[:1] == ["attributes"] else path
    # If the declaration has no name, the name is that of the folder, so no field is wrong.
    named = f"field '{'.'.join(path)}'" if path and path != ["name"] else ""
    if first["type"] == "string_type" and isinstance(first["input"], int | float):
        return f"{where}{named} must be text; put it in quotes."
    message = validation_message(first["msg"])
    return f"{where}{named}{': ' if named else ''}{message[0].lower()}{message[1:]}."


def _parse_location(text: str) -> tuple[list[str], str | None]:
    """Return the path of a field, without the types of unions, and its line."""
    location = _LOCATION.fullmatch(text)
    path = _UNION_TYPES.sub("", location["path"] if location else text).split(".")
    return [part for part in path if part], location["line"] if location else None

"""Write a new connection into a project: ``dg scaffold defs`` and ``atlas init``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import dotenv
import yaml
from pydantic import BaseModel, Field, field_validator

from atlas_dagster.errors import ConfigError, UnknownConnectorError
from atlas_dagster.files import atomic_folder
from atlas_dagster.registry import get_connector_info


class ConnectionParams(BaseModel):
    """What may be said when a connection is scaffolded."""

    connector: str = Field(
        default="source-faker", description="Name of the connector in Airbyte's registry."
    )
    version: str | None = Field(default=None, description="Its version, if not the registry's.")

    @field_validator("connector")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return get_connector_info(name).name
        except UnknownConnectorError as error:
            raise ValueError(str(error)) from error  # for dg to show


class ConnectionScaffolder(dg.Scaffolder[ConnectionParams]):
    """Writes a connection to fill in."""

    @classmethod
    def get_scaffold_params(cls) -> type[ConnectionParams]:
        return ConnectionParams

    def scaffold(self, request: dg.ScaffoldRequest[ConnectionParams]) -> None:
        asked = request.params
        attributes = {"connector": asked.connector}
        if asked.version is not None:
            attributes["version"] = asked.version
        dg.scaffold_component(request, {**attributes, "config": {}})


def write_connection(folder: Path, attributes: Mapping[str, Any], docs_url: str | None) -> Path:
    """Declare the connection that ``folder`` is named after; the file it is in.

    Raises:
        ConfigError: there is such a folder already, or it cannot be written.
    """
    file = folder / "defs.yaml"
    declared = {"type": "atlas_dagster.AirbyteConnection", "attributes": dict(attributes)}
    text = yaml.safe_dump(declared, sort_keys=False, allow_unicode=True, width=100)
    head = f"# What config takes: {docs_url}\n" if docs_url else ""
    try:
        # No code location must see the folder without its file.
        with atomic_folder(folder) as unfinished:
            (unfinished / file.name).write_text(head + text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(
            f"There is a folder {folder.name} already; choose another name, or edit "
            f"{folder.name}/{file.name}."
        ) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}).") from error
    return file


def write_secrets(file: Path, values: Mapping[str, str]) -> None:
    """Set variables in a ``.env``, from then on readable by its owner alone.

    Raises:
        ConfigError: it cannot be written, or a value cannot be a variable's.
    """
    for name, value in values.items():
        if "\0" in value:
            raise ConfigError(
                f"The value for {name} holds a NUL character, which no environment variable can."
            )
    # Where a link leads, so that it stays one.
    file = file.resolve()
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CREAT, 0o600))
        file.chmod(0o600)
        for name, value in values.items():
            dotenv.set_key(file, name, _quoted(value), quote_mode="never")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}).") from error


def _quoted(value: str) -> str:
    """``value`` as python-dotenv, Dagster's reader too, reads it back.

    ``${`` would begin a variable even in single quotes; ``${:-$}`` is one without a name, whose
    default is ``$``.
    """
    value = value.replace("\\", "\\\\").replace("${", "${:-$}{")
    if "\r" in value:
        # As it is, it would be read as a line end.
        escaped = value.replace('"', '\\"').replace("\r", "\\r")
        return f'"{escaped}"'
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"

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
    """The parameters of ``dg scaffold defs``."""

    connector: str = Field(
        default="source-faker", description="Name of the connector in Airbyte's registry."
    )
    version: str | None = Field(
        default=None, description="Version of the connector; by default that of the registry."
    )

    @field_validator("connector")
    @classmethod
    def _require_known(cls, name: str) -> str:
        try:
            return get_connector_info(name).name
        except UnknownConnectorError as error:
            raise ValueError(str(error)) from error  # dg prints a ValueError


class ConnectionScaffolder(dg.Scaffolder[ConnectionParams]):
    """Writes a connection with an empty config."""

    @classmethod
    def get_scaffold_params(cls) -> type[ConnectionParams]:
        return ConnectionParams

    def scaffold(self, request: dg.ScaffoldRequest[ConnectionParams]) -> None:
        params = request.params
        attributes = {"connector": params.connector}
        if params.version is not None:
            attributes["version"] = params.version
        dg.scaffold_component(request, {**attributes, "config": {}})


def write_connection(folder: Path, attributes: Mapping[str, Any], docs_url: str | None) -> Path:
    """Declare a connection, named after its folder. Return the file.

    Raises:
        ConfigError: the folder exists already, or cannot be written.
    """
    file = folder / "defs.yaml"
    declared = {"type": "atlas_dagster.AirbyteConnection", "attributes": dict(attributes)}
    text = yaml.safe_dump(declared, sort_keys=False, allow_unicode=True, width=100)
    head = f"# Fields of config: {docs_url}\n" if docs_url else ""
    try:
        # atomic_folder, because no code location must see the folder without its file.
        with atomic_folder(folder) as unfinished:
            (unfinished / file.name).write_text(head + text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(
            f"The folder {folder.name} exists already; choose another name, or edit "
            f"{folder.name}/{file.name}."
        ) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}).") from error
    return file


def write_secrets(file: Path, values: Mapping[str, str]) -> None:
    """Set variables in a ``.env``, and make it readable only by its owner.

    Raises:
        ConfigError: the file cannot be written, or a value has a NUL character.
    """
    for name, value in values.items():
        if "\0" in value:
            raise ConfigError(
                f"The value for {name} has a NUL character; remove it: variables cannot have one."
            )
    # Write the target of a symbolic link, so that the link stays.
    file = file.resolve()
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CREAT, 0o600))
        file.chmod(0o600)
        for name, value in values.items():
            dotenv.set_key(file, name, _quote(value), quote_mode="never")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}).") from error


def _quote(value: str) -> str:
    """Quote ``value`` for python-dotenv, which Dagster uses, too.

    ``${`` starts a variable even in single quotes; ``${:-$}`` is a variable without a name, whose
    default is ``$``.
    """
    value = value.replace("\\", "\\\\").replace("${", "${:-$}{")
    if "\r" in value:
        # A carriage return would end the line, so it is escaped.
        escaped = value.replace('"', '\\"').replace("\r", "\\r")
        return f'"{escaped}"'
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"

"""The project that ``atlas`` works in."""

import os
from pathlib import Path

import click
from dotenv import load_dotenv

from atlas_dagster.errors import ConfigError


def find_project() -> Path | None:
    """The folder of the nearest dagster.yaml; DAGSTER_HOME alone, where it is set."""
    here = Path.cwd()
    home = os.environ.get("DAGSTER_HOME")
    folders = [Path(home)] if home else [here, *here.parents]
    return next((folder for folder in folders if (folder / "dagster.yaml").exists()), None)


def called_in() -> Path:
    """The folder the command was called in."""
    command = click.get_current_context(silent=True)
    return (command and command.find_root().obj) or Path.cwd()


def enter_project() -> None:
    """Work from the project's folder, which Dagster's relative paths start at.

    Variables of its ``.env`` are taken, where they are not set already, as ``dagster dev`` does.

    Raises:
        ConfigError: there is no such folder.
    """
    command = click.get_current_context(silent=True)
    if command is not None:
        command.find_root().obj = called_in()
    folder = find_project()
    if folder is None:
        raise ConfigError(
            "There is no dagster.yaml here or above; run atlas in the project, or set DAGSTER_HOME."
        )
    os.environ["DAGSTER_HOME"] = str(folder)
    os.chdir(folder)
    load_dotenv(folder / ".env")

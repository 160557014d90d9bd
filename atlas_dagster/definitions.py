"""The code location: all connections of ``connections/``, and their shared resources."""

from pathlib import Path

import dagster as dg

from atlas_dagster.components.loading import load_from_defs_folder
from atlas_dagster.config.secret_files import load_secret_files


@dg.definitions
def defs() -> dg.Definitions:
    load_secret_files()
    return load_from_defs_folder(path_within_project=Path(__file__).parent)

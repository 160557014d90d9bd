"""The code location: every connection of ``connections/``, and what they share."""

from pathlib import Path

import dagster as dg

from atlas_dagster.components.loading import load_from_defs_folder
from atlas_dagster.config.secret_files import load_secret_files


@dg.definitions
def defs() -> dg.Definitions:
    load_secret_files()
    return load_from_defs_folder(path_within_project=Path(__file__).parent)

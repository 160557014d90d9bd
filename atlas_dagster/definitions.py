"""The code location: every connection of ``connections/``, and what they share."""

from pathlib import Path

import dagster as dg

from atlas_dagster.components.loading import load_from_defs_folder


@dg.definitions
def defs() -> dg.Definitions:
    return load_from_defs_folder(path_within_project=Path(__file__).parent)

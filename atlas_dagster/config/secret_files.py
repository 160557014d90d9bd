"""Secrets given as files, as Docker and Kubernetes do: one for each variable, named like it."""

import os
from pathlib import Path

from atlas_dagster.errors import ConfigError

#: Names the folder.
FOLDER_VARIABLE = "ATLAS_SECRETS"


def load_secret_files() -> None:
    """Make each file in the folder that ATLAS_SECRETS names a variable of this process.

    A variable that is set already stays; a newline at the end of a file is not part of it. Files
    whose names begin with a dot are left alone.

    Raises:
        ConfigError: the folder or a file in it cannot be read.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    try:
        for path in Path(folder).iterdir():
            if path.is_file() and not path.name.startswith("."):
                os.environ.setdefault(path.name, path.read_text().removesuffix("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The secrets in {folder} ({FOLDER_VARIABLE}) cannot be read ({error}); see that it is "
            "a folder of text files that this user may read."
        ) from error

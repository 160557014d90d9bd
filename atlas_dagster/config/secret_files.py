"""Secrets as files, as in Docker and Kubernetes: one file for each variable, with its name."""

import os
from pathlib import Path

from atlas_dagster.errors import ConfigError

#: The variable that names the folder.
FOLDER_VARIABLE = "ATLAS_SECRETS"


def load_secret_files() -> None:
    """Set an environment variable for each file in the folder that ATLAS_SECRETS names.

    Variables that are already set keep their values. A newline at the end of a file is removed.
    Files whose names begin with a dot are ignored.

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
            f"The secrets in {folder} ({FOLDER_VARIABLE}) cannot be read ({error}); check "
            "that it is a folder of text files that this user may read."
        ) from error

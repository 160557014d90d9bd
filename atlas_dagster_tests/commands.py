"""Commands of this environment, run as in a terminal."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

BIN = Path(sys.executable).parent


def run_in(folder: Path, *command: str, environment: Mapping[str, str] = {}) -> str:
    """What ``command`` prints; nothing that Atlas or Dagster is told here is told there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ATLAS_", "DAGSTER_"))}
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

"""Virtual environments of what Atlas is measured beside."""

import subprocess
import sys
from pathlib import Path


def environment(name: str, requirement: str) -> Path:
    """The Python of an environment with ``requirement`` alone, made where it is missing.

    Raises:
        subprocess.CalledProcessError: it cannot be made here; ``stderr`` says why.
    """
    import uv
    from platformdirs import user_cache_path

    folder = user_cache_path("atlas-dagster") / f"bench-{name}-{requirement.partition('==')[2]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        install = ["pip", "install", "--quiet", "--compile-bytecode", requirement]
        for command in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [*install, "--python", str(python)],
        ):
            subprocess.run([uv.find_uv_bin(), *command], check=True, capture_output=True, text=True)
        (folder / "complete").touch()
    return python

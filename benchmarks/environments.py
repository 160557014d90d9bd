"""Virtual environments: of Atlas as users install it, and of what it is measured beside."""

import hashlib
import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]


def atlas() -> Path:
    """The Python of an environment with Atlas as its image has it.

    That of development has more, some of which Atlas's own dependencies import where it is there.
    """
    locked = _REPOSITORY / "requirements.txt"
    key = hashlib.sha256(locked.read_bytes() + bytes(_REPOSITORY)).hexdigest()[:16]
    installed = [["--requirement", str(locked)], ["--no-deps", "--editable", str(_REPOSITORY)]]
    return _made(f"atlas-{key}", *installed)


def environment(name: str, requirement: str) -> Path:
    """The Python of an environment with ``requirement`` alone, made where it is missing.

    Raises:
        subprocess.CalledProcessError: it cannot be made here; ``stderr`` says why.
    """
    return _made(f"{name}-{requirement.partition('==')[2]}", [requirement])


def _made(name: str, *installed: list[str]) -> Path:
    import uv
    from platformdirs import user_cache_path

    folder = user_cache_path("atlas-dagster") / f"bench-{name}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        install = ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
        for command in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            *([*install, *what] for what in installed),
        ):
            subprocess.run([uv.find_uv_bin(), *command], check=True, capture_output=True, text=True)
        (folder / "complete").touch()
    return python

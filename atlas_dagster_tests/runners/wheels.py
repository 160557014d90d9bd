"""Wheels that need no network: each holds one module and the command that calls it."""

import zipfile
from pathlib import Path

#: Prints the version of Python and the verb.
PRINTING = "import platform, sys\ndef run(): print(platform.python_version(), sys.argv[1])\n"


def write_wheel(
    shelf: Path,
    package: str,
    version: str = "1.0.0",
    *,
    requires_python: str = "",
    requires: str = "",
    module: str = PRINTING,
) -> None:
    """Put ``airbyte-source-tiny``, say, with its command ``source-tiny``, on ``shelf``."""
    command = package.removeprefix("airbyte-")
    name, distribution = command.replace("-", "_"), package.replace("-", "_")
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    metadata += f"Requires-Python: {requires_python}\n" if requires_python else ""
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    info = f"{distribution}-{version}.dist-info"
    files = {
        f"{name}.py": module,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"{info}/entry_points.txt": f"[console_scripts]\n{command} = {name}:run\n",
    }
    record = f"{info}/RECORD"
    files[record] = "".join(f"{file},,\n" for file in [*files, record])
    with zipfile.ZipFile(shelf / f"{distribution}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)

"""The distribution that users install."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

REPOSITORY = Path(__file__).parents[1]
#: Modules, the registry's data, and the marker that says the package is typed.
SUFFIXES = {".py", ".json", ".csv", ".typed"}


@pytest.mark.pypi  # the build backend comes from PyPI
def test_wheel_contains_modules_data_and_types(tmp_path: Path) -> None:
    build = [find_uv_bin(), "build", "--wheel", "--quiet", "--out-dir", tmp_path, REPOSITORY]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    contained = set(zipfile.ZipFile(wheel).namelist())

    files = [f for f in (REPOSITORY / "atlas_dagster").rglob("*") if f.suffix in SUFFIXES]
    names = {str(f.relative_to(REPOSITORY)) for f in files}
    expected = {name for name in names if not name.startswith("atlas_dagster/connections/")}
    assert {Path(name).suffix for name in expected} == SUFFIXES
    assert "atlas_dagster/py.typed" in contained
    assert expected <= contained
    assert not [name for name in contained if name.startswith("atlas_dagster_tests/")]

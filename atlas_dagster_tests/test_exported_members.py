"""The public names: sorted, importable, and Dagster only where it is needed."""

import subprocess
import sys

import pytest

import atlas_dagster


def test_public_names_are_sorted() -> None:
    assert atlas_dagster.__all__ == sorted(atlas_dagster.__all__)


@pytest.mark.parametrize("name", atlas_dagster.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(atlas_dagster, name).__name__ == name


def test_there_are_no_other_names() -> None:
    with pytest.raises(AttributeError, match="'AirbyteConection'"):
        _ = atlas_dagster.AirbyteConection  # type: ignore[attr-defined]


@pytest.mark.slow
def test_importing_the_package_does_not_import_dagster() -> None:
    program = (
        "import sys, atlas_dagster\n"
        "print('dagster' in sys.modules)\n"
        "atlas_dagster.AirbyteConnection\n"
        "print('dagster' in sys.modules)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert ran.stdout.split() == ["False", "True"]

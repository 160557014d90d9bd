import csv
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
from uv import find_uv_bin

import atlas_dagster.registry
from atlas_dagster.errors import UnknownConnectorError
from atlas_dagster.registry import ConnectorEntry, entries, resolve

REPOSITORY = Path(__file__).parents[2]


def test_public_names_are_sorted() -> None:
    assert atlas_dagster.registry.__all__ == sorted(atlas_dagster.registry.__all__)


def test_a_connector_and_where_it_is_published() -> None:
    faker = resolve("source-faker")
    assert faker.title == "Sample Data"
    assert faker.docker_image == f"airbyte/source-faker:{faker.tag}"
    assert faker.pypi_package == "airbyte-source-faker"
    assert resolve("source-postgres").pypi_package is None


def test_every_row_is_complete() -> None:
    assert list(entries()) == sorted(entries())
    for entry in entries().values():
        assert entry.title
        assert "/" in entry.image
        assert entry.tag[0].isdigit()
        assert entry.docs_url.startswith("https://")
        assert entry.language in {"python", "java", "manifest-only", ""}


def test_every_row_has_a_name_of_its_own() -> None:
    text = (files("atlas_dagster.registry") / "sources.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == len(entries())


def test_entries_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        entries()["source-faker"] = resolve("source-postgres")  # type: ignore[index]


@pytest.mark.parametrize(("version", "tag"), [(None, "7.2.1"), ("6.0.0", "6.0.0")])
def test_a_pin_replaces_the_tag(version: str | None, tag: str) -> None:
    entry = ConnectorEntry(
        name="source-faker",
        title="Sample Data",
        image="airbyte/source-faker",
        tag="7.2.1",
        category="development",
        language="python",
        support_level="community",
        pypi_package="airbyte-source-faker",
        docs_url="https://docs.airbyte.com",
    )
    assert entry.at(version).docker_image == f"airbyte/source-faker:{tag}"
    assert entry.docker_image == "airbyte/source-faker:7.2.1"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("postgres", "source-postgres"),
        ("Postgres", "source-postgres"),
        ("Source-Postgres", "source-postgres"),
        ("source_google_ads", "source-google-ads"),
        ("Sample Data", "source-faker"),
        ("airbyte/source-faker:7.2.1", "source-faker"),
    ],
)
def test_another_spelling_names_the_one_connector(written: str, meant: str) -> None:
    with pytest.raises(UnknownConnectorError) as caught:
        resolve(written)
    assert str(caught.value) == f'There is no connector "{written}"; did you mean {meant}?'


def test_a_typo_names_the_nearest() -> None:
    with pytest.raises(UnknownConnectorError, match=r"did you mean source-postgres\b"):
        resolve("source-posgres")


@pytest.mark.parametrize("written", ["", "zzzzzzzz"])
def test_nothing_near_says_where_to_look(written: str) -> None:
    with pytest.raises(UnknownConnectorError, match=r"take a name .* from https://"):
        resolve(written)


def test_the_wheel_holds_the_data(tmp_path: Path) -> None:
    subprocess.run(
        [find_uv_bin(), "build", "--wheel", "--quiet", "--out-dir", tmp_path, REPOSITORY],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert "atlas_dagster/registry/sources.csv" in zipfile.ZipFile(wheel).namelist()


def test_the_registry_imports_nothing_heavy() -> None:
    script = "import sys, atlas_dagster.registry; print('dagster' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False"

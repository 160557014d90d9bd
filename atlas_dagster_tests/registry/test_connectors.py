import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

import atlas_dagster.registry
from atlas_dagster.errors import ConfigError, UnknownConnectorError
from atlas_dagster.registry import (
    BreakingChange,
    ConnectorCategory,
    get_connector_image,
    get_connector_info,
    list_connectors,
)
from atlas_dagster.registry.catalogue import shipped_listing
from atlas_dagster.registry.connector_info import _OTHER_CATEGORIES

REPOSITORY = Path(__file__).parents[2]


def test_public_names_are_sorted() -> None:
    assert atlas_dagster.registry.__all__ == sorted(atlas_dagster.registry.__all__)


def test_a_connector_and_where_it_is_published() -> None:
    faker = get_connector_info("source-faker")
    assert faker.title == "Sample Data"
    assert faker.docker_image == f"airbyte/source-faker:{faker.tag}"
    assert faker.pypi_package == "airbyte-source-faker"
    postgres = get_connector_info("source-postgres")
    assert postgres.pypi_package is None
    assert (postgres.category, postgres.kind, postgres.language, postgres.support_level) == (
        ConnectorCategory.DATABASE,
        "database",
        "java",
        "certified",
    )
    assert postgres.definition_id == "decd338e-5647-4c0b-adf4-da0e75f5a750"


def test_images_are_pinned() -> None:
    tag = get_connector_info("source-postgres").tag
    assert get_connector_image("source-postgres") == f"airbyte/source-postgres:{tag}"
    assert all(info.tag[0].isdigit() for info in list_connectors())


def test_every_connector_is_complete() -> None:
    listed = shipped_listing().connectors
    names = [info.name for info in listed]
    assert len(listed) == 591
    assert names == sorted(set(names))
    assert len({info.definition_id for info in listed}) == len(listed)
    for info in listed:
        assert info.title
        assert info.image.endswith(f"/{info.name}")
        assert info.docs_url.startswith("https://")
        assert info.language in {"python", "java", "manifest-only", ""}
        assert info.kind in {"api", "database", "file"}
        assert info.support_level in {"certified", "community"}


def test_the_shipped_file_is_as_atlas_writes_it() -> None:
    """So that a refreshed list can simply take its place."""
    file = REPOSITORY / "atlas_dagster" / "registry" / "connectors.json"
    assert shipped_listing().encode() == file.read_bytes()


@pytest.mark.parametrize("category", ConnectorCategory)
def test_every_category_has_connectors(category: ConnectorCategory) -> None:
    listed = list_connectors(category)
    assert listed
    assert listed == list_connectors(category.value)
    assert all(category in info.categories for info in listed)


def test_the_categories_hold_every_connector() -> None:
    held = {info.name for category in ConnectorCategory for info in list_connectors(category)}
    assert held == {info.name for info in list_connectors()}


@pytest.mark.parametrize(
    ("category", "own", "names"),
    [
        ("ecommerce", "finance", ["stripe", "square", "paypal-transaction", "chargebee"]),
        ("development", "project_management", ["jira", "linear"]),
        ("crm", "support", ["intercom", "zendesk-support"]),
    ],
)
def test_a_connector_may_be_in_several_categories(
    category: str, own: str, names: list[str]
) -> None:
    for name in names:
        info = get_connector_info(f"source-{name}")
        assert info.categories == (own, category)
        assert info in list_connectors(category)
        assert info in list_connectors(own)


def test_other_categories_are_of_connectors_that_there_are() -> None:
    names = {info.name for info in list_connectors()}
    assert set(_OTHER_CATEGORIES) <= names
    for info in list_connectors():
        assert len(set(info.categories)) == len(info.categories)


def test_a_category_for_people() -> None:
    titles = {category.value: category.label for category in ConnectorCategory}
    assert titles["crm"] == "CRM"
    assert titles["project_management"] == "Project management"


def test_an_unknown_category_names_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r'no category "sales"; choose one of analytics, .*support'
    ):
        list_connectors("sales")


@pytest.mark.parametrize("version", ["6.0.0", "latest"])
def test_a_pin_replaces_the_tag(version: str) -> None:
    info = get_connector_info("source-faker")
    assert info.at(version).docker_image == f"airbyte/source-faker:{version}"
    assert info.at(None) is info


def test_breaking_changes_on_the_way_to_a_version() -> None:
    changes = tuple(BreakingChange(v, f"to {v}") for v in ("10.0.0", "2.0.0", "3.1.0", "1.0.0"))
    info = replace(get_connector_info("source-faker"), breaking_changes=changes)
    passed = [change.version for change in info.breaking_changes_between("1.0.0", "10.0.1")]
    assert passed == ["2.0.0", "3.1.0", "10.0.0"]
    assert info.breaking_changes_between("3.1.0", "3.2.0") == ()
    assert info.breaking_changes_between("10.0.0", "2.0.0") == ()


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
        get_connector_info(written)
    assert str(caught.value) == f'There is no connector "{written}"; did you mean {meant}?'


def test_a_typo_names_the_nearest() -> None:
    with pytest.raises(UnknownConnectorError, match=r"did you mean source-postgres\b"):
        get_connector_info("source-posgres")


@pytest.mark.parametrize("written", ["", "zzzzzzzz", "?"])
def test_nothing_near_says_where_to_look(written: str) -> None:
    with pytest.raises(UnknownConnectorError, match=r"atlas connectors search.* https://"):
        get_connector_image(written)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "source-neo4j",
            "Airbyte publishes no connector for Neo4j. Nearest are source-mongodb-v2 and "
            "source-couchbase; Neo4j itself needs a declarative manifest or an image of your own.",
        ),
        (
            "source-teams",
            'There is no connector "Teams". It is called Microsoft Teams there; use '
            "source-microsoft-teams.",
        ),
        (
            "MariaDB",
            'There is no connector "MariaDB". It speaks MySQL\'s protocol; use source-mysql.',
        ),
        (
            "REST API",
            'There is no connector "REST API". Any API over HTTP can be read with a declarative '
            "manifest of your own.",
        ),
    ],
)
def test_a_well_known_name_without_a_connector_is_explained(name: str, sentence: str) -> None:
    with pytest.raises(UnknownConnectorError) as caught:
        get_connector_info(name)
    assert str(caught.value) == sentence


def test_the_registry_imports_nothing_heavy() -> None:
    script = "import sys, atlas_dagster.registry; print({'dagster', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"

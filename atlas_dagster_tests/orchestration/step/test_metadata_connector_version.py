"""What is said when a connector comes in a new major version."""

from msgspec.structs import replace

from atlas_dagster.orchestration.step.metadata import major_change
from atlas_dagster.registry import BreakingChange, ConnectorInfo, get_connector_info

FAKER = get_connector_info("source-faker")


def told(before: str, now: str, published: ConnectorInfo | None = FAKER) -> list[str]:
    return list(major_change([before], now, "https://docs.example.com", published))


def test_a_minor_version_says_nothing() -> None:
    assert told("airbyte/source-faker:7.1.0@sha256:a", "airbyte/source-faker:7.2.0@sha256:b") == []


def test_what_the_registry_does_not_know_is_in_the_docs() -> None:
    for published in (FAKER, None):
        (sentence,) = told("airbyte-source-faker==7.2.1", "airbyte-source-faker==8.0.0", published)
        assert "read its migration notes (https://docs.example.com)" in sentence


def test_what_the_registry_knows_is_said() -> None:
    guide = "https://docs.example.com/migrations"
    changes = (
        BreakingChange("7.0.0", "Long passed.", guide, ("users",)),
        BreakingChange("8.0.0", "The key changed.", guide, ("users", "products")),
        BreakingChange("9.0.0", "Purchases are nested"),
    )
    published = replace(FAKER, breaking_changes=changes)
    (sentence,) = told(
        "airbyte/source-faker:7.2.1@sha256:a",
        "airbyte/source-faker:latest=9.0.1@sha256:b",
        published,
    )
    assert sentence == (
        "The connector went from version 7.2.1 to 9.0.1 since the last sync. "
        "8.0.0: The key changed. Streams: users, products. "
        f"Migration guide: {guide} 9.0.0: Purchases are nested. "
        "Refresh the streams products, users if the guide says so."
    )


def test_the_runner_of_a_manifest_has_a_version_of_its_own() -> None:
    assert told("m@sha256:a (airbyte-cdk==6.0.0)", "m@sha256:a (airbyte-cdk==7.0.0)") == []

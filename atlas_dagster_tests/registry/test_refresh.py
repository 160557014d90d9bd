"""The list of connectors, made anew from a registry; and what a broken one changes: nothing."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from atlas_dagster.errors import AtlasError, ConfigError, TransientError
from atlas_dagster.registry import (
    BreakingChange,
    ConnectorCategory,
    Refreshed,
    get_connector_image,
    get_connector_info,
    list_connectors,
    refresh_registry,
)
from atlas_dagster.registry.catalogue import clear_cache, listing, refreshed_path, shipped_listing
from atlas_dagster_tests.registry.live_registry import LIST, LiveRegistry, wire

FAKER = next(info for info in shipped_listing().connectors if info.name == "source-faker")
NEW = {
    "sourceDefinitionId": "00000000-0000-0000-0000-000000000000",
    "name": "Neo4j",
    "dockerRepository": "airbyte/source-neo4j",
    "dockerImageTag": "0.1.0",
    "documentationUrl": "https://docs.airbyte.com/integrations/sources/neo4j",
    "sourceType": "database",
    "supportLevel": "community",
}


def refreshed(registry: LiveRegistry, *sources: dict[str, Any]) -> Refreshed:
    registry.publish(*sources)
    return refresh_registry()


def newer_faker(**more: Any) -> dict[str, Any]:
    return wire(replace(FAKER, tag="8.0.0"), **more)


def test_versions_are_taken(registry: LiveRegistry) -> None:
    done = refreshed(registry, newer_faker())
    assert get_connector_image("source-faker") == "airbyte/source-faker:8.0.0"
    (upgrade,) = done.upgrades
    assert (upgrade.before.tag, upgrade.now.tag, upgrade.breaking) == (FAKER.tag, "8.0.0", ())
    assert (done.added, done.removed, done.unreadable) == ((), (), 0)


def test_everything_else_is_as_it_was(registry: LiveRegistry) -> None:
    refreshed(registry)
    known = {info.name: info for info in shipped_listing().connectors}
    for info in list_connectors():
        plain = replace(info, allowed_hosts=(), max_seconds_between_messages=None)
        assert plain == known.pop(info.name)
    assert known == {}


@pytest.mark.slow
def test_another_process_sees_the_new_list(registry: LiveRegistry) -> None:
    refreshed(registry, newer_faker())
    script = "from atlas_dagster.registry import *; print(get_connector_image('source-faker'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "airbyte/source-faker:8.0.0\n"


def test_hints_and_breaking_changes_are_taken(registry: LiveRegistry) -> None:
    refreshed(
        registry,
        newer_faker(
            resourceRequirements={
                "default": {"memory_limit": "1Gi", "cpu_limit": "500m"},
                "jobSpecific": [
                    {"jobType": "sync", "resourceRequirements": {"memory_limit": "4Gi"}},
                    {"jobType": "check_connection", "resourceRequirements": None},
                ],
            },
            maxSecondsBetweenMessages=86400,
            releases={
                "breakingChanges": {
                    "8.0.0": {
                        "message": "The key of `users`\nchanged.",
                        "upgradeDeadline": "2026-12-01",
                        "migrationDocumentationUrl": "https://example.com/migrations",
                        "scopedImpact": [
                            {"scopeType": "stream", "impactedScopes": ["users", "products"]}
                        ],
                    },
                    "2.0.0": {"message": "Old.", "upgradeDeadline": "2023-01-01"},
                },
                "releaseCandidates": {},
                "migrationDocumentationUrl": "https://example.com",
            },
        ),
    )
    faker = get_connector_info("source-faker")
    assert (faker.memory_limit, faker.cpu_limit) == ("4Gi", 0.5)
    assert faker.max_seconds_between_messages == 86400
    assert faker.allowed_hosts == ("api.example.com", "${host}")
    assert faker.breaking_changes == (
        BreakingChange("2.0.0", "Old."),
        BreakingChange(
            "8.0.0",
            "The key of `users` changed.",
            "https://example.com/migrations",
            ("users", "products"),
        ),
    )
    assert faker.breaking_changes[1].describe() == (
        "8.0.0: The key of `users` changed. Streams: users, products. "
        "Migration guide: https://example.com/migrations"
    )


def test_a_major_upgrade_brings_its_breaking_changes(registry: LiveRegistry) -> None:
    breaking = {"8.0.0": {"message": "New key."}, "7.0.0": {"message": "Long passed."}}
    done = refreshed(registry, newer_faker(releases={"breakingChanges": breaking}))
    assert [change.version for change in done.upgrades[0].breaking] == ["8.0.0"]


def test_connectors_come_and_go(registry: LiveRegistry) -> None:
    done = refreshed(registry, NEW, wire(FAKER, tombstone=True))
    assert [info.name for info in done.added] == ["source-neo4j"]
    assert [info.name for info in done.removed] == ["source-faker"]
    assert get_connector_info("source-neo4j").category is ConnectorCategory.DATABASE
    with pytest.raises(ConfigError, match="no connector"):
        get_connector_info("source-faker")


def test_what_the_registry_leaves_out_stays(registry: LiveRegistry) -> None:
    """Airbyte's enterprise connectors are in a registry of their own."""
    registry.publish()
    registry.files[LIST] = registry.files[LIST].replace(b"source-oracle-enterprise", b"source-gone")
    refresh_registry()
    assert get_connector_info("source-oracle-enterprise").tag


def test_an_unchanged_list_is_not_sent_again(registry: LiveRegistry) -> None:
    first = refreshed(registry, newer_faker())
    registry.files[LIST + "x"] = b""
    again = refresh_registry()
    assert again.upgrades == ()
    assert again.listing.connectors == first.listing.connectors
    assert again.listing.date >= first.listing.date
    assert get_connector_info("source-faker").tag == "8.0.0"


def test_another_registry_is_asked_for_all_of_it(
    registry: LiveRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed(registry, newer_faker())
    monkeypatch.setenv("ATLAS_REGISTRY_URL", registry.url.replace("127.0.0.1", "localhost"))
    refreshed(registry)
    assert get_connector_info("source-faker").tag == FAKER.tag


def test_an_entry_that_cannot_be_read_stays_as_it_was(registry: LiveRegistry) -> None:
    broken = newer_faker()
    del broken["dockerImageTag"]
    done = refreshed(registry, broken)
    assert done.unreadable == 1
    assert get_connector_info("source-faker") == FAKER


def _empty(registry: LiveRegistry) -> None:
    registry.files[LIST] = b'{"sources": [], "destinations": []}'


def _half(registry: LiveRegistry) -> None:
    registry.files[LIST] = registry.files[LIST][: len(registry.files[LIST]) // 2]


def _cut(registry: LiveRegistry) -> None:
    registry.cut = 1000


def _page(registry: LiveRegistry) -> None:
    registry.files[LIST] = b"<html>Sign in to the proxy</html>"


def _broken_server(registry: LiveRegistry) -> None:
    registry.status = 500


@pytest.mark.parametrize("damage", [_empty, _half, _cut, _page, _broken_server])
def test_a_broken_download_changes_nothing(
    registry: LiveRegistry, damage: Callable[[LiveRegistry], None]
) -> None:
    refreshed(registry, newer_faker())
    before = refreshed_path().read_bytes()
    registry.publish(wire(replace(FAKER, tag="9.0.0")))
    damage(registry)
    with pytest.raises(TransientError, match=r"The list of 20\d\d-\d\d-\d\d stays in use"):
        refresh_registry()
    assert refreshed_path().read_bytes() == before
    assert list(refreshed_path().parent.iterdir()) == [refreshed_path()]
    clear_cache()
    assert get_connector_info("source-faker").tag == "8.0.0"


def test_offline_the_shipped_list_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_REGISTRY_URL", "http://127.0.0.1:9")
    with pytest.raises(TransientError) as caught:
        refresh_registry()
    assert str(caught.value) == (
        "The registry cannot be fetched from http://127.0.0.1:9; check the network. "
        f"The list of {shipped_listing().date} stays in use."
    )
    assert listing() == shipped_listing()


def _refusal() -> AtlasError:
    with pytest.raises(AtlasError) as caught:
        refresh_registry()
    return caught.value


def test_there_is_no_registry_at_the_address(registry: LiveRegistry) -> None:
    error = _refusal()
    assert isinstance(error, ConfigError)
    assert f"no registry at {registry.url}{LIST};" in str(error)
    assert "ATLAS_REGISTRY_URL" in str(error)


def test_a_cache_that_cannot_be_written(registry: LiveRegistry, cache: Path) -> None:
    registry.publish()
    cache.parent.mkdir()
    cache.write_text("a file where a folder should be")
    assert "; set XDG_CACHE_HOME to a directory that can be written." in str(_refusal())


def test_a_damaged_cache_is_passed_over_and_said(
    registry: LiveRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    refreshed(registry, newer_faker())
    refreshed_path().write_bytes(refreshed_path().read_bytes()[:-100])
    clear_cache()
    assert get_connector_info("source-faker") == FAKER
    assert "`atlas connectors refresh`" in caplog.text
    refresh_registry()
    assert get_connector_info("source-faker").tag == "8.0.0"


def test_a_newer_atlas_brings_a_newer_list(registry: LiveRegistry) -> None:
    refreshed(registry, newer_faker())
    content = refreshed_path().read_bytes()
    date = listing().date.encode()
    refreshed_path().write_bytes(content.replace(date, b"2020-01-01T00:00:00Z"))
    clear_cache()
    assert listing() == shipped_listing()

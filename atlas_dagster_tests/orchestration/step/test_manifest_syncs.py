"""Declarative manifests and programs of one's own, synced through Dagster into tables."""

import io
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from atlas_dagster.runners.manifest import CDK_VERSION
from atlas_dagster.source.connection import Connection
from atlas_dagster_tests.conftest import CONNECTORS
from atlas_dagster_tests.orchestration.http_servers import API_KEY, BooksApi, book, serving, sharing
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.orchestration.real_connectors import (
    RealConnection,
    discover_really,
    metadata,
)

pytestmark = pytest.mark.slow

BOOKS = CONNECTORS / "source-books"
EITHER = [pytest.param("python"), pytest.param("docker", marks=pytest.mark.docker)]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with sqlite_instance() as instance:
        yield instance


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[BooksApi]:
    monkeypatch.setenv("BOOKS_KEY", API_KEY)
    books = [book(id, day=1 + id) for id in range(1, 26)]
    with serving(BooksApi(books, [{"id": 1, "name": "Ann"}, {"id": 2, "name": "Bo"}])) as api:
        yield api


def make(lake: Path, api: BooksApi, **fields: Any) -> RealConnection:
    config = {
        "url": api.url,
        "api_key": "{{ env.BOOKS_KEY }}",
        "start_date": book(3, 4)["updated_at"],
    }
    connection = Connection(name="shop", config=config, **fields)
    return RealConnection(connection, lake, discover_really(connection))


def said(instance: dg.DagsterInstance, run_id: str, words: str) -> list[str]:
    texts = [entry.user_message for entry in instance.all_logs(run_id)]
    return [text for text in texts if words in text]


def written_for(cdk: str, folder: Path) -> Path:
    """The manifest as if it were of another version; a CDK refuses one newer than itself."""
    written = Path(shutil.copytree(BOOKS, folder / "books"))
    manifest = (BOOKS / "manifest.yaml").read_text()
    assert f"version: {CDK_VERSION}\n" in manifest
    (written / "manifest.yaml").write_text(manifest.replace(CDK_VERSION, cdk))
    return written


@pytest.mark.parametrize("runner", EITHER)
def test_a_manifest_is_synced_and_then_continued(
    api: BooksApi, instance: dg.DagsterInstance, tmp_path: Path, runner: str
) -> None:
    shop = make(tmp_path, api, manifest="manifest.yaml", folder=BOOKS, runner=runner)
    api.refusals = 1
    first = shop.sync(instance)

    # From the start date on, over three pages, after a refusal of CHECK's only request.
    assert [row["id"] for row in shop.rows("books")] == list(range(3, 26))
    assert shop.rows("books")[0]["title"] == "Book 3"
    assert shop.rows("books")[0]["price"] == 3.25
    # Its components.py ran.
    assert [row["greeting"] for row in shop.rows("authors")] == ["Hello, Ann", "Hello, Bo"]
    assert metadata(first, "books")["atlas/records_synced"] == 23
    assert api.asked[:2] == ["/authors", "/authors"]
    assert any("offset=20" in path for path in api.asked)
    # Said once, though CHECK ran in the same step.
    assert len(said(instance, first.run_id, "source-shop runs")) == 1
    ran = metadata(first, "books")["atlas/connector"]
    assert ran.startswith("manifest.yaml@sha256:")
    assert CDK_VERSION in ran

    api.asked.clear()
    api.books += [book(26, day=27), {**book(3, day=28), "title": "Renamed"}]
    second = shop.sync(instance)

    assert [row["id"] for row in shop.rows("books")] == list(range(3, 27))
    assert shop.rows("books")[0]["title"] == "Renamed"
    assert 2 <= metadata(second, "books")["atlas/records_synced"] <= 3
    asked = [path for path in api.asked if path.startswith("/books")]
    assert asked
    assert all("since=2024-01-26" in path for path in asked)
    everything = "\n".join(str(entry) for entry in instance.all_logs(second.run_id))
    assert API_KEY not in everything


def test_a_manifest_runs_with_an_older_cdk(
    api: BooksApi, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """6.48 takes a manifest and its components in the config alone."""
    fields: dict[str, Any] = {"folder": written_for("6.0.0", tmp_path), "cdk_version": "6.48.10"}
    shop = make(tmp_path, api, manifest="manifest.yaml", runner="python", **fields)
    run = shop.sync(instance)

    assert [row["id"] for row in shop.rows("books")] == list(range(3, 26))
    assert [row["greeting"] for row in shop.rows("authors")] == ["Hello, Ann", "Hello, Bo"]
    assert metadata(run, "books")["atlas/connector"].endswith("(airbyte-cdk==6.48.10)")
    (sentence,) = said(instance, run.run_id, "source-shop runs")
    assert "airbyte-cdk==6.48.10, the CDK that the connection declares, as its" in sentence


def test_an_error_of_its_code_names_the_cdk(
    api: BooksApi, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    folder = written_for("6.48.10", tmp_path)
    code = (BOOKS / "components.py").read_text()
    (folder / "components.py").write_text(code.replace("record['name']", "record.title"))
    shop = make(tmp_path, api, manifest="manifest.yaml", folder=folder, runner="python")
    run = shop.sync(instance, raise_on_error=False)
    failed = said(instance, run.run_id, "no attribute 'title'")
    note = "(its components.py ran with airbyte-cdk 6.48.10, the CDK it is written for)"
    assert note in failed[0]


def test_a_published_manifest_runs_without_docker(
    api: BooksApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = tmp_path / "registry" / "metadata" / "airbyte" / "source-pokeapi" / "9.0.0"
    published.mkdir(parents=True)
    shutil.copy(written_for("6.0.0", tmp_path) / "manifest.yaml", published)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(BOOKS / "components.py", "components.py")
    image = "docker.io/airbyte/source-declarative-manifest:6.48.10@sha256:09947fb3"
    (published / "metadata.yaml").write_text(
        f"data: {{connectorBuildOptions: {{baseImage: '{image}'}}}}"
    )
    (published / "components.zip").write_bytes(packed.getvalue())
    # uv's own cache stays, so that the environment of the CDK is linked from there.
    monkeypatch.setattr("atlas_dagster.registry.manifests.cache_folder", lambda: tmp_path / "cache")
    with sharing(tmp_path / "registry") as server:
        monkeypatch.setenv("ATLAS_REGISTRY_URL", f"http://127.0.0.1:{server.server_port}")
        fields: dict[str, Any] = {"connector": "source-pokeapi", "version": "9.0.0"}
        shop = make(tmp_path, api, runner="python", **fields)

    assert shop.discovered.connector.startswith("source-pokeapi 9.0.0@sha256:")
    assert shop.discovered.connector.endswith("(airbyte-cdk==6.48.10)")
    # The registry is gone; what it gave is kept.
    with sqlite_instance() as instance:
        shop.sync(instance, "authors")
    assert [row["greeting"] for row in shop.rows("authors")] == ["Hello, Ann", "Hello, Bo"]


def test_a_program_of_ones_own_is_synced(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    connection = Connection(
        name="own",
        command=[sys.executable, "source_standin.py"],
        folder=CONNECTORS / "source-standin",
        config={"count": 20},
        streams=[{"name": "events", "sync_mode": "incremental", "destination_sync_mode": "append"}],
    )
    own = RealConnection(connection, tmp_path, discover_really(connection))
    first = own.sync(instance)
    second = own.changed(count=30).sync(instance)

    assert [row["id"] for row in own.rows("events")] == list(range(1, 31))
    assert metadata(second, "events")["atlas/records_synced"] == 10
    (sentence,) = said(instance, first.run_id, "source-own runs")
    assert sentence.startswith("source-own runs as a process, by the command ")

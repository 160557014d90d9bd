"""The main job with its event log in Postgres."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.orchestration.instances import postgres_instance
from atlas_dagster_tests.orchestration.real_connectors import RealConnection, metadata

pytestmark = [pytest.mark.docker, pytest.mark.postgres]


def test_two_syncs_with_the_event_log_in_postgres(
    tmp_path: Path, postgres_url: dict[str, Any]
) -> None:
    standin = RealConnection.make(
        tmp_path,
        "standin_pg",
        SOURCE_STANDIN_IMAGE,
        config={"count": 30},
        streams=[{"name": "events", "sync_mode": "incremental", "destination_sync_mode": "append"}],
    )
    grown = standin.changed(count=45)
    with postgres_instance(postgres_url) as instance:
        first = metadata(standin.sync(instance), "events")
        second = metadata(grown.sync(instance), "events")
        checked = instance.get_latest_asset_check_evaluation_record(check_key(standin.connection))
        observed = instance.fetch_observations(
            dg.AssetKey(["standin_pg", "events"]), limit=10
        ).records

    assert (first["atlas/records_synced"], first["dagster/row_count"]) == (30, 30)
    assert (second["atlas/records_synced"], second["dagster/row_count"]) == (15, 45)
    assert second["atlas/cursor_before"] == {"id": 30}
    assert [row["id"] for row in grown.rows("events")] == list(range(1, 46))
    assert checked is not None
    assert checked.status.value == "SUCCEEDED"
    assert len(observed) == 2

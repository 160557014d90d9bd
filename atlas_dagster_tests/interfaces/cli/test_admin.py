"""``atlas reap``, ``prune``, ``doctor`` and ``serve``."""

import json
import sys

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.interfaces.cli.command import atlas
from atlas_dagster_tests.interfaces.cli.conftest import STANDIN


@pytest.mark.docker
def test_what_a_project_needs_is_fetched_and_examined(project: Project) -> None:
    project.declare("standin", *STANDIN)
    (ready,) = json.loads(atlas("pull", "--json").stdout)
    assert ready["source"] == "standin"
    assert ready["ready"].startswith(f"{SOURCE_STANDIN_IMAGE}@sha256:")

    examined = atlas("doctor", "--json")
    assert examined.exit_code == 0
    findings = {each["about"]: each for each in json.loads(examined.stdout)}
    assert findings["Docker"]["verdict"] == "ok"
    assert findings["Connection standin"]["verdict"] == "warning"

    project.declare("broken", "conector: source-faker")
    examined = atlas("doctor")
    assert examined.exit_code == 1
    assert "'conector'" in examined.stdout
    reaped = atlas("reap", "--json")
    assert reaped.exit_code == 0, reaped.stderr
    assert json.loads(reaped.stdout)["ended_runs"] == []


@pytest.mark.slow
def test_old_runs_are_pruned(project: Project) -> None:
    with dg.DagsterInstance.get() as instance:
        for _ in range(2):
            create_run_for_test(instance, status=dg.DagsterRunStatus.SUCCESS)
        with instance.run_storage.connect() as database:  # type: ignore[attr-defined]
            database.exec_driver_sql(
                "UPDATE runs SET update_timestamp = '2020-01-01 00:00:00' WHERE id = 1"
            )

    pruned = atlas("prune", "--days", "30")
    again = atlas("prune", "--days", "30", "--json")

    assert pruned.stdout.startswith("Deleted 1 run ")
    assert json.loads(again.stdout) == {"deleted": 0}
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs_count() == 1
    assert atlas("prune").exit_code == atlas("prune", "--days", "0").exit_code == 2


def test_the_http_server_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atlas_dagster.interfaces.http", None)
    result = atlas("serve")
    assert result.exit_code == 3
    assert "install it: pip install 'atlas-dagster[http]'" in result.stderr

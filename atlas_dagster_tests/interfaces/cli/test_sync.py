"""``atlas sync``: its result, and its summary."""

import json
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from deltalake import DeltaTable, write_deltalake
from msgspec import Raw
from pyarrow import RecordBatch, table

from atlas_dagster.destinations.base import TableSpec
from atlas_dagster.destinations.envelope import Envelope, StreamCommit
from atlas_dagster.interfaces.cli.project import find_connection
from atlas_dagster.interfaces.cli.sync import Outcome, print_summary
from atlas_dagster.orchestration.automation import retries
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.types import TableSchema
from atlas_dagster_tests.commands import BIN
from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.interfaces.cli.command import atlas, succeed
from atlas_dagster_tests.interfaces.cli.conftest import NUMBERS_SOURCE, STANDIN


def test_an_unknown_stream_is_met_with_all(shop: Project) -> None:
    result = atlas("sync", "shop", "--stream", "customers")

    assert result.exit_code == 3
    (sentence,) = result.stderr.splitlines()
    assert "'customers'" in sentence
    assert "users, orders" in sentence


def test_a_failed_sync_ends_with_the_steps_sentence(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_COUNT", raising=False)
    config = {"count": "{{ env.SHOP_COUNT }}"}
    project.declare(
        "shop", "connector: source-faker", "runner: python", f"config: {json.dumps(config)}"
    )
    project.discover("shop", config)

    result = atlas("sync", "shop", "--stream", "users")

    assert result.exit_code == 3
    sentence, more = result.stderr.splitlines()
    assert "SHOP_COUNT" in sentence
    assert more.endswith("docs/troubleshooting.md#a-variable-is-not-set")
    assert result.stdout == ""


@pytest.mark.docker
def test_discover_check_and_two_syncs_of_a_real_connector(project: Project) -> None:
    project.declare("standin", *STANDIN, "config: {count: 25}")

    discovered, checked = atlas("discover", "standin"), atlas("check", "standin")
    first, second = atlas("sync", "standin"), atlas("sync", "standin", "--stream", "events")

    assert [run.exit_code for run in (discovered, checked, first, second)] == [0, 0, 0, 0]
    for result, answer in (
        (discovered, "standin offers 1 stream: events"),
        (checked, "standin reached its source."),
    ):
        runs, *others = result.stdout.splitlines()
        assert SOURCE_STANDIN_IMAGE in runs
        assert others == [answer]
    assert re.search(r"events +25 +25 +[\d.]+ +\{\"id\": 25\}", first.stdout)
    assert "lake/standin/events" in first.stdout
    assert "sync standin  " in first.stdout
    assert re.search(r"events +0 +25 +[\d.]+ +\{\"id\": 25\}", second.stdout)
    assert "no row was written" in second.stdout
    rows = DeltaTable(str(project.root / "lake/standin/events")).to_pyarrow_table()
    assert sorted(rows["id"].to_pylist()) == list(range(1, 26))
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs_count() == 2


@pytest.mark.docker
def test_a_connector_that_fails_is_told_in_its_own_words(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_FIRST_SECONDS", 0.1)
    project.declare("standin", *STANDIN, "config: {count: 40, behaviour: die}")
    project.declare("locked", *STANDIN, "config: {fail_check: true}")
    assert atlas("discover").exit_code == 0

    died, locked, checked = (
        atlas("sync", "standin"),
        atlas("sync", "locked"),
        atlas("check", "locked"),
    )

    assert [run.exit_code for run in (died, locked, checked)] == [4, 3, 3]
    *_, sentence, log = died.stderr.splitlines()  # after warnings of retries
    assert sentence.endswith("source-standin: upstream went away")
    assert "Reading events after id" in Path(log.removeprefix("The connector's log: ")).read_text()
    assert "bad password" in locked.stderr
    sentence, more, hint = checked.stderr.splitlines()
    assert sentence.endswith("bad password")
    assert more.endswith("docs/troubleshooting.md#check-failed")
    assert "--logs" in hint


# Its summary


def test_the_summary_shows_rows_as_they_are(
    shop: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = shop.root / "lake" / "shop" / "users"
    said = ["[/quote] well", "[bold]loud", "[null]"]
    write_deltalake(str(uri), table({"id": [1, 2, 3], "said": said}))
    outcome = Outcome(
        {
            ("shop", "users"): {
                "atlas/records_synced": dg.MetadataValue.int(3),
                "dagster/row_count": dg.MetadataValue.int(1234),
                "atlas/duration_seconds": dg.MetadataValue.float(1.25),
                "atlas/cursor_after": dg.MetadataValue.json([None, "[/x]"]),
            }
        }
    )

    print_summary(find_connection("shop"), outcome)

    shown = capsys.readouterr().out
    assert re.search(r"users +3 +1,234 +1\.2 +\[null, \"\[/x\]\"\]", shown)
    assert [text for text in said if text in shown] == said
    assert "SELECT * FROM delta_scan('lake/shop/users')" in shown


@pytest.mark.postgres
def test_the_summary_of_tables_in_postgres(
    shop: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    postgres_url: dict[str, Any],
) -> None:
    place = f"{postgres_url['hostname']}:{postgres_url['port']}/{postgres_url['db_name']}"
    monkeypatch.setenv("ATLAS_DESTINATION", f"postgresql://atlas:hunter22@{place}")
    connection = find_connection("shop").connection
    destination = AtlasResource.from_environment().open_destination(connection)
    spec = TableSpec(
        ("shop", "users"),
        TableSchema.from_json_schema({"properties": {"id": {"type": "integer"}}}),
        "append",
    )
    with closing(destination):
        writer = destination.inspect(spec.path).open(spec)
        writer.write(RecordBatch.from_pylist([{"id": 41}], spec.schema.arrow))
        commit = StreamCommit(StreamDescriptor("users"), spec.path, 0, False, writer.stage())
        destination.commit(Envelope(1, 1, "shop", (commit,), Raw(b"[]"), 1.0), [writer])
    done = {
        "atlas/records_synced": dg.MetadataValue.int(1),
        "dagster/row_count": dg.MetadataValue.int(1),
        "atlas/duration_seconds": dg.MetadataValue.float(1.25),
        "atlas/cursor_after": dg.MetadataValue.text("none"),
    }

    print_summary(find_connection("shop"), Outcome({("shop", "users"): done}))

    shown = capsys.readouterr().out
    assert f"postgresql://{place}/shop/users\n" in shown
    assert re.search(r"^ *id *\n *41 *$", shown, re.MULTILINE)
    assert 'SELECT * FROM "shop"."users"' in shown
    assert "hunter22" not in shown


@pytest.mark.slow
def test_a_sync_tells_which_values_became_null(numbers: Project) -> None:
    source = NUMBERS_SOURCE.replace(
        '{"id": {"type": "integer"}}', '{"id": {"type": "integer"}, "age": {"type": "integer"}}'
    )
    source = source.replace('{"id": id}', '{"id": id, "age": "old"}')
    (numbers.connections / "numbers" / "source.py").write_text(source)
    succeed("discover", "numbers")

    told = succeed("sync", "numbers")
    assert "age (3 NULLED)" in told

    (stream,) = json.loads(succeed("refresh", "numbers", "--json"))["streams"]
    assert stream["changed_values"] == {"age": {"NULLED": 3}}


@pytest.mark.slow
def test_what_a_first_sync_advises_works_where_one_stands(
    numbers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed("discover", "numbers")
    below = numbers.root / "notes" / "today"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.setattr(sys, "argv", [str(BIN / "atlas")])
    monkeypatch.setenv("PATH", str(BIN))

    told = succeed("sync", "numbers")
    assert "../../lake/numbers/events\n" in told
    assert "SELECT * FROM delta_scan('../../lake/numbers/events')" in told
    assert "\n  atlas sync numbers  " in told
    assert "\n  cd ../.. && dagster dev  " in told

    monkeypatch.chdir(numbers.root)
    succeed("clear", "numbers", "--yes")
    (numbers.root / "Makefile").write_text("demo dev: export A := 1\n\ndev:\n\ttrue\n")
    told = succeed("sync", "numbers")
    assert "\nlake/numbers/events\n" in told
    assert "\n  make dev  " in told

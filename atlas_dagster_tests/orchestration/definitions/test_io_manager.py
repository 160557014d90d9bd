"""A stream's table as the argument of a downstream asset, and what such an asset returns."""

import datetime as dt
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import msgspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from msgspec import Raw

from atlas_dagster.destinations.base import TablePath, TableSpec
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.envelope import Envelope, StreamCommit, now
from atlas_dagster.orchestration.definitions.io_manager import IO_MANAGER_KEY, common_resources
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import StreamProps, stream_spec
from atlas_dagster.protocol.messages import Record, StreamDescriptor
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import TableSchema
from atlas_dagster_tests.orchestration.connections import declare_shop, define, found

COLUMNS: dict[str, Any] = {
    "id": {"type": "integer"},
    "name": {"type": "string"},
    "active": {"type": "boolean"},
    "score": {"type": "number"},
    "born": {"type": "string", "format": "date"},
    "seen": {"type": "string", "format": "date-time", "airbyte_type": "timestamp_with_timezone"},
    "tags": {"type": "array"},
}
ROWS: list[dict[str, Any]] = [
    {
        "id": 2**53 + 1,
        "name": "Ada",
        "active": True,
        "score": 1.5,
        "born": "1815-12-10",
        "seen": "2026-01-02T03:04:05+02:00",
        "tags": ["x", 1],
    },
    {"id": None, "name": "Bob"},
]
OWN = "_airbyte_"
USERS = dg.AssetKey(["shop", "users"])


def sync_table(lake: Path, table: TablePath, rows: Sequence[dict[str, Any]]) -> None:
    """Append ``rows`` as a sync does."""
    destination = DeltaDestination(str(lake))
    spec = TableSpec(table, TableSchema.from_json_schema({"properties": COLUMNS}), "append")
    builder = BatchBuilder(spec.schema, sync_id=1, generation_id=0)
    encoded = [Raw(msgspec.json.encode(row)) for row in rows]
    builder.extend([Record("t", data, 1_700_000_000_000) for data in encoded], 1)
    writer = destination.inspect(table).open(spec)
    writer.write(builder.build())
    commit = StreamCommit(StreamDescriptor(table[-1]), table, 0, False, writer.stage())
    envelope = Envelope(7, 1, table[0], (commit,), Raw(b"[]"), now())
    destination.prepare(envelope)
    writer.commit(envelope)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    sync_table(tmp_path, ("shop", "users"), ROWS)
    return tmp_path


def run(
    lake: Path, *assets: dg.AssetsDefinition, streams: Sequence[Any] | None = None
) -> dg.ExecuteInProcessResult:
    """Materialize ``assets`` alone, beside a connection whose streams they take."""
    connection = declare_shop()
    discovered = found(connection) if streams is None else found(connection, streams)
    defs = dg.Definitions.merge(
        define(connection, discovered, lake=lake), dg.Definitions(assets=assets)
    )
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=dg.DagsterInstance.ephemeral(),
        asset_selection=[key for asset in assets for key in asset.keys],
        raise_on_error=False,
    )


def take(lake: Path, annotation: Any, *, columns: list[str] | None = None) -> Any:
    """What a downstream asset gets whose argument ``users`` is annotated so, or why not."""
    got = []

    def downstream(users):  # type: ignore[no-untyped-def]
        got.append(users)

    if annotation is not None:
        downstream.__annotations__["users"] = annotation
    metadata = {} if columns is None else {"columns": columns}
    asset = dg.asset(ins={"users": dg.AssetIn(USERS, metadata=metadata)})(downstream)
    result = run(lake, asset)
    return got[0] if got else failure(result)


def test_the_rows_of_a_stream_that_has_another_key(lake: Path) -> None:
    def renamed(props: StreamProps) -> dg.AssetSpec:
        return stream_spec(props).replace_attributes(key=["raw", props.stream_name])

    got = []

    @dg.asset(ins={"users": dg.AssetIn(["raw", "users"])})
    def downstream(users: pd.DataFrame) -> None:
        got.append(list(users["id"]))

    defs = dg.Definitions.merge(
        define(declare_shop(), found(declare_shop()), lake=lake, get_asset_spec=renamed),
        dg.Definitions(assets=[downstream]),
    )
    job = defs.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(asset_selection=[downstream.key]).success
    assert got == [[2**53 + 1, pd.NA]]


def failure(result: dg.ExecuteInProcessResult) -> str:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    said = failed.step_failure_data.user_failure_data
    assert said is not None, failed.step_failure_data.error
    return said.description or ""


NAMED = {"id": 2**53 + 1, "name": "Ada"}
READS: dict[str, tuple[Any, Callable[[Any], list[dict[str, Any]]]]] = {
    "nothing": (None, lambda frame: frame.to_dict("records")),
    "pandas": (pd.DataFrame, lambda frame: frame.to_dict("records")),
    "polars": (pl.DataFrame, lambda frame: frame.to_dicts()),
    "polars, lazily": (pl.LazyFrame, lambda frame: frame.collect().to_dicts()),
    "arrow": (pa.Table, lambda table: table.to_pylist()),
    "arrow, in batches": (pa.RecordBatchReader, lambda reader: reader.read_all().to_pylist()),
    "duckdb": (duckdb.DuckDBPyRelation, lambda rows: rows.to_arrow_table().to_pylist()),
}


@pytest.mark.slow
@pytest.mark.parametrize(("annotation", "rows"), READS.values(), ids=READS)
def test_the_annotation_says_what_the_table_becomes(
    lake: Path, annotation: Any, rows: Callable[[Any], list[dict[str, Any]]]
) -> None:
    got = take(lake, annotation, columns=["id", "name"])

    if annotation is not None:
        assert isinstance(got, annotation)
    assert [row for row in rows(got) if row["name"] == "Ada"] == [NAMED]
    assert len(rows(take(lake, annotation))) == 2


def test_what_pandas_users_get(lake: Path) -> None:
    frame = take(lake, pd.DataFrame).sort_values("name", ignore_index=True)

    kinds = {name: str(kind) for name, kind in frame.dtypes.items() if not name.startswith(OWN)}
    text = kinds.pop("name")
    assert text in ("str", "object")  # pandas 3, pandas 2
    assert kinds == {
        "id": "Int64",
        "active": "boolean",
        "score": "float64",
        "born": "object",
        "seen": "datetime64[us, UTC]",
        "tags": text,
    }
    assert frame["id"][0] == 2**53 + 1  # a float could not hold it
    assert frame["id"].isna().tolist() == [False, True]
    assert frame["born"][0] == dt.date(1815, 12, 10)
    assert frame["seen"][0] == pd.Timestamp("2026-01-02T01:04:05Z")
    assert frame["tags"][0] == '["x",1]'


def test_arrow_has_the_types_of_the_table(lake: Path) -> None:
    schema = take(lake, pa.Table).schema

    assert [schema.field(name).type for name in ("id", "name", "seen")] == [
        pa.int64(),
        pa.string(),
        pa.timestamp("us", "UTC"),
    ]


@pytest.mark.slow
def test_lazy_polars_reads_no_column_it_does_not_need(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    read = DeltaDestination.read

    def spy(self: DeltaDestination, table: TablePath, columns: Any = None) -> Any:
        asked.append(columns)
        return read(self, table, columns)

    monkeypatch.setattr(DeltaDestination, "read", spy)
    frame: pl.LazyFrame = take(lake, pl.LazyFrame)
    asked.clear()

    assert frame.filter(pl.col("active")).select("name").collect().to_dicts() == [{"name": "Ada"}]
    assert [sorted(columns) for columns in asked] == [["active", "name"]]
    assert frame.head(1).collect().height == 1
    assert frame.select(pl.len()).collect().item() == 2


def test_duckdb_reads_as_often_as_asked_and_joins(lake: Path) -> None:
    counted = []

    @dg.asset(ins={"users": dg.AssetIn(USERS), "orders": dg.AssetIn(["shop", "sales", "orders"])})
    def joined(users: duckdb.DuckDBPyRelation, orders: duckdb.DuckDBPyRelation) -> None:
        for _ in range(2):
            rows = users.set_alias("u").join(orders.set_alias("o"), "u.id = o.id").fetchall()
            counted.append(len(rows))

    sync_table(lake, ("shop", "sales", "orders"), ROWS)

    assert run(lake, joined).success
    assert counted == [1, 1]


def test_the_argument_alone_makes_the_lineage(lake: Path) -> None:
    @dg.asset(ins={"users": dg.AssetIn(key_prefix="shop")})
    def report(users: pd.DataFrame) -> None: ...

    defs = dg.Definitions.merge(define(declare_shop(), lake=lake), dg.Definitions(assets=[report]))

    assert defs.resolve_asset_graph().get(dg.AssetKey("report")).parent_keys == {USERS}


def test_a_connection_with_a_destination_of_its_own(tmp_path: Path) -> None:
    seen = []

    @dg.asset
    def report(users: pd.DataFrame) -> None:
        seen.append(len(users))

    own = declare_shop(destination=str(tmp_path / "own"))
    sync_table(tmp_path / "own", ("shop", "users"), ROWS)
    defs = define(own, lake=tmp_path / "other")
    spec = next(spec for spec in defs.resolve_all_asset_specs() if spec.key == USERS)
    downstream = report.with_attributes(asset_key_replacements={dg.AssetKey("users"): USERS})

    merged = dg.Definitions.merge(defs, dg.Definitions(assets=[downstream]))
    merged.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[downstream.key]
    )

    assert seen == [2]
    # Dagster shows metadata and what resources are configured with, and addresses hold passwords.
    assert str(tmp_path) not in str(spec.metadata)


WRONG = {
    "annotation": (
        [Path, None],
        "shop/users cannot be loaded as pathlib.Path; annotate the argument as pandas.DataFrame, "
        "polars.DataFrame, polars.LazyFrame, pyarrow.Table, pyarrow.RecordBatchReader or "
        "duckdb.DuckDBPyRelation.",
    ),
    "column": (
        [pd.DataFrame, ["nome"]],
        "The table {lake}/shop/users has no column 'nome'; it has id, name, active, score, born, "
        "seen, tags, _airbyte_raw_id, _airbyte_extracted_at, _airbyte_meta, "
        "_airbyte_generation_id, _airbyte_extra.",
    ),
}


@pytest.mark.parametrize(("asked", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_loaded(lake: Path, asked: list[Any], sentence: str) -> None:
    annotation, columns = asked

    assert take(lake, annotation, columns=columns) == sentence.format(lake=lake)


def test_a_stream_that_was_never_synced(tmp_path: Path) -> None:
    assert take(tmp_path, pd.DataFrame) == (
        f"There is no table {tmp_path}/shop/users yet; materialize shop/users."
    )


# What an asset returns


def returning(value: Any, key: Sequence[str] = ("report",)) -> dg.AssetsDefinition:
    @dg.asset(key=list(key), io_manager_key=IO_MANAGER_KEY)
    def report():  # type: ignore[no-untyped-def]
        return value

    return report


RETURNED = {
    "pandas": pd.DataFrame({"id": [0, 1, 2], "v": ["z", "a", "b"]})[1:],  # its index starts at 1
    "pandas, index with a name": pd.DataFrame({"v": ["a", "b"]}, index=pd.Index([1, 2], name="id")),
    "polars": pl.DataFrame({"id": [1, 2], "v": ["a", "b"]}),
    "arrow": pa.table({"id": [1, 2], "v": ["a", "b"]}),
}


@pytest.mark.parametrize("value", RETURNED.values(), ids=RETURNED)
@pytest.mark.slow
def test_what_an_asset_returns_replaces_its_table(tmp_path: Path, value: Any) -> None:
    seen = []

    @dg.asset
    def below(report: pa.Table) -> None:
        seen.append(report.to_pylist())

    assert run(tmp_path, returning(pa.table({"other": [1.0]}))).success
    result = run(tmp_path, returning(value), below)

    assert result.success
    assert seen == [[{"id": 1, "v": "a"}, {"id": 2, "v": "b"}]]
    report, _ = result.get_asset_materialization_events()
    metadata = report.materialization.metadata
    assert metadata["dagster/row_count"].value == 2
    assert metadata["dagster/uri"].value == (tmp_path / "report").as_uri()


def test_what_is_no_table(tmp_path: Path) -> None:
    assert failure(run(tmp_path, returning({"a": 1}))) == (
        "report returned a dict, not a table; return a pandas or polars DataFrame or Arrow "
        "data, or give the asset another io_manager_key."
    )


def test_a_partition_does_not_replace_the_others(tmp_path: Path) -> None:
    @dg.asset(io_manager_key=IO_MANAGER_KEY, partitions_def=dg.StaticPartitionsDefinition(["a"]))
    def report() -> pd.DataFrame:
        return pd.DataFrame({"id": [1]})

    resources = common_resources(AtlasResource(destination=str(tmp_path)))
    result = dg.materialize([report], partition_key="a", resources=resources, raise_on_error=False)

    assert failure(result) == (
        "report is partitioned, and a table here is replaced as a whole; give the asset another "
        "io_manager_key."
    )


def test_what_a_table_cannot_hold(tmp_path: Path) -> None:
    said = failure(run(tmp_path, returning(pd.DataFrame({"a": [1, "x"]}))))

    assert said.startswith("report cannot be stored: ")


@pytest.mark.parametrize("key", [("shop", "old"), ("_atlas", "shop")], ids=["a stream's", "ours"])
def test_tables_that_syncs_write_are_left_alone(tmp_path: Path, key: tuple[str, ...]) -> None:
    sync_table(tmp_path, ("shop", "old"), ROWS)  # of a stream that is no longer synced

    assert failure(run(tmp_path, returning(pa.table({"a": [1]}), key))) == (
        f"{tmp_path.joinpath(*key)} is written by Atlas; give the asset another key."
    )


PROCESS = """
import sys
import dagster as dg, duckdb, pandas as pd, polars as pl, pyarrow as pa
from atlas_dagster.orchestration.definitions.io_manager import IO_MANAGER_KEY, common_resources
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import StreamProps, stream_spec

users = dg.AssetSpec(["shop", "users"]).with_io_manager_key(IO_MANAGER_KEY)

def taking(name, kind):
    def take(users):
        return len(users) if hasattr(users, "__len__") else 0
    take.__annotations__["users"] = kind
    return dg.asset(name=name, ins={"users": dg.AssetIn(users.key)}, io_manager_key="memory")(take)

@dg.asset(ins={"users": dg.AssetIn(users.key)}, io_manager_key=IO_MANAGER_KEY)
def stored(users: pd.DataFrame) -> pd.DataFrame:
    return users

kinds = [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.Table, pa.RecordBatchReader]
assets = [taking(f"a{n}", kind) for n, kind in enumerate([*kinds, duckdb.DuckDBPyRelation])]
resources = common_resources(AtlasResource(destination=sys.argv[1])) | {"memory": dg.mem_io_manager}
assert dg.materialize([users, *assets, stored], resources=resources).success
print("done")
"""


@pytest.mark.parametrize("attempt", range(2))
@pytest.mark.slow
def test_a_process_that_loaded_tables_ends_well(lake: Path, attempt: int) -> None:
    """Some ways of reading a Delta table abort the process when it ends (deltalake 1.6.6)."""
    command = [sys.executable, "-c", PROCESS, str(lake)]

    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert (ended.returncode, ended.stdout.strip()) == (0, "done"), ended.stderr

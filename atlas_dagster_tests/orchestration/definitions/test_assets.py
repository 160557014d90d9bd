"""A connection as Dagster definitions, made from a catalog and nothing else."""

from typing import Any

import dagster as dg
import msgspec
import pytest

from atlas_dagster.orchestration.definitions.assets import (
    build_broken_defs,
    build_undiscovered_defs,
)
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets, stream_spec
from atlas_dagster.runners.owner import this_process
from atlas_dagster.source.catalog_diff import SchemaPolicy
from atlas_dagster.source.discovered_catalog import Discovery
from atlas_dagster.source.run_context import RunContext
from atlas_dagster_tests.orchestration.connections import (
    DOCS,
    ORDERS,
    SPEC,
    USERS,
    declare_shop,
    define,
    found,
)

pytestmark = pytest.mark.dagster

SOURCE = dg.AssetKey(["shop", "source_shop"])
USERS_KEY = dg.AssetKey(["shop", "users"])
ORDERS_KEY = dg.AssetKey(["shop", "sales", "orders"])
OWN_COLUMNS = [
    ("_airbyte_raw_id", "string"),
    ("_airbyte_extracted_at", "timestamp (UTC)"),
    ("_airbyte_meta", "string"),
    ("_airbyte_generation_id", "integer"),
    ("_airbyte_extra", "string"),
]


def specs(defs: dg.Definitions) -> dict[dg.AssetKey, dg.AssetSpec]:
    return {spec.key: spec for spec in defs.resolve_all_asset_specs()}


def columns(spec: dg.AssetSpec) -> list[tuple[str, str]]:
    return [(column.name, column.type) for column in spec.metadata["dagster/column_schema"].columns]


def test_one_asset_per_stream_and_one_for_the_source() -> None:
    found_specs = specs(define(declare_shop()))

    assert set(found_specs) == {SOURCE, USERS_KEY, ORDERS_KEY}
    assert {spec.group_name for spec in found_specs.values()} == {"shop"}


def test_streams_are_downstream_of_the_source_and_of_nothing_else() -> None:
    found_specs = specs(define(declare_shop()))

    for key in (USERS_KEY, ORDERS_KEY):
        assert [dep.asset_key for dep in found_specs[key].deps] == [SOURCE]
    assert list(found_specs[SOURCE].deps) == []
    graph = define(declare_shop()).resolve_asset_graph()
    assert graph.get(SOURCE).is_external
    assert graph.get(USERS_KEY).is_materializable


def test_kinds_name_airbyte_the_source_and_the_storage() -> None:
    found_specs = specs(define(declare_shop()))

    assert found_specs[USERS_KEY].kinds == {"airbyte", "shop", "deltalake"}
    assert found_specs[SOURCE].kinds == {"airbyte", "shop"}


def test_the_storage_is_the_one_the_connection_names(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql://loader:{{ env.NOT_SET }}@db/warehouse"
    in_postgres = specs(define(declare_shop(destination=address)))[USERS_KEY]
    assert in_postgres.kinds == {"airbyte", "shop", "postgres"}
    assert "loader" not in repr(in_postgres)
    monkeypatch.setenv("ATLAS_DESTINATION", address)
    assert specs(define(declare_shop()))[USERS_KEY].kinds == in_postgres.kinds
    lake = specs(define(declare_shop(destination="s3://bucket/lake")))[USERS_KEY]
    assert lake.kinds == {"airbyte", "shop", "deltalake"}


def test_nobody_sees_the_login_of_a_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_DESTINATION", "postgresql://loader:hunter22@db/warehouse")
    atlas = AtlasResource.from_environment()
    assert atlas.deployment_label() == "atlas_dagster postgresql://db/warehouse"
    assert "hunter22" not in repr(atlas)


def test_column_schema_has_types_descriptions_keys_and_our_own_columns() -> None:
    spec = specs(define(declare_shop()))[USERS_KEY]

    assert columns(spec) == [
        ("id", "integer"),
        ("e_mail", "string"),
        ("born", "date"),
        ("tags", "array (JSON)"),
        *OWN_COLUMNS,
    ]
    by_name = {column.name: column for column in spec.metadata["dagster/column_schema"].columns}
    assert by_name["e_mail"].description == "Where to write to. Field 'e-mail'."
    only_key = dg.TableColumnConstraints(nullable=False, unique=True, other=["primary key"])
    assert by_name["id"].constraints == only_key
    assert by_name["e_mail"].constraints == dg.TableColumnConstraints()
    assert not by_name["_airbyte_raw_id"].constraints.nullable
    assert by_name["_airbyte_extra"].constraints.nullable


def test_a_column_is_not_null_where_the_source_promises_that() -> None:
    fields = {
        "promised": {"type": "string"},
        "or_null": {"type": ["string", "null"]},
        "anything": {},
        "maybe": {"type": "string"},
    }
    schema = {"properties": fields, "required": ["promised", "or_null", "anything"]}
    stream = {"name": "users", "json_schema": schema}

    spec = specs(define(declare_shop(), found(declare_shop(), [stream])))[USERS_KEY]

    shown = spec.metadata["dagster/column_schema"].columns
    assert [c.name for c in shown if not c.constraints.nullable and c.name in fields] == [
        "promised"
    ]


def test_a_key_of_several_fields_is_unique_only_together() -> None:
    both = {**USERS, "source_defined_primary_key": [["id"], ["born"]]}
    spec = specs(define(declare_shop(), found(declare_shop(), [both])))[USERS_KEY]

    by_name = {column.name: column for column in spec.metadata["dagster/column_schema"].columns}
    assert not by_name["id"].constraints.unique
    assert by_name["born"].constraints.other == ["primary key"]


def test_a_stream_says_what_it_is_and_how_it_is_read() -> None:
    found_specs = specs(define(declare_shop()))

    users, orders = found_specs[USERS_KEY], found_specs[ORDERS_KEY]
    assert users.metadata["atlas/sync_mode"] == "incremental | append_dedup"
    assert users.metadata["dagster/table_name"] == "shop.users"
    assert users.description == (
        "Everyone who ever signed up.\n\n"
        "Stream `users` of source-shop, incremental | append_dedup, cursor `id`, primary key `id`."
    )
    assert orders.metadata["atlas/stream"] == "sales.orders"
    assert orders.metadata["dagster/table_name"] == "shop.sales.orders"
    assert orders.description == ("Stream `sales.orders` of source-shop, full_refresh | overwrite.")


def test_the_source_says_what_answered_and_links_its_docs() -> None:
    metadata = specs(define(declare_shop()))[SOURCE].metadata

    assert metadata["atlas/connector"] == "my/source-shop:1@sha256:abc"
    assert metadata["atlas/streams_offered"] == 2
    assert metadata["atlas/docs"] == dg.MetadataValue.url(DOCS)
    assert "atlas/version" not in metadata  # 1 may be anything


def test_the_source_says_the_version_of_its_connector() -> None:
    known = msgspec.structs.replace(
        found(declare_shop()), connector="airbyte/source-faker:7.2.1@sha256:abc"
    )

    assert specs(define(declare_shop(), known))[SOURCE].metadata["atlas/version"] == "7.2.1"


def test_the_source_says_where_it_is_and_never_who_reads_it() -> None:
    config = {"host": "db.example.com", "port": 5432, "password": "hunter22"}
    plain = specs(define(declare_shop(config=config), found(declare_shop())))[SOURCE]
    hidden = specs(
        define(declare_shop(config={"host": "{{ env.DB_HOST }}"}), found(declare_shop()))
    )[SOURCE]

    assert plain.metadata["dagster/uri"] == dg.MetadataValue.url("shop://db.example.com:5432")
    assert "hunter22" not in repr(plain)
    assert "dagster/uri" not in hidden.metadata


def test_check_discover_and_read_share_one_pool() -> None:
    defs = define(declare_shop())

    assert defs.resolve_assets_def(USERS_KEY).op.pool == "airbyte_shop"
    checks = defs.resolve_asset_graph().get(SOURCE).check_keys
    assert {key.name for key in checks} == {"connection", "schema_changes"}
    assert {check.node_def.pool for check in defs.asset_checks or []} == {"airbyte_shop"}
    discovery = defs.resolve_job_def("shop__discover")
    assert [node.definition.pool for node in discovery.nodes] == ["airbyte_shop"]


def test_check_blocks_what_is_downstream_in_the_run() -> None:
    graph = define(declare_shop()).resolve_asset_graph()

    check = graph.get_check_spec(dg.AssetCheckKey(SOURCE, "connection"))
    assert check.blocking
    assert check.description == "The connector's own CHECK: can source-shop reach its source?"
    assert not graph.get_check_spec(dg.AssetCheckKey(SOURCE, "schema_changes")).blocking


def test_each_stream_has_checks_that_its_sync_makes() -> None:
    nested = {**USERS, "name": "nested", "source_defined_primary_key": [["address", "id"]]}
    nested["supported_sync_modes"] = ["full_refresh"]
    graph = define(
        declare_shop(), found(declare_shop(), [USERS, ORDERS, nested])
    ).resolve_asset_graph()

    checks: dict[str, list[tuple[str, bool]]] = {}
    for key in (key for key in graph.asset_check_keys if key.asset_key != SOURCE):
        blocking = graph.get_check_spec(key).blocking
        checks.setdefault(key.asset_key.path[-1], []).append((key.name, blocking))
    assert {stream: sorted(each) for stream, each in checks.items()} == {
        "users": [("primary_key", True), ("records", True), ("schema", False)],
        # Without a key, or with one that has no column of its own.
        "orders": [("records", True), ("schema", False)],
        "nested": [("records", True), ("schema", False)],
    }


def test_the_streams_are_one_step_that_can_be_subset() -> None:
    assets = define(declare_shop()).resolve_assets_def(USERS_KEY)

    assert assets.keys == {USERS_KEY, ORDERS_KEY}
    assert assets.can_subset
    assert assets.op.name == "shop__sync"


def test_no_sensor_without_a_schedule() -> None:
    assert list(define(declare_shop()).sensors or []) == []


def test_a_schedule_is_a_running_sensor_over_streams_and_check() -> None:
    (sensor,) = define(declare_shop(), schedule="0 3 * * *").sensors or []

    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.name == "shop__schedule"
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.description == "Requests CHECK, then a sync of shop, at `0 3 * * *` (UTC)."
    graph = define(declare_shop()).resolve_asset_graph()
    assert sensor.asset_selection is not None
    assert sensor.asset_selection.resolve(graph) == {SOURCE, USERS_KEY, ORDERS_KEY}
    assert sensor.asset_selection.resolve_checks(graph) == graph.asset_check_keys


def test_the_source_is_stale_once_the_config_differs_from_the_discovered_one() -> None:
    discovered = found(declare_shop())
    fresh = specs(define(declare_shop(), discovered))
    changed = specs(define(declare_shop(config={"host": "elsewhere"}), discovered))

    assert "atlas/discovery" not in fresh[SOURCE].tags
    assert changed[SOURCE].tags["atlas/discovery"] == "stale"
    assert "atlas/discovery" not in changed[USERS_KEY].tags


def test_only_declared_streams_become_assets() -> None:
    defs = define(declare_shop(streams=[{"name": "orders"}]))

    assert set(specs(defs)) == {SOURCE, ORDERS_KEY}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"streams": [{"name": "user"}]},
            "The connector has no stream 'user'; did you mean users?",
        ),
        (
            {"config": {"host": "db", "prot": 1}},
            "Connection 'shop': the connector has no config field 'prot'; did you mean 'port'?",
        ),
        (
            {"config": {}},
            "Connection 'shop': config field 'host' is missing; the connector requires it.",
        ),
    ],
)
def test_a_wrong_declaration_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    defined = ConnectionAssets.of(declare_shop(**changes), found(declare_shop()), stream_spec)

    assert defined.problem == sentence


@pytest.mark.parametrize("name", ["meta", "config", "class", "1st"])
def test_words_dagster_reserves_are_fine_as_names(name: str) -> None:
    connection = declare_shop(name=name)

    assert dg.AssetKey([name, "users"]) in specs(define(connection, found(connection)))


def test_names_that_would_meet_when_joined_stay_apart() -> None:
    joined = {**USERS, "name": "sales__orders"}
    connection = declare_shop()

    defs = define(connection, found(connection, [joined, ORDERS], SPEC))

    assert len(specs(defs)) == 3


@pytest.mark.slow
def test_an_undiscovered_connection_is_an_asset_that_discovers() -> None:
    asked: list[tuple[RunContext, SchemaPolicy | None]] = []

    def refresh(*on_behalf: Any) -> Discovery:
        asked.append(on_behalf)
        return Discovery(found(declare_shop()))

    defs = build_undiscovered_defs(declare_shop(), refresh=refresh)

    ((key, spec),) = specs(defs).items()
    assert key == dg.AssetKey(["shop", "discover"])
    assert spec.group_name == "shop"
    assert spec.tags["atlas/discovery"] == "missing"
    assert spec.description is not None
    assert "run `atlas discover shop`" in spec.description
    assert defs.resolve_assets_def(key).op.pool == "airbyte_shop"
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance)
    owner = f"run:{result.run_id}:{this_process()}"
    assert [(c.owner, policy) for c, policy in asked] == [(owner, None)]


def test_the_discovery_job_discovers() -> None:
    defs = define(declare_shop())

    with pytest.raises(AssertionError, match="nobody asked for DISCOVER"):
        defs.resolve_job_def("shop__discover").execute_in_process()


def test_a_broken_connection_is_an_asset_that_says_why() -> None:
    defs = build_broken_defs("shop", "There is no such thing.")

    ((key, spec),) = specs(defs).items()
    assert key == dg.AssetKey(["shop", "broken"])
    assert spec.group_name == "shop"
    assert spec.tags["atlas/status"] == "broken"
    assert spec.description == "This connection could not be loaded. There is no such thing."
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(raise_on_error=False)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert said.description == "There is no such thing."

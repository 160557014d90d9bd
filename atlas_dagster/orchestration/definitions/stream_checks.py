"""The checks of a stream: made by its sync, of what that knows anyway.

None of them reads a table twice, and one that cannot be made never fails a sync.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median

import dagster as dg

from atlas_dagster.orchestration.dagster_internals import (
    AssetCheckExecutionRecordStatus,
    TableSchemaDiff,
)
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.records.types import ColumnType
from atlas_dagster.sync.events import StreamFailed, StreamFinished
from atlas_dagster.wording import plural

RECORDS, PRIMARY_KEY, SCHEMA = "records", "primary_key", "schema"

#: Syncs there must be, to compare a new one with.
_FEWEST_SYNCS = 7
#: Unusual is at most half or at least twice the median, outside of all that came lately, and this
#: many median absolute deviations away, each brought to the scale of a standard deviation.
_FACTOR = 2.0
_DEVIATIONS = 4.0
_MAD_TO_DEVIATION = 1.4826
_AS_BEFORE = "As of the last sync: "


def stream_check_specs(stream: ConfiguredStream, key: dg.AssetKey) -> Iterator[dg.AssetCheckSpec]:
    """Those of one stream."""
    yield dg.AssetCheckSpec(
        RECORDS,
        asset=key,
        blocking=True,
        description="As many records came as the source counted, and about as many as usual.",
    )
    if _has_key_columns(stream):
        unique = stream.destination_sync_mode != "append"
        yield dg.AssetCheckSpec(
            PRIMARY_KEY,
            asset=key,
            # Twins matter to what relies on the key; where rows are replaced, they all stay.
            blocking=stream.destination_sync_mode == "append_dedup",
            description="Every row has a primary key" + (" of its own." if unique else "."),
        )
    yield dg.AssetCheckSpec(
        SCHEMA, asset=key, description="The source has the fields of the last sync, in its types."
    )


def _has_key_columns(stream: ConfiguredStream) -> bool:
    """Whether the table has a column for each field of the key; one in an object may have none."""
    dedup = stream.destination_sync_mode == "append_dedup"
    return bool(stream.primary_key) and (dedup or all(len(p) == 1 for p in stream.primary_key))


def check_results(
    finished: StreamFinished,
    key: dg.AssetKey,
    *,
    records: int,
    columns: tuple[dg.TableSchema | None, dg.TableSchema],
    recent: Sequence[int],
    duplicates: Callable[[], int],
) -> list[dg.AssetCheckResult]:
    """The results for a stream that is complete.

    Args:
        finished: the stream.
        key: its asset.
        records: that the run brought.
        columns: of the last sync, if there was one, and of this one.
        recent: how many records the syncs before brought.
        duplicates: counts rows whose key another row has.
    """
    made = {
        RECORDS: lambda: _records(finished, records, recent),
        PRIMARY_KEY: lambda: _primary_key(finished, records, duplicates),
        SCHEMA: lambda: _schema(*columns),
    }
    wanted = [spec.name for spec in stream_check_specs(finished.plan.configured, key)]
    return [_named(name, key, made[name]) for name in wanted]


def check_key_of(result: dg.AssetCheckResult) -> dg.AssetCheckKey:
    """The check that a result made here is of."""
    assert result.asset_key is not None
    assert result.check_name is not None
    return dg.AssetCheckKey(result.asset_key, result.check_name)


def check_evaluation(key: dg.AssetCheckKey, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """The event that says ``result`` of a check that is no output of the step which made it."""
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )


def miscounted(failed: StreamFailed, key: dg.AssetKey) -> dg.AssetCheckResult:
    """The result for a stream of which other records came than its source counted."""
    return _failed(f"Stopped, for {failed.reason}.")._replace(check_name=RECORDS, asset_key=key)


def broken_schema(sentence: str, key: dg.AssetKey) -> dg.AssetCheckResult:
    """The result for a stream that changed in a way only a refresh can follow."""
    return _failed(f"Breaking: {sentence}")._replace(check_name=SCHEMA, asset_key=key)


def as_of_last_sync(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dg.AssetCheckResult:
    """The result of a check that is executed alone: it is about what came last."""
    ended = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
    history = instance.event_log_storage.get_asset_check_execution_history(
        key, limit=1, status=ended
    )
    last = history[0].evaluation if history else None
    if last is None:
        stream = key.asset_key.to_user_string()
        result = _warning(f"There was no sync yet, and a sync makes it: materialize {stream}.")
    else:
        told = f"{_AS_BEFORE}{(last.description or '').removeprefix(_AS_BEFORE)}"
        result = dg.AssetCheckResult(
            passed=last.passed, severity=last.severity, description=told, metadata=last.metadata
        )
    return result._replace(check_name=key.name, asset_key=key.asset_key)


def _named(
    name: str, key: dg.AssetKey, make: Callable[[], dg.AssetCheckResult]
) -> dg.AssetCheckResult:
    try:
        made = make()
    except Exception as error:  # noqa: BLE001 - the rows are there, whatever is wrong with a check
        made = _warning(f"This could not be checked: {error}")
    return made._replace(check_name=name, asset_key=key)


def _records(finished: StreamFinished, records: int, recent: Sequence[int]) -> dg.AssetCheckResult:
    came = f"{plural(records, 'record')} came"
    told = [f"{came}, as the source counted." if finished.counted else f"{came}."]
    told += finished.warnings
    # One that starts from the beginning is not like those before.
    continued = finished.plan.resume_point.envelope is not None
    odd = unusual(records, recent) if continued else None
    told += [odd] if odd else []
    numbers = {"atlas/records": records}
    make = _warning if len(told) > 1 else _passed
    return make(" ".join(told), numbers)


def unusual(records: int, recent: Sequence[int]) -> str | None:
    """What is odd about ``records`` after those of ``recent`` syncs; None where nothing is.

    Silent while there are few of them, and where most brought nothing.
    """
    if len(recent) < _FEWEST_SYNCS or min(recent) <= records <= max(recent):
        return None
    usual = median(recent)
    spread = _MAD_TO_DEVIATION * median(abs(count - usual) for count in recent)
    ordinary = usual / _FACTOR < records < usual * _FACTOR
    if not usual or ordinary or abs(records - usual) <= _DEVIATIONS * spread:
        return None
    which = "fewer" if records < usual else "more"
    return f"That is {which} than usual: {usual:,.0f} (median of the last {len(recent)} syncs)."


def _primary_key(
    finished: StreamFinished, records: int, duplicates: Callable[[], int]
) -> dg.AssetCheckResult:
    stream = finished.plan.configured
    names = ", ".join(".".join(path) for path in stream.primary_key)
    if not records:
        return _passed("Nothing new to check.")
    repeated = duplicates() if stream.destination_sync_mode == "overwrite" else 0
    numbers = {
        "atlas/rows_without_key": finished.keyless,
        "atlas/rows_with_same_key": repeated,
        "atlas/late_versions": finished.late,
    }
    if repeated:
        return _failed(
            f"{_rows(repeated)} the primary key ({names}) of another row. All are kept; with "
            "destination_sync_mode: append_dedup, the newest of each would be.",
            numbers,
        )
    if finished.keyless:
        told = (
            f"{_rows(finished.keyless)} no value in a field of the primary key ({names}); each is "
            "kept as a row of its own. Declare null_keys: refuse to stop the stream instead."
        )
        return _warning(f"{told}{_late(finished.late)}", numbers)
    return _passed(f"All rows have a primary key ({names}).{_late(finished.late)}", numbers)


def _late(count: int) -> str:
    if not count:
        return ""
    versions = f"{count:,} versions" if count > 1 else "One version"
    return f" {versions} came late: the newest of the key, by its cursor, had come before."


def _rows(count: int) -> str:
    return f"{count:,} rows have" if count > 1 else "A row has"


def _schema(before: dg.TableSchema | None, now: dg.TableSchema) -> dg.AssetCheckResult:
    if before is None:
        return _passed("There is no sync before to compare with.")
    changes = list(schema_changes(before, now))
    if not changes:
        return _passed("Nothing has changed since the last sync.")
    return _warning(f"Since the last sync, {'; '.join(changes)}. The table follows by itself.")


#: What a column's name ends in where its field once had another type.
_SUFFIX = re.compile(rf"_(?:{'|'.join(kind.value for kind in ColumnType)})\Z")


def schema_changes(before: dg.TableSchema, now: dg.TableSchema) -> Iterator[str]:
    """How the columns differ, in words."""
    diff = TableSchemaDiff.from_table_schemas(before, now)
    added = {column.name: column.type for column in diff.added_columns}
    removed = {column.name: column.type for column in diff.removed_columns}
    # A field of another type has a column of its own where rows are kept, called after both.
    for name, type_ in list(removed.items()):
        first = _SUFFIX.sub("", name)
        of_field = {name, first} | {f"{n}_{k.value}" for n in (name, first) for k in ColumnType}
        for successor in sorted(added.keys() & of_field)[:1]:
            yield f"{name} ({type_}) became {successor} ({added.pop(successor)})"
            del removed[name]
    for name, change in diff.column_type_changes.items():
        yield f"{name} ({change.old_type}) became {change.new_type}"
    if added:
        yield f"added: {_listed(added.items())}"
    if removed:
        yield f"no longer there: {_listed(removed.items())}"


def _listed(columns: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns)


def _passed(told: str, numbers: Mapping[str, int] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True, description=told, metadata=numbers)


def _warning(told: str, numbers: Mapping[str, int] | None = None) -> dg.AssetCheckResult:
    warn = dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(passed=False, severity=warn, description=told, metadata=numbers)


def _failed(told: str, numbers: Mapping[str, int] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description=told, metadata=numbers)

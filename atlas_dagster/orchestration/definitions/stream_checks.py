"""The checks of a stream. Its sync evaluates them from what it has read.

Only one of them queries the table: duplicate keys after an overwrite. An error in a check never
fails a sync.
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

#: A sync is compared only if there are at least this many earlier ones.
_FEWEST_SYNCS = 7
#: A count is unusual if it is at most half or at least twice the median, outside the range of the
#: recent counts, and this many median absolute deviations (scaled to standard deviations) away.
_FACTOR = 2.0
_DEVIATIONS = 4.0
_MAD_TO_DEVIATION = 1.4826
_AS_BEFORE = "As of the last sync: "


def stream_check_specs(stream: ConfiguredStream, key: dg.AssetKey) -> Iterator[dg.AssetCheckSpec]:
    """Return the checks of one stream."""
    yield dg.AssetCheckSpec(
        RECORDS,
        asset=key,
        blocking=True,
        description="The number of records matches the source's count, and is not unusual.",
    )
    if _has_key_columns(stream):
        unique = stream.destination_sync_mode != "append"
        yield dg.AssetCheckSpec(
            PRIMARY_KEY,
            asset=key,
            # Only append_dedup promises unique keys.
            blocking=stream.destination_sync_mode == "append_dedup",
            description=f"Every row has a {'unique ' if unique else ''}primary key.",
        )
    yield dg.AssetCheckSpec(
        SCHEMA, asset=key, description="The fields and their types are those of the last sync."
    )


def _has_key_columns(stream: ConfiguredStream) -> bool:
    """Return whether each field of the key has a column; one inside of an object may have none."""
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
    """Return the results for a complete stream.

    Args:
        finished: the stream.
        key: the key of its asset.
        records: the number of records of this run.
        columns: the columns of the last sync, if there was one, and of this sync.
        recent: the numbers of records of earlier syncs.
        duplicates: counts the rows that share their primary key with another row.
    """
    evaluations = {
        RECORDS: lambda: _check_records(finished, records, recent),
        PRIMARY_KEY: lambda: _check_primary_key(finished, records, duplicates),
        SCHEMA: lambda: _check_schema(*columns),
    }
    wanted = [spec.name for spec in stream_check_specs(finished.plan.configured, key)]
    return [_evaluate(name, key, evaluations[name]) for name in wanted]


def check_key_of(result: dg.AssetCheckResult) -> dg.AssetCheckKey:
    """Return the key of the check that ``result`` belongs to."""
    assert result.asset_key is not None
    assert result.check_name is not None
    return dg.AssetCheckKey(result.asset_key, result.check_name)


def check_evaluation(key: dg.AssetCheckKey, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """Return the event for a result that the step does not yield as an output."""
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )


def make_miscount_result(failed: StreamFailed, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Return the result for a stream whose record count differs from the source's."""
    return _failed(f"The stream was stopped: {failed.reason}.")._replace(
        check_name=RECORDS, asset_key=key
    )


def make_breaking_result(sentence: str, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Return the result for a stream with a breaking change, which needs a refresh."""
    return _failed(f"Breaking: {sentence}")._replace(check_name=SCHEMA, asset_key=key)


def repeat_last_result(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dg.AssetCheckResult:
    """Return the last result of a check again, for a run that does not sync its stream."""
    ended = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
    history = instance.event_log_storage.get_asset_check_execution_history(
        key, limit=1, status=ended
    )
    last = history[0].evaluation if history else None
    if last is None:
        stream = key.asset_key.to_user_string()
        result = _warning(
            f"A sync evaluates this check, and the stream was never synced; materialize {stream}."
        )
    else:
        text = f"{_AS_BEFORE}{(last.description or '').removeprefix(_AS_BEFORE)}"
        result = dg.AssetCheckResult(
            passed=last.passed, severity=last.severity, description=text, metadata=last.metadata
        )
    return result._replace(check_name=key.name, asset_key=key.asset_key)


def _evaluate(
    name: str, key: dg.AssetKey, make: Callable[[], dg.AssetCheckResult]
) -> dg.AssetCheckResult:
    try:
        result = make()
    except Exception as error:  # noqa: BLE001 - a broken check must not fail a sync
        result = _warning(f"The check failed with an error: {error}")
    return result._replace(check_name=name, asset_key=key)


def _check_records(
    finished: StreamFinished, records: int, recent: Sequence[int]
) -> dg.AssetCheckResult:
    count_read = f"{plural(records, 'record')} read"
    text = [f"{count_read}; matches the source's count." if finished.counted else f"{count_read}."]
    text += finished.warnings
    # A sync from the beginning cannot be compared with incremental ones.
    continued = finished.plan.resume_point.envelope is not None
    odd = describe_unusual_count(records, recent) if continued else None
    text += [odd] if odd else []
    numbers = {"atlas/records": records}
    make = _warning if len(text) > 1 else _passed
    return make(" ".join(text), numbers)


def describe_unusual_count(records: int, recent: Sequence[int]) -> str | None:
    """Describe how ``records`` differs from the numbers of ``recent`` syncs.

    Return None if it is usual, if there are few syncs, or if most of them were empty.
    """
    if len(recent) < _FEWEST_SYNCS or min(recent) <= records <= max(recent):
        return None
    usual = median(recent)
    spread = _MAD_TO_DEVIATION * median(abs(count - usual) for count in recent)
    ordinary = usual / _FACTOR < records < usual * _FACTOR
    if not usual or ordinary or abs(records - usual) <= _DEVIATIONS * spread:
        return None
    which = "fewer" if records < usual else "more"
    return f"This is {which} than usual: {usual:,.0f} (median of the last {len(recent)} syncs)."


def _check_primary_key(
    finished: StreamFinished, records: int, duplicates: Callable[[], int]
) -> dg.AssetCheckResult:
    stream = finished.plan.configured
    names = ", ".join(".".join(path) for path in stream.primary_key)
    if not records:
        return _passed("No new rows to check.")
    repeated = duplicates() if stream.destination_sync_mode == "overwrite" else 0
    numbers = {
        "atlas/rows_without_key": finished.rows_without_key,
        "atlas/rows_with_same_key": repeated,
        "atlas/late_versions": finished.late,
    }
    if repeated:
        return _failed(
            f"{_rows_have(repeated)} the primary key ({names}) of another row. All are kept; to "
            "keep only the newest of each key, use destination_sync_mode: append_dedup.",
            numbers,
        )
    if finished.rows_without_key:
        text = (
            f"{_rows_have(finished.rows_without_key)} no value in a field of the primary key "
            f"({names}); each is kept as a separate row. To stop the stream instead, use "
            "null_keys: refuse."
        )
        return _warning(f"{text}{_describe_late(finished.late)}", numbers)
    return _passed(
        f"All rows have a primary key ({names}).{_describe_late(finished.late)}", numbers
    )


def _describe_late(count: int) -> str:
    if not count:
        return ""
    versions = f"{count:,} versions" if count > 1 else "One version"
    return f" {versions} arrived late: a newer version of the key was already in the table."


def _rows_have(count: int) -> str:
    return f"{count:,} rows have" if count > 1 else "A row has"


def _check_schema(before: dg.TableSchema | None, now: dg.TableSchema) -> dg.AssetCheckResult:
    if before is None:
        return _passed("No earlier sync to compare with.")
    changes = list(describe_schema_changes(before, now))
    if not changes:
        return _passed("No changes since the last sync.")
    return _warning(f"Since the last sync: {'; '.join(changes)}. The table has been adapted.")


#: The suffix of a column's name if its field had another type before.
_SUFFIX = re.compile(rf"_(?:{'|'.join(kind.value for kind in ColumnType)})\Z")


def describe_schema_changes(before: dg.TableSchema, now: dg.TableSchema) -> Iterator[str]:
    """Describe each difference between two lists of columns."""
    diff = TableSchemaDiff.from_table_schemas(before, now)
    added = {column.name: column.type for column in diff.added_columns}
    removed = {column.name: column.type for column in diff.removed_columns}
    # If rows are kept, a field with a new type gets another column, named after field and type.
    for name, type_ in list(removed.items()):
        first = _SUFFIX.sub("", name)
        of_field = {name, first} | {f"{n}_{k.value}" for n in (name, first) for k in ColumnType}
        for successor in sorted(added.keys() & of_field)[:1]:
            yield f"{name} ({type_}) became {successor} ({added.pop(successor)})"
            del removed[name]
    for name, change in diff.column_type_changes.items():
        yield f"{name} ({change.old_type}) became {change.new_type}"
    if added:
        yield f"added: {_join_columns(added.items())}"
    if removed:
        yield f"removed: {_join_columns(removed.items())}"


def _join_columns(columns: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns)


def _passed(text: str, numbers: Mapping[str, int] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True, description=text, metadata=numbers)


def _warning(text: str, numbers: Mapping[str, int] | None = None) -> dg.AssetCheckResult:
    warn = dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(passed=False, severity=warn, description=text, metadata=numbers)


def _failed(text: str, numbers: Mapping[str, int] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description=text, metadata=numbers)

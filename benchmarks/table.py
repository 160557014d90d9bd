"""The tables of the README's "Speed", from results.json.

.venv/bin/python benchmarks/table.py [results.json]
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LABELS = {
    "floor": "floor: the same container, read and thrown away",
    "floor_parquet": "floor of tables: parsed by polars, written as zstd Parquet, no state",
    "append": "`append`",
    "overwrite": "`overwrite`",
    "append_dedup": "`append_dedup`, first load",
    "dirty": "`append`, 2 % broken records",
    "stateless": "`append`, no STATE",
    "interleaved": "`append`, 50 streams interleaved",
    "wide": "500 columns, 13 kB a record",
    "nested": "nested, 2 kB a record",
    "tiny": "two columns, 130 bytes a record",
}
_MODES = {"append": "append", "overwrite": "replace", "append_dedup": "merge"}
_HEAD = """\
| {} | records/s | CPU s per million | peak memory | of PyAirbyte's records/s | of its CPU | of the floor of tables | of `append` |
|---|---|---|---|---|---|---|---|"""


def _row(label: str, figures: dict[str, float], beside: dict[str, Any]) -> str:
    def ratio(name: str, key: str) -> str:
        found = beside.get(name, {}).get(key)
        return "" if found is None else f"{found:.2f}"

    cells = [
        label,
        f"{figures['records_per_s']:,}",
        f"{figures['cpu_s_per_million']:.1f}",
        f"{figures['peak_rss_mb']} MB",
        ratio("of_pyairbyte", "records_per_s"),
        ratio("of_pyairbyte", "cpu_s_per_million"),
        ratio("of_floor_parquet", "records_per_s"),
        ratio("of_append", "records_per_s"),
    ]
    return f"| {' | '.join(cells)} |"


def _tables(results: dict[str, Any]) -> Iterator[str]:
    for records, each in results["sizes"].items():
        workloads = each["workloads"]
        yield _HEAD.format(f"{int(records):,} records")
        floors = next((w for w in workloads.values() if "floor" in w), {})
        for name in ("floor", "floor_parquet"):
            if name in floors:
                yield _row(_LABELS[name], floors[name], {})
        for name, figures in workloads.items():
            yield _row(_LABELS[name], figures["atlas"], figures)
        for name, figures in workloads.items():
            if "pyairbyte" in figures:
                label = f"PyAirbyte {results['pyairbyte']}, DuckDB cache, {_MODES[name]}"
                yield _row(label, figures["pyairbyte"], {})
        yield ""
    if shapes := results.get("shapes"):
        yield _HEAD.format("`append`, other records")
        for name, figures in shapes.items():
            yield _row(f"{_LABELS[name]}, {figures['records']:,}", figures["atlas"], figures)
        yield ""
    if dedup := results.get("dedup"):
        yield "| Delta alone, rows made as Arrow | seconds | CPU s | peak memory |\n|---|---|---|---|"
        for rows, each in dedup.items():
            for name, figures in each.items():
                cells = (figures["wall_s"], figures["cpu_s"], f"{figures['peak_rss_mb']} MB")
                yield f"| `{name}`, {int(rows):,} | {' | '.join(map(str, cells))} |"
        yield ""
    if postgres := results.get("postgres"):
        yield "| Postgres | rows/s | CPU s per million | peak memory | `COPY`, rows/s | of `COPY` |"
        yield "|---|---|---|---|---|---|"
        for records, each in postgres.items():
            ours = each["atlas"]
            yield (
                f"| `append`, {int(records):,} | {ours['records_per_s']:,} "
                f"| {ours['cpu_s_per_million']:.1f} | {ours['peak_rss_mb']} MB "
                f"| {each['copy']['records_per_s']:,} | {each['of_copy']['records_per_s']:.2f} |"
            )
        yield ""
    if state := results.get("state"):
        yield "| A checkpoint of 10,000 rows | envelope | commit | held | event | of a bare append |"
        yield "|---|---|---|---|---|---|"
        for name, each in state["checkpoint"].items():
            cells = [f"{each[part]} ms" for part in ("prepare", "commit", "held", "event")]
            yield f"| {name} | {' | '.join(cells)} | {each['of_bare']} |"
        yield ""
        yield "| The state of 200 streams | in one call | one by one | after a death, in one call |"
        yield "|---|---|---|---|"
        for name, each in state["200 streams"].items():
            cells = [f"{each[part]:,.0f} ms" for part in ("batched", "one_by_one", "died_batched")]
            yield f"| event log in {name} | {' | '.join(cells)} |"
        yield ""
    when = results.get("date", "earlier")
    yield f"Measured {when}: {results['machine']}, medians of {results['runs']}."


if __name__ == "__main__":
    default = Path(__file__).with_name("results.json")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    print("\n".join(_tables(json.loads(path.read_text()))))

"""The same recording through PyAirbyte, which runs Airbyte's connectors without the platform too.

In a virtual environment of its own, into its own default cache (DuckDB), from a local executable
that prints the recording, which is faster for it than a container. Run as a program by that
environment's Python, this file is one sync.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import environments
from measuring import report_and_exit
from recording import catalog_streams

VERSION = "0.71.3"
#: PyAirbyte's word for each destination sync mode.
STRATEGIES = {"append": "append", "overwrite": "replace", "append_dedup": "merge"}
_SOURCE = """#!/bin/sh
case "$1" in
  spec) echo '{"type":"SPEC","spec":{"connectionSpecification":{"type":"object"}}}' ;;
  check) echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"SUCCEEDED"}}' ;;
  discover) exec cat "${0%/*}/catalog.json" ;;
  read) exec cat "${0%/*}/recording.jsonl" ;;
esac
"""


def environment() -> Path:
    """The Python of PyAirbyte's environment. Raises subprocess.CalledProcessError."""
    return environments.environment("pyairbyte", f"airbyte=={VERSION}")


def write_source(folder: Path, image: str) -> None:
    """A connector in ``folder`` that prints what the image ``image`` does, the recording ``clean``."""
    catalog = {"type": "CATALOG", "catalog": {"streams": catalog_streams("clean")}}
    (folder / "catalog.json").write_text(json.dumps(catalog))
    (folder / "source-recorded").write_text(_SOURCE)
    (folder / "source-recorded").chmod(0o755)
    with (folder / "recording.jsonl").open("wb") as out:
        play = ["docker", "run", "--rm", "--network=none", "--log-driver=none", image]
        subprocess.run(play, check=True, stdout=out)


def command(python: Path, folder: Path, mode: str, records: int) -> list[str]:
    """One sync into a new cache."""
    return [str(python), __file__, str(folder), STRATEGIES[mode], str(records)]


def _sync(folder: Path, strategy: str, records: int) -> None:
    os.environ |= {"AIRBYTE_OFFLINE_MODE": "1", "DO_NOT_TRACK": "1"}
    import airbyte
    from airbyte.caches import DuckDBCache

    source = airbyte.get_source(
        "source-recorded", config={}, local_executable=folder / "source-recorded", streams="*"
    )
    database = folder / "cache.duckdb"
    database.unlink(missing_ok=True)
    cache = DuckDBCache(db_path=database, cache_dir=folder / "cache")
    read = source.read(cache, write_strategy=strategy)
    assert read.processed_records == records, f"{read.processed_records} instead of {records}"


if __name__ == "__main__":
    _sync(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    report_and_exit()

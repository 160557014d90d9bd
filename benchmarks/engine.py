"""What the engine itself costs, without tables: its decoder, and the start of a connector.

Called by ``run.py``; each figure is a ratio against something that cannot be avoided.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import environments
from recording import write_recording

from atlas_dagster.protocol.decoder import MessageDecoder

STANDIN = "atlas-test/source-standin:2"
_CHUNK = 1 << 20
_CATALOG = (
    '{"streams":[{"stream":{"name":"events","json_schema":{},"supported_sync_modes":'
    '["incremental"]},"sync_mode":"incremental","destination_sync_mode":"append"}]}'
)


def decoder_speed(records: int, runs: int) -> dict[str, float]:
    """MB/s of CPU time over the same recorded bytes."""
    import orjson

    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        path = Path(folder) / "recording.jsonl"
        write_recording(path, "clean", records)
        content = path.read_bytes()
    chunks = [content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK)]

    def decode() -> None:
        decoder = MessageDecoder()
        for chunk in chunks:
            for _ in decoder.feed(chunk):
                pass
        for _ in decoder.flush():
            pass

    def per_line() -> None:
        for line in content.splitlines():
            orjson.loads(line)

    def newlines() -> None:
        for chunk in chunks:
            chunk.count(b"\n")

    def speed(work: Callable[[], None]) -> float:
        taken = []
        for _ in range(runs):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return len(content) / 1e6 / max(statistics.median(taken), 1e-9)

    decoder, orjson_lines, counting = speed(decode), speed(per_line), speed(newlines)
    return {
        "decoder_mb_per_s": round(decoder),
        "orjson_per_line_mb_per_s": round(orjson_lines),
        "counting_newlines_mb_per_s": round(counting),
        "of_orjson": round(decoder / orjson_lines, 2),
        "of_counting": round(decoder / counting, 3),
    }


def start_overhead(runs: int) -> dict[str, dict[str, float]]:
    """Seconds of a whole CHECK, and of a READ of nothing, beside bare ``docker run``."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        Path(folder).chmod(0o755)  # the image has a user of its own
        (Path(folder) / "config.json").write_text('{"count": 0}')
        (Path(folder) / "catalog.json").write_text(_CATALOG)
        for verb, files in (("check", ["config"]), ("read", ["config", "catalog"])):
            options = [word for name in files for word in (f"--{name}", f"/in/{name}.json")]
            bare = ["docker", "run", "--rm", "--init", "--network=host", "--log-driver=none"]
            bare += ["--volume", f"{folder}:/in:ro", STANDIN, verb, *options]
            ours = [str(environments.atlas()), __file__, verb, folder]
            times: dict[str, list[float]] = {"docker_run_s": [], "atlas_s": []}
            for _ in range(runs):
                for name, command in (("docker_run_s", bare), ("atlas_s", ours)):
                    start = time.perf_counter()
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    times[name].append(time.perf_counter() - start)
            middle = {name: round(statistics.median(each), 2) for name, each in times.items()}
            ratio = round(middle["atlas_s"] / middle["docker_run_s"], 2)
            results[verb] = {**middle, "of_docker_run": ratio}
    return results


def _call(verb: str, folder: str) -> None:
    """One call through the engine, in a process of its own: imports, engine, container, answer."""
    from atlas_dagster.config.masking import Masker
    from atlas_dagster.listener import SILENT
    from atlas_dagster.runners.base import ConnectorCommand
    from atlas_dagster.runners.docker.engine import connect
    from atlas_dagster.runners.docker.runner import DockerRunner
    from atlas_dagster.source.invocation import Invocation

    names = ("config", "catalog") if verb == "read" else ("config",)
    files = {name: (Path(folder) / f"{name}.json").read_bytes() for name in names}
    command = ConnectorCommand(verb, files, {"atlas.connection": "bench"})  # type: ignore[arg-type]
    runner = DockerRunner(STANDIN, client=connect())
    talk = Invocation(runner, name="bench", listener=SILENT, masker=Masker())
    for _ in talk.messages(command):
        pass
    assert not talk.failed, talk.failure()


if __name__ == "__main__":
    _call(sys.argv[1], sys.argv[2])

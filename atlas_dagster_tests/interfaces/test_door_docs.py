"""The pages about the Python and the HTTP door: all that they show is run, on real connectors."""

import ast
import asyncio
import inspect
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import atlas_dagster.airbyte
from atlas_dagster.airbyte import pull_image
from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster_tests.interfaces.http.live_server import ServerProcess

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("own_state")]


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


#: What a pull says on a machine without the internet, which is no fault of the page.
UNREACHABLE = "its registry cannot be reached"


async def pull_image_if_reachable(image: str) -> str | None:
    try:
        return await pull_image(image)
    except RunnerUnavailableError as error:
        if UNREACHABLE not in str(error):
            raise
        return None


def test_every_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace, as in a notebook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(atlas_dagster.airbyte, "pull_image", pull_image_if_reachable)
    names: dict[str, Any] = {}
    snippets = [content for language, content in blocks("python.md") if language == "python"]
    assert len(snippets) >= 7

    async def run() -> None:
        for snippet in snippets:
            code = compile(snippet, "python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            found = eval(code, names)
            if inspect.iscoroutine(found):
                await found

    asyncio.run(run())
    assert names["rows"] == 30_000
    assert len(pd.read_parquet("users.parquet")) == 500
    assert set(json.loads(Path("faker-state.json").read_text())) == {"users", "purchases"}
    assert list(tmp_path.glob("purchases-*.parquet"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path, allowed=())
    yield server
    server.end()


def agree(shown: Any, came: Any) -> None:
    """``shown`` leaves out what is long."""
    if isinstance(shown, dict):
        assert set(shown) <= set(came)
        for key, value in shown.items():
            agree(value, came[key])
    elif isinstance(shown, list):
        assert isinstance(came, list)
        for value, other in zip(shown, came, strict=False):
            agree(value, other)
    elif shown != "":
        assert came == shown


def test_every_curl_call_is_answered(server: ServerProcess, tmp_path: Path) -> None:
    prelude = """
    set -euo pipefail
    curl() { command curl --fail-with-body -w '%{stderr}%{http_code} ' "$@" || true; }
    """
    shown = [(language, content) for language, content in blocks("http.md")]
    assert ("sh", "json") in {(one[0], other[0]) for one, other in itertools.pairwise(shown)}
    base = next(line for line in shown[1][1].splitlines() if line.startswith("BASE="))
    for place, (language, content) in enumerate(shown):
        if language != "sh":
            continue
        script = f"{prelude}\n{base}\n{content}".replace(":8000", f":{server.port}")
        ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        expects_problem = "source-fakr" in content
        codes = set(ran.stderr.split())
        if UNREACHABLE in ran.stdout and "/pull" in content:
            codes.remove("503")
        assert codes == {"404" if expects_problem else "200"}, ran.stdout
        if place + 1 < len(shown) and shown[place + 1][0] == "json":
            saved = re.search(r"> (\S+\.json)", content)
            came = (tmp_path / saved[1]).read_text() if saved else ran.stdout
            agree(json.loads(shown[place + 1][1]), json.loads(came))
        if "page.json" in content and "@-" in content:
            assert json.loads(ran.stdout)["records_count"] == 1000
    assert (tmp_path / "users.ndjson").read_bytes().count(b"\n") == 5001
    assert (tmp_path / "users.arrow").stat().st_size > 500_000

"""docs/misbehaviour.md, source-chaos and the tests name the same scenarios."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster_tests.chaos.chaotic import FOLDER

DOCS = Path(__file__).parents[2] / "docs" / "misbehaviour.md"


@pytest.fixture
def scenarios(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The connector's own registry."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import source_chaos

    return dict(source_chaos.SCENARIOS)


def test_the_docs_say_of_each_scenario_what_it_does(scenarios: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    assert {name: what for name, what, _ in rows} == {
        name: str(inspect.getdoc(play)).replace("``", "`") for name, (_, play) in scenarios.items()
    }
    assert len(rows) == len(scenarios) > 60


def test_each_scenario_is_played(scenarios: dict[str, Any]) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_chaos_*.py"))
    assert [name for name in scenarios if f'"{name}"' not in tests] == []

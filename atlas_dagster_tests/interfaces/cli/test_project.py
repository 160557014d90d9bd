"""Connections of a project: found, wrong, completed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.interfaces.cli.command import atlas

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sync", "check", "discover"])
def test_an_unknown_connection_is_met_with_the_nearest(shop: Project, command: str) -> None:
    result = atlas(command, "shpo")

    assert result.exit_code == 3
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    assert f"'shpo' in {shop.package}/connections" in sentence
    assert "'shop'" in sentence


def test_an_unknown_connection_like_no_other_is_met_with_all(shop: Project) -> None:
    assert atlas("sync", "zzz").stderr.endswith(": shop.\n")


def test_streams_must_be_known(project: Project) -> None:
    project.declare("new", "connector: source-faker")

    result = atlas("sync", "new")

    assert result.exit_code == 3
    assert "atlas discover new" in result.stderr


@pytest.mark.parametrize("command", ["sync", "check", "discover"])
def test_a_wrong_declaration_is_one_sentence(project: Project, command: str) -> None:
    project.declare("shop", "connector: source-faker", "image: my/own:1")
    project.discover("shop", {})

    result = atlas(command, "shop")

    assert result.exit_code == 3
    (sentence,) = result.stderr.splitlines()
    assert "shop/defs.yaml: " in sentence
    assert "connector" in sentence
    assert "image" in sentence
    assert isinstance(result.exception, SystemExit)


def test_outside_a_project_it_says_where_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    result = atlas("sync", "shop")

    assert result.exit_code == 3
    assert "dagster.yaml" in result.stderr
    assert "DAGSTER_HOME" in result.stderr


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("atlas conn", "connectors"),
        ("atlas connectors info source-postg", "source-postgres"),
        ("atlas check de", "demo"),
        ("atlas spec source-fak", "source-faker"),
        ("atlas sync de", "demo"),
    ],
)
def test_names_are_completed(words: str, completed: str) -> None:
    environment = {
        **os.environ,
        "_ATLAS_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    script = "from atlas_dagster.interfaces.cli import main; main(prog_name='atlas')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"plain,{completed}"]

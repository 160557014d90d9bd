"""The SOURCE of a verb, and its options."""

from pathlib import Path

import pytest

from atlas_dagster.interfaces.cli.source import read_config
from atlas_dagster.reading.ad_hoc import adhoc_connection, is_adhoc
from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.interfaces.cli.command import atlas
from atlas_dagster_tests.interfaces.cli.scripted_source import ScriptedSource


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("source-faker", "airbyte/source-faker:7.2.1"),
        ("source-faker:6.0.0", "airbyte/source-faker:6.0.0"),
        ("source-faker:latest", "airbyte/source-faker:latest"),
        ("airbyte/source-faker:6.0.0", "airbyte/source-faker:6.0.0"),
        ("my-registry.example:5000/own@sha256:abc", "my-registry.example:5000/own@sha256:abc"),
        ("mine:1.0", "mine:1.0"),
    ],
)
def test_a_name_or_an_image(source: str, meant: str) -> None:
    assert is_adhoc(source)
    connection = adhoc_connection(source, {})
    entry = connection.entry()
    assert (connection.image or (entry and entry.docker_image)) == meant


def test_a_plain_word_is_a_declared_connection() -> None:
    assert not is_adhoc("shop")


def test_each_config_has_renewals_of_its_own() -> None:
    one = adhoc_connection("source-faker", {"a": 1}).name
    assert adhoc_connection("source-faker", {"a": 1}).name == one
    assert adhoc_connection("source-faker", {"a": 2}).name != one
    assert adhoc_connection("airbyte/source-faker:1", {"a": 1}).name != one


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    result = atlas("spec", "source-posgres")
    assert result.exit_code == 3
    (sentence,) = result.stderr.splitlines()
    assert '"source-posgres"' in sentence
    assert "source-postgres" in sentence


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("nothing.json", "nothing.json cannot be read (No such file or directory)"),
        ("{secret-1234: [", "neither JSON nor YAML"),
        ("list.yaml", "list.yaml is not an object"),
    ],
)
def test_a_config_that_cannot_be_read(given: str, why: str) -> None:
    Path("list.yaml").write_text("- 1\n")
    result = atlas("check", "source-faker", "--config", given)
    assert result.exit_code == 3
    assert why in result.stderr
    assert "secret-1234" not in result.stderr


def test_configs_are_json_or_yaml() -> None:
    assert read_config('{"a": 1e5, "b": "2024-01-01"}') == {"a": 1e5, "b": "2024-01-01"}
    assert read_config("{a: 1, b: 2024-01-01}") == {"a": 1, "b": "2024-01-01"}
    assert read_config(None) == {}


@pytest.mark.docker
def test_a_config_from_stdin_or_a_file_with_a_variable(
    somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOW_MANY", "3")
    Path("config.yaml").write_text('count: "{{ env.HOW_MANY }}"\n')
    counted = ["read", SOURCE_STANDIN_IMAGE, "--stream", "events", "--config"]
    assert len(atlas(*counted, "config.yaml").stdout.splitlines()) == 3
    piped = atlas(*counted, "-", stdin='{"count": 2}')
    assert len(piped.stdout.splitlines()) == 2
    monkeypatch.delenv("HOW_MANY")
    result = atlas(*counted, "config.yaml")
    assert result.exit_code == 3
    assert "HOW_MANY" in result.stderr


def test_a_declared_connection_has_its_own_config(shop: Project) -> None:
    result = atlas("check", "shop", "--config", "{}")
    assert result.exit_code == 3
    assert "'shop' is a declared connection" in result.stderr


def test_discover_takes_no_config_for_a_declared_connection(project: Project) -> None:
    ScriptedSource(project, "users")
    result = atlas("discover", "own", "--runner", "python")
    assert result.exit_code == 3
    assert "'own' is a declared connection" in result.stderr
    for verb in ("check", "discover"):
        result = atlas(verb, "own", "--no-validate")
        assert result.exit_code == 3
        assert "`validate: off`" in result.stderr

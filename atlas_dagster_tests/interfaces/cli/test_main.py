"""The verbs, their help, and what they import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_dagster.interfaces.cli import _VERBS
from atlas_dagster_tests.interfaces.cli.command import atlas, words


@pytest.mark.parametrize("name", _VERBS)
def test_every_verb_is_there_and_says_what_it_is(name: str) -> None:
    result = atlas(name, "--help")
    assert result.exit_code == 0
    # The line in `atlas --help` is written apart, so that nothing is imported for it.
    assert _VERBS[name].help.split()[0] in result.stdout.split()


def test_help_works_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    result = atlas("--help")

    assert result.exit_code == 0
    assert [verb for verb in ("discover", "check", "sync") if f"\n  {verb} " in result.stdout] == [
        "discover",
        "check",
        "sync",
    ]


def test_secrets_are_files_for_every_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"ATLAS_SECRETS": str(tmp_path / "secrets")})

    result = atlas("serve")

    assert result.exit_code == 3
    assert "ATLAS_SECRETS" in words(result.stderr)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "SHOP_PASSWORD").write_text("pa55\n")
    atlas("connectors", "nothing like that")
    assert os.environ["SHOP_PASSWORD"] == "pa55"


HEAVY = ("dagster", "pandas", "pyarrow", "docker", "deltalake", "sqlalchemy")
#: Commands that run nothing.
QUICK = [
    ["--help"],
    ["no-such-verb"],
    *([verb, "--help"] for verb in _VERBS),
    *([verb, "--no-such-option"] for verb in _VERBS),
    ["connectors", "search", "postgres"],
    ["connectors", "info", "source-nothing"],
]
#: Commands that need no project.
UNDECLARED = [
    ["spec", "source-nothing"],
    ["check", "source-faker", "--config", "{"],
    ["discover", "source-faker", "--config", "{"],
    ["read", "source-faker", "--config", "{"],
    ["pull", "source-nothing"],
]


@pytest.mark.parametrize(
    ("commands", "modules"),
    [(QUICK, HEAVY), (UNDECLARED, ("dagster", "pandas"))],
    ids=["quick", "undeclared"],
)
@pytest.mark.slow
def test_nothing_heavy_is_imported_without_need(
    commands: list[list[str]], modules: tuple[str, ...]
) -> None:
    script = f"""
import sys
from atlas_dagster.interfaces.cli import main
for command in {commands}:
    try: main(command, prog_name='atlas')
    except SystemExit: pass
    imported = [name for name in {modules} if name in sys.modules]
    assert not imported, (command, imported)
"""
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "atlas_dagster",
        "atlas_dagster.sync.session",
        "atlas_dagster.sync.plan",
        "atlas_dagster.source.open_connector",
        "atlas_dagster.destinations.factory",
        "atlas_dagster.runners.docker.runner",
        "atlas_dagster.runners.python",
        "atlas_dagster.registry",
        "atlas_dagster.sync.resume",
    ],
)
def test_the_engine_does_not_import_dagster(module: str) -> None:
    loaded = "{name.partition('.')[0] for name in sys.modules}"
    program = f"import sys, {module}\nprint('dagster' in {loaded})"

    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert ran.stdout == "False\n"

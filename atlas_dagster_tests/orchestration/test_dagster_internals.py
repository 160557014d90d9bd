"""The private names of Dagster: all in one module, each of them used, all of them there."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import atlas_dagster
from atlas_dagster.orchestration import dagster_internals

pytestmark = pytest.mark.dagster

PACKAGE = Path(atlas_dagster.__file__).parent
INTERNALS = Path(dagster_internals.__file__)
#: Documented modules; everything else below `dagster`, and all of `dagster_shared`, is private.
PUBLIC = {"dagster", "dagster.components"}


def _imports(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def _is_private(module: str) -> bool:
    return module.partition(".")[0] in {"dagster", "dagster_shared"} and module not in PUBLIC


def test_only_dagster_internals_imports_private_names() -> None:
    importing = {
        f"{file.relative_to(PACKAGE)}: {module}.{name}"
        for file in PACKAGE.rglob("*.py")
        for module, name in _imports(file)
        if file != INTERNALS and _is_private(module)
    }

    assert importing == set()


@pytest.mark.slow
def test_each_private_name_is_used() -> None:
    used = {
        name
        for file in PACKAGE.rglob("*.py")
        for module, name in _imports(file)
        if module == dagster_internals.__name__
    }

    assert used - {"SqlRunStorage"} == set(dagster_internals.__all__)


@pytest.mark.slow
def test_it_can_be_imported_alone() -> None:
    subprocess.run([sys.executable, "-c", f"import {dagster_internals.__name__}"], check=True)

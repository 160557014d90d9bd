"""The layout of the code: sizes, words in every module, and the maps in the documentation."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "atlas_dagster"
TESTS = REPOSITORY / "atlas_dagster_tests"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEST_MODULES = sorted(TESTS.rglob("*.py"))
MOST_FILES = 15
MOST_LINES = 450
MOST_TEST_LINES = 600
#: Folders of tests that test the whole, or hold what tests read.
NOT_PACKAGES = {
    "chaos",
    "connectors",
    "crash",
    "e2e",
    "examples",
    "model",
    "soak",
    "stack",
    "stored",
    "survey",
    "texts",
}


def packages(folder: Path) -> set[str]:
    """Return each package below the folder, as a path; the users' own connections are none."""
    found = {str(each.parent.relative_to(folder)) for each in folder.rglob("__init__.py")}
    return {each for each in found if each != "." and not each.startswith("connections")}


def test_no_folder_has_too_many_files() -> None:
    counted: dict[str, int] = {}
    for module in MODULES:
        if module.name != "__init__.py":
            folder = str(module.parent.relative_to(PACKAGE))
            counted[folder] = counted.get(folder, 0) + 1

    above = {name: n for name, n in counted.items() if n > MOST_FILES}
    assert above == {}, f"split folders with more than {MOST_FILES} files"


@pytest.mark.parametrize(
    ("folder", "modules", "most"),
    [(PACKAGE, MODULES, MOST_LINES), (TESTS, TEST_MODULES, MOST_TEST_LINES)],
    ids=["package", "tests"],
)
def test_no_file_is_too_long(folder: Path, modules: list[Path], most: int) -> None:
    above = {}
    for module in modules:
        name, lines = str(module.relative_to(folder)), module.read_text().count("\n")
        if lines > most:
            above[name] = lines
    assert above == {}, f"split files with more than {most} lines"


def test_every_module_has_a_docstring() -> None:
    trees = {module: ast.parse(module.read_text()) for module in MODULES}
    without = [
        str(module.relative_to(PACKAGE))
        for module, tree in trees.items()
        if tree.body and not ast.get_docstring(tree)
    ]
    assert without == []


def test_tests_mirror_the_packages() -> None:
    tested = {each for each in packages(TESTS) if each.split("/")[0] not in NOT_PACKAGES}
    assert tested <= packages(PACKAGE)


def contributing_map() -> dict[str, dict[str, str]]:
    """Return the names that CONTRIBUTING.md draws in each root folder, with their words."""
    (block,) = re.findall(
        r"## The map\n\n```\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    drawn: dict[str, dict[str, str]] = {}
    for line in block.splitlines():
        if found := re.match(r"(\S+)/", line):
            root = drawn[found[1]] = {"": line}
        elif found := re.match(r"    (\S+)\s+(.*)", line):
            root[found[1]] = found[2]
    return drawn


def test_the_map_for_contributors_names_what_exists() -> None:
    drawn = contributing_map()
    assert {each for each in drawn if not (REPOSITORY / each).is_dir()} == set()

    there = {each for each in packages(PACKAGE) if "/" not in each} | {"connections"}
    modules = {each.name for each in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert set(drawn["atlas_dagster"]) - {""} == {f"{each}/" for each in there} | modules

    for package in packages(PACKAGE):
        parent, _, name = package.partition("/")
        if name and "/" not in name and name != "migrations":
            assert f"{name}/" in drawn["atlas_dagster"][f"{parent}/"], package
    for each in NOT_PACKAGES:
        assert f"{each}/" in " ".join(drawn["atlas_dagster_tests"].values()), each


def test_the_table_of_packages_names_what_exists() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    section = page.split("## Packages", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert named == {each for each in packages(PACKAGE) if "/" not in each}


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/misbehaviour.md"]
)
def test_paths_in_the_documentation_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    paths = re.findall(r"(?<![\w/])atlas_dagster(?:_tests)?/[\w./*-]*[\w*]", text)
    assert paths or page == "docs/misbehaviour.md"
    assert [each for each in paths if not list(REPOSITORY.glob(each))] == []

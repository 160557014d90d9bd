"""What the docs say of the command and of errors is there."""

import re
import shlex
from pathlib import Path

import click
import pytest

from atlas_dagster import errors
from atlas_dagster.interfaces.cli import main
from atlas_dagster.orchestration.step.metadata import AtlasMetadataSet
from atlas_dagster.orchestration.step.telemetry import StreamTotals

REPOSITORY = Path(__file__).parents[1]
# Not the changelog: it tells of paths and commands of its time.
ROOT_PAGES = sorted(set(REPOSITORY.glob("*.md")) - {REPOSITORY / "CHANGELOG.md"})
PAGES = [*ROOT_PAGES, *sorted((REPOSITORY / "docs").rglob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Every ``atlas …`` in a block or a span of code, with its page."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        spans = re.findall(r"`((?:\.venv/bin/)?atlas [^`\n]+)`", text)
        for line in [*lines, *spans]:
            match = re.match(r"(?:\$ )?(?:\.venv/bin/)?atlas (.+)", line.strip())
            if match and not re.search(r"…|\bVERB\b", line):
                found.append((page.name, match[1]))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_in_the_docs_is_one(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = re.split(r"\s[|>]\s", command)[0]
    arguments = shlex.split(command, comments=True)
    parsed: click.Command = main
    context: click.Context | None = None
    while isinstance(parsed, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        context = click.Context(parsed, parent=context)
        found = parsed.get_command(context, name)
        assert found is not None, f"{page}: there is no {name}"
        parsed = found
    if not arguments:  # the verb is only mentioned
        return
    # Files that an example names are not there.
    for parameter in parsed.params:
        if isinstance(parameter.type, click.File):
            monkeypatch.setattr(parameter, "type", click.STRING)
    if arguments != ["--version"]:
        parsed.make_context(parsed.name or "", arguments, parent=context)


def test_the_docs_list_all_metadata_of_materializations() -> None:
    page = (REPOSITORY / "docs" / "dagster.md").read_text()
    listed = re.findall(r"^\| `atlas/(\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(
        [*AtlasMetadataSet.model_fields, *StreamTotals.__struct_fields__]
    )


def test_some_commands_were_found() -> None:
    assert len(commands()) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_paths_in_the_docs_exist(page: Path) -> None:
    paths = re.findall(
        r"`((?:atlas_dagster|atlas_dagster_tests|benchmarks)/[^`\s]+)`", page.read_text()
    )
    for path in paths:
        if not path.startswith("atlas_dagster/connections/"):  # the reader's own
            assert list(REPOSITORY.glob(path)), f"{page.name}: there is no {path}"


@pytest.mark.parametrize("page", ROOT_PAGES, ids=lambda page: page.name)
def test_relative_links_of_pages_outside_the_site_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in link:
            assert (REPOSITORY / link).exists(), f"{page.name} links to {link}"


def test_every_error_that_says_more_says_it() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    headings = {
        re.sub(r"[^\w]+", "-", heading.lower().replace("'", "")).strip("-")
        for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)
    }
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    topics = {getattr(each, "topic", None) for each in classes} - {None}
    assert topics
    assert topics <= headings


def test_the_sentences_that_are_explained_are_ones_atlas_says() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r'"([^"]+)"', " ".join(re.findall(r'\*\*(".+?")\.?\*\*', page, re.DOTALL)))
    assert len(quoted) > 12
    files = (REPOSITORY / "atlas_dagster").rglob("*.py")
    source = " ".join(re.sub(r'"\s*f?"', "", file.read_text()) for file in files)
    spoken = re.sub(r"\{[^{}]*\}", "…", source)
    for sentence in quoted:
        for part in re.split(r"…|\d+", " ".join(sentence.split())):
            assert part.strip(" .():") in spoken, sentence

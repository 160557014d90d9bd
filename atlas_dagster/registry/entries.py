"""The connectors Atlas knows: one row of ``sources.csv`` each."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from atlas_dagster.errors import UnknownConnectorError

_PREFIX = "source-"
_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class ConnectorEntry:
    """One connector at one version.

    ``tag`` is the version, both of the image and of the package. ``language`` is ``python``,
    ``java``, ``manifest-only``, or empty where the publisher does not say. ``pypi_package`` is
    None where the connector comes as an image only.
    """

    name: str
    title: str
    image: str
    tag: str
    category: str
    language: str
    support_level: str
    pypi_package: str | None
    docs_url: str

    @property
    def docker_image(self) -> str:
        """The image reference, such as ``airbyte/source-faker:7.2.1``."""
        return f"{self.image}:{self.tag}"

    def at(self, version: str | None) -> "ConnectorEntry":
        """This connector at the pinned ``version``; at the registry's own when None."""
        return self if version is None else replace(self, tag=version)


@cache
def entries() -> Mapping[str, ConnectorEntry]:
    """Every known connector by name, sorted by name.

    Cached: each connection of a code location resolves its connector, and the file is part of the
    installed package, so it cannot change while the process runs.
    """
    with (files("atlas_dagster.registry") / "sources.csv").open(encoding="utf-8") as rows:
        found = {row["name"]: _entry(row) for row in csv.DictReader(rows)}
    return MappingProxyType(found)


def resolve(name: str) -> ConnectorEntry:
    """The connector called ``name``, such as ``source-faker``.

    Raises:
        UnknownConnectorError: no connector has exactly this name; the message offers the nearest.
    """
    entry = entries().get(name)
    if entry is None:
        raise UnknownConnectorError(_unknown(name))
    return entry


def _entry(row: dict[str, str]) -> ConnectorEntry:
    return ConnectorEntry(
        name=row["name"],
        title=row["title"],
        image=row["image"],
        tag=row["tag"],
        category=row["category"],
        language=row["language"],
        support_level=row["support_level"],
        pypi_package=row["pypi_package"] or None,
        docs_url=row["docs_url"],
    )


def _unknown(name: str) -> str:
    nearest = _nearest(name)
    if nearest:
        return f'There is no connector "{name}"; did you mean {" or ".join(nearest)}?'
    return (
        f'There is no connector "{name}"; '
        "take a name such as source-postgres from https://docs.airbyte.com/integrations/sources."
    )


def _nearest(name: str) -> list[str]:
    """Names like ``name``, nearest first, none twice."""
    wanted = _spelling(name)
    spelled = {_spelling(entry.title): entry.name for entry in entries().values()}
    spelled |= {_spelling(known): known for known in entries()}
    if wanted in spelled:
        return [spelled[wanted]]
    matches = get_close_matches(wanted, spelled, _SUGGESTIONS)
    return list(dict.fromkeys(spelled[match] for match in matches))


def _spelling(text: str) -> str:
    """What titles, names without their prefix and image references have in common."""
    text = text.rpartition("/")[2].partition(":")[0]
    return "-".join(text.lower().replace("_", " ").split()).removeprefix(_PREFIX)

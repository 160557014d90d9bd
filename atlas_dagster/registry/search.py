"""Finding connectors by what people call them."""

import csv
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from atlas_dagster.registry.catalogue import connectors_by_name
from atlas_dagster.registry.connector_info import ConnectorCategory, ConnectorInfo, image_name

#: How well a connector fits, of 100: by its name or title, by its own category or another it is in,
#: by a word of them.
_SAME, _CATEGORY, _OTHER_CATEGORY, _BEGINS, _HOLDS = 100.0, 97.0, 96.0, 95.0, 90.0
#: From here on (of 100) one word counts as a misspelling of another.
_ALIKE = 75.0
#: Shorter words are in many names by chance.
_LEAST_PART = 3
_SUGGESTIONS = 3
_DOCS = "https://docs.airbyte.com/integrations/sources"


class _Unlisted(NamedTuple):
    """A well-known name without a connector; ``nearest`` are names of connectors."""

    name: str
    nearest: tuple[str, ...]
    why: str


class FoundConnectors(list[ConnectorInfo]):
    """The best first. ``note``: no connector has that name, and what is nearest; else None."""

    note: str | None = None


def search_connectors(query: str) -> FoundConnectors:
    """Connectors whose name, title or category is like ``query``, best first.

    Typos are forgiven where nothing has that name. A well-known name without a connector brings
    the nearest ones, and a note that says so.
    """
    wanted = _spelling(query)
    found, is_named = _ranked(wanted)
    if wanted and not is_named:
        found.note = _unknown(query, wanted, found)
    return found


def _ranked(wanted: str) -> tuple[FoundConnectors, bool]:
    """What is like ``wanted``, and whether that is a connector's name or a category's."""
    if not wanted:
        return FoundConnectors(), False
    from rapidfuzz import fuzz

    known = connectors_by_name()
    scores = {info.name: _score(wanted, info) for info in known.values()}
    best = max(scores.values(), default=0.0)
    unlisted = None if best == _SAME else _unlisted().get(wanted)
    if best >= _HOLDS or unlisted is not None:
        scores = {name: score for name, score in scores.items() if score >= _HOLDS}
    for place, name in enumerate(unlisted.nearest if unlisted else ()):
        scores[name] = _SAME - place
    found = [info for info in known.values() if scores.get(info.name)]
    ranked = sorted(found, key=lambda info: (-scores[info.name], _rank(info), info.name))
    categories = (_spelling(category) for category in ConnectorCategory)
    is_category = any(fuzz.ratio(wanted, category) >= _ALIKE for category in categories)
    return FoundConnectors(ranked), unlisted is None and (best >= _HOLDS or is_category)


def _score(wanted: str, info: ConnectorInfo) -> float:
    """0 where it does not fit."""
    from rapidfuzz import fuzz  # imported where it is used: most commands need none of it

    spellings = (_spelling(info.name), _spelling(info.title))
    categories = [_spelling(category) for category in info.categories]
    if wanted in spellings:
        return _SAME
    if wanted in categories:
        return _CATEGORY if wanted == categories[0] else _OTHER_CATEGORY
    if any(text.startswith(wanted) for text in spellings):
        return _BEGINS
    if len(wanted) >= _LEAST_PART and any(wanted in text for text in spellings):
        return _HOLDS
    alike = max(fuzz.ratio(wanted, category) for category in categories)
    alike = max(alike, *(_alike(wanted, text) for text in spellings))
    return alike - (100 - _HOLDS) if alike >= _ALIKE else 0.0


def _alike(wanted: str, text: str) -> float:
    """As a whole; or all words of one in the other, as in "google analytics" or "amazon s3"."""
    from rapidfuzz import fuzz

    asked, given = wanted.split(), text.split()
    table = [[fuzz.ratio(one, other) for other in given] for one in asked]
    every_asked = min(max(row) for row in table)
    every_given = min(max(column) for column in zip(*table, strict=True))
    # A word alone says less than the whole.
    best: float = max(fuzz.ratio(wanted, text), max(every_asked, every_given) - 5)
    return best


def unknown_connector(name: str) -> str:
    """The sentence that says there is no connector ``name``, and what is near it."""
    wanted = _spelling(name)
    return _unknown(name, wanted, _ranked(wanted)[0])


def _unknown(name: str, wanted: str, found: Sequence[ConnectorInfo]) -> str:
    unlisted = _unlisted().get(wanted)
    same = [info for info in found if wanted in (_spelling(info.name), _spelling(info.title))]
    if unlisted is not None and not same:
        return _describe(unlisted)
    nearest = [info.name for info in same or found[:_SUGGESTIONS]]
    if nearest:
        return f'There is no connector "{name}"; did you mean {" or ".join(nearest)}?'
    return (
        f'There is no connector "{name}"; find one with `atlas connectors search`, or at {_DOCS}.'
    )


def _describe(unlisted: _Unlisted) -> str:
    if unlisted.why:
        through = f"; use {' or '.join(unlisted.nearest)}" if unlisted.nearest else ""
        return f'There is no connector "{unlisted.name}". {unlisted.why}{through}.'
    nearest = " and ".join(filter(None, (", ".join(unlisted.nearest[:-1]), unlisted.nearest[-1])))
    verb = "is" if len(unlisted.nearest) == 1 else "are"
    return (
        f"Airbyte publishes no connector for {unlisted.name}. Nearest {verb} {nearest}; "
        f"{unlisted.name} itself needs a "
        "declarative manifest or an image of your own."
    )


def _rank(info: ConnectorInfo) -> bool:
    """Those that Airbyte itself stands for come first."""
    return info.support_level != "certified"


@cache
def _unlisted() -> dict[str, _Unlisted]:
    with (files("atlas_dagster.registry") / "unlisted.csv").open(encoding="utf-8") as rows:
        found = [
            _Unlisted(row["name"], tuple(row["nearest"].split()), row["why"])
            for row in csv.DictReader(rows)
        ]
    return {_spelling(unlisted.name): unlisted for unlisted in found}


def _spelling(text: str) -> str:
    """What titles, names without their prefix and image references have in common."""
    words = " ".join(re.findall(r"[^\W_]+", image_name(text).casefold()))
    return words.removeprefix("source ")

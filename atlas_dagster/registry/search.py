"""Search connectors by the names that people use."""

import csv
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from atlas_dagster.registry.catalogue import connectors_by_name
from atlas_dagster.registry.connector_info import ConnectorCategory, ConnectorInfo, image_name

#: The scores of matches with a name or title, the category, another category, the beginning of a
#: name, and a part of a name; of 100.
_SAME, _CATEGORY, _OTHER_CATEGORY, _BEGINS, _CONTAINS = 100.0, 97.0, 96.0, 95.0, 90.0
#: The least similarity (of 100) of a word and its misspelling.
_ALIKE = 75.0
#: Shorter words occur in many names by chance.
_LEAST_PART = 3
_SUGGESTIONS = 3
_DOCS = "https://docs.airbyte.com/integrations/sources"


class _Unlisted(NamedTuple):
    """A well-known name without a connector, and similar connectors."""

    name: str
    nearest: tuple[str, ...]
    why: str


class FoundConnectors(list[ConnectorInfo]):
    """Connectors, the best match first. ``note``: the message that no connector has the name."""

    note: str | None = None


def search_connectors(query: str) -> FoundConnectors:
    """Return connectors whose name, title or category is similar to ``query``, best first.

    Misspelled names match if no name matches exactly. For a well-known name without a connector,
    the result has similar connectors and a note.
    """
    wanted = _normalize(query)
    found, is_named = _find_ranked(wanted)
    if wanted and not is_named:
        found.note = _describe_unknown(query, wanted, found)
    return found


def _find_ranked(wanted: str) -> tuple[FoundConnectors, bool]:
    """Return the matches, and whether ``wanted`` is the name of a connector or a category."""
    if not wanted:
        return FoundConnectors(), False
    from rapidfuzz import fuzz

    known = connectors_by_name()
    scores = {info.name: _score(wanted, info) for info in known.values()}
    best = max(scores.values(), default=0.0)
    unlisted = None if best == _SAME else _load_unlisted().get(wanted)
    if best >= _CONTAINS or unlisted is not None:
        scores = {name: score for name, score in scores.items() if score >= _CONTAINS}
    for place, name in enumerate(unlisted.nearest if unlisted else ()):
        scores[name] = _SAME - place
    found = [info for info in known.values() if scores.get(info.name)]
    ranked = sorted(found, key=lambda info: (-scores[info.name], _sort_key(info), info.name))
    categories = (_normalize(category) for category in ConnectorCategory)
    is_category = any(fuzz.ratio(wanted, category) >= _ALIKE for category in categories)
    return FoundConnectors(ranked), unlisted is None and (best >= _CONTAINS or is_category)


def _score(wanted: str, info: ConnectorInfo) -> float:
    """Return the score of a connector; 0 if it does not match."""
    from rapidfuzz import fuzz  # imported here, because most commands do not need it

    spellings = (_normalize(info.name), _normalize(info.title))
    categories = [_normalize(category) for category in info.categories]
    if wanted in spellings:
        return _SAME
    if wanted in categories:
        return _CATEGORY if wanted == categories[0] else _OTHER_CATEGORY
    if any(text.startswith(wanted) for text in spellings):
        return _BEGINS
    if len(wanted) >= _LEAST_PART and any(wanted in text for text in spellings):
        return _CONTAINS
    similarity = max(fuzz.ratio(wanted, category) for category in categories)
    similarity = max(similarity, *(_compare_words(wanted, text) for text in spellings))
    return similarity - (100 - _CONTAINS) if similarity >= _ALIKE else 0.0


def _compare_words(wanted: str, text: str) -> float:
    """Compare the texts as a whole and word by word, for "google analytics" or "amazon s3"."""
    from rapidfuzz import fuzz

    wanted_words, text_words = wanted.split(), text.split()
    table = [[fuzz.ratio(one, other) for other in text_words] for one in wanted_words]
    wanted_score = min(max(row) for row in table)
    text_score = min(max(column) for column in zip(*table, strict=True))
    # Matching words have a lower score than a matching text.
    best: float = max(fuzz.ratio(wanted, text), max(wanted_score, text_score) - 5)
    return best


def describe_unknown_connector(name: str) -> str:
    """Return the sentence that ``name`` is not a connector, with suggestions."""
    wanted = _normalize(name)
    return _describe_unknown(name, wanted, _find_ranked(wanted)[0])


def _describe_unknown(name: str, wanted: str, found: Sequence[ConnectorInfo]) -> str:
    unlisted = _load_unlisted().get(wanted)
    exact = [info for info in found if wanted in (_normalize(info.name), _normalize(info.title))]
    if unlisted is not None and not exact:
        return _describe_unlisted(unlisted)
    nearest = [info.name for info in exact or found[:_SUGGESTIONS]]
    if nearest:
        return f'There is no connector "{name}"; did you mean {" or ".join(nearest)}?'
    return (
        f'There is no connector "{name}"; find one with `atlas connectors search`, or at {_DOCS}.'
    )


def _describe_unlisted(unlisted: _Unlisted) -> str:
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


def _sort_key(info: ConnectorInfo) -> bool:
    """Return the sort key that puts connectors that Airbyte supports first."""
    return info.support_level != "certified"


@cache
def _load_unlisted() -> dict[str, _Unlisted]:
    with (files("atlas_dagster.registry") / "unlisted.csv").open(encoding="utf-8") as rows:
        found = [
            _Unlisted(row["name"], tuple(row["nearest"].split()), row["why"])
            for row in csv.DictReader(rows)
        ]
    return {_normalize(unlisted.name): unlisted for unlisted in found}


def _normalize(text: str) -> str:
    """Return ``text`` in the spelling that titles, names and image references share."""
    words = " ".join(re.findall(r"[^\W_]+", image_name(text).casefold()))
    return words.removeprefix("source ")

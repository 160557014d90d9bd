"""Parts of sentences in messages."""

import difflib
from collections.abc import Iterable


def plural(count: int, noun: str) -> str:
    """Return the count with the noun: ``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def closest_match(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the word of ``known`` that is most similar to ``word``; None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def validation_message(message: str) -> str:
    """Return a message of pydantic without its prefix and full stop."""
    return message.removeprefix("Value error, ").removesuffix(".")

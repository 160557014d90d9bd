"""Masking secret values in everything a person may read.

Masked by value, not by name: every value at an ``airbyte_secret`` path of the SPEC (through
``oneOf`` and arrays) and every value that came from the environment, also in its JSON-escaped,
URL-encoded and base64 forms; of one that is a JSON object (a service account) its members, too.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "**********"
#: Shorter values would mangle every text they happen to occur in, and protect nothing.
_SHORTEST = 3
#: The same for what is only a part of a secret.
_SHORTEST_PART = 8


class Masker:
    """Replaces known secret values in text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Hide these, too, from now on."""
        forms = {form for secret in secrets for form in _forms(secret) if len(form) >= _SHORTEST}
        if forms <= self._forms:
            return
        self._forms |= forms
        longest_first = sorted(self._forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(MASK, text)


def secret_values(config: Any, schema: Any) -> Iterator[str]:
    """Yield, as text, every scalar of ``config`` that ``schema`` marks ``airbyte_secret``."""
    schema = schema if isinstance(schema, Mapping) else {}
    if schema.get("airbyte_secret"):
        yield from scalars(config)
        return
    if isinstance(config, Mapping):
        properties = schema.get("properties")
        for key, value in config.items():
            if isinstance(properties, Mapping):
                yield from secret_values(value, properties.get(key))
    elif isinstance(config, list):
        for item in config:
            yield from secret_values(item, schema.get("items"))
    for keyword in ("oneOf", "anyOf", "allOf"):
        for option in schema.get(keyword) or ():
            yield from secret_values(config, option)


def scalars(value: Any) -> Iterator[str]:
    """Every text and number in ``value``, as text."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from scalars(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield base64.b64encode(secret.encode()).decode().rstrip("=")
    yield from (form for form in _inside_base64(secret) if len(form) >= _SHORTEST_PART)
    yield from (line for line in secret.splitlines() if len(line) > _SHORTEST_PART)
    for part in _members(secret):
        if len(part) >= _SHORTEST_PART:
            yield from _forms(part)


def _inside_base64(secret: str) -> Iterator[str]:
    """What ``secret`` becomes inside a longer base64 text, such as ``user:password``.

    That depends on where among three bytes it begins; left out are characters at its ends that hold
    bits of its neighbours, too.
    """
    for before in range(3):
        data = b"\0" * before + secret.encode()
        encoded = base64.b64encode(data).decode()
        yield encoded[-(-8 * before // 6) : 8 * len(data) // 6]


def _members(secret: str) -> Iterator[str]:
    if secret.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            yield from scalars(json.loads(secret))

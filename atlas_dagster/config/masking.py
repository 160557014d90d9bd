"""Mask secret values in all texts that people may read.

Secrets are the values at ``airbyte_secret`` paths of the SPEC (through ``oneOf``, arrays and free
keys), the variables used there, and the members of a value that is a JSON object, such as a service
account. The masker also finds secrets as other programs write them: escaped as in JSON,
percent-encoded, as XML entities, and in base64 of both alphabets.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from atlas_dagster.config.templates import variables

MASK = "**********"
#: Shorter values occur in any text by chance.
_SHORTEST = 3
#: Shorter parts of a secret occur in any text by chance.
_SHORTEST_PART = 8
#: Words in the name of a field or variable that mark it as secret, even if the SPEC does not.
_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token|credential|(?<![a-z])(?:pass|pwd|auth|keys?|pat)(?![a-z])"
)
#: The login in an address, and a parameter of a connection string.
_LOGIN = re.compile(r"//([^/@]*)@")
_PARAMETER = re.compile(r"([\w-]+)\s*=\s*['\"]?(\{\{[^}]*\}\})")


class Masker:
    """Replaces known secret values in text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: set[_Form] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Also mask ``secrets`` from now on."""
        forms = {form for secret in secrets for form in _forms(secret)}
        forms = {form for form in forms if len(form.text) >= _SHORTEST}
        if forms <= self._forms:
            return
        self._forms |= forms
        longest_first = sorted(self._forms, key=lambda form: len(form.text), reverse=True)
        # The first characters rule out most places of a text quickly.
        first = "".join(sorted({form.text[0] for form in longest_first}))
        places = rf"(?=[\\%&+_-]|[{re.escape(first)}])"
        self._pattern = re.compile(f"{places}(?:{'|'.join(map(_build_pattern, longest_first))})")

    def __call__(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(MASK, text)


def secret_values(config: Any, schema: Any) -> Iterator[str]:
    """Yield, as text, every scalar of ``config`` that ``schema`` marks ``airbyte_secret``.

    For a field that ``schema`` does not describe, the name decides.
    """
    return (
        place.text
        for place in _places(config, [schema])
        if place.is_marked or (not place.is_described and _is_secret_name(place.field))
    )


def secret_variables(config: Any, schema: Any) -> set[str]:
    """Return the names of variables in ``config``, as declared, whose values are secret.

    These are the variables at ``airbyte_secret`` paths. SPECs are often incomplete, so these are
    also variables in fields that ``schema`` does not describe, variables in the login of an
    address, and variables whose name, or whose field's name, marks a secret.
    """
    found: set[str] = set()
    for place in _places(config, [schema]):
        used = variables(place.text)
        if place.is_marked or not place.is_described or _is_secret_name(place.field):
            found |= used
        else:
            found |= {name for name in used if _is_secret_name(name)}
            found |= variables(_LOGIN.findall(place.text))
            for parameter in _PARAMETER.finditer(place.text):
                if _is_secret_name(parameter[1]):
                    found |= variables(parameter[2])
    return found


class _Place(NamedTuple):
    """A scalar of a config, as text, with the nearest key above it."""

    text: str
    field: str
    is_marked: bool
    is_described: bool


def _places(
    value: Any, schemas: Sequence[Any], field: str = "", *, is_marked: bool = False
) -> Iterator[_Place]:
    """Yield every scalar of ``value``, which any of ``schemas`` may describe."""
    described = list(_flatten_options(schemas))
    is_marked = is_marked or any(schema.get("airbyte_secret") for schema in described)
    if isinstance(value, Mapping):
        for key, item in value.items():
            below = [found for each in described for found in _find_schemas(each, key)]
            yield from _places(item, below, str(key), is_marked=is_marked)
    elif isinstance(value, list):
        below = [schema.get("items") for schema in described]
        for item in value:
            yield from _places(item, below, field, is_marked=is_marked)
    else:
        for text in find_scalars(value):
            yield _Place(text, field, is_marked, bool(described))


def _flatten_options(schemas: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for schema in schemas:
        if isinstance(schema, Mapping):
            yield schema
            for keyword in ("oneOf", "anyOf", "allOf"):
                yield from _flatten_options(schema.get(keyword) or ())


def _find_schemas(schema: Mapping[str, Any], key: str) -> Iterator[Any]:
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        yield properties[key]
        return
    patterns = schema.get("patternProperties")
    yield from patterns.values() if isinstance(patterns, Mapping) else ()
    yield schema.get("additionalProperties")


def _is_secret_name(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _SECRET_NAME.search(words.lower()) is not None


def find_scalars(value: Any) -> Iterator[str]:
    """Yield every text and number in ``value``, as text."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from find_scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from find_scalars(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


class _Form(NamedTuple):
    """A text that reveals a secret. ``is_base64``: the text is base64 (standard alphabet)."""

    text: str
    is_base64: bool = False


def _forms(secret: str) -> Iterator[_Form]:
    yield _Form(secret)
    # Connectors strip secrets that they read from a file.
    yield _Form(secret.strip())
    yield _Form(base64.b64encode(secret.encode(errors="replace")).decode().rstrip("="), True)
    for form in _encode_inside(secret):
        if len(form) >= _SHORTEST_PART:
            yield _Form(form, True)
    yield from (_Form(line) for line in secret.splitlines() if len(line) > _SHORTEST_PART)
    for part in _find_members(secret):
        if len(part) >= _SHORTEST_PART:
            yield from _forms(part)


def _encode_inside(secret: str) -> Iterator[str]:
    """Yield the forms of ``secret`` inside a longer base64 text, such as ``user:password``.

    Base64 encodes groups of three bytes, so the form depends on the position in a group. Characters
    at both ends are left out, because they also encode bits of the text around the secret.
    """
    for before in range(3):
        data = b"\0" * before + secret.encode(errors="replace")
        encoded = base64.b64encode(data).decode()
        yield encoded[-(-8 * before // 6) : 8 * len(data) // 6]


def _find_members(secret: str) -> Iterator[str]:
    if secret.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            yield from find_scalars(json.loads(secret))


#: The pieces of a text: line ends, runs of backslashes, and single characters.
_PIECES = re.compile(r"\r?\n|\\+|.", re.DOTALL)
_OTHER_BASE64 = {"+": "-", "/": "_"}
_LETTER_ESCAPES = {"\t": "t", "\r": "r", "\b": "b", "\f": "f"}


def _build_pattern(form: _Form) -> str:
    """Return a regex for ``form``, with each character escaped in any way."""
    found = []
    for piece in _PIECES.findall(form.text):
        if form.is_base64 and piece in _OTHER_BASE64:
            found.append(rf"(?:\\?[{piece}{_OTHER_BASE64[piece]}]|{_percent(piece)})")
        else:
            found.append(_escape_piece(piece))
    return "".join(found)


@cache
def _escape_piece(piece: str) -> str:
    """Return a regex for ``piece``, which several programs may have escaped one after the other."""
    if piece.endswith("\n"):
        return rf"(?:\r?\n|(?:\\+r)?\\+n|(?:{_percent(chr(13))})?{_percent(chr(10))})"
    if piece.isascii() and (piece.isalnum() or piece in "-_.~"):
        return piece.replace(".", r"\.")
    if piece.startswith("\\"):
        times = len(piece)
        return rf"(?:\\{{{times},}}|(?:{_percent(piece[0])}){{{times}}})"
    # The longest first: "%25" begins with "%", and "&amp;" with "&".
    found = [
        _percent(piece),
        re.escape(html.escape(piece)),
        rf"\\*{re.escape(piece)}",
        "".join(rf"\\+u{_hex(unit)}" for unit in _utf16_units(piece)),
    ]
    if piece == " ":
        found.append(r"\+")
    if piece in _LETTER_ESCAPES:
        found.append(rf"\\+{_LETTER_ESCAPES[piece]}")
    if not (piece.isascii() and piece.isprintable()):
        encoded = piece.encode(errors="replace")
        found.append("".join(rf"\\+x{_hex(bytes([byte]))}" for byte in encoded))
        # Python's repr writes the character's number, not its bytes.
        found.append(rf"\\+x{_hex(piece.encode('latin-1', 'replace'))}")
        found.append(rf"\\+U{_hex(piece.encode('utf-32-be', 'replace'))}")
    return f"(?:{'|'.join(dict.fromkeys(found))})"


def _percent(text: str) -> str:
    """Return a regex for ``text`` percent-encoded once or several times, in either case."""
    encoded = text.encode(errors="replace")
    return "".join(f"%(?:25)*{_hex(bytes([byte]))}" for byte in encoded)


def _hex(data: bytes) -> str:
    """Return a regex for ``data`` as hexadecimal digits in either case."""
    return re.sub("[a-f]", lambda match: f"[{match[0]}{match[0].upper()}]", data.hex())


def _utf16_units(text: str) -> Iterator[bytes]:
    units = text.encode("utf-16-be", errors="replace")
    return (units[start : start + 2] for start in range(0, len(units), 2))

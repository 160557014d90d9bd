"""Objects taken apart without following what they nest."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_dagster.protocol.nesting import levels, split_fields

TEXT = st.text('ab"\\[]{}:,\n\u2028', max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def levels_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels_of, inner), default=0) if isinstance(value, dict | list) else 0


@pytest.mark.slow
@given(st.dictionaries(TEXT, JSON, max_size=4), st.sampled_from([None, 2]), st.booleans())
def test_fields_and_how_deeply_they_nest(
    wanted: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(wanted, indent=indent, ensure_ascii=ascii_only).encode()
    found = split_fields(b" " + text + b"\r")
    assert {name: json.loads(bytes(value)) for name, (value, _) in found.items()} == wanted
    assert {name: depth for name, (_, depth) in found.items()} == {
        name: levels_of(value) for name, value in wanted.items()
    }
    assert levels(text) == levels_of(wanted)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1]", "1", '"{}"', "{", '{"a":1', '{"a":1}x', '{"a":1} {"b":2}', '{"a":[}]}'),
        *('{"a":1,}', "{,}", '{"a"}', '{"a":1:2}', '{"a":[1}', '{"a":"x}', "{}]"),
    ],
)
def test_what_is_no_object(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid object"):
        split_fields(text.encode())


def test_no_nesting_is_too_deep() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    found = split_fields(b'{"a":' + deep + b',"b":1}')
    assert (bytes(found["a"][0]), found["a"][1]) == (deep, 100_000)
    assert bytes(found["b"][0]) == b"1"

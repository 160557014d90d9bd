import base64
import html
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atlas_dagster.config.masking import MASK, Masker, secret_values, secret_variables

SECRET = {"type": "string", "airbyte_secret": True}


@pytest.mark.parametrize(
    ("config", "schema", "found"),
    [
        ({"a": "x", "b": "y"}, {"properties": {"a": SECRET, "b": {}}}, {"x"}),
        ({"a": {"b": "x"}}, {"properties": {"a": {"properties": {"b": SECRET}}}}, {"x"}),
        ({"a": {"b": "x", "c": [1, True, None]}}, {"properties": {"a": SECRET}}, {"x", "1"}),
        ({"a": ["x", "y"]}, {"properties": {"a": {"items": SECRET}}}, {"x", "y"}),
        ({"a": "x"}, {"properties": {"a": {"anyOf": [{"type": "null"}, SECRET]}}}, {"x"}),
        ({"a": 12345}, {"properties": {"a": SECRET}}, {"12345"}),
        ({"a": "x"}, {}, set()),
        ({"a": "x"}, {"properties": None, "oneOf": None}, set()),
    ],
)
def test_where_secrets_are(config: Any, schema: Any, found: set[str]) -> None:
    assert set(secret_values(config, schema)) == found


def test_secrets_in_one_of_several_forms() -> None:
    schema = {
        "properties": {
            "login": {
                "oneOf": [
                    {"properties": {"kind": {"const": "key"}, "key": SECRET}},
                    {"properties": {"kind": {"const": "list"}, "keys": {"items": SECRET}}},
                ]
            }
        }
    }
    assert set(secret_values({"login": {"kind": "key", "key": "x"}}, schema)) == {"x"}
    assert set(secret_values({"login": {"kind": "list", "keys": ["y"]}}, schema)) == {"y"}


def test_secrets_under_free_keys() -> None:
    for schema in ({"additionalProperties": SECRET}, {"patternProperties": {".*": SECRET}}):
        assert set(secret_values({"a": {"b": "x"}}, {"properties": {"a": schema}})) == {"x"}


PLAIN = {"type": "string"}


@pytest.mark.parametrize(
    ("config", "secret"),
    [
        # Marked: alone, inside a longer text, below a marked object.
        ({"password": "{{ env.A }}"}, {"A"}),
        ({"password": "{{ env.A }}:{{env.B}}!"}, {"A", "B"}),
        ({"login": {"key": {"deep": ["{{ env.A }}"]}}}, {"A"}),
        # Described, and not marked.
        ({"schemas": ["{{ env.A }}"], "host": "db-{{ env.B }}"}, set()),
        ({"url": "https://{{ env.A }}/{{ env.B }}"}, set()),
        # Not described.
        ({"other": "{{ env.A }}"}, {"A"}),
        ({"schemas": [{"other": "{{ env.A }}"}]}, {"A"}),
        # A name says so.
        ({"apiKey": "{{ env.A }}", "host": "{{ env.DB_PASSWORD }}"}, {"A", "DB_PASSWORD"}),
        ({"host": "{{ env.KEYSPACE }}", "schemas": ["{{ env.AUTHOR }}"]}, set()),
        # The login of an address; a part of a connection string.
        ({"url": "https://me:{{ env.A }}@{{ env.B }}/{{ env.C }}"}, {"A"}),
        ({"url": "host={{ env.H }} password={{ env.A }};pwd='{{env.B}}'"}, {"A", "B"}),
        ({"url": "https://host/?api_key={{ env.A }}&page={{ env.P }}"}, {"A"}),
    ],
)
def test_which_variables_are_secret(config: Any, secret: set[str]) -> None:
    login = {"oneOf": [{"properties": {"user": PLAIN}}, {"properties": {"key": SECRET}}]}
    schema = {
        "properties": {
            "password": SECRET,
            "login": login,
            "host": PLAIN,
            "url": PLAIN,
            "apiKey": PLAIN,
            "schemas": {"type": "array", "items": PLAIN},
        }
    }
    assert secret_variables(config, schema) == secret


def test_of_a_specification_that_says_nothing_every_variable_is_secret() -> None:
    config = {"a": "{{ env.A }}", "b": ["{{ env.B }}"]}
    for schema in ({}, {"properties": None}, {"additionalProperties": True}):
        assert secret_variables(config, schema) == {"A", "B"}


def in_lower_case(text: str) -> str:
    return re.sub("%..", lambda match: match[0].lower(), quote(text, safe=""))


def gson(text: str) -> str:
    return re.sub("[<>&=']", lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text)[1:-1])


WRITTEN: list[Callable[[str], str]] = [
    str,
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(json.dumps(text))[3:-3],
    lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    gson,
    quote,
    lambda text: quote(text, safe=""),
    lambda text: quote(quote(text, safe=""), safe=""),
    in_lower_case,
    quote_plus,
    html.escape,
    lambda text: repr(text)[1:-1],
    lambda text: ascii(text)[1:-1],
    lambda text: repr(text.encode())[2:-1],
    lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    lambda text: quote(base64.b64encode(text.encode()).decode().rstrip("="), safe=""),
]


@pytest.mark.parametrize("write", WRITTEN)
@example(secret='pä"ss\\w rd/+&')
@example(secret="\\\\'\"\r\n\t\x00\x7fé😀=<?>")
@example(secret="~~~~????>>>>")
@example(secret="rate%")
@settings(max_examples=25, deadline=None)
@given(secret=st.text(st.characters(exclude_categories=["Cs"]), min_size=3, max_size=30))
def test_a_secret_is_masked_as_any_program_writes_it(
    write: Callable[[str], str], secret: str
) -> None:
    form = write(secret)
    assert Masker([secret])(f"a={form}&b={form};") == f"a={MASK}&b={MASK};"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_both_alphabets_inside_a_longer_base64_text(encode: Callable[[bytes], bytes]) -> None:
    secret = "~~~~????>>>>"
    for user in ("", "u", "us"):
        header = encode(f"{user}:{secret}".encode()).decode()
        assert re.search("[-_+/]", header)
        masked = Masker([secret])(header).replace(MASK, "")
        assert not re.search("[-_+/]{2}", masked), (header, masked)


def test_a_secret_that_was_read_with_its_line_end() -> None:
    assert Masker(["hunter2\n"])("login hunter2 failed") == f"login {MASK} failed"


@pytest.mark.parametrize("user", ["", "u", "us", "use"])
@pytest.mark.parametrize("after", ["", "!", "\n!"])
def test_a_secret_inside_a_longer_base64_text(user: str, after: str) -> None:
    secret = "hunter2-hunter2"
    header = base64.b64encode(f"{user}:{secret}{after}".encode()).decode()
    masked = Masker([secret])(f"Authorization: Basic {header}")
    assert MASK in masked
    assert len(masked) - len(MASK) - len("Authorization: Basic ") <= len(user) + len(after) + 7
    assert Masker(["abc"])(base64.b64encode(b":abc").decode()) == "OmFiYw=="


def test_what_is_in_a_service_account() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANB\n-----END KEY-----"
    account = {"private_key": key, "ids": [{"private_key_id": "0123456789ab"}], "kind": "bot"}
    masked = Masker([json.dumps(account, indent=2)])(
        f"key 0123456789ab of bot: {json.dumps(key)} {key} MIIEvQIBADANB"
    )
    assert masked == f'key {MASK} of bot: "{MASK}" {MASK} {MASK}'


@pytest.mark.slow
@pytest.mark.parametrize("secret", ["{not json", '{"a":' * 5_000])
def test_a_brace_does_not_make_a_secret_an_object(secret: str) -> None:
    assert Masker([secret])(f"x {secret}") == f"x {MASK}"


def test_the_longer_secret_comes_first() -> None:
    assert Masker(["abcd", "abcdefgh"])("abcdefgh abcd") == f"{MASK} {MASK}"


def test_lines_of_a_key_file() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANB\nabc\n-----END KEY-----"
    masked = Masker([key])("line MIIEvQIBADANB of abc")
    assert masked == f"line {MASK} of abc"


@pytest.mark.parametrize("secrets", [[], [""], ["a"], ["ab"]])
def test_very_short_secrets_would_mangle_every_text(secrets: list[str]) -> None:
    assert Masker(secrets)("a cab at a bar") == "a cab at a bar"


def test_three_characters_are_enough() -> None:
    assert Masker(["abc"])("x abc y") == f"x {MASK} y"

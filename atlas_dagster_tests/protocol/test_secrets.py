import base64
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from atlas_dagster.protocol.secrets import MASK, Masker, secret_values

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


ODD = 'pä"ss\\w rd/+&'


@pytest.mark.parametrize(
    "form",
    [
        ODD,
        json.dumps(ODD)[1:-1],
        json.dumps(ODD, ensure_ascii=False)[1:-1],
        quote(ODD, safe=""),
        quote_plus(ODD),
        base64.b64encode(ODD.encode()).decode().rstrip("="),
    ],
)
def test_every_form_is_masked(form: str) -> None:
    assert Masker([ODD])(f"a={form}&b={form};") == f"a={MASK}&b={MASK};"


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

"""Which values a connector changed, and which of them still count."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dagster.config.renewal import DeclarationHash, Renewal, merge

DECLARED = {
    "start": "2020",
    "credentials": {"client": "c", "refresh_token": "old", "scopes": ["a"]},
}


def renewal(renewed: dict[str, Any]) -> Renewal:
    return Renewal.decode(Renewal.diff(DECLARED, merge(DECLARED, renewed)).encode())


def test_only_what_changed_is_kept() -> None:
    kept = renewal({"start": "2020", "credentials": {"client": "c", "refresh_token": "new"}})
    assert [(v.path, v.value) for v in kept.values] == [(("credentials", "refresh_token"), "new")]
    assert kept.apply_to(DECLARED)["credentials"] == {
        "client": "c",
        "refresh_token": "new",
        "scopes": ["a"],
    }
    assert b"old" not in kept.encode()


def test_a_new_field_and_a_changed_list_are_kept_whole() -> None:
    kept = renewal({"access_token": "t", "credentials": {"scopes": ["a", "b"]}})
    applied = kept.apply_to(DECLARED)
    assert applied["access_token"] == "t"
    assert applied["credentials"]["scopes"] == ["a", "b"]


def test_a_later_edit_by_the_user_wins_where_it_is() -> None:
    kept = renewal({"start": "2021", "credentials": {"refresh_token": "new"}})
    edited = merge(DECLARED, {"credentials": {"refresh_token": "by hand"}})
    applied = kept.apply_to(edited)
    assert applied["credentials"]["refresh_token"] == "by hand"
    assert applied["start"] == "2021"


def test_replacing_a_whole_object_is_an_edit_of_what_is_in_it() -> None:
    kept = renewal({"credentials": {"refresh_token": "new"}})
    edited = DECLARED | {"credentials": "api key"}
    assert kept.apply_to(edited) == edited


@pytest.mark.parametrize(
    ("declared", "renewed", "edited"),
    [
        pytest.param(
            {"account_id": "1"}, {"account_ids": ["1"]}, {"account_id": "2"}, id="migrated key"
        ),
        pytest.param(
            {"credentials": {"type": "oauth", "client": "c"}},
            {"credentials": {"access_token": "t"}},
            {"credentials": {"type": "password", "user": "u"}},
            id="another option of a oneOf",
        ),
    ],
)
def test_an_added_key_goes_when_what_it_was_added_to_is_edited(
    declared: dict[str, Any], renewed: dict[str, Any], edited: dict[str, Any]
) -> None:
    kept = Renewal.diff(declared, merge(declared, renewed))
    assert kept.apply_to(declared) == merge(declared, renewed)
    assert kept.apply_to(edited) == edited


def test_an_added_key_stays_when_another_object_is_edited() -> None:
    kept = renewal({"credentials": {"access_token": "t"}})
    assert kept.apply_to(DECLARED | {"start": "2021"})["credentials"]["access_token"] == "t"


def test_what_the_cdk_injects_for_itself_is_not_kept() -> None:
    assert renewal({"__injected_declarative_manifest": {"version": "6"}}).values == ()


def test_equal_secrets_have_unequal_hashes() -> None:
    one, other = (renewal({"credentials": {"refresh_token": "new"}}) for _ in range(2))
    assert one.values[0].declared != other.values[0].declared


def test_whether_what_it_replaced_is_declared_is_known_without_it() -> None:
    kept = renewal({"credentials": {"refresh_token": "new", "access_token": "t"}})
    origin = DeclarationHash.decode(DeclarationHash.of(kept, DECLARED).encode())
    credentials = DECLARED["credentials"]
    assert origin.is_in(DECLARED)
    assert origin.is_in(DECLARED | {"start": "2021"})
    assert not origin.is_in(DECLARED | {"credentials": {**credentials, "refresh_token": "x"}})
    assert not origin.is_in({})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)
_CONFIG = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), _JSON)


@pytest.mark.slow
@settings(deadline=None)
@given(_CONFIG, _CONFIG)
def test_whatever_a_connector_sends_the_next_call_is_given(
    declared: dict[str, Any], sent: dict[str, Any]
) -> None:
    whole = merge(declared, sent)
    kept = Renewal.decode(Renewal.diff(declared, whole).encode())
    assert kept.apply_to(declared) == whole


@pytest.mark.parametrize("content", [b"", b"[]", b'{"values": 1}'])
def test_rubbish_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        Renewal.decode(content)

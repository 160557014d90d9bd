import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_dagster.records.names import assign

#: Small alphabets make collisions likely.
NAMES = st.text("aAb_-.é1 /", max_size=4) | st.text(max_size=80)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("plain_1", "plain_1"),
        ("Plain", "Plain"),
        ("a-b c.d", "a_b_c_d"),
        ("1st", "_1st"),
        ("Üsers", "_sers"),
        ("order", "order"),
        ("SELECT", "SELECT"),
        ("table1.Column1", "table1_Column1"),
        ("a\"'`;b\n", "a____b_"),
        ("_ab_cdc_lsn", "_ab_cdc_lsn"),
    ],
)
def test_one_name(name: str, valid: str) -> None:
    assert assign([name]) == {name: valid}


def test_plain_names_choose_first() -> None:
    assert assign(["a-b", "a_b"])["a_b"] == "a_b"
    assert re.fullmatch(r"a_b_[0-9a-f]{6}", assign(["a-b", "a_b"])["a-b"])


def test_case_does_not_tell_names_apart() -> None:
    found = assign(["ID", "id", "Id"])
    assert found["id"] == "id"
    assert len({valid.lower() for valid in found.values()}) == 3


@pytest.mark.parametrize("name", ["", "é", "🎉", "___", "\ud800"])
def test_names_without_a_letter(name: str) -> None:
    assert re.fullmatch(r"_+[0-9a-f]{6}", assign([name])[name])


def test_long_names_are_cut_and_told_apart() -> None:
    found = assign(["x" * 64, "x" * 65, "x" * 63, "x" * 300, "x" * 299 + "y", "é" * 300])
    assert found["x" * 63] == "x" * 63
    assert len({*found.values()}) == 6
    assert max(map(len, found.values())) == 63


def test_a_hash_that_is_taken() -> None:
    first = assign(["a"], reserved=["a"])["a"]
    second = assign(["a"], reserved=["a", first])["a"]
    assert len({"a", first, second}) == 3


def test_reserved_names_are_not_given_out() -> None:
    found = assign(["_airbyte_meta", "Source"], reserved=["_AIRBYTE_META", "source"])
    assert found["_airbyte_meta"].startswith("_airbyte_meta_")
    assert found["Source"].startswith("Source_")


@given(st.sets(NAMES, max_size=12), st.sets(st.sampled_from(["a", "A", "ab", "_", "source"])))
def test_valid_and_unique(names: set[str], reserved: set[str]) -> None:
    found = assign(names, reserved=reserved)
    assert found.keys() == names
    for valid in found.values():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", valid)
        assert valid.lower() not in {name.lower() for name in reserved}
    assert len({valid.lower() for valid in found.values()}) == len(names)


@given(st.sets(NAMES, max_size=8), st.sets(NAMES, max_size=8))
def test_names_never_change(first: set[str], more: set[str]) -> None:
    known = assign(first)
    found = assign(first | more, known=known)
    assert {name: found[name] for name in first} == known
    assert len({valid.lower() for valid in found.values()}) == len(first | more)


@given(st.lists(NAMES, max_size=8))
def test_order_does_not_matter(names: list[str]) -> None:
    assert assign(names) == assign(reversed(names))

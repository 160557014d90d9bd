"""Which destination an address names, and what of it anyone may see."""

import pytest

from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.factory import destination_type, open_destination, without_password
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.errors import ConfigError, MissingVariableError

TEMPLATE = "postgresql://loader:{{ env.PASSWORD }}@db:5432/shop"


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("/data/lake", "deltalake"),
        ("s3://bucket/lake", "deltalake"),
        ("postgresql://db/shop", "postgres"),
        ("postgres://db/shop", "postgres"),
        (TEMPLATE, "postgres"),
    ],
)
def test_the_scheme_decides(address: str, kind: str) -> None:
    assert destination_type(address).kind == kind


def test_variables_are_put_in_when_it_is_opened() -> None:
    secret = "p@ss/w:rd?{{ env.X }}"
    opened = open_destination(TEMPLATE, {"PASSWORD": secret, "OTHER": "é"}, where="shop")
    assert isinstance(opened, PostgresDestination)
    assert opened._database._address == (
        "postgresql://loader:p%40ss%2Fw%3Ard%3F%7B%7B%20env.X%20%7D%7D@db:5432/shop"
    )
    assert opened._database.uri == "postgresql://db:5432/shop"
    with pytest.raises(MissingVariableError, match=r"shop: .*PASSWORD"):
        open_destination(TEMPLATE, {}, where="shop")


def test_a_folder_may_hold_variables() -> None:
    opened = open_destination("/data/{{ env.PLACE }}/lake", {"PLACE": "a b"}, where="shop")
    assert isinstance(opened, DeltaDestination)
    assert opened.root == "/data/a b/lake"


def test_a_variable_alone_says_nothing() -> None:
    with pytest.raises(ConfigError, match="variable"):
        destination_type("{{ env.WAREHOUSE }}")


def test_nobody_sees_a_login() -> None:
    assert without_password(TEMPLATE) == "postgresql://db:5432/shop"
    assert without_password("postgres://loader:secret@db/shop") == "postgresql://db/shop"
    assert without_password("s3://bucket/lake") == "s3://bucket/lake"

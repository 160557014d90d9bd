"""Which values of the environment a connector's log and errors do not show."""

from pathlib import Path

import pytest

from atlas_dagster.protocol.messages import Spec
from atlas_dagster.reading.ad_hoc import adhoc_context
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source import open_connector as source
from atlas_dagster.source.connection import Connection

SPEC = {
    "properties": {
        "url": {"type": "string"},
        "schema": {"type": "string"},
        "login": {"type": "string", "airbyte_secret": True},
    }
}
ENVIRON = {"SCHEMA": "users", "USER_PW": "hunter2", "URL_PW": "hunter3", "LAKE_PW": "hunter4"}


def test_variables_are_masked_where_they_are_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(source, "choose_runner", lambda *_: FakeRunner(lambda _: ()))
    connection = Connection(
        name="shop",
        image="own:1",
        config={
            "schema": "{{ env.SCHEMA }}",
            "login": "me:{{ env.USER_PW }}",
            "url": "https://me:{{ env.URL_PW }}@host",
        },
        destination="postgresql://me:{{ env.LAKE_PW }}@{{ env.NOT_SET }}/lake",
    )
    caller = adhoc_context(environ=ENVIRON)
    with source.open_connector(connection, caller, spec=Spec(SPEC)) as connector:
        assert connector.mask("42 rows of users") == "42 rows of users"
        for secret in ("me:hunter2", "hunter2", "hunter3", "hunter4"):
            assert connector.mask(f"login {secret}.") == "login **********."

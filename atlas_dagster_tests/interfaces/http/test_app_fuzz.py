"""Generated requests, made from the description of the server.

No answer but those described, and of the server's own failures (5xx) none but a connector that
failed or took too long, and a server that is busy or without Docker.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_dagster.interfaces.http import Settings, create_app
from atlas_dagster.interfaces.http.app import BASE
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.interfaces.http.live_server import served

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(900),
    # Of the fuzzer itself.
    pytest.mark.filterwarnings("ignore"),
]
TOKEN = "token"
_CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {
            # Judged by what is described instead, which has no 500.
            "not_a_server_error": {"enabled": False},
            # A request in good order may name a connector, a stream or a limit that is none.
            "positive_data_acceptance": {
                "expected-statuses": ["200", "403", "404", "422", "502", "503", "504"]
            },
        }
    }
)


api = schemathesis.openapi.from_dict(create_app(Settings(token=TOKEN)).openapi(), config=_CONFIG)


@pytest.fixture(scope="module")
def server(_state: Path) -> Iterator[dict[str, Any]]:
    """Where to ask, and how."""
    executor = ExecutorConfig(silence_seconds=2, timeout_seconds=10)
    with served(Settings(allow=frozenset({STANDIN}), token=TOKEN, executor=executor)) as client:
        yield {
            "base_url": f"http://127.0.0.1:{client.port}",
            "headers": {"Authorization": f"Bearer {TOKEN}"},
        }


few = settings(
    max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@api.parametrize()
@few
def test_whatever_comes_is_answered_as_described(case: Any, server: dict[str, Any]) -> None:
    answer = case.call_and_validate(**server)
    assert answer.status_code != 500


@api.include(method="POST", path_regex="(check|discover|read)$").parametrize()
@few
def test_so_is_whatever_a_connector_is_given(case: Any, server: dict[str, Any]) -> None:
    """The same, but of a connector and a stream that there are."""
    if isinstance(case.body, dict):
        case.body["connector_name"] = STANDIN
        if "stream_name" in case.body:
            case.body["stream_name"] = "events"
        config = case.body.get("config")
        if isinstance(config, dict):
            # Not for ever, and not for long.
            case.body["config"] = {**config, "behaviour": "steady", "count": 15, "rate": 0}
    answer = case.call(**server)
    # 401, 405: the fuzzer left the token out, or took another method.
    assert answer.status_code in (200, 401, 405, 422)
    kind = answer.headers["content-type"][0]
    assert (kind == "application/problem+json") == (answer.status_code != 200)


#: JSON that Python's parser takes and something further in may not.
_LEAVES = (r'"\ud800"', r'"\u0000"', '""', "NaN", "-Infinity", "1e999", "9" * 30, "9" * 5000)
_LEAVES += ("null", "true", "[]", "{}", '"{{ env.HOME }}"', f'"{"x" * 10_000}"')
_NASTY = st.recursive(
    st.sampled_from(_LEAVES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda values: f"[{', '.join(values)}]"),
        inner.map(lambda value: f'{{"a": {value}}}'),
        inner.map(lambda value: f'{{"\\ud83d": {value}}}'),
        st.tuples(inner, st.sampled_from([99, 500, 950])).map(
            lambda both: '{"a": ' * both[1] + both[0] + "}" * both[1]
        ),
    ),
    max_leaves=4,
)
_FIELDS = ["connector_name", "config", "stream_name", "state", "cursor_field", "limit", "format"]


@pytest.mark.parametrize("field", [*_FIELDS, "incremental", "metadata_columns", "else"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=_NASTY)
def test_no_value_of_a_field_breaks_the_server(
    server: dict[str, Any], field: str, value: str
) -> None:
    body = {
        "connector_name": f'"{STANDIN}"',
        "stream_name": '"events"',
        "config": '{"count": 1}',
        "incremental": "true",
        field: value,
    }
    members = ", ".join(f'"{name}": {member}' for name, member in body.items())
    answer = httpx.post(
        f"{server['base_url']}{BASE}/read",
        content=f"{{{members}}}",
        headers={**server["headers"], "Content-Type": "application/json"},
        timeout=60,
    )
    # 502: source-standin crashes on a state that is not its own.
    assert answer.status_code in (200, 403, 404, 422, 502)

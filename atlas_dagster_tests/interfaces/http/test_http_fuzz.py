"""The HTTP door against requests that a machine made up from its own description.

No answer but those described, and of the server's own failures (5xx) none but a connector that
failed or took too long, and a server that is busy or without Docker.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from atlas_dagster.interfaces.http import Settings, create_app
from atlas_dagster.runners.executor import ExecutorConfig
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
    max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
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

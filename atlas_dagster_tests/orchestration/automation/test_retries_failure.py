"""What of an error Dagster shows."""

import dagster as dg
import pytest

from atlas_dagster.errors import AtlasError, ConfigError, ReadFailedError
from atlas_dagster.orchestration.automation.retries import explain_failure


def explained(error: AtlasError) -> dg.Failure:
    with pytest.raises(dg.Failure) as raised, explain_failure():
        raise error
    return raised.value


def test_a_connectors_stack_trace_is_shown_as_code() -> None:
    failure = explained(ReadFailedError("It broke.", stack_trace="File x\n  ```y```"))
    assert failure.description == "It broke."
    assert failure.metadata["atlas/failure_type"].value == "system_error"
    assert failure.metadata["atlas/stack_trace"].value == "```\nFile x\n  ` ` `y` ` `\n```"


@pytest.mark.parametrize("error", [ConfigError("No."), ReadFailedError("No.", stack_trace="")])
def test_without_one_there_is_none(error: AtlasError) -> None:
    assert set(explained(error).metadata) == {"atlas/failure_type"}

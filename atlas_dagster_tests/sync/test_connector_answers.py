"""Which of a connector's messages answer a command."""

from typing import Any

import pytest
from scripted import line

from atlas_dagster.errors import CheckFailedError, ConnectorFailedError
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.sync.connector import Connector

PASSED = line("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
REFUSED = line("CONNECTION_STATUS", connectionStatus={"status": "FAILED", "message": "no"})
CATALOG = line("CATALOG", catalog={"streams": []})


def connector(*output: bytes | int, log: Any = lambda *_: None) -> Connector:
    return Connector(FakeRunner(lambda _: output), name="source-x", log=log)


def test_answers_to_what_was_not_asked_are_ignored() -> None:
    connector(CATALOG, PASSED, CATALOG).check()
    assert connector(CATALOG, PASSED).discover().streams == connector(CATALOG).discover().streams
    with pytest.raises(CheckFailedError, match="CHECK of source-x failed: no"):
        connector(REFUSED, CATALOG, 1).check()


@pytest.mark.parametrize("output", [(), (CATALOG,)])
def test_no_answer_is_said(output: tuple[bytes, ...]) -> None:
    with pytest.raises(ConnectorFailedError, match="source-x ended check without an answer"):
        connector(*output).check()


def test_of_two_answers_the_last_one_counts() -> None:
    said: list[str] = []
    connector(REFUSED, PASSED, log=lambda _, text: said.append(text)).check()
    assert said == ["source-x gave two answers; the last one counts."]


def test_an_interrupt_stops_the_connector_at_once() -> None:
    def interrupt(*_: str) -> None:
        raise KeyboardInterrupt

    interrupted = connector(REFUSED, PASSED, log=interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        interrupted.check()
    assert raised.tb is not None  # it holds the frames, and all that is in them
    assert isinstance(interrupted.runner, FakeRunner)
    assert interrupted.runner.closed == 1

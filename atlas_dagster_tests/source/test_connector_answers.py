"""Which of a connector's messages answer a command."""

from typing import Any

import pytest

from atlas_dagster.errors import CheckFailedError, ConnectorFailedError
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.connector import Connector
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.sync.fake_source import line

PASSED = line("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
REFUSED = line("CONNECTION_STATUS", connectionStatus={"status": "FAILED", "message": "no"})
CATALOG = line("CATALOG", catalog={"streams": []})


def connector(*output: bytes | int, log: Any = lambda *_: None) -> Connector:
    return Connector(
        FakeRunner(lambda _: output), name="source-x", listener=CallbackListener(connector=log)
    )


def test_answers_to_what_was_not_asked_are_ignored() -> None:
    connector(CATALOG, PASSED, CATALOG).check()
    assert connector(CATALOG, PASSED).discover().streams == connector(CATALOG).discover().streams
    with pytest.raises(CheckFailedError, match="CHECK of source-x failed: no"):
        connector(REFUSED, CATALOG, 1).check()


@pytest.mark.parametrize("output", [(), (CATALOG,)])
def test_no_answer_is_said(output: tuple[bytes, ...]) -> None:
    with pytest.raises(ConnectorFailedError, match=r"source-x .*check"):
        connector(*output).check()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            b'{"type":"CATALOG","catalog":{"streams":[',
            r'\{"type":"CATALOG","catalog":\{"streams":\[',
        ),
        (CATALOG.replace(b"[]", b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
        (b'{"type":"CATALOG","catalog":{"streams":["' + b"x" * (65 << 20) + b'"]}}', "65 MB long"),
    ],
    ids=["half of it", "too deep", "too long"],
)
def test_an_answer_that_cannot_be_read_is_said(answer: bytes, why: str) -> None:
    said = f"source-x answered discover with a CATALOG message that cannot be read \\({why}\\); rep"
    with pytest.raises(ConnectorFailedError, match=said):
        connector(answer[:500], answer[500:], b"\n").discover()


def test_of_two_answers_the_last_one_counts() -> None:
    said: list[str] = []
    connector(REFUSED, PASSED, log=lambda _, text: said.append(text)).check()
    assert said == ["source-x gave two answers; Atlas uses the last one."]


def test_an_interrupt_stops_the_connector_at_once() -> None:
    def interrupt(*_: str) -> None:
        raise KeyboardInterrupt

    interrupted = connector(REFUSED, PASSED, log=interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        interrupted.check()
    assert raised.tb is not None  # it holds the frames, and all that is in them
    assert isinstance(interrupted.runner, FakeRunner)
    assert interrupted.runner.closed == 1


GENERIC = "Something went wrong in the connector. See the logs for more details."
CRASH = """Traceback (most recent call last):
  File "x.py", line 1, in f
    g()
KeyError: 'count'
"""


def failing(message: str | None, *output: bytes | int) -> CheckFailedError:
    answer = {"status": "FAILED", "message": message}
    with pytest.raises(CheckFailedError) as raised:
        connector(*output, line("CONNECTION_STATUS", connectionStatus=answer)).check()
    return raised.value


def trace(kind: str = "system_error", **error: Any) -> bytes:
    content = {"message": GENERIC, "failure_type": kind} | error
    return line("TRACE", trace={"type": "ERROR", "emitted_at": 1.5, "error": content})


def test_a_check_that_says_nothing_is_explained_by_what_came_before() -> None:
    found = failing(GENERIC, trace("config_error", stack_trace=CRASH, internal_message="'count'"))
    assert str(found) == "CHECK of source-x failed: KeyError: 'count'"
    logged = line("LOG", log={"level": "ERROR", "message": "Bad token"})
    assert str(failing(None, logged)) == "CHECK of source-x failed: Bad token"
    assert str(failing(None)) == "CHECK of source-x failed: it gave no reason"


def test_a_check_whose_message_is_a_traceback_shows_the_exception() -> None:
    found = failing(f"Unable to connect to stream users - {CRASH}")
    assert found.reason == "Unable to connect to stream users: KeyError: 'count'"
    assert found.detail is not None
    assert "File" in found.detail
    assert failing("no").detail is None


def test_the_whole_message_of_a_check_is_in_the_log() -> None:
    said: list[str] = []
    answer = line("CONNECTION_STATUS", connectionStatus={"status": "FAILED", "message": CRASH})
    status = connector(answer, log=lambda _, text: said.append(text)).status()
    assert (status.status, status.message) == ("FAILED", "KeyError: 'count'")
    assert said == [CRASH.strip()]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("HTTPSConnectionPool(host='x', port=443): Max retries exceeded", "transient_error"),
        ("[Errno -2] Name or service not known", "transient_error"),
        ("HTTP Status Code: 503. Error: Service unavailable.", "transient_error"),
        ("401 Client Error: Unauthorized", "config_error"),
        ("The account does not exist", "config_error"),
    ],
)
def test_a_network_that_fails_is_not_the_users_config(message: str, kind: str) -> None:
    assert failing(message).failure_type == kind
    assert failing(GENERIC, trace("config_error", internal_message=message)).failure_type == kind


@pytest.mark.parametrize("verb", ["spec", "check", "discover"])
@pytest.mark.parametrize(
    ("output", "sentence", "kind"),
    [
        ([trace(stack_trace=CRASH), 1], "source-x: KeyError: 'count'", "system_error"),
        (
            [trace(internal_message="Name or service not known"), 1],
            "source-x: Name or service not known",
            "transient_error",
        ),
        ([trace(), 1], "source-x: it gave no reason", "system_error"),
        ([CRASH.encode(), 1], "source-x ended with exit code 1: KeyError: 'count'", "system_error"),
        (
            [("stderr", b"requests.exceptions.ReadTimeout: Read timed out.\n"), 2],
            "source-x ended with exit code 2 and reported no error; see its log in the run's "
            "output. Its last output: requests.exceptions.ReadTimeout: Read timed out.",
            "transient_error",
        ),
        (
            [line("LOG", log={"level": "FATAL", "message": "no licence"}), 1],
            "source-x ended with exit code 1: no licence",
            "system_error",
        ),
    ],
)
def test_a_failure_names_its_cause(verb: str, output: Any, sentence: str, kind: str) -> None:
    with pytest.raises(ConnectorFailedError) as raised:
        getattr(connector(*output), verb)()
    assert (str(raised.value), raised.value.failure_type) == (sentence, kind)

"""How a call of a connector ends, and what its log hears."""

import tracemalloc

import pytest

from atlas_dagster.config.masking import MASK, Masker
from atlas_dagster.runners.base import ConnectorCommand, ExitStatus, Output
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.invocation import Invocation
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.sync.fake_source import line

READ = ConnectorCommand("read")
Heard = list[tuple[str, str]]


def invoke(*pieces: bytes | Output | int | ExitStatus) -> tuple[Invocation, FakeRunner, Heard]:
    heard: Heard = []
    runner = FakeRunner(lambda _: pieces)
    listener = CallbackListener(connector=lambda level, text: heard.append((level, text)))
    talk = Invocation(runner, name="src", listener=listener, masker=Masker(["hunter2"]))
    return talk, runner, heard


def test_stderr_without_newlines_does_not_pile_up() -> None:
    talk, _, heard = invoke(*[("stderr", b"x" * 50_000)] * 4)
    list(talk.messages(READ))
    assert [text[19_999:] for _, text in heard] == ["x… (45,536 more)"]


@pytest.mark.parametrize("at", [19_990, 19_999])
def test_no_half_of_a_secret_is_left_where_a_text_is_cut(at: int) -> None:
    text = b"x" * at + b"hunter2" + b"y" * 100_000
    talk, _, heard = invoke(
        text + b"\n", ("stderr", text + b"\n"), line("LOG", log={"message": text.decode()})
    )
    list(talk.messages(READ))
    assert len(heard) == 3
    assert not any("hu" in said for _, said in heard)


def test_null_texts_are_texts_too() -> None:
    talk, _, heard = invoke(
        line("LOG", log={"level": None, "message": None}),
        line("TRACE", trace={"type": "ERROR", "emitted_at": 1, "error": {"message": None}}),
        1,
    )
    list(talk.messages(READ))
    assert heard == [("INFO", ""), ("ERROR", "it gave no reason")]


def test_secrets_are_masked_wherever_they_are_said() -> None:
    error = {
        "message": "bad hunter2",
        "internal_message": "401 for hunter2",
        "stack_trace": "at hunter2\n",
        "failure_type": "config_error",
    }
    log = {"level": "INFO", "message": "log hunter2", "stack_trace": "in hunter2"}
    talk, _, heard = invoke(
        b"noise hunter2\n",
        ("stderr", b"err hunter2\n"),
        line("LOG", log=log),
        line("TRACE", trace={"type": "ERROR", "emitted_at": 1, "error": error}),
        1,
    )
    assert list(talk.messages(READ)) == [None, None, None]
    failure = talk.failure()
    assert str(failure) == f"src: bad {MASK}"
    assert failure.stack_trace == f"at {MASK}\n"
    assert failure.failure_type == "config_error"
    assert heard == [
        ("INFO", f"noise {MASK}"),
        ("WARN", f"err {MASK}"),
        ("INFO", f"log {MASK}\nin {MASK}"),
        ("ERROR", f"bad {MASK}\n401 for {MASK}\nat {MASK}"),
    ]


def test_a_crash_without_words_shows_its_last_lines() -> None:
    talk, _, _ = invoke(("stderr", b"Traceback\nKeyError: 'id'\n"), 3)
    list(talk.messages(READ))
    assert str(talk.failure()) == (
        "src ended with exit code 3 and reported no error; see its log in the run's output. "
        "Its last output: Traceback / KeyError: 'id'"
    )


def test_out_of_memory_names_the_limit() -> None:
    talk, _, _ = invoke(ExitStatus(137, oom_killed=True))
    list(talk.messages(READ))
    assert "src ran out of memory: its limit is 2g" in str(talk.failure())


def test_out_of_memory_counts_more_than_what_was_said_before() -> None:
    error = {"message": "worker died", "failure_type": "config_error"}
    talk, _, _ = invoke(
        line("TRACE", trace={"type": "ERROR", "emitted_at": 1, "error": error}),
        ExitStatus(1, oom_killed=True),
    )
    list(talk.messages(READ))
    assert "its limit is 2g" in str(talk.failure())
    assert str(talk.failure()).endswith("Its error before that: worker died")


def test_a_signal_from_outside_is_named() -> None:
    talk, _, _ = invoke(137)
    list(talk.messages(READ))
    assert str(talk.failure()).startswith("src was ended by SIGKILL (exit code 137), which Atlas")
    assert talk.failure().failure_type == "transient_error"


def failing(number: int, stream: str | None = None) -> bytes:
    error = {"message": f"error {number} " + "m" * 5_000, "stack_trace": "at x\n" * 2_000}
    about = {"stream_descriptor": {"name": stream}} if stream else {}
    return line("TRACE", trace={"type": "ERROR", "emitted_at": 1, "error": error | about})


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 300])
def test_errors_without_end_take_no_memory(streams: int) -> None:
    talk, runner, _ = invoke()
    runner.script = lambda _: (failing(n, f"s{n % streams}") for n in range(600))
    talk._log = lambda *_: None
    tracemalloc.start()
    try:
        list(talk.messages(READ))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 3_000_000  # of 9 MB
    assert str(talk.failure()).startswith("src: error 0 mmm")
    # Each stream that failed is known.
    found = {error.stream_descriptor.name for error in talk.errors if error.stream_descriptor}
    assert found == {f"s{n}" for n in range(streams)}


def test_a_config_that_cannot_be_read_is_not_shown() -> None:
    control = b'{"type":"CONTROL","control":{"type":"CONNECTOR_CONFIG","connectorConfig":'
    talk, _, heard = invoke(control + b'{"config":{"token":"new-and-secret"}\n')
    assert list(talk.messages(READ)) == [None]
    assert heard == [("ERROR", "A CONTROL message cannot be read; its new config is lost.")]

"""How a call of a connector ends, and what its log hears."""

import pytest
from scripted import line

from atlas_dagster.errors import ConnectorFailedError
from atlas_dagster.protocol.secrets import MASK, Masker
from atlas_dagster.runners.base import ConnectorCommand, ExitStatus, Output
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.sync import conversation as module
from atlas_dagster.sync.conversation import Conversation

READ = ConnectorCommand("read")
Heard = list[tuple[str, str]]


def converse(*pieces: bytes | Output | int | ExitStatus) -> tuple[Conversation, FakeRunner, Heard]:
    heard: Heard = []
    runner = FakeRunner(lambda _: pieces)
    log = lambda level, text: heard.append((level, text))  # noqa: E731
    return Conversation(runner, name="src", log=log, masker=Masker(["hunter2"])), runner, heard


class Clock:
    """Every look at it finds ten seconds gone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10
        return self.now


IDLE: Output = ("idle", b"")


def test_a_silent_connector_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Clock())
    talk, runner, _ = converse(*[IDLE] * 10)
    with pytest.raises(ConnectorFailedError, match="src printed nothing for 45 seconds") as failure:
        list(talk.messages(READ, silence_seconds=45))
    assert failure.value.failure_type == "transient_error"
    assert runner.closed == 1


def test_any_output_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Clock())
    chatter: list[Output] = [IDLE, IDLE, ("stderr", b"still here\n")] * 5
    talk, _, heard = converse(*chatter)
    assert list(talk.messages(READ, silence_seconds=45)) == [None] * 10
    assert heard == [("WARN", "still here")] * 5


def test_a_slow_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Clock())
    talk, _, _ = converse(*[("stderr", b".\n")] * 10)
    with pytest.raises(ConnectorFailedError, match="did not finish check within 60 seconds"):
        list(talk.messages(ConnectorCommand("check"), timeout_seconds=60))


def test_stderr_without_newlines_does_not_pile_up() -> None:
    talk, _, heard = converse(*[("stderr", b"x" * 50_000)] * 4)
    list(talk.messages(READ))
    assert [len(text) for _, text in heard] == [100_000, 100_000]


def test_secrets_are_masked_wherever_they_are_said() -> None:
    error = {"message": "bad hunter2", "stack_trace": "at hunter2", "failure_type": "config_error"}
    talk, _, heard = converse(
        b"noise hunter2\n",
        ("stderr", b"err hunter2\n"),
        line("LOG", log={"level": "INFO", "message": "log hunter2"}),
        line("TRACE", trace={"type": "ERROR", "emitted_at": 1, "error": error}),
        1,
    )
    assert list(talk.messages(READ)) == [None, None, None]
    failure = talk.failure()
    assert str(failure) == f"src: bad {MASK}"
    assert failure.stack_trace == f"at {MASK}"
    assert failure.failure_type == "config_error"
    assert heard == [
        ("INFO", f"noise {MASK}"),
        ("WARN", f"err {MASK}"),
        ("INFO", f"log {MASK}"),
        ("ERROR", f"bad {MASK}"),
    ]


def test_a_crash_without_words_shows_its_last_lines() -> None:
    talk, _, _ = converse(("stderr", b"Traceback\nKeyError: 'id'\n"), 3)
    list(talk.messages(READ))
    assert str(talk.failure()) == (
        "src ended with exit code 3 and reported no error; see its log in the run's output. "
        "Its last words: Traceback / KeyError: 'id'"
    )


def test_out_of_memory_names_the_limit() -> None:
    talk, _, _ = converse(ExitStatus(137, oom_killed=True))
    list(talk.messages(READ))
    assert "needed more than its 2g of memory" in str(talk.failure())

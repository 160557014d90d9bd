"""How a READ ends: statuses, errors and exit codes that do not agree."""

import pytest

from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster_tests.chaos.chaotic import A, B, Chaos
from atlas_dagster_tests.sync.fake_source import full_refresh

WHOLE = full_refresh("a")
SECRET = "hunter22"


def test_records_after_complete(chaos: Chaos) -> None:
    done = chaos.sync("records-after-complete")
    assert str(done.failure) == (
        "The stream did not complete. a: it sent records after its status COMPLETE."
    )
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)
    assert chaos.sync("well-behaved").failure is None
    assert chaos.lake.ids("a") == [1, 2, 3]


def test_incomplete_is_believed_before_the_exit_code(chaos: Chaos) -> None:
    """The CDK answers a stream it no longer knows with INCOMPLETE and exit code 0."""
    assert chaos.sync("well-behaved", WHOLE).failure is None
    done = chaos.sync("incomplete-and-exit-0", WHOLE)
    assert str(done.failure) == (
        "The stream did not complete. a: the source ended without declaring it COMPLETE."
    )
    assert chaos.lake.ids("a") == [1, 2, 3]
    assert chaos.lake.staged() == set()


def test_exit_0_is_enough_where_there_are_no_statuses(chaos: Chaos) -> None:
    assert chaos.sync("well-behaved", WHOLE).failure is None
    done = chaos.sync("no-status-and-exit-0", WHOLE)
    assert done.failure is None
    assert (list(done.finished), chaos.lake.ids("a")) == (["a"], [1])


def test_a_bad_exit_after_all_is_complete(chaos: Chaos) -> None:
    done = chaos.sync("complete-and-exit-1")
    assert str(done.failure) == (
        "All streams completed, but source-x ended with exit code 1 and reported no error; "
        "see its log in the run's output."
    )
    assert list(done.finished) == ["a"]
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)


@pytest.mark.parametrize(
    ("scenario", "left", "warnings"),
    [
        ("zero-records-and-complete", [], ()),
        (
            "zero-records-and-no-status",
            [1, 2, 3],
            ("The source sent no records and no status; the rows of the last sync were kept.",),
        ),
    ],
)
def test_nothing_over_old_rows(
    chaos: Chaos, scenario: str, left: list[int], warnings: tuple[str, ...]
) -> None:
    assert chaos.sync("well-behaved", WHOLE).failure is None
    done = chaos.sync(scenario, WHOLE)
    assert done.failure is None
    assert chaos.lake.ids("a") == left
    assert done.finished["a"].warnings == warnings


def test_the_first_error_counts_not_the_aggregate(chaos: Chaos) -> None:
    done = chaos.sync("aggregate-error", A, B)
    assert str(done.failure) == (
        "1 of 2 streams did not complete. a: the API said 503. Finished and kept: b."
    )
    assert done.failure is not None
    assert done.failure.failure_type == "transient_error"
    assert (chaos.lake.ids("a"), chaos.lake.ids("b")) == ([1], [1])
    assert (chaos.position(), chaos.position(B)) == (1, 1)


def test_an_error_counts_even_with_exit_0(chaos: Chaos) -> None:
    done = chaos.sync("error-and-exit-0")
    assert str(done.failure) == "All streams completed, but source-x: no licence"
    assert done.failure is not None
    assert done.failure.failure_type == "config_error"
    assert (list(done.finished), chaos.lake.ids("a"), chaos.position()) == (["a"], [1], 1)


@pytest.mark.parametrize(
    ("code", "sentence", "failure_type"),
    [
        (3, "ended with exit code 3 and reported no error", "system_error"),
        (137, "was ended by SIGKILL (exit code 137), which Atlas did not send", "transient_error"),
        (143, "was ended by SIGTERM (exit code 143), which Atlas did not send", "transient_error"),
    ],
)
def test_an_exit_without_an_error(
    chaos: Chaos, code: int, sentence: str, failure_type: str
) -> None:
    done = chaos.sync("exit-code", code=code)
    assert sentence in str(done.failure)
    assert done.failure is not None
    assert done.failure.failure_type == failure_type
    assert "Its last output: Killed" in str(done.failure)
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)
    assert chaos.lake.staged() == set()


def test_out_of_memory(chaos: Chaos) -> None:
    done = chaos.sync("out-of-memory", executor=ExecutorConfig(memory_limit="48m"))
    assert "source-x ran out of memory: its limit is 48m" in str(done.failure)
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)


def test_a_secret_is_nowhere_to_be_read(chaos: Chaos) -> None:
    done = chaos.sync("secrets-everywhere", password=SECRET)
    assert str(done.failure) == (
        "The stream did not complete. source-x: login with ********** failed"
    )
    assert done.failure is not None
    assert done.failure.failure_type == "config_error"
    assert getattr(done.failure, "stack_trace", None) == "File x\n  **********"
    assert sorted(text for _, text in chaos.log) == [
        "login with ********** failed\ninside **********\nFile x\n  **********",
        "plain **********",
        "stderr **********",
        "user:**********@host",
    ]
    assert SECRET not in repr(chaos.log) + repr(done.failure)

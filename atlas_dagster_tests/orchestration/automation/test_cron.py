"""Schedules: what may be written, when they are due, how fresh they keep an asset."""

import datetime as dt

import pytest

from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.automation.cron import Schedule

pytestmark = pytest.mark.dagster


def schedule(cron: str, timezone: str = "UTC") -> Schedule:
    return Schedule.of(Schedule(cron=cron, timezone=timezone))


def test_an_expression_alone_is_in_utc() -> None:
    assert Schedule.of("*/15 * * * *") == Schedule(cron="*/15 * * * *", timezone="UTC")


@pytest.mark.parametrize("cron", ["", "soon", "61 * * * *", "* * * *"])
def test_what_is_no_cron_expression(cron: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Schedule.of(cron)

    assert str(raised.value) == (
        f"The schedule '{cron}' is not a valid cron expression; "
        'write five fields, such as "*/15 * * * *".'
    )


@pytest.mark.parametrize(
    ("timezone", "hint"),
    [
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("", "write a name such as Europe/Rome."),
        ("../etc/passwd", "write a name such as Europe/Rome."),
    ],
)
def test_what_is_no_time_zone(timezone: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        schedule("@daily", timezone)

    assert str(raised.value) == f"There is no time zone '{timezone}'; {hint}"


def test_it_is_due_by_the_clocks_of_its_time_zone() -> None:
    in_rome = schedule("30 6 * * *", "Europe/Rome")
    winter = dt.datetime(2026, 1, 15, 12, tzinfo=dt.UTC)
    summer = dt.datetime(2026, 7, 15, 12, tzinfo=dt.UTC)

    assert in_rome.previous_tick(winter) == dt.datetime(2026, 1, 15, 5, 30, tzinfo=dt.UTC)
    assert in_rome.previous_tick(summer) == dt.datetime(2026, 7, 15, 4, 30, tzinfo=dt.UTC)
    assert in_rome.next_tick(in_rome.previous_tick(summer)) == dt.datetime(
        2026, 7, 16, 4, 30, tzinfo=dt.UTC
    )
    assert in_rome.format_time(in_rome.previous_tick(summer)) == "2026-07-15 06:30 Europe/Rome"


def hours(cron: str, timezone: str = "UTC") -> tuple[float, float]:
    """After how many hours without a sync it warns, and fails."""
    policy = schedule(cron, timezone).freshness_policy()
    windows = (policy.warn_window, policy.fail_window)  # type: ignore[attr-defined]
    warn, fail = (window.to_timedelta() / dt.timedelta(hours=1) for window in windows)
    return warn, fail


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("*/15 * * * *", (0.5, 0.75)),
        ("* * * * *", (16 / 60, 17 / 60)),
        ("0 * * * *", (1.5, 2.5)),
        ("@daily", (36, 60)),
        ("0 3 * * 0", (7 * 36, 7 * 60)),
    ],
)
def test_it_warns_when_a_sync_is_late_and_fails_when_the_next_one_is_too(
    cron: str, expected: tuple[float, float]
) -> None:
    assert hours(cron) == pytest.approx(expected)


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
@pytest.mark.parametrize("cron", ["0 2 * * 1-5", "*/15 8-18 * * 1-5", "* * * * 1-5"])
def test_a_weekend_without_a_sync_is_no_delay(cron: str, timezone: str) -> None:
    warn, _ = hours(cron, timezone)

    assert warn > 48

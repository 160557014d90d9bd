"""Schedules: cron expressions with a time zone."""

import datetime as dt
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.dagster_internals import (
    get_latest_completed_cron_tick,
    get_next_cron_tick,
    is_valid_cron_string,
    schedule_execution_time_iterator,
)
from atlas_dagster.wording import closest_match

#: A run counts as late after at least this delay.
_LEAST_GRACE = dt.timedelta(minutes=15)
#: The longest interval is searched among this many ticks. The search begins on a Friday evening,
#: so that a pause at the weekend is found early.
_FRIDAY = dt.datetime(2024, 1, 5, 22)
_MOST_TICKS = 200
_LONGEST_SEARCH = dt.timedelta(days=62)


class Schedule(BaseModel):
    """A cron expression and its time zone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cron: str = Field(description="Cron expression.", examples=["*/15 * * * *"])
    timezone: str = Field(
        default="UTC", description="Time zone of the cron expression.", examples=["Europe/Rome"]
    )

    @classmethod
    def of(cls, declared: "str | Schedule") -> "Schedule":
        """Return the schedule that was declared; a bare expression is in UTC.

        Raises:
            ConfigError: the cron expression or the time zone is not valid.
        """
        schedule = cls(cron=declared, timezone="UTC") if isinstance(declared, str) else declared
        if not is_valid_cron_string(schedule.cron):
            raise ConfigError(
                f"The schedule '{schedule.cron}' is not a valid cron expression; "
                'write five fields, such as "*/15 * * * *".'
            )
        try:
            ZoneInfo(schedule.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            near = closest_match(schedule.timezone, available_timezones())
            hint = f"did you mean {near}?" if near else "write a name such as Europe/Rome."
            raise ConfigError(f"There is no time zone '{schedule.timezone}'; {hint}") from error
        return schedule

    def __str__(self) -> str:
        return f"`{self.cron}` ({self.timezone})"

    def previous_tick(self, now: dt.datetime) -> dt.datetime:
        """Return the last tick before ``now``, in UTC."""
        return get_latest_completed_cron_tick(self.cron, now, self.timezone).astimezone(dt.UTC)

    def next_tick(self, due: dt.datetime) -> dt.datetime:
        """Return the tick after ``due``, in UTC."""
        # Without the added second, Dagster would return ``due`` itself.
        after = due + dt.timedelta(seconds=1)
        return get_next_cron_tick(self.cron, after, self.timezone).astimezone(dt.UTC)

    def format_time(self, time: dt.datetime) -> str:
        """Return ``time`` as text, in the time zone of the schedule."""
        return f"{time.astimezone(ZoneInfo(self.timezone)):%Y-%m-%d %H:%M} {self.timezone}"

    def freshness_policy(self) -> dg.FreshnessPolicy:
        """Return the freshness policy of assets on this schedule.

        It warns if a run is late by half of the longest interval, and fails if the following run
        is missing, too.
        """
        longest = _longest_interval(self.cron, self.timezone)
        grace = max(longest / 2, _LEAST_GRACE)
        return dg.FreshnessPolicy.time_window(
            warn_window=longest + grace, fail_window=2 * longest + grace
        )


def validate_schedule(declared: str | Schedule | None) -> Schedule | None:
    """Validate a field of a pydantic model. Raises ValueError."""
    try:
        return None if declared is None else Schedule.of(declared)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def schedule_job(job: dg.JobDefinition, declared: str | Schedule) -> dg.ScheduleDefinition:
    """Return the schedule that starts ``job``. It is switched on by default."""
    times = Schedule.of(declared)
    return dg.ScheduleDefinition(
        job=job,
        cron_schedule=times.cron,
        execution_timezone=times.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


@lru_cache(maxsize=1024)
def _longest_interval(cron: str, timezone: str) -> dt.timedelta:
    start = _FRIDAY.replace(tzinfo=ZoneInfo(timezone))
    ticks = schedule_execution_time_iterator(start.timestamp(), cron, timezone)
    last = get_latest_completed_cron_tick(cron, start, timezone)
    longest = dt.timedelta(0)
    for _ in range(_MOST_TICKS):
        tick = next(ticks)
        longest = max(longest, tick - last)
        last = tick
        if tick - start > _LONGEST_SEARCH:
            break
    return longest

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

#: The shortest delay that counts as late.
_LEAST_GRACE = dt.timedelta(minutes=15)
#: The longest interval is searched in this many ticks from a Friday evening on: a pause at the
#: weekend is found early.
_FRIDAY = dt.datetime(2024, 1, 5, 22)
_LOOKED_AT = 200
_LOOKED_AHEAD = dt.timedelta(days=62)


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
            hint = f"did you mean {near}?" if near else "write one such as Europe/Rome."
            raise ConfigError(f"There is no time zone '{schedule.timezone}'; {hint}") from error
        return schedule

    def __str__(self) -> str:
        return f"`{self.cron}` ({self.timezone})"

    def latest(self, now: dt.datetime) -> dt.datetime:
        """Return the last tick before ``now``, in UTC."""
        return get_latest_completed_cron_tick(self.cron, now, self.timezone).astimezone(dt.UTC)

    def following(self, due: dt.datetime) -> dt.datetime:
        """Return the tick after ``due``, in UTC."""
        # One second later: Dagster counts a tick at the very moment as the next one.
        after = due + dt.timedelta(seconds=1)
        return get_next_cron_tick(self.cron, after, self.timezone).astimezone(dt.UTC)

    def shown(self, time: dt.datetime) -> str:
        """Return ``time`` as text, in the time zone of the schedule."""
        return f"{time.astimezone(ZoneInfo(self.timezone)):%Y-%m-%d %H:%M} {self.timezone}"

    def freshness(self) -> dg.FreshnessPolicy:
        """Return the freshness policy of assets on this schedule.

        It warns if a run is late by half of the longest interval, and fails if the following run
        is missing, too.
        """
        pause = _longest_pause(self.cron, self.timezone)
        grace = max(pause / 2, _LEAST_GRACE)
        return dg.FreshnessPolicy.time_window(
            warn_window=pause + grace, fail_window=2 * pause + grace
        )


def validated(declared: str | Schedule | None) -> Schedule | None:
    """Validate a field of a pydantic model. Raises ValueError."""
    try:
        return None if declared is None else Schedule.of(declared)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def scheduled_job(job: dg.JobDefinition, declared: str | Schedule) -> dg.ScheduleDefinition:
    """Return the schedule that starts ``job``. It runs from the first load on."""
    times = Schedule.of(declared)
    return dg.ScheduleDefinition(
        job=job,
        cron_schedule=times.cron,
        execution_timezone=times.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


@lru_cache(maxsize=1024)
def _longest_pause(cron: str, timezone: str) -> dt.timedelta:
    start = _FRIDAY.replace(tzinfo=ZoneInfo(timezone))
    ticks = schedule_execution_time_iterator(start.timestamp(), cron, timezone)
    last = get_latest_completed_cron_tick(cron, start, timezone)
    longest = dt.timedelta(0)
    for _ in range(_LOOKED_AT):
        tick = next(ticks)
        longest = max(longest, tick - last)
        last = tick
        if tick - start > _LOOKED_AHEAD:
            break
    return longest

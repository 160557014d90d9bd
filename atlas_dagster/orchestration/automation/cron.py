"""When something is due: a cron expression in a time zone."""

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

#: A sync that takes no longer than this is never called late.
_LEAST_GRACE = dt.timedelta(minutes=15)
#: Ticks to look at for the longest pause between two: from a Friday evening on, so that the first
#: of them show the one at the weekend, if there is one.
_FRIDAY = dt.datetime(2024, 1, 5, 22)
_LOOKED_AT = 200
_LOOKED_AHEAD = dt.timedelta(days=62)


class Schedule(BaseModel):
    """Times that a cron expression says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cron: str = Field(description="Cron expression.", examples=["*/15 * * * *"])
    timezone: str = Field(
        default="UTC", description="Time zone it is meant in.", examples=["Europe/Rome"]
    )

    @classmethod
    def of(cls, declared: "str | Schedule") -> "Schedule":
        """As declared: an expression in UTC, or one with its time zone.

        Raises:
            ConfigError: it is no cron expression, or there is no such time zone.
        """
        schedule = cls(cron=declared, timezone="UTC") if isinstance(declared, str) else declared
        if not is_valid_cron_string(schedule.cron):
            raise ConfigError(
                f"The schedule '{schedule.cron}' is no cron expression; "
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
        """The last time that it was due, in UTC."""
        return get_latest_completed_cron_tick(self.cron, now, self.timezone).astimezone(dt.UTC)

    def following(self, due: dt.datetime) -> dt.datetime:
        """When it is due after ``due``, in UTC."""
        # From just after it: at its very moment, Dagster's next one is the same.
        after = due + dt.timedelta(seconds=1)
        return get_next_cron_tick(self.cron, after, self.timezone).astimezone(dt.UTC)

    def shown(self, time: dt.datetime) -> str:
        """``time`` as someone who wrote the schedule reads it."""
        return f"{time.astimezone(ZoneInfo(self.timezone)):%Y-%m-%d %H:%M} {self.timezone}"

    def freshness(self) -> dg.FreshnessPolicy:
        """What may be expected of an asset that is materialized then.

        It warns once a run is late by half of the longest pause between two, and fails when the
        next one does not come either.
        """
        pause = _longest_pause(self.cron, self.timezone)
        grace = max(pause / 2, _LEAST_GRACE)
        return dg.FreshnessPolicy.time_window(
            warn_window=pause + grace, fail_window=2 * pause + grace
        )


def validated(declared: str | Schedule | None) -> Schedule | None:
    """For a field of a model. Raises ValueError where it is wrong."""
    try:
        return None if declared is None else Schedule.of(declared)
    except ConfigError as error:
        raise ValueError(str(error)) from error


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

"""Timeouts of one call of a connector.

Three clocks run: the whole call, silence (no output at all), and the heartbeat (no record or state;
other output does not matter). After a RATE_LIMITED status, silence and heartbeat start when the
source's quota is reset (airbyte_protocol.yaml,
``AirbyteStreamStatusRateLimitedReason.quota_reset``, epoch milliseconds).
"""

import time

from atlas_dagster.protocol.messages import StreamStatus
from atlas_dagster.runners.base import Verb
from atlas_dagster.runners.limits import ExecutorConfig


class Watchdog:
    """Measures one call. Silence counts only the time that Atlas waits for the connector."""

    def __init__(self, verb: Verb, limits: ExecutorConfig) -> None:
        self._verb = verb
        self._limits = limits
        self._started = self._since = time.monotonic()
        self._excused_until = self._since
        self._silence = 0.0
        self._dataless = 0.0

    def resume(self) -> None:
        """Start to wait for the connector again."""
        self._since = time.monotonic()

    def add_wait(self, *, output: bool) -> None:
        """Add the time since the last call; ``output`` ends the silence."""
        waited = max(time.monotonic() - max(self._since, self._excused_until), 0.0)
        self._silence = 0.0 if output else self._silence + waited
        self._dataless += waited

    def on_data(self) -> None:
        """Restart the heartbeat, after a record or a state."""
        self._dataless = 0.0

    def on_status(self, status: StreamStatus) -> None:
        """Pause the clocks until the quota reset of a RATE_LIMITED status, if it has one."""
        limited = [r.rate_limited for r in status.reasons or () if r.type == "RATE_LIMITED"]
        if limited:
            resets = [each.quota_reset for each in limited if each and each.quota_reset]
            wait = max((reset / 1000 - time.time() for reset in resets), default=0.0)
            self._excused_until = time.monotonic() + wait
            self._dataless = 0.0

    @property
    def timeout_message(self) -> str | None:
        """The exceeded limit and how to raise it; None if all limits hold."""
        limits, verb = self._limits, self._verb
        elapsed = time.monotonic() - self._started
        if verb != "read":
            name = "discover_timeout_seconds" if verb == "discover" else "check_timeout_seconds"
            allowed: float = getattr(limits, name)
            if elapsed > allowed:
                return (
                    f"did not finish {verb} within {allowed:g} seconds; check that the source is "
                    f"reachable, or raise executor.{name}."
                )
            return None
        if elapsed > limits.timeout_seconds:
            return (
                f"was still reading after {limits.timeout_seconds:g} seconds and was stopped; "
                "sync again to continue, or raise executor.timeout_seconds."
            )
        if self._silence > limits.silence_seconds:
            return (
                f"printed nothing for {limits.silence_seconds:g} seconds and was stopped; check "
                "the source and sync again, or raise executor.silence_seconds."
            )
        if self._dataless > limits.heartbeat_seconds:
            return (
                f"sent no record and no state for {limits.heartbeat_seconds:g} seconds and was "
                "stopped; check the source and sync again, or raise executor.heartbeat_seconds."
            )
        return None

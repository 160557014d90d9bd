"""The time limits of one call of a connector, declared in ``atlas_dagster/runners/limits.py``.

Three clocks run: the whole call, silence (no output at all), and the heartbeat (no record or state;
other output does not matter). After a RATE_LIMITED status, silence and heartbeat start when the
source's quota is reset (airbyte_protocol.yaml,
``AirbyteStreamStatusRateLimitedReason.quota_reset``, epoch milliseconds).
"""

import time

from atlas_dagster.protocol.messages import StreamStatus
from atlas_dagster.runners.base import Verb
from atlas_dagster.runners.limits import ExecutorConfig

#: The field of ``ExecutorConfig`` with the longest time of a call, by the connector's command.
_LONGEST_CALL: dict[Verb, str] = {
    "spec": "check_timeout_seconds",
    "check": "check_timeout_seconds",
    "discover": "discover_timeout_seconds",
    "read": "timeout_seconds",
}


class Watchdog:
    """Measures one call. Silence counts only the time that Atlas waits for the connector."""

    def __init__(self, verb: Verb, limits: ExecutorConfig) -> None:
        self._verb = verb
        self._limits = limits
        self._started = self._since = time.monotonic()
        #: Waits before this time are ignored; it is in the future while the source is rate limited.
        self._counts_from = self._since
        #: Seconds waited since the last output, and since the last record or state.
        self._silence = 0.0
        self._without_data = 0.0

    def resume(self) -> None:
        """Start to wait for the connector again."""
        self._since = time.monotonic()

    def add_wait(self, *, output: bool) -> None:
        """Add the time since the last call; ``output`` ends the silence."""
        waited = max(time.monotonic() - max(self._since, self._counts_from), 0.0)
        self._silence = 0.0 if output else self._silence + waited
        self._without_data += waited

    def on_data(self) -> None:
        """Restart the heartbeat, after a record or a state."""
        self._without_data = 0.0

    def on_status(self, status: StreamStatus) -> None:
        """Pause the clocks until the quota reset of a RATE_LIMITED status, if it has one."""
        limited = [r.rate_limited for r in status.reasons or () if r.type == "RATE_LIMITED"]
        if limited:
            resets = [each.quota_reset for each in limited if each and each.quota_reset]
            wait = max((reset / 1000 - time.time() for reset in resets), default=0.0)
            self._counts_from = time.monotonic() + wait
            self._without_data = 0.0

    @property
    def timeout_message(self) -> str | None:
        """The exceeded limit and how to raise it; None if all limits hold."""
        limits, verb = self._limits, self._verb
        elapsed = time.monotonic() - self._started
        name = _LONGEST_CALL[verb]
        longest: float = getattr(limits, name)
        if verb != "read":
            if elapsed <= longest:
                return None
            return (
                f"did not finish {verb} within {longest:g} seconds; check that the source is "
                f"reachable, or raise executor.{name}."
            )
        if elapsed > longest:
            return (
                f"was still reading after {longest:g} seconds and was stopped; sync again to "
                f"continue, or raise executor.{name}."
            )
        if self._silence > limits.silence_seconds:
            return (
                f"printed nothing for {limits.silence_seconds:g} seconds and was stopped; check "
                "the source and sync again, or raise executor.silence_seconds."
            )
        if self._without_data > limits.heartbeat_seconds:
            return (
                f"sent no record and no state for {limits.heartbeat_seconds:g} seconds and was "
                "stopped; check the source and sync again, or raise executor.heartbeat_seconds."
            )
        return None

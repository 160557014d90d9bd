"""Limits that a connector's publisher gives it, for what nobody else says."""

from typing import Any

from pydantic import ValidationError

from atlas_dagster.registry import ConnectorInfo
from atlas_dagster.runners.limits import ExecutorConfig, parse_memory


def published_limits(info: ConnectorInfo) -> ExecutorConfig:
    """Only what is more than Atlas's own defaults is set: those suit every connector.

    As on the platform, ``maxSecondsBetweenMessages`` is the least heartbeat (``HeartbeatMonitor``).
    """
    own = ExecutorConfig()
    limits: dict[str, Any] = {}
    if info.memory_limit is not None and _memory(info.memory_limit) > own.memory_bytes:
        limits["memory_limit"] = info.memory_limit
    if info.cpu_limit is not None and info.cpu_limit > own.cpu_limit:
        limits["cpu_limit"] = info.cpu_limit
    silent = info.max_seconds_between_messages or 0.0
    for name in ("heartbeat_seconds", "silence_seconds"):
        if silent > getattr(own, name):
            limits[name] = silent
    try:
        return ExecutorConfig(**limits)
    except ValidationError:  # the publisher's mistake; our defaults do
        return own


def _memory(text: str) -> int:
    try:
        return parse_memory(text)
    except ValueError:
        return 0

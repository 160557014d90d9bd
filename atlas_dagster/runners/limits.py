"""Limits of a connector: memory, CPUs, network and time.

Users write them in the field ``executor`` of ``defs.yaml``; it has nothing to do with Dagster's
executors. The runners enforce the limits of the machine, and ``atlas_dagster/source/watchdog.py``
enforces those of time.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atlas_dagster.errors import ConfigError
from atlas_dagster.wording import validation_message

#: The environment variable with the default limits of all connections.
DEFAULTS_VARIABLE = "ATLAS_EXECUTOR"

PullPolicy = Literal["missing", "always", "never"]

_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmg]?)i?b?", re.IGNORECASE)
#: The smallest memory limit that Docker accepts.
_LEAST_MEMORY = 6 * 1024**2
_LEAST_CPUS = 0.01


def parse_memory(text: str) -> int:
    """Return the bytes of ``text``, written as for ``docker run --memory``: ``512m``, ``2g``.

    Raises:
        ValueError: ``text`` is not a size, or is less than Docker accepts.
    """
    match = _MEMORY.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < _LEAST_MEMORY:
        raise ValueError(
            f"'{text}' is not a valid amount of memory; write a number and a unit, "
            "at least 6m, such as 512m or 2g"
        )
    return size


class ExecutorConfig(BaseModel):
    """Limits of one connector, the field ``executor`` of ``defs.yaml``. Times are in seconds.

    Each limit applies with its default unless the user sets another value.
    ``memory_limit`` also enables a guard of the CDK, which emits the state and fails cleanly before
    the kernel kills the connector (CDK ``utils/memory_monitor.py``). When a limit ends a READ,
    committed rows stay, and the next sync continues from there.

    Without Docker, ``memory_limit`` applies to each process of the connector, and on Linux only;
    ``cpu_limit``, ``pids_limit``, ``network`` and ``cap_add`` have no effect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_limit: str = Field(default="2g", description="Memory, such as 512m or 4g, without swap.")
    cpu_limit: float = Field(default=2.0, description="CPUs; fractions are allowed.")
    pids_limit: int = Field(default=1024, description="Processes and threads.")
    docker_host: str | None = Field(
        default=None,
        description="Docker engine: an address such as tcp://10.0.0.5:2376, or the name of a "
        "Docker context. The default is the engine that the Docker CLI uses.",
    )
    network: str = Field(
        default="host",
        description="Docker network: host, bridge, none, or a network's name.",
    )
    pull: PullPolicy = Field(
        default="missing",
        description="When to pull the image: missing (not on the engine), always, or never.",
    )
    cap_add: list[str] = Field(
        default=[], description="Linux capabilities of the connector; by default it has none."
    )
    timeout_seconds: float = Field(default=24 * 3600.0, description="Time limit of READ.")
    check_timeout_seconds: float = Field(default=9 * 60.0, description="Time limit of SPEC, CHECK.")
    discover_timeout_seconds: float = Field(
        default=30 * 60.0, description="Time limit of DISCOVER."
    )
    silence_seconds: float = Field(
        default=2 * 3600.0, description="A READ that prints nothing for this long is stopped."
    )
    heartbeat_seconds: float = Field(
        default=3 * 3600.0,
        description="A READ without a record or state for this long is stopped, despite logs.",
    )

    # Validators, not constraints in the types: Dagster resolves plain types only.
    @field_validator("*")
    @classmethod
    def _is_positive(cls, value: object) -> object:
        """Check each number: CPUs, processes, and all ``*_seconds``."""
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise ValueError(f"{value} is not a valid limit; write a number above 0")
        return value

    @field_validator("cpu_limit")
    @classmethod
    def _is_enough(cls, cpus: float) -> float:
        if cpus < _LEAST_CPUS:
            raise ValueError(f"{cpus} CPUs are too few; write at least {_LEAST_CPUS}")
        return cpus

    @field_validator("network")
    @classmethod
    def _is_named(cls, network: str) -> str:
        if not network.strip():
            raise ValueError(
                "the network has no name; write host, bridge, none, or a network's name"
            )
        return network

    @field_validator("memory_limit")
    @classmethod
    def _is_memory(cls, text: str) -> str:
        parse_memory(text)
        return text

    @property
    def memory_bytes(self) -> int:
        return parse_memory(self.memory_limit)

    def overridden_by(self, other: Self | None) -> Self:
        """Return these limits with those that ``other`` sets explicitly."""
        if other is None:
            return self
        changes: dict[str, Any] = {name: getattr(other, name) for name in other.model_fields_set}
        return self.model_copy(update=changes)


def declared_defaults(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the limits in the environment, not validated."""
    declared = yaml.safe_load(environ.get(DEFAULTS_VARIABLE) or "{}")
    return dict(declared)


def executor_defaults(declared: Mapping[str, Any]) -> ExecutorConfig:
    """Return the limits of ``declared``. Raises ConfigError if one is wrong."""
    try:
        return ExecutorConfig(**declared)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        why = validation_message(first["msg"])
        raise ConfigError(
            f"The executor's default {field} is wrong: {why}; correct it in {DEFAULTS_VARIABLE}, "
            "written like {memory_limit: 4g, network: bridge}."
        ) from error

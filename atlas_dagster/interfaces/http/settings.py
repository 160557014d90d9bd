"""What the server may do, and how much."""

import ipaddress
import os
from collections.abc import Collection

from msgspec import Struct

from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.limits import ExecutorConfig, declared_defaults, executor_defaults
from atlas_dagster.source.connection import RunnerChoice

#: Connectors at once. Few processors do for more of them: they wait for others most of the time.
_CONTAINERS = max(4, os.cpu_count() or 1)
#: A client waits for these; ATLAS_EXECUTOR replaces them.
_LIMITS = ExecutorConfig(
    check_timeout_seconds=120.0, discover_timeout_seconds=600.0, timeout_seconds=3600.0
)


class Settings(Struct, frozen=True, kw_only=True):
    """Limits of the server.

    Args:
        token: what clients must show; None for clients on this machine only.
        allow: connectors that run, names of the registry or images; None for all of the registry.
        runner: where they run; ``python`` and ``auto`` run code from PyPI as this process's user.
        containers: connectors at once.
        waiting: requests that may wait for one to end.
        wait_seconds: how long.
        body_bytes: of a request.
        page_bytes: rows of an answer that is not streamed, about, as they are in memory.
        executor: limits of each connector, times included.
    """

    token: str | None = None
    allow: frozenset[str] | None = None
    runner: RunnerChoice = "docker"
    containers: int = _CONTAINERS
    waiting: int = 100
    wait_seconds: float = 120.0
    body_bytes: int = 8 * 1024 * 1024
    page_bytes: int = 64 * 1024 * 1024
    executor: ExecutorConfig = _LIMITS

    @classmethod
    def from_environment(
        cls,
        *,
        host: str,
        token: str | None,
        allow: Collection[str] | None = None,
        runner: RunnerChoice = "docker",
        containers: int | None = None,
    ) -> "Settings":
        """For a server at ``host``, with the limits of ATLAS_EXECUTOR.

        Raises:
            ConfigError: others could use the server, and there is no token; a limit is wrong.
        """
        if not token and not is_loopback(host):
            raise ConfigError(
                f"Anybody who reaches {host} could run connectors; give a token (ATLAS_TOKEN) that "
                "clients must show, or listen on 127.0.0.1."
            )
        if containers is not None and containers < 1:
            raise ConfigError(f"{containers} connectors at once are none; write at least 1.")
        return cls(
            token=token or None,
            allow=frozenset(allow) if allow else None,
            runner=runner,
            containers=containers or _CONTAINERS,
            executor=_LIMITS.overridden_by(executor_defaults(declared_defaults(os.environ))),
        )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server at ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"

"""Advice for configs with localhost, which a connector in a container resolves to itself."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from atlas_dagster.runners.base import EnginePlace

#: localhost as a whole value, or as the host in a URL or connection string.
_LOCALHOST = re.compile(
    r"(?:^|//|[@(,;=])\s*(?:localhost|127(?:\.\d{1,3}){3}|::1|\[::1\])(?=$|[:/,;?&)\s])",
    re.IGNORECASE,
)
#: The choice in the config of Airbyte's database sources to connect directly.
_NO_TUNNEL = "NO_TUNNEL"


def advise(config: Mapping[str, Any], *, network: str, engine: EnginePlace) -> str | None:
    """Return advice about localhost, if ``config`` means the container itself by mistake.

    ``network`` is the container's network; ``engine`` is the place of its engine. The advice names
    fields, never values, because these may contain passwords.
    """
    is_meant = network.startswith("container:") or (network == "host" and engine == "here")
    fields = [] if is_meant else list(_find_localhost(_seen_from_container(config)))
    if not fields:
        return None
    names = " and ".join(f"'{name}'" for name in fields)
    if engine == "virtual machine" and network == "none":
        return (
            f"localhost in {names} is the connector's own container, which has no network; to "
            "reach this machine, write host.docker.internal and set executor: {network: bridge}"
        )
    if engine == "virtual machine":
        return (
            f"localhost in {names} is not this machine, because Docker runs in a virtual machine "
            "on it; write host.docker.internal for this machine"
        )
    if network == "host":
        return (
            f"localhost in {names} is the machine of the Docker engine, which is not this one; "
            "write the name or address of the source's machine"
        )
    if engine == "elsewhere":
        return (
            f"localhost in {names} is the connector's own container; "
            "write the name or address of the source's machine"
        )
    host_network = "set executor: {network: host}"
    if network == "none":
        return (
            f"localhost in {names} is the connector's own container, which has no network; "
            f"to reach this machine, {host_network}"
        )
    return (
        f"localhost in {names} is the connector's own container; "
        f"write host.docker.internal for this machine, or {host_network}"
    )


def _seen_from_container(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of the config whose hosts the connector resolves: an SSH tunnel, or all."""
    tunnel = config.get("tunnel_method")
    if isinstance(tunnel, Mapping) and tunnel.get("tunnel_method", _NO_TUNNEL) != _NO_TUNNEL:
        return {"tunnel_method": tunnel}
    return config


def _find_localhost(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _find_localhost(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _find_localhost(inner, path)
    elif isinstance(value, str) and _LOCALHOST.search(value):
        yield path

"""Find the Docker engine and connect to it.

The default is the engine that the Docker CLI would use: the one of ``DOCKER_HOST`` (with
``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``), of the context in ``DOCKER_CONTEXT``, of the CLI's
current context, or of the default socket, in this order.
"""

import hashlib
import json
import os
import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import docker.constants
import docker.errors
import requests
from docker.tls import TLSConfig
from docker.utils import kwargs_from_env

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.runners.base import EnginePlace

_API_TIMEOUT_SECONDS = 60
_CONNECT_TIMEOUT_SECONDS = 20
_DEFAULT_SOCKET = "unix:///var/run/docker.sock"

#: Errors of docker-py when the engine refuses a request or does not respond.
API_ERRORS = (docker.errors.DockerException, requests.RequestException)


def connect(engine: str | None = None) -> docker.DockerClient:
    """Return a client of ``engine``, or of the engine that the Docker CLI would use.

    ``engine`` is an address, with TLS as for ``DOCKER_HOST``, or the name of a Docker context,
    which may have its own certificates.

    Raises:
        ConfigError: the engine's address, TLS or socket permissions are wrong.
        RunnerUnavailableError: no engine responds at the address.
    """
    host = _DEFAULT_SOCKET
    try:
        address = _find_address(engine)
        host = address.setdefault("base_url", host)
        if host.startswith("ssh://"):
            raise _ssh_error(host)
        oldest = docker.constants.MINIMUM_DOCKER_API_VERSION
        with closing(_make_client(address, oldest, _CONNECT_TIMEOUT_SECONDS)) as first:
            version = first.version(api_version=False)["ApiVersion"]
        return _make_client(address, version, _API_TIMEOUT_SECONDS)
    except API_ERRORS as error:
        raise _explain_refusal(host, error) from error


def find_connection_problem(engine: str | None = None) -> str | None:
    """Return why :func:`connect` fails; None if it succeeds."""
    try:
        connect(engine).close()
    except AtlasError as error:
        return str(error)
    return None


def locate_engine(client: docker.DockerClient) -> EnginePlace:
    """Return the place of the engine, as seen from this machine."""
    url = urlsplit(client.api.base_url)
    is_socket = url.scheme == "http+docker"
    if not is_socket and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        return "elsewhere"
    info: dict[str, Any] = {}
    with suppress(*API_ERRORS):
        info = client.info()
    # On a Mac, every engine is in a virtual machine.
    if sys.platform == "darwin" or info.get("OperatingSystem") == "Docker Desktop":
        return "virtual machine"
    # The socket may be forwarded by SSH, or mounted into a container with Atlas.
    if is_socket and info.get("Name") not in (None, socket.gethostname()):
        return "elsewhere"
    return "here"


def describe_error(error: BaseException) -> str:
    """Return the engine's explanation, or the system's error for the connection, on one line."""
    root = error if isinstance(error, docker.errors.DockerException) else _find_root_cause(error)
    text = getattr(root, "explanation", None) or getattr(root, "strerror", None) or root
    return " ".join(str(text).split())[:300].rstrip(".")


def _find_root_cause(error: BaseException) -> BaseException:
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _make_client(address: Mapping[str, Any], version: str, timeout: int) -> docker.DockerClient:
    client = docker.DockerClient(version=version, timeout=timeout, **address)
    # Otherwise requests would use REQUESTS_CA_BUNDLE instead of the engine's own CA.
    client.api.trust_env = False
    return client


def _find_address(engine: str | None) -> dict[str, Any]:
    """Return ``base_url`` and ``tls`` for docker-py; empty for the default socket."""
    if engine is not None and "://" in engine:
        return dict(kwargs_from_env({**os.environ, "DOCKER_HOST": engine}))
    if engine is None and os.environ.get("DOCKER_HOST"):
        return dict(kwargs_from_env())
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = engine or os.environ.get("DOCKER_CONTEXT") or _current_context(folder)
    return {} if name == "default" else _read_context(folder, name)


def _current_context(folder: Path) -> str:
    with suppress(OSError, ValueError, AttributeError):
        name = json.loads((folder / "config.json").read_bytes()).get("currentContext")
        return str(name or "default")
    return "default"


def _read_context(folder: Path, name: str) -> dict[str, Any]:
    # docker-py's ContextAPI treats a missing context as the default one, finds no contexts without
    # a config.json, and drops TLS if there is a CA but no client key.
    key = hashlib.sha256(name.encode()).hexdigest()
    try:
        meta = json.loads((folder / "contexts" / "meta" / key / "meta.json").read_bytes())
        endpoint = meta["Endpoints"]["docker"]
        address = {"base_url": endpoint["Host"]}
    except FileNotFoundError:
        raise ConfigError(
            f"There is no Docker context '{name}' in {folder}; list contexts with `docker context "
            "ls`, and choose one with executor.docker_host, DOCKER_CONTEXT or `docker context "
            "use`."
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"The Docker context '{name}' in {folder} cannot be read; create it again with "
            "`docker context create`."
        ) from error
    tls = folder / "contexts" / "tls" / key / "docker"
    files = {path.stem: str(path) for path in tls.glob("*.pem")}
    unverified = bool(endpoint.get("SkipTLSVerify"))
    if files or unverified:
        pair = (files["cert"], files["key"]) if {"cert", "key"} <= files.keys() else None
        address["tls"] = TLSConfig(pair, ca_cert=files.get("ca"), verify=not unverified)
    return address


def _ssh_error(host: str) -> ConfigError:
    # docker-py would need paramiko for SSH, and Atlas cannot read a connector's output from
    # paramiko's channels.
    url = urlsplit(host)
    port = f"-p {url.port} " if url.port else ""
    machine = url.netloc.removesuffix(f":{url.port}")
    return ConfigError(
        f"Atlas cannot reach Docker by SSH ({host}); forward its socket with "
        f"`ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock {port}{machine}` and set "
        "DOCKER_HOST=unix:///tmp/docker.sock."
    )


def _explain_refusal(host: str, error: Exception) -> AtlasError:
    """Return the error that explains why there is no connection."""
    root = _find_root_cause(error)
    elsewhere = "point DOCKER_HOST or a Docker context at an engine"
    if host.startswith("unix://"):
        if isinstance(root, FileNotFoundError):
            return RunnerUnavailableError(
                f"There is no Docker engine here: {host} does not exist",
                f"install or start Docker, or {elsewhere}",
            )
        if isinstance(root, PermissionError):
            return ConfigError(
                f"The user with id {os.geteuid()} has no permission to use the Docker engine at "
                f"{host}; add it to the group docker (`sudo usermod -aG docker $USER`, then log "
                "in again), or use rootless Docker."
            )
        if isinstance(root, ConnectionRefusedError):
            return RunnerUnavailableError(
                f"The Docker engine is down: {host} exists but does not answer",
                f"start Docker, or {elsewhere}",
            )
    encrypted = (docker.errors.TLSParameterError, requests.exceptions.SSLError, ssl.SSLError)
    if isinstance(error, encrypted) or isinstance(root, encrypted):
        message = getattr(root, "verify_message", "") or getattr(root, "reason", "") or str(root)
        return ConfigError(
            f"There is no TLS connection to the Docker engine at {host} ({message}); check "
            "DOCKER_TLS_VERIFY and the ca.pem, cert.pem and key.pem in DOCKER_CERT_PATH, or those "
            "of the Docker context."
        )
    if "HTTP request to an HTTPS server" in describe_error(error):
        return ConfigError(
            f"The Docker engine at {host} requires TLS; set DOCKER_TLS_VERIFY=1, and set "
            "DOCKER_CERT_PATH to the folder of ca.pem, cert.pem and key.pem."
        )
    return RunnerUnavailableError(
        f"No Docker engine answers at {host} ({describe_error(error)})",
        f"start Docker, or {elsewhere}",
    )

"""The HTTP server."""

import signal
from collections.abc import Collection
from types import FrameType

import uvicorn

from atlas_dagster.interfaces.http.app import create_app
from atlas_dagster.interfaces.http.limits import Settings
from atlas_dagster.interfaces.python.worker import stop_all
from atlas_dagster.source.connection import RunnerChoice

#: When the server stops, requests have this long to end.
_END_SECONDS = 20


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    *,
    allow: Collection[str] | None = None,
    runner: RunnerChoice = "docker",
    containers: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, which stop the running connectors too.

    Args:
        host: the address to listen on.
        port: the port to listen on.
        token: clients must send it; required unless ``host`` is local.
        allow: names of the registry or images that may run; None for the whole registry.
        runner: where connectors run.
        containers: the most connectors at once.

    Raises:
        ConfigError: a limit is not valid, or the token is missing.
    """
    settings = Settings.from_environment(
        host=host, token=token, allow=allow, runner=runner, containers=containers
    )
    config = uvicorn.Config(
        create_app(settings),
        host=host,
        port=port,
        timeout_graceful_shutdown=_END_SECONDS,
        server_header=False,
    )
    _Server(config).run()


class _Server(uvicorn.Server):
    """A server that stops its connectors when it stops; otherwise they might run for hours."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(signal.Signals(sig), frame)
        stop_all()

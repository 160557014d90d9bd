"""The HTTP door, for programs in any language. Needs the extra ``http``."""

import signal
from collections.abc import Collection
from types import FrameType

import uvicorn

from atlas_dagster.interfaces.http.app import create_app
from atlas_dagster.interfaces.http.settings import Settings
from atlas_dagster.interfaces.python.worker import stop_all
from atlas_dagster.source.connection import RunnerChoice

__all__ = ["Settings", "create_app", "serve"]

#: How long requests may take to end once the server is told to.
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
    """Serve until told to stop (SIGTERM, SIGINT), which stops the connectors at work.

    Args:
        host: where to listen.
        port: where to listen.
        token: what clients must show; needed where others than this machine can reach the server.
        allow: connectors that run, names of the registry or images; None for the registry's.
        runner: where connectors run.
        containers: connectors at once.

    Raises:
        ConfigError: a limit is wrong, or the server would be open to anybody.
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
    """Told to stop, it does not wait for connectors that may take hours."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(signal.Signals(sig), frame)
        stop_all()

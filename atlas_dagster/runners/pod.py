"""A connector in a second container of the step's pod, called through files and FIFOs.

Both containers share a folder. The connector's container runs :data:`AGENT`, a few lines of shell,
as in Airbyte's own pods (``AIRBYTE_ENTRYPOINT`` is part of every image). Each call has a folder:

- ``go``: the words of the command, one on each line; it appears last;
- ``begun``: appears when the agent takes the call, so that no call is run twice;
- ``environment``: ``NAME=value`` on each line;
- the files that the words name;
- ``stdout``, ``stderr``: FIFOs;
- ``stop``: appears to end the connector;
- ``exit``: the exit code.

A FIFO is three times as fast as Docker's API, and no output passes through the cluster's API.
"""

import fcntl
import os
import secrets
import selectors
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from atlas_dagster.cancellation import pause
from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.files import write_private
from atlas_dagster.runners.base import (
    IDLE_SECONDS,
    STOP_GRACE_SECONDS,
    Channel,
    ConnectorCommand,
    ConnectorProcess,
    ExitStatus,
    Output,
    Runner,
    file_name,
)
from atlas_dagster.runners.limits import ExecutorConfig

#: The program of the connector's container, which has ``ATLAS_FOLDER`` set: ``sh -c AGENT``.
AGENT = """\
cd "$ATLAS_FOLDER" || exit 1
while :; do
    call=
    for go in */go; do
        [ -e "$go" ] && [ ! -e "${go%/go}/begun" ] && call=${go%/go}
    done
    if [ -z "$call" ]; then
        [ -e done ] && exit 0
        sleep 0.2
        continue
    fi
    : >"$call/begun"
    (
        while IFS= read -r line; do export "$line"; done <"$call/environment"
        set --
        while IFS= read -r word; do set -- "$@" "$word"; done <"$call/go"
        eval "exec ${AIRBYTE_ENTRYPOINT:?this image is no Airbyte connector} \\"\\$@\\""
    ) >"$call/stdout" 2>"$call/stderr" &
    connector=$!
    (
        until [ -e "$call/stop" ]; do sleep 0.2; done
        kill -TERM "$connector"
        sleep GRACE
        kill -KILL "$connector"
    ) 2>/dev/null &
    watcher=$!
    wait "$connector"
    echo "$?" >"$call/unfinished"
    mv "$call/unfinished" "$call/exit"
    kill "$watcher" 2>/dev/null
done
""".replace("GRACE", f"{STOP_GRACE_SECONDS:g}")
PIPE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_POLL_SECONDS = IDLE_SECONDS / 5
#: Seconds within which the connector's container must start, including the pull.
_AGENT_SECONDS = 30 * 60.0
#: Seconds within which the exit code must appear after the connector's last output.
_EXIT_SECONDS = 10.0
#: The exit code of a killed process in a shell; also used if the whole container was killed.
_KILLED = 137


class FifoRunner(Runner):
    """Calls a connector through the agent in ``folder``, one call at a time."""

    kind = "kubernetes"

    def __init__(self, folder: Path, reference: str, executor: ExecutorConfig | None = None):
        """``reference`` is the image of the connector's container."""
        self.reference = reference
        self.executor = executor or ExecutorConfig()
        self._folder = folder

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        call = self._folder / secrets.token_hex(8)
        try:
            call.mkdir(mode=0o700)
            for option, content in command.files.items():
                write_private(call / file_name(option), content)
            for channel in ("stdout", "stderr"):
                os.mkfifo(call / channel, mode=0o600)
            lines = [f"{name}={value}\n" for name, value in command.environment.items()]
            write_private(call / "environment", "".join(lines).encode())
            words = [f"{word}\n" for word in command.arguments(str(call))]
            write_private(call / "unfinished", "".join(words).encode())
            (call / "unfinished").rename(call / "go")
            self._wait_for_agent(call)
            return _FifoProcess(call)
        except BaseException as error:
            # The folder contains the config.
            shutil.rmtree(call, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunnerUnavailableError(
                    f"{self.reference} cannot be called: {error}; check the free space of its pod."
                ) from error
            raise

    def _wait_for_agent(self, call: Path) -> None:
        """Return when the agent takes the call, which may be after the pull of its image."""
        deadline = time.monotonic() + _AGENT_SECONDS
        while not (call / "begun").exists():
            if time.monotonic() > deadline:
                raise RunnerUnavailableError(
                    f"The container of {self.reference} did not start within {_AGENT_SECONDS:g} "
                    "seconds",
                    "look at the events of this step's pod with `kubectl describe pod`",
                )
            pause(_POLL_SECONDS)

    def finish(self) -> None:
        """Make the agent end, so that the pod can end."""
        (self._folder / "done").touch()


class _FifoProcess(ConnectorProcess):
    def __init__(self, call: Path) -> None:
        self._call = call
        self._pipes = selectors.DefaultSelector()
        channels: tuple[Channel, Channel] = ("stdout", "stderr")
        for channel in channels:
            # Do not wait for the connector to open the other end, because it may never do so.
            pipe = os.open(call / channel, os.O_RDONLY | os.O_NONBLOCK)
            if sys.platform == "linux":
                with suppress(OSError):  # refused if the user has many large pipes
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self._pipes.register(pipe, selectors.EVENT_READ, channel)

    def output(self) -> Iterator[Output]:
        while self._pipes.get_map():
            # Check this before the pipes, which then have all output of a dead connector.
            has_ended = self._has_ended()
            ready = self._pipes.select(0 if has_ended else IDLE_SECONDS)
            for key, _ in ready:
                chunk = os.read(key.fd, _READ_BYTES)
                if chunk:
                    yield key.data, chunk
                else:
                    self._close_pipe(key.fd)
            if not ready:
                if has_ended:
                    return
                yield "idle", b""
        deadline = time.monotonic() + _EXIT_SECONDS
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            yield "idle", b""

    def wait(self) -> ExitStatus:
        code = (self._call / "exit").read_text() if self._has_ended() else _KILLED
        return ExitStatus(int(code))

    def close(self) -> None:
        if not self._call.exists():
            return
        try:
            if not self._has_ended():
                (self._call / "stop").touch()
                for key in [*self._pipes.get_map().values()]:
                    self._close_pipe(key.fd)
                deadline = time.monotonic() + STOP_GRACE_SECONDS + _EXIT_SECONDS
                while not self._has_ended() and time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
        finally:
            for key in [*self._pipes.get_map().values()]:
                self._close_pipe(key.fd)
            # The folder contains the config.
            shutil.rmtree(self._call, ignore_errors=True)

    def _has_ended(self) -> bool:
        return (self._call / "exit").exists()

    def _close_pipe(self, pipe: int) -> None:
        self._pipes.unregister(pipe)
        os.close(pipe)

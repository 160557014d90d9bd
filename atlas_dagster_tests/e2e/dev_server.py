"""``dagster dev`` on a project."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

from atlas_dagster_tests.e2e.project import Project
from atlas_dagster_tests.e2e.web_server import WebServer, wait_until


class DevServer(WebServer):
    """One ``dagster dev`` with everything it starts, in a process group of its own."""

    def __init__(self, project: Project) -> None:
        self.project = project
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}")
        self._log = project.folder / "dagster-dev.log"
        command = ["dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=project.folder,
                env=project.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # A script in the background ignores SIGINT, its children inherit that, and Dagster
                # then ignores SIGTERM too.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait_ready(self) -> None:
        def is_loaded() -> bool:
            assert self._process.poll() is None, f"dagster dev ended:\n{self.log()}"
            return self.is_loaded()

        wait_until("the code location is loaded", is_loaded, seconds=90)

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the whole group: first asked, then made to."""
        for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-8000:]

    def kill(self, run: str, event: str, *, syncing: str | None = None) -> None:
        """SIGKILL the process that wrote the first event of this type, of the run or of the sync of
        one connection."""
        pids = (
            int(entry["text"])
            for found in self.events(run, event, syncing=syncing)
            for entry in found["metadataEntries"]
            if entry["label"] == "pid"
        )
        pid = next(pids)
        assert os.getsid(pid) == self._process.pid, "not a process of this server"
        os.kill(pid, signal.SIGKILL)

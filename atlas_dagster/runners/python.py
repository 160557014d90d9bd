"""Connectors without Docker: packages on PyPI, and the user's own programs."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, Runner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process import start_process
from atlas_dagster.runners.virtualenv import Environment


class PythonRunner(Runner):
    """Runs the command ``executable`` of a PyPI package at one version."""

    kind = "python"

    def __init__(
        self,
        package: str,
        version: str,
        executable: str,
        *,
        executor: ExecutorConfig | None = None,
    ) -> None:
        """Create the runner without installing the package.

        Raises:
            ConfigError: ``version`` is not an exact version (``latest``, for example).
        """
        self.executor = executor or ExecutorConfig()
        self._environment = Environment(package, version)
        self._executable = executable
        self.reference = self._environment.reference

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        """Start ``command``. The first start builds the environment; see :meth:`ensure`."""
        return start_process([str(self.ensure())], command, executor=self.executor)

    def prepare(self) -> None:
        self.ensure()

    def ensure(self) -> Path:
        """Return the executable; see :meth:`Environment.ensure`."""
        return self._environment.ensure(self._executable)


class CommandRunner(Runner):
    """Runs the user's own program, which speaks the protocol.

    The program runs in ``directory``, so relative paths in ``words`` start there. If the first word
    has no slash, it is looked up in PATH.
    """

    kind = "command"

    def __init__(
        self, words: Sequence[str], *, directory: Path, executor: ExecutorConfig | None = None
    ) -> None:
        self.reference = shlex.join(words)
        self.executor = executor or ExecutorConfig()
        self._words = words
        self._directory = directory.absolute()

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        """Start ``command``.

        Raises:
            ConfigError: the program does not exist.
        """
        program, *rest = self._words
        path = shutil.which(self._directory / program if "/" in program else program)
        if path is None:
            raise ConfigError(
                f"The program {program} does not exist; name one that is in PATH, or give the path "
                f"of an executable file, relative to {self._directory}."
            )
        words = [path, *rest]
        return start_process(words, command, executor=self.executor, directory=self._directory)

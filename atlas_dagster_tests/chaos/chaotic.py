"""source-chaos, run in both ways, and syncs of it into a lake of its own."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atlas_dagster.config.masking import Masker
from atlas_dagster.config.renewable_config import FileConfigStore, RenewableConfig
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.python import CommandRunner
from atlas_dagster.source.connector import Connector
from atlas_dagster.sync.events import SyncEvent
from atlas_dagster_tests.conftest import CONNECTORS
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.sync.fake_source import EAGER, Lake, Outcome, incremental

FOLDER = CONNECTORS / "source-chaos"
MORE = {"n": {"type": "number"}, "o": {"type": "object"}}
A, B = incremental("a", **MORE), incremental("b", **MORE)


def script(*prefix: str) -> Runner:
    """Runs source-chaos as it is, as a process."""
    return CommandRunner([*prefix, sys.executable, "-B", "source_chaos.py"], directory=FOLDER)


class Chaos:
    """Plays scenarios with ``runner``; what they leave behind is in ``lake`` and ``log``."""

    def __init__(self, runner: Runner, root: Path) -> None:
        self.runner = runner
        self.lake = Lake(root / "lake")
        self.configs = FileConfigStore(root / "renewals")
        self.log: list[tuple[str, str]] = []

    def connector(
        self,
        scenario: str,
        *,
        executor: ExecutorConfig | None = None,
        log: Callable[[str, str], None] | None = None,
        **parameters: Any,
    ) -> Connector:
        """``parameters`` are the scenario's; a ``password`` is a secret."""
        self.runner.executor = executor or ExecutorConfig()
        masker = Masker([parameters["password"]] if "password" in parameters else [])
        config = RenewableConfig(
            {"scenario": scenario, **parameters},
            schema={},
            masker=masker,
            connection="c",
            store=self.configs,
            listener=CallbackListener(lambda text: self.log.append(("INFO", text))),
        )
        return Connector(
            self.runner,
            name="source-x",
            config=config,
            masker=masker,
            listener=CallbackListener(
                connector=log or (lambda level, text: self.log.append((level, text)))
            ),
        )

    def sync(self, scenario: str, *streams: ConfiguredStream, **parameters: Any) -> Outcome:
        """READ ``streams`` (``a`` alone by default), with a commit at every STATE."""
        connector = self.connector(scenario, **parameters)
        return self.lake.sync(streams or [A], connector=connector, **EAGER)

    def begin(self, scenario: str, **parameters: Any) -> Iterator[SyncEvent]:
        """The events of a sync of ``a``, one by one."""
        connector = self.connector(scenario, **parameters)
        return self.lake.prepare([A], connector=connector, **EAGER)[0].run()

    def heard(self, level: str) -> list[str]:
        return [text for named, text in self.log if named == level]

    def position(self, stream: ConfiguredStream = A) -> int | None:
        """The id that the stream's stored state stands at; None without a state."""
        (plan, *_) = self.lake.prepare([stream])[1].plan.streams
        return None if plan.state is None else int(json.loads(bytes(plan.state))["at"])

    def changes(self) -> list[list[str]]:
        """Of each row, the columns that could not be kept."""
        metas = [json.loads(meta) for (meta,) in self.lake.rows("a", columns="_airbyte_meta")]
        return [[change["field"] for change in meta["changes"]] for meta in metas]

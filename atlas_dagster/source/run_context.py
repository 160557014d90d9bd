"""The context in which connectors run: deployment, owner, environment, limits."""

from collections.abc import Mapping

from msgspec import Struct, field

from atlas_dagster.config.renewable_config import ConfigStore
from atlas_dagster.listener import Listener
from atlas_dagster.protocol.messages import Spec
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import CONNECTION_LABEL, DEPLOYMENT_LABEL, OWNER_LABEL

_MOST_SPECS = 200


class SpecCache:
    """SPECs by the identity of their connector; the oldest are dropped first."""

    def __init__(self) -> None:
        self._specs: dict[str, Spec] = {}

    def get(self, identity: str) -> Spec | None:
        return self._specs.get(identity)

    def put(self, identity: str, spec: Spec) -> None:
        if len(self._specs) >= _MOST_SPECS:
            self._specs.pop(next(iter(self._specs)), None)
        self._specs[identity] = spec


class RunContext(Struct, frozen=True, kw_only=True):
    """The settings that a connector's run needs besides its connection.

    ``deployment`` is the deployment's name, with its lake; other deployments' containers are safe.
    ``owner`` is the process that runs the connector, and its Dagster run; see ``runners/owner.py``.
    ``environ`` has the values of ``{{ env.X }}``. ``configs`` keeps config renewals. ``limits``
    apply to connections without limits of their own.
    """

    deployment: str
    owner: str
    environ: Mapping[str, str]
    configs: ConfigStore
    limits: ExecutorConfig = field(default_factory=ExecutorConfig)
    listener: Listener = field(default_factory=Listener)
    specs: SpecCache = field(default_factory=SpecCache)

    def labels(self, connection: str) -> dict[str, str]:
        """Return the labels of the containers of ``connection``."""
        return {
            CONNECTION_LABEL: connection,
            DEPLOYMENT_LABEL: self.deployment,
            OWNER_LABEL: self.owner,
        }

"""Steps on Kubernetes, with the connector as a second container in the step's pod.

The step itself loads the rows, as with other runners. Only the place of the connector differs, and
no data passes through the cluster's API.
"""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.definitions.io_manager import default_resources
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.runners.base import CONTAINER_ENV
from atlas_dagster.runners.pod import AGENT
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.runner_choice import POD_FOLDER_VARIABLE, choose_limits

#: The tag that dagster-k8s reads.
TAG = "dagster-k8s/config"
_FOLDER = "/atlas-pod"
_VOLUME = "atlas-pod"
#: The user of Airbyte's images. Both containers have it, so they can read each other's files.
_USER = 1000


def pod_tags(connection: Connection) -> dict[str, Any]:
    """Return the tags of the connection's ops: its pod, if its runner is ``kubernetes``.

    The connector is a native sidecar (Kubernetes 1.29): it starts before the step and ends with it.
    Kubernetes restarts it if it is killed.
    """
    if connection.runner != "kubernetes":
        return {}
    atlas: AtlasResource = default_resources()["atlas"]
    ref = ConnectorRef.resolve(connection)
    limits = choose_limits(ref, atlas.executor_defaults())
    mounts = [{"name": _VOLUME, "mount_path": _FOLDER}]
    connector = {
        "name": "connector",
        "image": ref.image,
        "image_pull_policy": {"missing": "IfNotPresent", "always": "Always", "never": "Never"}[
            limits.pull
        ],
        "restart_policy": "Always",
        "command": ["sh", "-c", AGENT],
        "env": [
            {"name": "ATLAS_FOLDER", "value": _FOLDER},
            *({"name": name, "value": value} for name, value in CONTAINER_ENV.items()),
        ],
        "volume_mounts": mounts,
        "resources": {
            "limits": {"cpu": str(limits.cpu_limit), "memory": str(limits.memory_bytes)},
        },
        "security_context": {
            "allow_privilege_escalation": False,
            "capabilities": {"drop": ["ALL"], "add": list(limits.cap_add)},
        },
    }
    return {
        TAG: {
            "container_config": {
                "env": [{"name": POD_FOLDER_VARIABLE, "value": _FOLDER}],
                "volume_mounts": mounts,
            },
            "pod_spec_config": {
                "init_containers": [connector],
                # In memory, because the config is a file there.
                "volumes": [{"name": _VOLUME, "empty_dir": {"medium": "Memory"}}],
                "security_context": {
                    "run_as_user": _USER,
                    "run_as_group": _USER,
                    "fs_group": _USER,
                },
            },
        }
    }


def pod_executor(assets: Iterable[object]) -> dg.ExecutorDefinition | None:
    """Return the executor that starts a pod for each step, if one of ``assets`` needs it.

    Raises:
        ConfigError: dagster-k8s is not installed.
    """
    ops = (asset.node_def for asset in assets if isinstance(asset, dg.AssetsDefinition))
    if not any(TAG in op.tags for op in ops):
        return None
    try:
        from dagster_k8s import k8s_job_executor
    except ImportError as error:
        raise ConfigError(
            "The runner kubernetes needs an extra; run: pip install 'atlas-dagster[kubernetes]'"
        ) from error
    return k8s_job_executor

"""Steps on Kubernetes whose connector runs beside them, in the same pod.

The step's own process does what it does everywhere; only where the connector is differs. So there
is no second program to load rows, and nothing passes through the cluster's API.
"""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.definitions.io_manager import default_resources
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.runners.connector_env import CONTAINER_ENV
from atlas_dagster.runners.pod import AGENT
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.runner_choice import POD_FOLDER_VARIABLE, limits_of

#: Read by dagster-k8s, whose ``k8s_job_executor`` gives each step a pod.
TAG = "dagster-k8s/config"
_FOLDER = "/atlas-pod"
_VOLUME = "atlas-pod"
#: Of Airbyte's images; both containers have it, so each can read what the other writes.
_USER = 1000


def pod_tags(connection: Connection) -> dict[str, Any]:
    """Tags for the ops of ``connection``: its pod, where it asks for one.

    The connector is a native sidecar (Kubernetes 1.29): it is there before the step and ends with
    it, and where it was killed, the next call finds it again.
    """
    if connection.runner != "kubernetes":
        return {}
    atlas: AtlasResource = default_resources()["atlas"]
    ref = ConnectorRef.resolve(connection)
    limits = limits_of(ref, atlas.executor_defaults())
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
                # In memory: the config is a file there.
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
    """Dagster's executor that gives each step a pod, where one of ``assets`` asks for it.

    Raises:
        ConfigError: it is not installed.
    """
    ops = (asset.node_def for asset in assets if isinstance(asset, dg.AssetsDefinition))
    if not any(TAG in op.tags for op in ops):
        return None
    try:
        from dagster_k8s import k8s_job_executor
    except ImportError as error:
        raise ConfigError(
            "The runner kubernetes is an extra; install it: pip install 'atlas-dagster[kubernetes]'"
        ) from error
    return k8s_job_executor

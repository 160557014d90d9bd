"""Dagster's web server, talked to over GraphQL as its UI does."""

import time
from collections.abc import Callable, Collection
from typing import Any

import requests

LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "atlas_dagster"}
ENDED = ("SUCCESS", "FAILURE", "CANCELED")

_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { loadStatus
    locationOrLoadError { __typename ... on PythonError { message } } } } } }"""

_LAUNCH = """mutation($params: ExecutionParams!) {
    launchPipelineExecution(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""

_EVENTS = """query($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
    __typename
    ... on MessageEvent { message stepKey eventType timestamp }
    ... on ErrorEvent { error { message } }
    ... on DisplayableEvent { metadataEntries { label
        ... on TextMetadataEntry { text } ... on JsonMetadataEntry { jsonString } } }
    ... on ExecutionStepFailureEvent { failureMetadata { description } }
    ... on AssetCheckEvaluationEvent { evaluation { success description } } } } } }"""

_RETRIES = """query($filter: RunsFilter!) { runsOrError(filter: $filter) {
    ... on Runs { results { runId } } } }"""

_FREE_SLOTS = "mutation($run: String!) { freeConcurrencySlots(runId: $run) }"

_TERMINATE = """mutation($run: String!, $policy: TerminateRunPolicy!) {
    terminateRun(runId: $run, terminatePolicy: $policy) {
    __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }"""

_RELOAD = """mutation { reloadRepositoryLocation(repositoryLocationName: "atlas_dagster") {
    __typename ... on PythonError { message }
    ... on WorkspaceLocationEntry { loadStatus
        locationOrLoadError { __typename ... on PythonError { message } } } } }"""

_ASSET = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
    __typename ... on AssetNode { groupName description
        assetMaterializations(limit: 20) { runId metadataEntries { label
            ... on IntMetadataEntry { intValue } ... on JsonMetadataEntry { jsonString }
            ... on TextMetadataEntry { text } } } } } }"""

_SENSOR = """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) {
    ... on Sensor { sensorState { status ticks { status skipReason runIds timestamp
        error { message } } } } } }"""


def wait_until(what: str, check: Callable[[], Any], *, seconds: float, every: float = 0.3) -> Any:
    """The first truthy answer of ``check``."""
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(every)
    return answer


class WebServer:
    """The one at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def is_loaded(self) -> bool:
        """Whether it answers, and has loaded its code location."""
        try:
            entries = self.graphql(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        except requests.ConnectionError:
            return False
        for entry in entries:
            loaded = entry["locationOrLoadError"] or {}
            assert loaded.get("__typename") != "PythonError", loaded["message"]
        return [entry["loadStatus"] for entry in entries] == ["LOADED"]

    def graphql(self, query: str, **variables: Any) -> Any:
        body = {"query": query, "variables": variables}
        answer = requests.post(f"{self.url}/graphql", json=body, timeout=60).json()
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def launch(self, *assets: str, checks: Collection[tuple[str, str]] | None = None) -> str:
        """Launch a run of ``assets`` (and of the ``checks``, by asset and name); its id."""
        selector: dict[str, Any] = LOCATION | {
            "jobName": "__ASSET_JOB",
            "assetSelection": [_key(asset) for asset in assets],
        }
        if checks is not None:
            selector["assetCheckSelection"] = [
                {"assetKey": _key(asset), "name": name} for asset, name in checks
            ]
        params = {"selector": selector, "mode": "default", "runConfigData": {}}
        launched = self.graphql(_LAUNCH, params=params)["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def terminate(self, run: str, *, by_force: bool = False) -> None:
        policy = "MARK_AS_CANCELED_IMMEDIATELY" if by_force else "SAFE_TERMINATE"
        answer = self.graphql(_TERMINATE, run=run, policy=policy)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def status(self, run: str) -> str:
        query = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
        return str(self.graphql(query, run=run)["runOrError"]["status"])

    def wait(self, run: str, *, seconds: float = 90) -> str:
        """The status the run ends in."""
        ended = lambda: self.status(run) in ENDED  # noqa: E731
        wait_until(f"run {run} ends", ended, seconds=seconds)
        return self.status(run)

    def materialize(self, *assets: str, seconds: float = 90) -> str:
        """Launch a run, see it succeed; its id."""
        run = self.launch(*assets)
        assert self.wait(run, seconds=seconds) == "SUCCESS", self.failures(run)
        return run

    def events(
        self, run: str, kind: str | None = None, *, syncing: str | None = None
    ) -> list[dict[str, Any]]:
        """The run's events, all or those of one type (``AssetCheckEvaluationEvent``), of all steps
        or of the sync of one connection."""
        found = self.graphql(_EVENTS, run=run)["logsForRun"]["events"]
        return [
            event
            for event in found
            if kind in (None, event["__typename"])
            and (syncing is None or event["stepKey"] == f"{syncing}__sync")
        ]

    def failures(self, run: str) -> list[str]:
        """What each failed step says: Atlas's sentence, or Dagster's message."""
        return [
            (event["failureMetadata"] or {}).get("description") or event["error"]["message"]
            for event in self.events(run, "ExecutionStepFailureEvent")
        ]

    def retry_of(self, run: str) -> str:
        """The run that Dagster launches in place of one that crashed."""
        parent = {"tags": [{"key": "dagster/parent_run_id", "value": run}]}
        found = lambda: self.graphql(_RETRIES, filter=parent)["runsOrError"]["results"]  # noqa: E731
        return str(wait_until(f"run {run} is retried", found, seconds=60)[0]["runId"])

    def free_slots(self, run: str) -> None:
        """What the UI's button does for pool slots that a crashed run still holds."""
        assert self.graphql(_FREE_SLOTS, run=run)["freeConcurrencySlots"]

    def reload(self) -> None:
        entry = self.graphql(_RELOAD)["reloadRepositoryLocation"]
        assert entry["__typename"] == "WorkspaceLocationEntry", entry
        assert entry["loadStatus"] == "LOADED", entry
        assert entry["locationOrLoadError"]["__typename"] != "PythonError", entry

    def asset(self, asset: str) -> dict[str, Any] | None:
        """The asset's definition and newest materializations; None where it is not defined."""
        node = self.graphql(_ASSET, key=_key(asset))["assetNodeOrError"]
        return node if node["__typename"] == "AssetNode" else None

    def sensor(self, name: str) -> dict[str, Any]:
        """Its status and ticks, newest first."""
        found = self.graphql(_SENSOR, sensor=LOCATION | {"sensorName": name})
        return dict(found["sensorOrError"]["sensorState"])


def _key(asset: str) -> dict[str, list[str]]:
    return {"path": asset.split("/")}

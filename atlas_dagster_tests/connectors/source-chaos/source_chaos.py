#!/usr/bin/env python3
"""A source connector that misbehaves in one way at a time, chosen by the config key ``scenario``.

``docs/misbehaviour.md`` lists the scenarios with what Atlas does in each. A scenario belongs to a
verb, mostly READ; at the others the connector behaves. Further config keys are the scenario's
parameters. SPEC is given no config: there the tag of the image names the scenario.

The streams ``a`` and ``b`` have the same columns; ``id`` is their key and their cursor, a STATE's
blob is ``{"at": <last id>}``.
"""

import argparse
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import printing  # noqa: F401 - registers its scenarios, like the next one
import processes  # noqa: F401
from emitters import SCENARIOS, catalog, connection_status, files, line, say
from reading import well_behaved

COLUMNS: dict[str, Any] = {
    "id": {"type": "integer"},
    "v": {"type": "string"},
    "n": {"type": "number"},
    "o": {"type": "object"},
}
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
SECRETS = ("password", "token")


def spec() -> dict[str, Any]:
    """The scenarios and all their parameters."""
    properties: dict[str, Any] = {"scenario": {"type": "string", "enum": sorted(SCENARIOS)}}
    for _, play in SCENARIOS.values():
        for parameter in inspect.signature(play).parameters.values():
            properties[parameter.name] = {"type": JSON_TYPES[type(parameter.default)]}
    for name in SECRETS:
        properties[name]["airbyte_secret"] = True
    schema = {"type": "object", "required": ["scenario"], "properties": properties}
    return {"connectionSpecification": schema}


def behave(verb: str) -> None:
    match verb:
        case "spec":
            say(line("SPEC", spec=spec()))
        case "check":
            say(connection_status("SUCCEEDED", ""))
        case "discover":
            say(catalog("a", "b", columns=COLUMNS))
        case "read":
            well_behaved()


def main() -> int:
    parser = argparse.ArgumentParser(prog="source-chaos")
    parser.add_argument("verb", choices=["spec", "check", "discover", "read"])
    for option in ("config", "catalog", "state"):
        parser.add_argument(f"--{option}", type=Path)
    arguments = vars(parser.parse_args())
    verb = arguments.pop("verb")
    files.update({option: path for option, path in arguments.items() if path})
    if "config" in files:
        config = json.loads(files["config"].read_bytes())
        home, play = SCENARIOS[config.pop("scenario")]
    else:
        tag = os.environ.get("WORKER_CONNECTOR_IMAGE", "").rpartition(":")[2]
        config, (home, play) = {}, SCENARIOS.get(tag, ("read", well_behaved))
    if verb == home:
        return play(**config) or 0
    behave(verb)
    return 0


if __name__ == "__main__":
    sys.exit(main())

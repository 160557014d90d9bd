"""Connectors written as a declarative manifest: YAML that the CDK runs.

``source-declarative-manifest`` is the connector of them all. It takes the manifest as a file, and
is a command of the package ``airbyte-cdk`` as well as an image, with the versions of the CDK.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import yaml

from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.base import (
    ConnectorCommand,
    ConnectorProcess,
    EnginePlace,
    ExitStatus,
    Output,
    Runner,
)

CDK_PACKAGE = "airbyte-cdk"
EXECUTABLE = "source-declarative-manifest"
IMAGE = f"airbyte/{EXECUTABLE}"
#: Runs what was written for it or for an older one. Those before 6.54 take no manifest as a file.
CDK_VERSION = "7.39.1"

#: The CDK refuses code that comes with a manifest unless told that somebody vouches for it: here
#: the user, in whose project it is, or Airbyte, who published it (CDK ``custom_code_compiler.py``).
_TRUSTED = {"AIRBYTE_ENABLE_UNSAFE_CODE": "true"}
_REFERENCE = "$ref"


class Manifest:
    """A declarative manifest and the ``components.py`` beside it, if it has one."""

    def __init__(self, name: str, content: bytes, components: bytes | None = None) -> None:
        """``name`` is for messages.

        Raises:
            ConfigError: it is no manifest, or lacks the SPEC.
        """
        self.name = name
        self.content = content
        self.components = components
        try:
            parsed = yaml.load(content, _LOADER)  # noqa: S506 - both loaders are safe ones
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or error
            raise ConfigError(f"{name}{where}: this is not valid YAML ({problem}).") from error
        if not isinstance(parsed, Mapping) or parsed.get("type") != "DeclarativeSource":
            raise ConfigError(f"{name} is no manifest: it has no `type: DeclarativeSource`.")
        self.version = str(parsed.get("version", ""))
        self.spec = _spec(name, parsed)

    @property
    def cdk_version(self) -> str:
        """The CDK to run it with: ours, or the one it was written for where that is newer."""
        return max(CDK_VERSION, self.version, key=_release)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content + (self.components or b"")).hexdigest()


class ManifestRunner(Runner):
    """Runs a manifest through ``runner``, which runs ``source-declarative-manifest``."""

    def __init__(self, manifest: Manifest, runner: Runner) -> None:
        self.kind = runner.kind
        self.reference = f"{manifest.name} ({runner.reference})"
        self.executor = runner.executor
        self._manifest = manifest
        self._runner = runner

    def prepare(self) -> None:
        self._runner.prepare()

    def close(self) -> None:
        self._runner.close()

    @property
    def engine_place(self) -> EnginePlace | None:
        return self._runner.engine_place

    def identity(self) -> str:
        manifest = f"{self._manifest.name}@sha256:{self._manifest.digest}"
        return f"{manifest} ({self._runner.identity()})"

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        if command.verb == "spec":
            # The executable would give its own, which asks for a manifest.
            return _Answer(msgspec.json.encode({"type": "SPEC", "spec": self._manifest.spec}))
        files = {**command.files, "manifest-path": self._manifest.content}
        if self._manifest.components is not None:
            files["components-path"] = self._manifest.components
        environment = {**command.environment, **_TRUSTED}
        return self._runner.start(replace(command, files=files, environment=environment))


class _Answer(ConnectorProcess):
    """What a connector would print, known without running it."""

    def __init__(self, line: bytes) -> None:
        self._line = line

    def output(self) -> Iterator[Output]:
        yield "stdout", self._line + b"\n"

    def wait(self) -> ExitStatus:
        return ExitStatus(0)

    def close(self) -> None:
        pass


#: The parser in C where PyYAML has it: a manifest may be tens of thousands of lines long.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _spec(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The SPEC as the protocol has it (CDK ``declarative/spec/spec.py``)."""
    try:
        spec = _resolved(manifest.get("spec"), manifest)
    except (KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{name}: its spec refers to what the manifest does not have.") from error
    if not isinstance(spec, Mapping) or not isinstance(spec.get("connection_specification"), dict):
        raise ConfigError(
            f"{name} does not say what config it takes; add spec with connection_specification."
        )
    found = {"connectionSpecification": spec["connection_specification"]}
    if "documentation_url" in spec:
        found["documentationUrl"] = spec["documentation_url"]
    return found


def _resolved(value: Any, manifest: Mapping[str, Any]) -> Any:
    """``value`` with every ``$ref: "#/path"`` replaced; keys beside one win over what it brings."""
    if isinstance(value, list):
        return [_resolved(item, manifest) for item in value]
    if not isinstance(value, Mapping):
        return value
    own = {key: _resolved(item, manifest) for key, item in value.items() if key != _REFERENCE}
    reference = value.get(_REFERENCE)
    if not isinstance(reference, str):
        return own
    target: Any = manifest
    for part in reference.removeprefix("#/").split("/"):
        target = target[int(part)] if isinstance(target, list) else target[part]
    target = _resolved(target, manifest)
    return {**target, **own} if isinstance(target, Mapping) else target


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])

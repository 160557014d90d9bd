"""Connectors written as a declarative manifest: YAML that the CDK runs.

One connector, ``source-declarative-manifest``, runs all manifests, which it takes as files. It is
both a command of the package ``airbyte-cdk`` and an image, and has the same versions as the CDK.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import yaml

from atlas_dagster.connector_versions import release
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
#: The CDK for a manifest without a version.
CDK_VERSION = "7.39.1"
#: Older CDKs take no components from outside their image, or have no command.
_OLDEST = "6.23.0"
#: Older CDKs take a manifest only in the config.
_FIRST_WITH_FILES = "6.54.0"

#: The CDK runs a manifest's Python code only with this permission (``custom_code_compiler.py``).
#: Atlas gives the permission, because the code is from the user's project or from Airbyte. The
#: second name is for older CDKs, such as 6.30.
_TRUSTED = {"AIRBYTE_ENABLE_UNSAFE_CODE": "true", "AIRBYTE_ALLOW_CUSTOM_CODE": "true"}
_REFERENCE = "$ref"


class Manifest:
    """A declarative manifest, and its ``components.py``, if there is one."""

    def __init__(self, name: str, content: bytes, components: bytes | None = None) -> None:
        """``name`` is for messages.

        Raises:
            ConfigError: ``content`` is not a manifest, or lacks the SPEC.
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
        if not isinstance(parsed, Mapping) or not _is_source(parsed):
            raise ConfigError(f"{name} is not a manifest: it has no `type: DeclarativeSource`.")
        self.version = str(parsed.get("version", ""))
        self.spec = _read_spec(name, parsed)
        self._parsed = parsed

    def injected_keys(self) -> dict[str, Any]:
        """Return the config keys with the manifest, for old CDKs (``custom_code_compiler.py``)."""
        # A SPEC without additional properties would refuse a config with these keys.
        schema = {**self.spec["connectionSpecification"], "additionalProperties": True}
        spec = {**_resolve(self._parsed["spec"], self._parsed), "connection_specification": schema}
        injected_keys: dict[str, Any] = {
            "__injected_declarative_manifest": _convert_keys({**self._parsed, "spec": spec})
        }
        if self.components is not None:
            checksum = hashlib.md5(self.components, usedforsecurity=False).hexdigest()
            injected_keys["__injected_components_py"] = self.components.decode()
            injected_keys["__injected_components_py_checksums"] = {"md5": checksum}
        return injected_keys

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content + (self.components or b"")).hexdigest()


@dataclass(frozen=True, slots=True)
class Cdk:
    """The version of the CDK that runs a manifest, and the reason in words."""

    version: str
    why: str


def choose_cdk(manifest: Manifest, *, declared: str | None, published: str | None) -> Cdk:
    """Return the CDK that the connection has ``declared``, or else that of the publication.

    The last choice is the version in the manifest: the language of a newer CDK may differ, and so
    may the classes that the manifest's code uses.

    Raises:
        ConfigError: the declared CDK cannot run a manifest.
    """
    if declared is not None:
        if _is_older(declared, _OLDEST):
            raise ConfigError(
                f"cdk_version {declared} cannot run {manifest.name}; choose {_OLDEST} or newer."
            )
        return Cdk(declared, "the CDK that the connection declares")
    named = published or manifest.version
    if not named:
        return Cdk(CDK_VERSION, "the newest CDK, because the manifest names none")
    origin = "it was published with" if published else "it is written for"
    if _is_older(named, _OLDEST):
        return Cdk(_OLDEST, f"the nearest CDK to the one {origin} ({named})")
    return Cdk(named, f"the CDK {origin}")


class ManifestRunner(Runner):
    """Runs a manifest through ``runner``, which runs ``source-declarative-manifest`` of ``cdk``."""

    def __init__(self, manifest: Manifest, runner: Runner, cdk: Cdk) -> None:
        self.kind = runner.kind
        self.reference = f"{manifest.name} ({runner.reference})"
        self.executor = runner.executor
        self._manifest = manifest
        self._runner = runner
        self._cdk = cdk
        code = "it" if manifest.components is None else "its components.py"
        self.code_note = f"{code} ran with airbyte-cdk {cdk.version}, {cdk.why}"

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
            # The executable would answer with its own SPEC, which requires a manifest.
            return _Answer(msgspec.json.encode({"type": "SPEC", "spec": self._manifest.spec}))
        files = self._files(command)
        environment = {**command.environment, **_TRUSTED}
        return self._runner.start(replace(command, files=files, environment=environment))

    def _files(self, command: ConnectorCommand) -> dict[str, bytes]:
        if _is_older(self._cdk.version, _FIRST_WITH_FILES):
            config = msgspec.json.decode(command.files["config"])
            return {
                **command.files,
                "config": msgspec.json.encode({**config, **self._manifest.injected_keys()}),
            }
        files = {**command.files, "manifest-path": self._manifest.content}
        if self._manifest.components is not None:
            files["components-path"] = self._manifest.components
        return files


class _Answer(ConnectorProcess):
    """The output of a call that does not need to run the connector."""

    def __init__(self, line: bytes) -> None:
        self._line = line

    def output(self) -> Iterator[Output]:
        yield "stdout", self._line + b"\n"

    def wait(self) -> ExitStatus:
        return ExitStatus(0)

    def close(self) -> None:
        pass


#: The parser in C if PyYAML has it, because a manifest may have tens of thousands of lines.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _convert_keys(value: Any) -> Any:
    """Return ``value`` with text keys for JSON; YAML keys may be numbers, dates or booleans."""
    if isinstance(value, list):
        return [_convert_keys(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {_to_text(key): _convert_keys(item) for key, item in value.items()}


def _to_text(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(key, default=str).strip('"')


def _is_source(manifest: Mapping[str, Any]) -> bool:
    """Return whether this is a source; old manifests have no type (CDK ``_fix_source_type``)."""
    untyped = "type" not in manifest and bool({"streams", "dynamic_streams"} & set(manifest))
    return untyped or manifest.get("type") == "DeclarativeSource"


def _read_spec(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the SPEC as in the protocol (CDK ``declarative/spec/spec.py``)."""
    try:
        spec = _resolve(manifest.get("spec"), manifest)
    except (KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{name}: its spec refers to a part that the manifest does not have."
        ) from error
    if not isinstance(spec, Mapping) or not isinstance(spec.get("connection_specification"), dict):
        raise ConfigError(
            f"{name} does not describe its config; add spec with connection_specification."
        )
    found = {"connectionSpecification": spec["connection_specification"]}
    if "documentation_url" in spec:
        found["documentationUrl"] = spec["documentation_url"]
    return found


def _resolve(value: Any, manifest: Mapping[str, Any]) -> Any:
    """Replace each ``$ref: "#/path"`` in ``value``. Keys next to a reference take precedence."""
    if isinstance(value, list):
        return [_resolve(item, manifest) for item in value]
    if not isinstance(value, Mapping):
        return value
    own = {key: _resolve(item, manifest) for key, item in value.items() if key != _REFERENCE}
    reference = value.get(_REFERENCE)
    if not isinstance(reference, str):
        return own
    target: Any = manifest
    for part in reference.removeprefix("#/").split("/"):
        target = target[int(part)] if isinstance(target, list) else target[part]
    target = _resolve(target, manifest)
    return {**target, **own} if isinstance(target, Mapping) else target


def _is_older(version: str, than: str) -> bool:
    """Return whether ``version`` is before ``than``; False for ``latest``."""
    numbers = release(version)
    return bool(numbers) and numbers < release(than)

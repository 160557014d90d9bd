"""Declarative manifests: what they say of themselves, and how they reach the connector."""

import json
from typing import Any

import pytest
import yaml

from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.runners.manifest import CDK_VERSION, Manifest, ManifestRunner

SPEC = {"type": "Spec", "connection_specification": {"type": "object", "properties": {}}}


def manifest(components: bytes | None = None, **keys: Any) -> Manifest:
    content = {"type": "DeclarativeSource", "spec": SPEC, **keys}
    return Manifest("manifest.yaml", yaml.safe_dump(content).encode(), components)


def spec_of(manifest: Manifest) -> Any:
    """What the runner answers to SPEC without a connector."""
    fake = FakeRunner(lambda _: [])
    with ManifestRunner(manifest, fake).start(ConnectorCommand("spec")) as process:
        ((channel, line),) = process.output()
        assert (channel, process.wait().code) == ("stdout", 0)
    assert fake.commands == []
    message = json.loads(line)
    assert message["type"] == "SPEC"
    return message["spec"]


def test_spec_is_what_the_manifest_says() -> None:
    found = manifest(
        definitions={"key": {"type": "string", "airbyte_secret": True}, "keys": [{"minLength": 1}]},
        spec={
            "documentation_url": "https://example.com",
            "connection_specification": {
                "properties": {
                    "key": {"$ref": "#/definitions/key", "title": "Key"},
                    "other": {"allOf": [{"$ref": "#/definitions/keys/0"}]},
                }
            },
        },
    )

    assert spec_of(found) == {
        "documentationUrl": "https://example.com",
        "connectionSpecification": {
            "properties": {
                "key": {"type": "string", "airbyte_secret": True, "title": "Key"},
                "other": {"allOf": [{"minLength": 1}]},
            }
        },
    }


@pytest.mark.parametrize(
    ("written", "run"),
    [("0.29.0", CDK_VERSION), (CDK_VERSION, CDK_VERSION), ("99.1.0", "99.1.0"), ("", CDK_VERSION)],
)
def test_the_cdk_is_ours_unless_the_manifest_needs_a_newer_one(written: str, run: str) -> None:
    assert manifest(version=written).cdk_version == run


@pytest.mark.parametrize("components", [None, b"import os"])
def test_a_call_brings_the_manifest_along(components: bytes | None) -> None:
    fake = FakeRunner(lambda _: [])
    found = manifest(components)
    ManifestRunner(found, fake).start(ConnectorCommand("check", {"config": b"{}"}, {"a": "b"}))

    (command,) = fake.commands
    assert command.files == {
        "config": b"{}",
        "manifest-path": found.content,
        **({} if components is None else {"components-path": components}),
    }
    assert command.labels == {"a": "b"}
    assert command.environment == {"AIRBYTE_ENABLE_UNSAFE_CODE": "true"}


def test_its_identity_changes_with_its_content() -> None:
    fake = FakeRunner(lambda _: [])
    identities = {
        ManifestRunner(each, fake).identity()
        for each in (manifest(), manifest(), manifest(version="1"), manifest(b"import os"))
    }
    assert len(identities) == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [b\nc: d\n", "manifest.yaml, line 2: this is not valid YAML (did not find"),
        ("[]", "manifest.yaml is no manifest: it has no `type: DeclarativeSource`."),
        ("", "manifest.yaml is no manifest: it has no `type: DeclarativeSource`."),
        (
            "type: DeclarativeSource",
            "manifest.yaml does not say what config it takes; add spec with "
            "connection_specification.",
        ),
        (
            "{type: DeclarativeSource, spec: {$ref: '#/definitions/spec'}}",
            "manifest.yaml: its spec refers to what the manifest does not have.",
        ),
        (
            "{type: DeclarativeSource, spec: {$ref: '#/spec'}}",
            "manifest.yaml: its spec refers to what the manifest does not have.",
        ),
    ],
)
def test_what_is_no_manifest(content: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Manifest("manifest.yaml", content.encode())
    assert str(caught.value).startswith(sentence)

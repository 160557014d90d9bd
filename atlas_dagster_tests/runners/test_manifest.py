"""Declarative manifests: what they say of themselves, and how they reach the connector."""

import hashlib
import json
from typing import Any

import pytest
import yaml

from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.runners.manifest import CDK_VERSION, Cdk, Manifest, ManifestRunner, choose_cdk

TRUSTED = {"AIRBYTE_ENABLE_UNSAFE_CODE": "true", "AIRBYTE_ALLOW_CUSTOM_CODE": "true"}
NEWEST = Cdk(CDK_VERSION, "the newest CDK")
OLDER = Cdk("6.48.10", "the CDK it was published with")
SPEC = {"type": "Spec", "connection_specification": {"type": "object", "properties": {}}}


def manifest(components: bytes | None = None, **keys: Any) -> Manifest:
    content = {"type": "DeclarativeSource", "spec": SPEC, **keys}
    return Manifest("manifest.yaml", yaml.safe_dump(content).encode(), components)


def spec_of(manifest: Manifest) -> Any:
    """What the runner answers to SPEC without a connector."""
    fake = FakeRunner(lambda _: [])
    with ManifestRunner(manifest, fake, NEWEST).start(ConnectorCommand("spec")) as process:
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
    ("written", "version", "why"),
    [
        ("", CDK_VERSION, "the newest CDK, because the manifest names none"),
        ("0.29.0", "6.23.0", "the nearest CDK to the one it is written for (0.29.0)"),
        ("6.48.10", "6.48.10", "the CDK it is written for"),
        ("99.1.0", "99.1.0", "the CDK it is written for"),
    ],
)
def test_the_cdk_of_a_manifest_that_nobody_says_more_about(
    written: str, version: str, why: str
) -> None:
    found = choose_cdk(manifest(version=written), declared=None, published=None)
    assert found == Cdk(version, why)


@pytest.mark.parametrize(
    ("published", "version", "why"),
    [
        ("6.48.10", "6.48.10", "the CDK it was published with"),
        ("6.23.0", "6.23.0", "the CDK it was published with"),
        ("5.17.0", "6.23.0", "the nearest CDK to the one it was published with (5.17.0)"),
    ],
)
def test_the_cdk_of_a_published_manifest(published: str, version: str, why: str) -> None:
    found = choose_cdk(manifest(version="4.3.0"), declared=None, published=published)
    assert found == Cdk(version, why)


def test_the_cdk_that_a_connection_declares() -> None:
    for declared in ("6.23.0", "8.0.0", "latest"):
        found = choose_cdk(manifest(version="7.0.0"), declared=declared, published=None)
        assert found == Cdk(declared, "the CDK that the connection declares")
    with pytest.raises(ConfigError) as caught:
        choose_cdk(manifest(), declared="6.22.0", published=None)
    assert str(caught.value) == (
        "cdk_version 6.22.0 cannot run manifest.yaml; choose 6.23.0 or newer."
    )


def test_an_older_cdk_gets_the_manifest_in_its_config() -> None:
    fake = FakeRunner(lambda _: [])
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    found = manifest(
        b"import os",
        spec={"$ref": "#/definitions/spec"},
        definitions={"spec": {"connection_specification": closed, "advanced_auth": {"a": "b"}}},
    )
    runner = ManifestRunner(found, fake, OLDER)
    runner.start(ConnectorCommand("read", {"config": b'{"key": 1}', "state": b"[]"}))

    (command,) = fake.commands
    assert set(command.files) == {"config", "state"}
    config = json.loads(command.files["config"])
    assert config["key"] == 1
    assert config["__injected_components_py"] == "import os"
    assert config["__injected_components_py_checksums"] == {
        "md5": hashlib.md5(b"import os", usedforsecurity=False).hexdigest()
    }
    injected = config["__injected_declarative_manifest"]
    assert injected["type"] == "DeclarativeSource"
    # Its SPEC lets the config hold these keys; all else in it stays.
    assert injected["spec"]["connection_specification"]["additionalProperties"] is True
    assert injected["spec"]["advanced_auth"] == {"a": "b"}
    assert command.environment == TRUSTED


def test_keys_that_are_no_text_reach_an_older_cdk_as_text() -> None:
    written = b"{type: DeclarativeSource, spec: {connection_specification: {type: object}}, "
    written += b"x: [{on: 1, 2: a, ~: b, 2024-01-01: {2.5: 2024-01-01}}]}"
    fake = FakeRunner(lambda _: [])
    runner = ManifestRunner(Manifest("manifest.yaml", written), fake, OLDER)
    runner.start(ConnectorCommand("check", {"config": b"{}"}))
    injected = json.loads(fake.commands[0].files["config"])["__injected_declarative_manifest"]
    assert injected["x"] == [
        {"true": 1, "2": "a", "null": "b", "2024-01-01": {"2.5": "2024-01-01"}}
    ]


def test_errors_note_what_ran_the_code() -> None:
    fake = FakeRunner(lambda _: [])
    assert fake.code_note == ""
    assert ManifestRunner(manifest(), fake, NEWEST).code_note == (
        f"it ran with airbyte-cdk {CDK_VERSION}, the newest CDK"
    )
    assert ManifestRunner(manifest(b"import os"), fake, OLDER).code_note == (
        "its components.py ran with airbyte-cdk 6.48.10, the CDK it was published with"
    )


@pytest.mark.parametrize("components", [None, b"import os"])
def test_a_call_brings_the_manifest_along(components: bytes | None) -> None:
    fake = FakeRunner(lambda _: [])
    found = manifest(components)
    ManifestRunner(found, fake, NEWEST).start(
        ConnectorCommand("check", {"config": b"{}"}, {"a": "b"})
    )

    (command,) = fake.commands
    assert command.files == {
        "config": b"{}",
        "manifest-path": found.content,
        **({} if components is None else {"components-path": components}),
    }
    assert command.labels == {"a": "b"}
    assert command.environment == TRUSTED


def test_its_identity_changes_with_its_content() -> None:
    fake = FakeRunner(lambda _: [])
    identities = {
        ManifestRunner(each, fake, NEWEST).identity()
        for each in (manifest(), manifest(), manifest(version="1"), manifest(b"import os"))
    }
    assert len(identities) == 3


def test_an_old_manifest_leaves_its_type_out() -> None:
    content = yaml.safe_dump({"version": "0.29.0", "streams": [], "spec": SPEC}).encode()
    assert Manifest("manifest.yaml", content).version == "0.29.0"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [b\nc: d\n", "manifest.yaml, line 2: this is not valid YAML (did not find"),
        ("[]", "manifest.yaml is not a manifest: it has no `type: DeclarativeSource`."),
        ("", "manifest.yaml is not a manifest: it has no `type: DeclarativeSource`."),
        ("spec: {}", "manifest.yaml is not a manifest: it has no `type: DeclarativeSource`."),
        (
            "{type: Other, streams: []}",
            "manifest.yaml is not a manifest: it has no `type: DeclarativeSource`.",
        ),
        (
            "type: DeclarativeSource",
            "manifest.yaml does not describe its config; add spec",
        ),
        (
            "{type: DeclarativeSource, spec: {$ref: '#/definitions/spec'}}",
            "manifest.yaml: its spec refers to",
        ),
        (
            "{type: DeclarativeSource, spec: {$ref: '#/spec'}}",
            "manifest.yaml: its spec refers to",
        ),
    ],
)
def test_what_is_no_manifest(content: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Manifest("manifest.yaml", content.encode())
    assert str(caught.value).startswith(sentence)

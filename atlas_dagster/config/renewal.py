"""Values in a config that the connector renewed (CONTROL ``CONNECTOR_CONFIG``), such as a token.

A source with single-use refresh tokens needs the newest one in the next call, or it loses access.
The CDK sends its whole config. Atlas keeps only the differences from the user's declaration, each
with a salted hash of the declared value, so that a later edit by the user takes precedence. For a
key that the connector added, the hash is of the object around the key: an edit of the object makes
the added key outdated.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from atlas_dagster.format_versions import version_of

#: The format version of renewals and declaration hashes. Version 1 does not store its number.
VERSION = 1
#: Keys that the CDK adds to a config for itself (CDK ``entrypoint.py``).
_INJECTED = "__injected"

ConfigPath = tuple[str, ...]


class Renewed(Struct, frozen=True):
    """One value that the connector changed. ``declared`` is the hash of the declared value."""

    path: ConfigPath
    value: Any
    declared: str


class Renewal(Struct, frozen=True):
    """All values in the config of one connection that its connector changed."""

    salt: str
    values: tuple[Renewed, ...] = ()

    @classmethod
    def diff(cls, declared: Mapping[str, Any], renewed: Mapping[str, Any]) -> "Renewal":
        """Return the differences between ``declared`` and ``renewed``."""
        salt = secrets.token_hex(16)
        return cls(
            salt,
            tuple(
                Renewed(path, value, _hash(salt, _find_nearest(declared, path)))
                for path, value in _find_differences(declared, renewed)
            ),
        )

    def apply_to(self, declared: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``declared`` with the renewed values, except those that the user edited since."""
        config = merge(declared, {})
        for renewed in self.values:
            if _hash(self.salt, _find_nearest(declared, renewed.path)) == renewed.declared:
                config = merge(config, _nest(renewed.path, renewed.value))
        return config

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes) -> "Renewal":
        """Read renewals of any version so far.

        Raises:
            ConfigError: a newer Atlas wrote them.
            msgspec.MsgspecError: ``content`` is not a renewal.
        """
        version_of(content, known=VERSION, what="The renewed config of a connection")
        return msgspec.json.decode(content, type=cls)


class DeclarationHash(Struct, frozen=True):
    """A hash of the declared values that a renewal replaces, stored beside an encrypted renewal.

    Without the key, the hash still shows whether the user edited these values since. It is slow to
    compute, so that secrets cannot be guessed from it.
    """

    paths: tuple[ConfigPath, ...]
    salt: str
    declared: str

    @classmethod
    def of(cls, renewal: Renewal, declared: Mapping[str, Any]) -> "DeclarationHash":
        paths = tuple(renewed.path for renewed in renewal.values)
        return cls(paths, renewal.salt, _slow_hash(renewal.salt, declared, paths))

    def is_in(self, declared: Mapping[str, Any]) -> bool:
        """Return whether ``declared`` still has the same values."""
        return _slow_hash(self.salt, declared, self.paths) == self.declared

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes | str) -> "DeclarationHash":
        version_of(content, known=VERSION, what="The renewed config of a connection")
        return msgspec.json.decode(content, type=cls)


def merge(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with ``changes``: objects are merged, other values replaced."""
    result = dict(config)
    for key, value in changes.items():
        if key.startswith(_INJECTED):
            continue
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = merge(before, value)
        else:
            result[key] = value
    return result


def _find_differences(
    declared: Mapping[str, Any], renewed: Mapping[str, Any], above: ConfigPath = ()
) -> Iterator[tuple[ConfigPath, Any]]:
    for key, value in renewed.items():
        before = declared.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            yield from _find_differences(before, value, (*above, key))
        elif key not in declared or not _is_same(before, value):
            yield (*above, key), value


def _is_same(one: Any, other: Any) -> bool:
    """Compare as JSON, because True equals 1 in Python."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _find_nearest(config: Any, path: ConfigPath) -> Any:
    """Return the value at ``path``, or at the longest part of ``path`` that exists."""
    for key in path:
        if not isinstance(config, Mapping) or key not in config:
            break
        config = config[key]
    return config


def _nest(path: ConfigPath, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def _hash(salt: str, value: Any) -> str:
    return hashlib.sha256(f"{salt}{json.dumps(value, sort_keys=True)}".encode()).hexdigest()


def _slow_hash(salt: str, config: Mapping[str, Any], paths: tuple[ConfigPath, ...]) -> str:
    """Return a hash of the values at ``paths``."""
    values = json.dumps([_find_nearest(config, path) for path in paths], sort_keys=True)
    return hashlib.scrypt(values.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()

"""A config that the connector itself renewed (CONTROL ``CONNECTOR_CONFIG``), such as a new token.

A source with single-use refresh tokens must be given the newest one next time, or it is locked out.
The CDK sends its whole config; kept is only what differs from the user's declaration, each path
beside a salted hash of what was declared there, so that a later edit by the user wins. For a key
the connector added that is the object it was added to: what was derived from it is then outdated.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from atlas_dagster.format_versions import version_of

#: Of renewals and of the hashes beside them. Version 1 does not store it.
VERSION = 1
#: Keys the CDK puts into a config for itself (CDK ``entrypoint.py``).
_INJECTED = "__injected"

ConfigPath = tuple[str, ...]


class Renewed(Struct, frozen=True):
    """One value the connector changed; ``declared`` is the hash of what it replaces."""

    path: ConfigPath
    value: Any
    declared: str


class Renewal(Struct, frozen=True):
    """All values of one connection that its connector changed."""

    salt: str
    values: tuple[Renewed, ...] = ()

    @classmethod
    def diff(cls, declared: Mapping[str, Any], renewed: Mapping[str, Any]) -> "Renewal":
        """What turns ``declared`` into ``renewed``."""
        salt = secrets.token_hex(16)
        return cls(
            salt,
            tuple(
                Renewed(path, value, _hash(salt, _nearest(declared, path)))
                for path, value in _differences(declared, renewed)
            ),
        )

    def applied_to(self, declared: Mapping[str, Any]) -> dict[str, Any]:
        """``declared`` with the renewed values, except where the user has edited it since."""
        config = merged(declared, {})
        for renewed in self.values:
            if _hash(self.salt, _nearest(declared, renewed.path)) == renewed.declared:
                config = merged(config, _nested(renewed.path, renewed.value))
        return config

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes) -> "Renewal":
        """Read renewals of any version so far.

        Raises:
            ConfigError: a newer Atlas wrote them.
            msgspec.MsgspecError: ``content`` is something else.
        """
        version_of(content, known=VERSION, what="The renewed config of a connection")
        return msgspec.json.decode(content, type=cls)


class DeclarationHash(Struct, frozen=True):
    """What a renewal replaces, as a hash to be kept beside it where it is encrypted.

    So it is known even without the key whether the user has edited that since. The hash is slow,
    for declared secrets must not be guessed from it.
    """

    paths: tuple[ConfigPath, ...]
    salt: str
    declared: str

    @classmethod
    def of(cls, renewal: Renewal, declared: Mapping[str, Any]) -> "DeclarationHash":
        paths = tuple(renewed.path for renewed in renewal.values)
        return cls(paths, renewal.salt, _slow_hash(renewal.salt, declared, paths))

    def is_in(self, declared: Mapping[str, Any]) -> bool:
        """Whether all of it is still declared as it was."""
        return _slow_hash(self.salt, declared, self.paths) == self.declared

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes | str) -> "DeclarationHash":
        version_of(content, known=VERSION, what="The renewed config of a connection")
        return msgspec.json.decode(content, type=cls)


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``changes`` laid over it, objects merged and all else replaced."""
    result = dict(config)
    for key, value in changes.items():
        if key.startswith(_INJECTED):
            continue
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = merged(before, value)
        else:
            result[key] = value
    return result


def _differences(
    declared: Mapping[str, Any], renewed: Mapping[str, Any], above: ConfigPath = ()
) -> Iterator[tuple[ConfigPath, Any]]:
    for key, value in renewed.items():
        before = declared.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            yield from _differences(before, value, (*above, key))
        elif key not in declared or not _same(before, value):
            yield (*above, key), value


def _same(one: Any, other: Any) -> bool:
    """As JSON: to Python, True is 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _nearest(config: Any, path: ConfigPath) -> Any:
    """What is declared at ``path``, or else the innermost value on the way there."""
    for key in path:
        if not isinstance(config, Mapping) or key not in config:
            break
        config = config[key]
    return config


def _nested(path: ConfigPath, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def _hash(salt: str, value: Any) -> str:
    return hashlib.sha256(f"{salt}{json.dumps(value, sort_keys=True)}".encode()).hexdigest()


def _slow_hash(salt: str, config: Mapping[str, Any], paths: tuple[ConfigPath, ...]) -> str:
    """Of what is declared at ``paths``."""
    values = json.dumps([_nearest(config, path) for path in paths], sort_keys=True)
    return hashlib.scrypt(values.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()

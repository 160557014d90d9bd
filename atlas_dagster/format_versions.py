"""Versions of what Atlas stores. A newer format is refused; older ones are migrated when read.

A format without a version is of version 1. Each reader has a ladder: it calls :func:`version_of`,
then changes what it read step by step, ``if version == 1: ...``, ``if version <= 2: ...``.
"""

import msgspec
from msgspec import Struct

from atlas_dagster.errors import ConfigError


class _Versioned(Struct):
    version: int = 1


def version_of(content: bytes | str, *, known: int, what: str) -> int:
    """Return the version that ``content``, a JSON object, was written in.

    Args:
        content: what is stored.
        known: the newest version that this Atlas reads.
        what: the subject of the error's sentence.

    Raises:
        ConfigError: a newer Atlas wrote it.
        msgspec.MsgspecError: ``content`` is not such an object.
    """
    version = msgspec.json.decode(content, type=_Versioned).version
    refuse_newer(version, known=known, what=what)
    return version


def refuse_newer(version: int, *, known: int, what: str) -> None:
    """Raise ConfigError if ``version`` is newer than ``known``."""
    if version > known:
        raise ConfigError(
            f"{what} was written by a newer Atlas (format {version}; this one reads up to "
            f"{known}); upgrade Atlas."
        )

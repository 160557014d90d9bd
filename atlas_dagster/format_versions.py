"""Versions of stored formats. A newer version is refused; older ones are migrated when read.

Content without a version has version 1. Each reader calls :func:`version_of`, and then migrates the
content step by step: ``if version == 1: ...``, ``if version <= 2: ...``.
"""

import msgspec
from msgspec import Struct

from atlas_dagster.errors import ConfigError


class _Versioned(Struct):
    version: int = 1


def version_of(content: bytes | str, *, known: int, what: str) -> int:
    """Return the format version of ``content``, a JSON object.

    Args:
        content: the stored JSON.
        known: the newest version that this Atlas reads.
        what: the subject of the error message.

    Raises:
        ConfigError: a newer Atlas wrote the content.
        msgspec.MsgspecError: ``content`` is not a JSON object with a valid version.
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

"""Versions of what Atlas stores: newer ones are refused, older ones migrated when read."""

import msgspec
from msgspec import Struct

from atlas_dagster.errors import ConfigError


class _Versioned(Struct):
    version: int = 1


def version_of(content: bytes | str, *, known: int, what: str) -> int:
    """The version that ``content``, a JSON object, was written in; ``known`` is the newest.

    Raises:
        ConfigError: a newer Atlas wrote it.
        msgspec.MsgspecError: it is no such object.
    """
    version = msgspec.json.decode(content, type=_Versioned).version
    if version > known:
        raise ConfigError(
            f"{what} was written by a newer Atlas (format {version}, and this one reads up to "
            f"{known}); upgrade Atlas."
        )
    return version

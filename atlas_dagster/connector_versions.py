"""Versions of connectors and packages, for comparing."""

from packaging.version import InvalidVersion, Version


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of ``version``, without a suffix such as ``-rc.1``.

    Empty for a tag that is no version, such as ``latest``; so that one comes first.
    """
    try:
        return Version(version.partition("-")[0]).release
    except InvalidVersion:
        return ()

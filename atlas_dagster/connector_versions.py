"""Versions of connectors and packages, for comparing."""

from packaging.version import InvalidVersion, Version


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of ``version``, without a suffix such as ``-rc.1``.

    The result is empty, and sorts first, if the tag is not a version, such as ``latest``.
    """
    try:
        return Version(version.partition("-")[0]).release
    except InvalidVersion:
        return ()

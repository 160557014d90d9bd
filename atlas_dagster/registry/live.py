"""Airbyte's registry on the web, or a mirror of it."""

import os

import requests

#: Where Airbyte publishes; the environment variable ATLAS_REGISTRY_URL names a mirror.
REGISTRY_URL = "https://connectors.airbyte.com/files"
#: Between two pieces of an answer.
_TIMEOUT_SECONDS = 30.0


def registry_url() -> str:
    """Without a slash at its end."""
    return (os.environ.get("ATLAS_REGISTRY_URL") or REGISTRY_URL).rstrip("/")


def get(path: str, etag: str | None = None) -> requests.Response:
    """The answer to a GET of ``path``, whatever its status; 304 where ``etag`` still holds.

    Raises:
        requests.RequestException: there is none, or it broke off.
    """
    headers = {} if etag is None else {"If-None-Match": etag}
    return requests.get(f"{registry_url()}/{path}", headers=headers, timeout=_TIMEOUT_SECONDS)


def get_file(path: str) -> bytes | None:
    """None where there is no such file. Raises requests.RequestException where it cannot be had."""
    answer = get(path)
    if answer.status_code == requests.codes.not_found:
        return None
    answer.raise_for_status()
    return answer.content

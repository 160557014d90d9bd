"""The stack's web server, asked while its services are restarted."""

import time
from collections.abc import Callable
from typing import Any

import requests

from atlas_dagster_tests.e2e.web_server import WebServer


class Web(WebServer):
    """The stack's, which is restarted, and its database, too."""

    def graphql(self, query: str, **variables: Any) -> Any:
        return _patiently(lambda: super(Web, self).graphql(query, **variables))

    def launch(self, *assets: str, **options: Any) -> str:
        return _patiently(lambda: super(Web, self).launch(*assets, **options))


def _patiently(ask: Callable[[], Any]) -> Any:
    """Again while a service is away; its clients' connections notice at their next use."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except (AssertionError, requests.ConnectionError) as error:
            away = isinstance(error, requests.ConnectionError) or "OperationalError" in str(error)
            if not away or time.monotonic() > deadline:
                raise
        time.sleep(1)

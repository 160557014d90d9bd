"""A registry as Airbyte publishes it, served on this machine."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from atlas_dagster.registry.catalogue import shipped_listing
from atlas_dagster.registry.connector_info import ConnectorInfo

LIST = "/registries/v0/oss_registry.json"


@dataclass
class LiveRegistry:
    """``files`` by path. ``cut`` is how many bytes of an answer arrive before it breaks off."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: int | None = None
    status: int = 200
    url: str = ""

    def publish(self, *sources: dict[str, Any]) -> None:
        """A whole list: ``sources``, and else the connectors that Atlas comes with."""
        given = {source["dockerRepository"]: source for source in sources}
        shipped = {info.image: wire(info) for info in shipped_listing().connectors}
        document = {"destinations": [], "sources": list((shipped | given).values())}
        self.files[LIST] = json.dumps(document).encode()


def wire(info: ConnectorInfo, **more: Any) -> dict[str, Any]:
    """An entry of ``oss_registry.json``, with the fields that real ones have."""
    return {
        "sourceDefinitionId": info.definition_id,
        "name": info.title,
        "dockerRepository": info.image,
        "dockerImageTag": info.tag,
        "documentationUrl": info.docs_url,
        "icon": f"{info.name}.svg",
        "iconUrl": f"https://example.com/{info.name}/icon.svg",
        "sourceType": info.kind,
        "spec": {"connectionSpecification": {"type": "object", "properties": {}}},
        "tombstone": False,
        "public": True,
        "custom": False,
        "releaseStage": "generally_available",
        "supportLevel": info.support_level,
        "releaseDate": None,
        "tags": [f"language:{info.language}", "cdk:python"],
        "resourceRequirements": None,
        "protocolVersion": None,
        "allowedHosts": {"hosts": ["api.example.com", "${host}"]},
        "maxSecondsBetweenMessages": 7200,
        "releases": None,
        "ab_internal": {"ql": 400, "sl": 200, "isEnterprise": False},
        "remoteRegistries": {
            "pypi": {"enabled": info.pypi_package is not None, "packageName": info.pypi_package}
        },
        "language": info.language,
        "packageInfo": {"cdk_version": "python:7.1.0"},
        "generated": {"git": {"commit_sha": "0" * 40}, "metrics": {}},
        **more,
    }


@contextmanager
def serving(registry: LiveRegistry) -> Iterator[LiveRegistry]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.asked.append(self.path)
            content = registry.files.get(self.path)
            status = 404 if content is None else registry.status
            etag = f'"{hashlib.sha256(content or b"").hexdigest()[:16]}"'
            if status == 200 and self.headers.get("If-None-Match") == etag:
                status, content = 304, b""
            self.send_response(status)
            if status == 200:
                self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write((content or b"")[: registry.cut])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        registry.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()

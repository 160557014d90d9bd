"""A receiver of OTLP over HTTP, as OpenTelemetry's collector is one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)


class Receiver:
    """Takes OTLP over HTTP, or refuses it with ``answer``."""

    def __init__(self, host: str) -> None:
        self.answer = 200
        self.came: list[tuple[str, ExportMetricsServiceRequest]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sent = ExportMetricsServiceRequest.FromString(body)
                receiver.came.append((self.headers.get("X-Key", ""), sent))
                self.send_response(receiver.answer)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.port = self.server.server_port

    @property
    def metrics(self) -> list[Any]:
        """All that came, in order."""
        return [
            metric
            for _, sent in self.came
            for resource in sent.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def points(self, name: str) -> list[tuple[dict[str, str], Any]]:
        """Attributes and data of each point of the metric ``name``."""
        found = []
        for metric in self.metrics:
            if metric.name == name:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    labels = {each.key: each.value.string_value for each in point.attributes}
                    found.append((labels, point))
        return found

    def counts(self, name: str) -> list[tuple[dict[str, str], int]]:
        return [(labels, point.as_int) for labels, point in self.points(name)]


@contextmanager
def receiving(host: str = "127.0.0.1") -> Iterator[Receiver]:
    receiver = Receiver(host)
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()

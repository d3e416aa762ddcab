# SPDX-License-Identifier: Apache-2.0
"""A real OTLP receiver on loopback, over HTTP and over gRPC, that keeps what it was sent."""

from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_BY_PATH = {
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "/v1/logs": (ExportLogsServiceRequest, ExportLogsServiceResponse),
}

Points = dict[tuple[str, tuple[tuple[str, str], ...]], Any]


class Receiver:
    """What both transports share: the requests, and questions about them."""

    endpoint: str

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []

    def _of(self, kind: type) -> list[Any]:
        return [request for request in list(self.requests) if isinstance(request, kind)]

    def metrics(self) -> dict[str, Any]:
        """Return ``{name: last metric message of that name}``."""
        return {
            metric.name: metric
            for request in self._of(ExportMetricsServiceRequest)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self) -> Points:
        """Return ``{(metric, sorted labels): last value}``; a histogram's value is (count, sum, bucket counts)."""
        found: Points = {}
        for name, metric in self.metrics().items():
            data = getattr(metric, metric.WhichOneof("data"))
            for point in data.data_points:
                labels = tuple(sorted((each.key, each.value.string_value) for each in point.attributes))
                found[name, labels] = _value(point)
        return found

    def by_process(self, name: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Return ``{service.instance.id: {sorted labels: value}}`` of a counter, each at its last export."""
        last: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for request in self._of(ExportMetricsServiceRequest):
            for resource in request.resource_metrics:
                instance = {each.key: each.value.string_value for each in resource.resource.attributes}
                for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                    if metric.name == name:
                        last[instance["service.instance.id"]] = {
                            tuple(sorted((each.key, each.value.string_value) for each in point.attributes)): _value(
                                point
                            )
                            for point in metric.sum.data_points
                        }
        return last

    def total(self, name: str) -> float:
        """Return the sum of a counter over all its series and all processes, each at its last export."""
        return sum(value for series in self.by_process(name).values() for value in series.values())

    def spans(self) -> list[Any]:
        """Return all spans, in the order in which they arrived."""
        return [
            span
            for request in self._of(ExportTraceServiceRequest)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, str]:
        """Return the resource attributes of the last metrics request."""
        attributes = self._of(ExportMetricsServiceRequest)[-1].resource_metrics[0].resource.attributes
        return {each.key: each.value.string_value for each in attributes}


class HttpReceiver(Receiver):
    """OTLP over HTTP with protobuf bodies."""

    def __init__(self) -> None:
        super().__init__()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request_type, response_type = _BY_PATH[self.path]
                receiver.headers.append({key.lower(): value for key, value in self.headers.items()})
                receiver.requests.append(request_type.FromString(body))
                answer = response_type().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: Any) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class GrpcReceiver(Receiver):
    """OTLP over gRPC."""

    def __init__(self) -> None:
        super().__init__()
        receiver = self

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the RPC
                receiver.requests.append(request)
                return ExportMetricsServiceResponse()

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - as above
                receiver.requests.append(request)
                return ExportTraceServiceResponse()

        self._server = grpc.server(ThreadPoolExecutor(2))
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self._server)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop(None).wait()


def _value(point: Any) -> Any:
    if hasattr(point, "bucket_counts"):
        return point.count, point.sum, tuple(point.bucket_counts)
    return getattr(point, point.WhichOneof("value"))


def running(kind: type[HttpReceiver | GrpcReceiver]) -> Iterator[Receiver]:
    """Yield a receiver of *kind* and stop it afterwards; for fixtures."""
    receiver = kind()
    yield receiver
    receiver.stop()

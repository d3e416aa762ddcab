# SPDX-License-Identifier: Apache-2.0
"""Receive OTLP over HTTP in this process, in place of a Collector.

In: export requests, protobuf, gzip or not. Out: the newest value of every series, and all spans by trace.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes without types
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from jeeves_otel.demo.loopback import LoopbackServer
from jeeves_otel.demo.samples import total

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

    from jeeves_otel.demo.samples import Series


CLIENT, SERVER = ProtoSpan.SPAN_KIND_CLIENT, ProtoSpan.SPAN_KIND_SERVER


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span; times in nanoseconds, ``parent`` empty at a root."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    scope: str
    kind: int
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]

    @property
    def duration_s(self) -> float:
        """How long it took; seconds."""
        return (self.end_ns - self.start_ns) / 1e9


class Receiver(LoopbackServer):
    """An OTLP endpoint on a free port of the loopback interface. Safe from several threads; a context manager."""

    def __init__(self) -> None:
        super().__init__(type("Handler", (_Handler,), {"receiver": self}))
        self._lock = Lock()
        self._samples: dict[str, dict[Series, float]] = {}  # by service.instance.id: every process has its own
        self._traces: dict[str, list[Span]] = {}

    @property
    def endpoint(self) -> str:
        """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` has to be."""
        return self.url

    def samples(self) -> dict[Series, float]:
        """Return ``{(sample name, labels): newest value}`` of sums and gauges, and of histograms their ``_count``.

        The values of several processes add up.
        """
        with self._lock:
            return total(self._samples.values())

    def traces(self) -> list[list[Span]]:
        """Return the spans received so far, by trace."""
        with self._lock:
            return [list(spans) for spans in self._traces.values()]

    def accept(self, path: str, body: bytes) -> bool:
        """Take in one request; False if nothing is served at *path*.

        Raises:
            DecodeError: The body is not what belongs to the path.
        """
        if path == "/v1/metrics":
            samples = list(_samples(ExportMetricsServiceRequest.FromString(body)))
            with self._lock:
                for instance, series, value in samples:
                    self._samples.setdefault(instance, {})[series] = value
        elif path == "/v1/traces":
            spans = list(_spans(ExportTraceServiceRequest.FromString(body)))
            with self._lock:
                for span in spans:
                    self._traces.setdefault(span.trace, []).append(span)
        return path in {"/v1/metrics", "/v1/traces"}


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        try:
            status = 200 if self.receiver.accept(self.path, body) else 404
        except DecodeError:
            status = 400
        # An empty body is an empty protobuf message, which says that everything was accepted.
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Stay silent: the report is what the user wants to read."""


def _samples(request: ExportMetricsServiceRequest) -> Iterable[tuple[str, Series, float]]:
    for resource in request.resource_metrics:
        instance = str(_attributes(resource.resource.attributes).get("service.instance.id", ""))
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.HasField("histogram"):
                    for point in metric.histogram.data_points:
                        yield instance, (f"{metric.name}_count", _labels(point.attributes)), float(point.count)
                else:
                    for number in (metric.sum if metric.HasField("sum") else metric.gauge).data_points:
                        value = number.as_int if number.HasField("as_int") else number.as_double
                        yield instance, (metric.name, _labels(number.attributes)), float(value)


def _spans(request: ExportTraceServiceRequest) -> Iterable[Span]:
    for resource in request.resource_spans:
        service = str(_attributes(resource.resource.attributes).get("service.name", ""))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    name=span.name,
                    service=service,
                    scope=scope.scope.name,
                    kind=span.kind,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes=_attributes(span.attributes),
                )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


def _labels(pairs: Iterable[KeyValue]) -> frozenset[tuple[str, str]]:
    return frozenset((key, str(value)) for key, value in _attributes(pairs).items())

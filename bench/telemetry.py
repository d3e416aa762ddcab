# SPDX-License-Identifier: Apache-2.0
"""Requests of OTLP, encoded beforehand, and who sends them at a steady rate: a load that costs next to nothing to make.

In: a `Load`. Out: bytes on a socket, every one of them acknowledged. Spans are of four kinds, as a service has them that
stock instrumentations watch: HTTP server, LLM, database, agent; about half of their attributes are of kinds that the
registry knows, one in twelve holds content. Of five points, four are counters, one is a histogram of eight buckets.
"""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIANTS = 16  # requests that take turns, so that nothing learns one by heart
_Attributes = Mapping[str, str | float]
_HTTP: _Attributes = {
    "http.request.method": "POST",
    "http.route": "/sessions/{name}/messages",
    "http.response.status_code": 200,
    "url.scheme": "https",
    "url.path": "/sessions/user-17/messages",
    "url.query": "token=abc",
    "server.address": "gateway.internal",
    "server.port": 8000,
    "client.address": "10.11.12.13",
    "network.protocol.version": "1.1",
    "user_agent.original": "python-httpx/0.28.1",
    "http.request.body.size": 812,
}
_LLM: _Attributes = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.temperature": 0.7,
    "gen_ai.request.max_tokens": 1024,
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.response.id": "chatcmpl-9vNq4mBkz2cVd",
    "gen_ai.usage.input_tokens": 1377,
    "gen_ai.usage.output_tokens": 241,
    "server.address": "api.openai.com",
    "server.port": 443,
    "jeeves.agent.name": "researcher",
}
_DATABASE: _Attributes = {
    "db.system.name": "postgresql",
    "db.namespace": "jeeves",
    "db.operation.name": "SELECT",
    "db.collection.name": "messages",
    "db.query.summary": "SELECT messages",
    "db.query.text": "SELECT id, role, body FROM messages WHERE session_id = $1 ORDER BY id",
    "db.response.returned_rows": 12,
    "server.address": "db.internal",
    "server.port": 5432,
    "network.peer.address": "10.1.2.3",
    "network.peer.port": 5432,
    "thread.name": "worker-3",
}
_AGENT: _Attributes = {
    "gen_ai.operation.name": "invoke_agent",
    "gen_ai.agent.name": "researcher",
    "gen_ai.agent.id": "agent-41",
    "jeeves.agent.name": "researcher",
    "jeeves.agent.type": "llm",
    "jeeves.request.id": "user-17-4",
    "jeeves.pipeline.name": "chat",
    "jeeves.llm.calls": 2,
    "duration_ms": 1271,
    "code.function.name": "jeeves.agents.researcher.run",
    "thread.id": 140735,
    "thread.name": "MainThread",
}
_KINDS = (("POST /sessions", _HTTP), ("chat gpt-4o-mini", _LLM), ("SELECT messages", _DATABASE), ("agent", _AGENT))


@dataclass(frozen=True)
class Load:
    """What is sent: *rate* items a second, *each* of them in a request, over ``http`` or ``grpc``."""

    title: str
    signal: str  # traces or metrics
    rate: int
    each: int
    transport: str = "http"

    def requests(self) -> list[bytes]:
        """Return the requests that take turns."""
        chance = random.Random(1)
        make = _spans if self.signal == "traces" else _points
        return [make(chance, self.each) for _ in range(VARIANTS)]


def send(load: Load, requests: list[bytes], seconds: float, post: Callable[[bytes], None]) -> int:
    """Send *load* for so long, and return the number of items, all acknowledged; raise if the rate cannot be kept."""
    count = round(load.rate * seconds / load.each)
    start = time.perf_counter()
    for number in range(count):
        pause = start + number * seconds / count - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        post(requests[number % len(requests)])
    late = time.perf_counter() - start - seconds
    if late > max(0.5, 0.1 * seconds):
        raise RuntimeError(f"{load.title}: sending took {late:.1f} s too long; this machine is too busy")
    return count * load.each


@contextmanager
def poster(load: Load, http_port: int, grpc_port: int) -> Iterator[Callable[[bytes], None]]:
    """Yield what sends one request over a connection that stays open, and raises unless it is acknowledged."""
    if load.transport == "grpc":
        service = "trace.v1.TraceService" if load.signal == "traces" else "metrics.v1.MetricsService"
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            call = channel.unary_unary(f"/opentelemetry.proto.collector.{service}/Export")
            yield lambda request: call(request, timeout=10)
        return
    with closing(http.client.HTTPConnection("127.0.0.1", http_port, timeout=10)) as connection:

        def post(request: bytes) -> None:
            connection.request("POST", f"/v1/{load.signal}", request, {"Content-Type": "application/x-protobuf"})
            response = connection.getresponse()
            said = response.read()
            if response.status != 200:
                raise RuntimeError(f"the Collector answers {response.status}: {said!r}")

        yield post


def _resource() -> Resource:
    return Resource(
        attributes=_pairs(
            {
                "service.name": "jeeves-gateway",
                "service.instance.id": "48a81f89-810b-4435-8bd8-8190e4e830a3",
                "telemetry.sdk.language": "python",
                "telemetry.sdk.name": "opentelemetry",
                "telemetry.sdk.version": "1.45.1",
            }
        )
    )


def _pairs(attributes: _Attributes) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in attributes.items()]


def _value(value: str | float) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(double_value=value)


def _spans(chance: random.Random, count: int) -> bytes:
    now, made = time.time_ns(), []
    for number in range(count):
        name, attributes = _KINDS[number % len(_KINDS)]
        made.append(
            Span(
                trace_id=chance.randbytes(16),
                span_id=chance.randbytes(8),
                parent_span_id=chance.randbytes(8),
                name=name,
                kind=Span.SPAN_KIND_SERVER if attributes is _HTTP else Span.SPAN_KIND_CLIENT,
                start_time_unix_nano=now,
                end_time_unix_nano=now + chance.randrange(10**9),
                attributes=_pairs(attributes),
            )
        )
    scope = ScopeSpans(scope=InstrumentationScope(name="bench"), spans=made)
    message = ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=_resource(), scope_spans=[scope])])
    return bytes(message.SerializeToString())


def _points(chance: random.Random, count: int) -> bytes:
    now, began = time.time_ns(), time.time_ns() - 10**12
    times: dict[str, Any] = {"time_unix_nano": now, "start_time_unix_nano": began}
    counters, histograms = [], []
    for number in range(count):
        labels = _pairs({"provider": "openai", "model": f"model-{number}", "status": "success"})
        if number % 5:
            counters.append(NumberDataPoint(as_int=chance.randrange(10**6), attributes=labels, **times))
        else:
            buckets = [chance.randrange(1_000) for _ in range(9)]
            bounds = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
            fields: dict[str, Any] = {"count": sum(buckets), "sum": 1.5 * sum(buckets), "bucket_counts": buckets}
            histograms.append(HistogramDataPoint(explicit_bounds=bounds, attributes=labels, **fields, **times))
    cumulative = AGGREGATION_TEMPORALITY_CUMULATIVE
    calls = Sum(data_points=counters, aggregation_temporality=cumulative, is_monotonic=True)
    durations = Histogram(data_points=histograms, aggregation_temporality=cumulative)
    metrics = [
        Metric(name="jeeves_llm_calls_total", unit="1", sum=calls),
        Metric(name="jeeves_llm_duration_seconds", unit="s", histogram=durations),
    ]
    scope = ScopeMetrics(scope=InstrumentationScope(name="bench"), metrics=metrics)
    message = ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=_resource(), scope_metrics=[scope])]
    )
    return bytes(message.SerializeToString())

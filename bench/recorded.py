# SPDX-License-Identifier: Apache-2.0
"""The competitors that record: one LLM call, one HTTP request, one request through a whole FastAPI application."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import prometheus_client as prom
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from bench.timing import Case, Group, each
from jeeves_otel import llm_call, record_http_request, record_llm_call, recording
from jeeves_otel.cardinality import Bounds
from jeeves_otel.metering import MeterProvider as JeevesMeterProvider
from jeeves_otel.prometheus import PrometheusCollector
from jeeves_otel.registry import load
from jeeves_otel.translation import Translator
from jeeves_otel.views import sdk_views

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LLM_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30)
HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def jeeves_provider() -> tuple[JeevesMeterProvider, PrometheusCollector]:
    """Return our provider with the jeeves profile, and its page."""
    registry, reader = load(("jeeves",)), InMemoryMetricReader()
    inner = MeterProvider([reader], views=sdk_views(registry, keep_semconv=False), shutdown_on_exit=False)
    return JeevesMeterProvider(inner, registry, Bounds(registry)), PrometheusCollector(reader, Translator(registry))


def stock_provider() -> MeterProvider:
    """Return the SDK's provider as its documentation sets it up."""
    return MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)


def tracer_provider() -> TracerProvider:
    """Return the SDK's tracer provider at 10 %; a batch processor only queues, this one drops."""
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.1)), shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    return provider


# ---- one LLM call -----------------------------------------------------------------------------------------------------


def llm_group() -> Group:
    """Return: one LLM call with provider, model, status, duration and both token counts."""
    meters, _ = jeeves_provider()
    spans, no_spans = tracer_provider(), trace.NoOpTracerProvider()

    def operation() -> None:
        with llm_call("openai", "gpt-4o") as call:
            call.set_tokens(prompt=12, completion=80)

    def function() -> None:
        record_llm_call("openai", "gpt-4o", 0.7, prompt_tokens=12, completion_tokens=80)

    stock = stock_provider()
    return Group(
        "one LLM call",
        (
            Case("prometheus_client, by hand: 4 measurements, no span", each(_prom_llm())),
            Case("stock SDK, by hand: 4 measurements, no span", each(_stock_llm(stock, no_spans))),
            Case("stock SDK, by hand: 4 measurements, span at 10 %", each(_stock_llm(stock, spans))),
            Case("jeeves_otel record_llm_call", each(function), binding(meters, no_spans)),
            Case("jeeves_otel llm_call, no span", each(operation), binding(meters, no_spans)),
            Case("jeeves_otel llm_call, span at 10 %", each(operation), binding(meters, spans)),
        ),
    )


def binding(meters: JeevesMeterProvider, tracers: trace.TracerProvider) -> Callable[[], None]:
    """Return what makes the recording API record into these providers, cheaply and as often as one likes."""
    recording.bind(meter_provider=meters, tracer_provider=tracers)
    bound = recording._instruments, recording._tracer

    def bind() -> None:
        recording._instruments, recording._tracer = bound  # as bound, without making the instruments again

    return bind


def _prom_llm() -> Callable[[], None]:
    registry = prom.CollectorRegistry()
    calls = prom.Counter("llm_calls", "x", ["provider", "model", "status"], registry=registry)
    seconds = prom.Histogram("llm_seconds", "x", ["provider", "model"], registry=registry, buckets=LLM_BUCKETS)
    tokens = prom.Counter("llm_tokens", "x", ["provider", "model", "type"], registry=registry)

    def record() -> None:
        calls.labels("openai", "gpt-4o", "success").inc()
        seconds.labels("openai", "gpt-4o").observe(0.7)
        tokens.labels("openai", "gpt-4o", "prompt").inc(12)
        tokens.labels("openai", "gpt-4o", "completion").inc(80)

    return record


def _stock_llm(provider: MeterProvider, tracers: trace.TracerProvider) -> Callable[[], None]:
    meter, tracer = provider.get_meter("bench"), tracers.get_tracer("bench")
    calls = meter.create_counter("llm.calls")
    seconds = meter.create_histogram("llm.duration", "s", explicit_bucket_boundaries_advisory=LLM_BUCKETS)
    tokens = meter.create_counter("llm.tokens")

    def record() -> None:
        with tracer.start_as_current_span("chat", attributes={"provider": "openai", "model": "gpt-4o"}) as span:
            span.set_attribute("input_tokens", 12)
            span.set_attribute("output_tokens", 80)
        calls.add(1, {"provider": "openai", "model": "gpt-4o", "status": "success"})
        seconds.record(0.7, {"provider": "openai", "model": "gpt-4o"})
        tokens.add(12, {"provider": "openai", "model": "gpt-4o", "type": "prompt"})
        tokens.add(80, {"provider": "openai", "model": "gpt-4o", "type": "completion"})

    def record_without_span() -> None:
        calls.add(1, {"provider": "openai", "model": "gpt-4o", "status": "success"})
        seconds.record(0.7, {"provider": "openai", "model": "gpt-4o"})
        tokens.add(12, {"provider": "openai", "model": "gpt-4o", "type": "prompt"})
        tokens.add(80, {"provider": "openai", "model": "gpt-4o", "type": "completion"})

    return record if isinstance(tracers, TracerProvider) else record_without_span


# ---- one HTTP request -------------------------------------------------------------------------------------------------


def http_group() -> Group:
    """Return: one HTTP request recorded by code that has timed it."""
    meters, _ = jeeves_provider()
    stock = stock_provider().get_meter("bench")
    seconds = stock.create_histogram(
        "http.server.request.duration", "s", explicit_bucket_boundaries_advisory=HTTP_BUCKETS
    )
    prom_record = _prom_http()

    def stock_record() -> None:
        seconds.record(0.02, {"http.request.method": "GET", "http.route": "/a/{b}", "http.response.status_code": 200})

    return Group(
        "one HTTP request recorded",
        (
            Case(
                "prometheus_client, by hand: counter and histogram",
                each(lambda: prom_record("GET", "/a/{b}", 200, 0.02)),
            ),
            Case("stock SDK, by hand: one histogram", each(stock_record)),
            Case(
                "jeeves_otel record_http_request",
                each(lambda: record_http_request("GET", "/a/{b}", 200, 0.02)),
                binding(meters, trace.NoOpTracerProvider()),
            ),
        ),
    )


def _prom_http() -> Callable[[str, str, int, float], None]:
    registry = prom.CollectorRegistry()
    requests = prom.Counter("http_requests", "x", ["method", "path", "status_code"], registry=registry)
    seconds = prom.Histogram("http_seconds", "x", ["method", "path"], registry=registry, buckets=HTTP_BUCKETS)

    def record(method: str, path: str, status: int, duration_s: float) -> None:
        requests.labels(method, path, str(status)).inc()
        seconds.labels(method, path).observe(duration_s)

    return record


# ---- one request through FastAPI --------------------------------------------------------------------------------------


def fastapi_group() -> Group:
    """Return: one GET through a FastAPI application with one route, called as a server would."""
    loop = asyncio.new_event_loop()
    off = {"tracing": False, "metrics": False, "logs": False}
    bare, by_hand = native_application(off), native_application(off)
    by_hand.middleware("http")(_prom_middleware(_prom_http()))
    plain = _PromAsgi(native_application(off), _prom_http())
    meters, _ = jeeves_provider()
    native = {
        name: native_application({"meter_provider": provider, "tracer_provider": tracer_provider(), "logs": False})
        for name, provider in (("stock", stock_provider()), ("ours", meters))
    }
    return Group(
        "one request through FastAPI",
        (
            Case("no telemetry", asgi_requests(bare, loop)),
            Case("prometheus_client, @app.middleware, no spans", asgi_requests(by_hand, loop)),
            Case("prometheus_client, plain ASGI middleware, no spans", asgi_requests(plain, loop)),
            Case("native telemetry, stock SDK, spans at 10 %", asgi_requests(native["stock"], loop)),
            Case("native telemetry, jeeves_otel, spans at 10 %", asgi_requests(native["ours"], loop)),
        ),
    )


def native_application(telemetry: dict[str, Any]) -> Any:
    """Return a FastAPI application with one route."""
    from fastapi import FastAPI  # noqa: PLC0415 - only where it is measured

    app = FastAPI(telemetry=telemetry)  # type: ignore[arg-type]  # a TypedDict there

    @app.get("/items/{number}")
    async def item(number: int) -> dict[str, int]:
        return {"number": number}

    return app


def _prom_middleware(record: Callable[[str, str, int, float], None]) -> Any:
    async def middleware(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        start = perf_counter()
        response = await call_next(request)
        record(request.method, request.scope["route"].path, response.status_code, perf_counter() - start)
        return response

    return middleware


class _PromAsgi:
    """What a careful service writes instead of ``@app.middleware``, which makes tasks and streams of each request."""

    def __init__(self, app: Any, record: Callable[[str, str, int, float], None]) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = 500

        async def observe(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = perf_counter()
        try:
            await self._app(scope, receive, observe)
        finally:
            self._record(scope["method"], scope["route"].path, status, perf_counter() - start)


def asgi_requests(app: Any, loop: asyncio.AbstractEventLoop) -> Callable[[int], None]:
    """Return a run that calls *app* with one GET per event, as a server would."""
    base = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http"}
    where = {"path": "/items/7", "raw_path": b"/items/7", "query_string": b"", "root_path": "", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(message["status"])

    async def serve(events: int) -> None:
        for _ in range(events):
            scope = {**base, **where, "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
            await app(scope, receive, send)

    return lambda events: loop.run_until_complete(serve(events))

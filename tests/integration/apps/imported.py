# SPDX-License-Identifier: Apache-2.0
"""Use a library that was imported before or after the instrumentations were loaded, and print what was recorded.

Arguments: the library, and ``before`` or ``after``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

library, order = sys.argv[1:]
if order == "before":
    importlib.import_module(library)
from opentelemetry.instrumentation.auto_instrumentation import initialize  # noqa: E402 - after the library, on purpose

initialize(swallow_exceptions=False)
assert (order == "before") == (library in sys.modules), "the start has imported the library"

from opentelemetry import metrics, trace  # noqa: E402 - as above
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402 - as above
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402 - as above
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402 - as above

VARYING = ("port", "address", "id")


async def _get(app: Any, path: str) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http"}
    places = {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": []}
    await app({**scope, **places, "server": ("here", 80), "client": ("there", 1)}, receive, send)


def use_fastapi() -> None:
    """Serve one request."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/users/{user}")
    def user(user: int) -> int:
        return user

    asyncio.run(_get(app, "/users/7"))


def use_starlette() -> None:
    """Serve one request."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def user(_: Any) -> PlainTextResponse:
        return PlainTextResponse("you")

    asyncio.run(_get(Starlette(routes=[Route("/users/{user}", user)]), "/users/7"))


def use_grpc() -> None:
    """Make one call, and answer it."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    class Echo(grpc.GenericRpcHandler):
        def service(self, _: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, _: request)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary("/test.Echo/Say")(b"hello")
    server.stop(None).wait()


def use_sqlalchemy() -> None:
    """Run one statement."""
    from sqlalchemy import create_engine, text

    with create_engine("sqlite://").connect() as connection:
        connection.execute(text("select 1"))


def use_openai() -> None:
    """Ask for one completion."""
    import httpx2
    from openai import OpenAI

    message = {"role": "assistant", "content": "hi"}
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer))
    client = OpenAI(api_key="none", base_url="http://llm/v1", http_client=httpx2.Client(transport=transport))
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello"}])


def _kept(attributes: Any) -> dict[str, str]:
    return {key: str(value) for key, value in sorted((attributes or {}).items()) if not key.endswith(VARYING)}


spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))  # type: ignore[attr-defined]  # the SDK's
metrics.get_meter_provider().add_metric_reader(reader)  # type: ignore[attr-defined]  # ours
globals()[f"use_{library}"]()
trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]  # as above
series = []
data = reader.get_metrics_data()
for resource in data.resource_metrics if data is not None else ():
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            if not metric.name.startswith(("process.", "cpython.", "jeeves")):
                series += [
                    [scope.scope.name, metric.name, metric.unit, _kept(point.attributes), getattr(point, "count", None)]
                    for point in metric.data.data_points
                ]
print(
    json.dumps(
        {
            "spans": sorted(
                (
                    {
                        "scope": span.instrumentation_scope.name,
                        "name": span.name,
                        "kind": span.kind.name,
                        "status": span.status.status_code.name,
                        "attributes": _kept(span.attributes),
                        "is child": span.parent is not None,
                    }
                    for span in spans.get_finished_spans()
                ),
                key=json.dumps,
            ),
            "series": sorted(series, key=json.dumps),
        }
    )
)

# SPDX-License-Identifier: Apache-2.0
"""The competitors that measure a whole ASGI request: ours, the contrib middleware, FastAPI's own telemetry."""

from __future__ import annotations

from asyncio import new_event_loop
from typing import TYPE_CHECKING, Any

from bench.recorded import asgi_requests, jeeves_provider, native_application, stock_provider, tracer_provider
from bench.timing import Case, Group
from jeeves_otel import recording, stock_logs
from jeeves_otel.integrations import asgi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.timing import Run


def served_group() -> Group:
    """Return: one GET with a path parameter through Starlette and FastAPI, called as a server would, spans at 10 %."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415 - only where it is measured

    stock_logs.tame()  # two meters measure requests here
    loop = new_event_loop()
    meters, spans = jeeves_provider()[0], tracer_provider()
    recording.bind(meter_provider=meters, tracer_provider=spans)
    bound = recording._instruments, recording._tracer

    def seamless() -> None:
        asgi.uninstrument()

    def seamed() -> None:
        recording._instruments, recording._tracer = bound
        asgi.instrument()

    def case(name: str, app: Callable[..., Awaitable[Any]], prepare: Callable[[], None]) -> Case:
        run: Run = asgi_requests(app, loop)
        return Case(name, run, prepare)

    stock: dict[str, Any] = {"meter_provider": stock_provider(), "tracer_provider": spans}
    ours = {"meter_provider": meters, "tracer_provider": spans, "logs": False}
    contrib: Any = OpenTelemetryMiddleware(_starlette(), exclude_spans=["send", "receive"], **stock)
    flood: Any = OpenTelemetryMiddleware(_starlette(), **stock)
    return Group(
        "one request served, with spans at 10 %",
        (
            case("Starlette, no telemetry", _starlette(), seamless),
            case("Starlette, jeeves_otel", _starlette(), seamed),
            case("Starlette, contrib middleware, no send and receive spans", contrib, seamless),
            case("Starlette, contrib middleware as it comes", flood, seamless),
            case(
                "FastAPI, no telemetry",
                native_application({"tracing": False, "metrics": False, "logs": False}),
                seamless,
            ),
            case("FastAPI, its own telemetry, stock SDK", native_application({**stock, "logs": False}), seamless),
            case("FastAPI, its own telemetry, jeeves_otel", native_application(ours), seamed),
        ),
    )


def _starlette() -> Any:
    from starlette.applications import Starlette  # noqa: PLC0415 - only where it is measured
    from starlette.responses import JSONResponse  # noqa: PLC0415 - as above
    from starlette.routing import Route  # noqa: PLC0415 - as above

    async def item(request: Any) -> JSONResponse:
        return JSONResponse({"number": int(request.path_params["number"])})

    return Starlette(routes=[Route("/items/{number}", item)])

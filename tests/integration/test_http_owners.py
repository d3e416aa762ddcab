# SPDX-License-Identifier: Apache-2.0
"""Who measures a request: one owner, whatever instrumentation stands around or inside an application."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation import _semconv
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware as StarletteOpenTelemetryMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from jeeves_otel.integrations import asgi
from tests.integration.serving import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import Pipeline


@pytest.fixture(params=["", "http", "http/dup"])
def names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the contrib package use the old names, the new ones, or both; it reads that once per process."""
    opted: str = request.param
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opted)
    monkeypatch.setattr(_semconv._OpenTelemetrySemanticConventionStability, "_initialized", False)
    return opted


@pytest.fixture
def measured(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Return the pipeline into which every application is measured."""
    asgi.instrument()
    yield pipeline
    asgi.uninstrument()


def _providers(pipeline: Pipeline) -> dict[str, Any]:
    return {"meter_provider": pipeline.meter_provider, "tracer_provider": pipeline.tracer_provider}


def _fastapi(pipeline: Pipeline) -> FastAPI:
    app = FastAPI(telemetry={**_providers(pipeline), "logs": False})

    @app.get("/items/{number}")
    async def item(number: int) -> int:
        return number

    return app


async def _item(request: Any) -> PlainTextResponse:
    return PlainTextResponse(request.path_params["number"])


def _starlette(_: Pipeline) -> Starlette:
    return Starlette(routes=[Route("/items/{number}", _item)])


async def _bare(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - the signature of ASGI
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"7"})


def _instrumented_fastapi(pipeline: Pipeline) -> Any:
    app = _fastapi(pipeline)
    FastAPIInstrumentor.instrument_app(app, **_providers(pipeline))
    return app


def _instrumented_parent(pipeline: Pipeline) -> Any:
    app = FastAPI(telemetry={**_providers(pipeline), "logs": False})
    app.mount("/inner", _fastapi(pipeline))
    FastAPIInstrumentor.instrument_app(app, **_providers(pipeline))
    return app


def _instrumented_both(pipeline: Pipeline) -> Any:
    inner, app = _instrumented_fastapi(pipeline), FastAPI(telemetry={**_providers(pipeline), "logs": False})
    app.mount("/inner", inner)
    FastAPIInstrumentor.instrument_app(app, **_providers(pipeline))
    return app


def _instrumented_starlette(pipeline: Pipeline) -> Any:
    app = _starlette(pipeline)
    StarletteInstrumentor.instrument_app(app, **_providers(pipeline))
    return app


def _added(pipeline: Pipeline) -> Any:
    app = _starlette(pipeline)
    app.add_middleware(OpenTelemetryMiddleware, **_providers(pipeline))
    return app


def _around(make: Callable[[Pipeline], Any]) -> Callable[[Pipeline], Any]:
    return lambda pipeline: OpenTelemetryMiddleware(make(pipeline), **_providers(pipeline))


def _starlettes_own(pipeline: Pipeline) -> Any:
    app = _starlette(pipeline)
    app.add_middleware(StarletteOpenTelemetryMiddleware, tracer_provider=pipeline.tracer_provider)
    return app


def _mixed(pipeline: Pipeline) -> Any:
    return Starlette(routes=[Mount("/inner", _fastapi(pipeline))])


CASES: dict[str, tuple[Callable[[Pipeline], Any], str, str]] = {
    "native FastAPI": (_fastapi, "/items/7", "/items/{number}"),
    "native FastAPI by hand too": (lambda each: asgi.Middleware(_fastapi(each)), "/items/7", "/items/{number}"),
    "Starlette": (_starlette, "/items/7", "/items/{number}"),
    "Starlette by hand too": (lambda each: asgi.Middleware(_starlette(each)), "/items/7", "/items/{number}"),
    "FastAPI in Starlette": (_mixed, "/inner/items/7", "/inner/items/{number}"),
    "Starlette with its own middleware": (_starlettes_own, "/items/7", "/items/{number}"),
    "instrument_app of FastAPI": (_instrumented_fastapi, "/items/7", "/items/{number}"),
    "instrument_app of the outer FastAPI": (_instrumented_parent, "/inner/items/7", "/inner/items/{number}"),
    "instrument_app of both": (_instrumented_both, "/inner/items/7", "/inner/items/{number}"),
    "instrument_app of Starlette": (_instrumented_starlette, "/items/7", "/items/{number}"),
    "contrib middleware in Starlette": (_added, "/items/7", "/items/{number}"),
    "contrib around Starlette": (_around(_starlette), "/items/7", "/items/{number}"),
    "contrib around FastAPI": (_around(_fastapi), "/items/7", "/items/{number}"),
    "contrib around bare": (_around(lambda _: _bare), "/items/7", "unmatched"),
    "contrib around ours around bare": (_around(lambda _: asgi.Middleware(_bare)), "/items/7", "unmatched"),
    "ours around contrib around bare": (
        lambda each: asgi.Middleware(_around(lambda _: _bare)(each)),
        "/items/7",
        "unmatched",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("switched", ["before", "after"])
@pytest.mark.usefixtures("names")
def test_a_request_has_one_owner(case: str, switched: str, measured: Pipeline) -> None:
    """One count and one server span under the whole route, whoever measures, and whenever the seam was hung in."""
    make, path, route = CASES[case]
    if switched == "after":
        asgi.uninstrument()
    app = make(measured)
    asgi.instrument()
    answer = asyncio.run(call(app, path))
    counted = {
        (dict(labels)["path"], dict(labels)["status_code"]): value
        for (name, labels), value in measured.samples().items()
        if name == "jeeves_http_requests_total" and value
    }
    spans = [span for span in measured.spans() if span.kind is SpanKind.SERVER]

    assert 200 == answer.status
    assert {(route, "200"): 1} == counted
    assert 1 == len(spans)
    assert spans[0].context is not None
    assert f"{spans[0].context.span_id:016x}" == answer.headers["x-span-id"]
    assert f"{spans[0].context.trace_id:032x}" == answer.headers["x-trace-id"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("names")
def test_an_excluded_request_has_no_owner(case: str, measured: Pipeline) -> None:
    """No count and no span of any kind, whoever would measure."""
    asyncio.run(call(CASES[case][0](measured), "/health", headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}))

    assert () == measured.spans()
    assert not [
        value
        for (name, _), value in measured.samples().items()
        if name.startswith(("jeeves_http", "http_server")) and value
    ]

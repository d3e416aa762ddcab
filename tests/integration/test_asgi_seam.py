# SPDX-License-Identifier: Apache-2.0
"""The seam around ASGI applications, message by message: what passes through it, and what it must never do."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import subprocess
import sys
import types
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from jeeves_otel import failsafe, record_http_request
from jeeves_otel.inbound import inbound_request
from jeeves_otel.integrations import asgi, exchanges, threads
from jeeves_otel.prometheus import MetricsMiddleware
from tests.integration.serving import Called, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import Pipeline

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
START = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b"1"}


@pytest.fixture
def measured(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Return the pipeline into which every application is measured."""
    asgi.instrument()
    yield pipeline
    asgi.uninstrument()


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Return a function that sets a variable before the rules are read again."""

    def change(name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        asgi._rules.cache_clear()

    yield change
    asgi._rules.cache_clear()


def _counts(pipeline: Pipeline) -> dict[tuple[str, str], float]:
    """Return ``{(path, status_code): count}`` of all requests."""
    return {
        (dict(labels)["path"], dict(labels)["status_code"]): value
        for (name, labels), value in pipeline.samples().items()
        if name == "jeeves_http_requests_total" and value
    }


def _sending(*messages: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - the signature of ASGI
        for message in messages:
            await send(message)

    return app


def _native(pipeline: Pipeline) -> FastAPI:
    return FastAPI(
        telemetry={
            "meter_provider": pipeline.meter_provider,
            "tracer_provider": pipeline.tracer_provider,
            "logs": False,
        }
    )


# ---- what passes through ---------------------------------------------------------------------------------------------


ENDS: dict[str, tuple[dict[str, Any], ...]] = {
    "one part": (START, LAST),
    "parts": (START, {**LAST, "more_body": True}, LAST),
    "no body key": (START, {"type": "http.response.body"}),
    "no headers key": ({"type": "http.response.start", "status": 200}, LAST),
    "trailers": (
        {**START, "trailers": True},
        LAST,
        {"type": "http.response.trailers", "headers": [(b"a", b"b")], "more_trailers": True},
        {"type": "http.response.trailers", "headers": []},
    ),
    "a file by its path": (START, {"type": "http.response.pathsend", "path": "/x"}),
    "a file by its number": (
        START,
        {"type": "http.response.zerocopysend", "file": 3, "more_body": True},
        {"type": "http.response.zerocopysend", "file": 3},
    ),
    "early hints": ({"type": "http.response.early_hint", "links": [b"</a.css>"]}, START, LAST),
    "pushed": ({"type": "http.response.push", "path": "/a", "headers": []}, START, LAST),
    "debug": ({"type": "http.response.debug", "info": {}}, START, LAST),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_message_arrives_as_it_was_sent_and_the_last_one_ends_the_request(
    end: str, measured: Pipeline, setting: Callable[[str, str], None]
) -> None:
    """The messages are the same objects; the request has ended with the last one, and not before."""
    setting("JEEVES_OTEL_RESPONSE_HEADERS", "false")
    ended: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - as above
        for message in ENDS[end]:
            await send(message)
            ended.append(len(measured.spans()))

    called = asyncio.run(call(asgi.Middleware(app), "/"))

    assert [id(message) for message in ENDS[end]] == [id(message) for message in called.messages]
    assert [0] * (len(ended) - 1) + [1] == ended
    assert {("unmatched", "200"): 1} == _counts(measured)


def test_headers_are_added_to_a_copy_and_those_of_the_application_win(measured: Pipeline) -> None:
    """The list that the application has sent stays as it is; a header that it sets itself is the only one."""
    headers = [(b"X-Trace-Id", b"mine")]
    called = asyncio.run(call(asgi.Middleware(_sending({**START, "headers": headers}, LAST)), "/"))

    assert [(b"X-Trace-Id", b"mine")] == headers
    assert "mine" == called.headers["x-trace-id"]
    (span,) = measured.spans()
    assert span.context is not None
    assert f"{span.context.span_id:016x}" == called.headers["x-span-id"]


@pytest.mark.parametrize("make", ["starlette", "fastapi", "asgi"])
def test_the_bytes_of_a_response_are_the_same_with_and_without_us(
    make: str, pipeline: Pipeline, setting: Callable[[str, str], None]
) -> None:
    """Status, headers and body parts, compressed and streamed, do not change."""
    setting("JEEVES_OTEL_RESPONSE_HEADERS", "false")

    async def parts() -> Any:
        for part in range(3):
            yield f"{part}" * 1_000

    async def stream(_: Any) -> StreamingResponse:
        return StreamingResponse(parts())

    off = {"tracing": False, "metrics": False, "logs": False}
    app: Any = FastAPI(telemetry=off) if make == "fastapi" else Starlette()
    app.add_route("/", stream)
    app.add_middleware(GZipMiddleware)
    gzip = {"accept-encoding": "gzip"}
    without = asyncio.run(call(app, "/", gzip)).messages
    asgi.instrument()
    with_us = asyncio.run(call(asgi.Middleware(app) if make == "asgi" else app, "/", gzip)).messages
    asgi.uninstrument()

    assert without == with_us
    assert bool(_counts(pipeline)) == (make != "fastapi")


@pytest.mark.parametrize("kind", ["lifespan", "something.new"])
def test_scopes_that_are_no_request_pass_as_they_are(kind: str, measured: Pipeline) -> None:
    """Scope, receive and send are the server's own objects."""
    seen: list[Any] = []

    async def app(*arguments: Any) -> None:
        seen.extend(arguments)

    async def nothing(*_: Any) -> None:
        """Be a server that is not asked."""

    scope = {"type": kind}
    asyncio.run(asgi.Middleware(app)(scope, nothing, nothing))  # type: ignore[arg-type]  # a server of no messages

    assert [scope, nothing, nothing] == seen
    assert {"type": kind} == scope
    assert {} == _counts(measured)


def test_an_application_keeps_its_shape(measured: Pipeline) -> None:  # noqa: ARG001 - switches it on
    """Servers ask whether the call is a coroutine function of three arguments; attributes shine through."""
    for cls in (Starlette, FastAPI, asgi.Middleware):
        assert inspect.iscoroutinefunction(cls.__call__)
        assert ["self", "scope", "receive", "send"] == list(inspect.signature(cls.__call__).parameters)
    app = Starlette()
    assert app.state is asgi.Middleware(app).state


def test_what_an_application_raises_is_what_the_server_gets(measured: Pipeline) -> None:
    """The same exception, with the application's frame at its end."""
    error = ValueError("canary")

    async def app(*_: Any) -> None:
        raise error

    with pytest.raises(ValueError, match="canary") as raised:
        asyncio.run(call(asgi.Middleware(app), "/"))

    assert error is raised.value
    assert "app" == raised.traceback[-1].name
    assert error.__cause__ is None and error.__context__ is None
    assert {("unmatched", "500"): 1} == _counts(measured)


# ---- how it ends -----------------------------------------------------------------------------------------------------


class _Server:
    """A server that says of itself what uvicorn says: whether the client is there."""

    def __init__(self, *, disconnected: bool) -> None:
        self.disconnected = disconnected

    async def receive(self) -> dict[str, Any]:
        """Say nothing."""
        return {"type": "http.request"}


@pytest.mark.parametrize(
    ("server", "status"), [(None, "499"), (_Server(disconnected=True), "499"), (_Server(disconnected=False), "500")]
)
@pytest.mark.parametrize("native", [False, True])
def test_a_cancelled_request_is_the_clients_unless_the_server_knows_better(
    server: _Server | None, status: str, native: bool, measured: Pipeline
) -> None:
    """Servers cancel when a client leaves, and when they shut down; then the client is still there."""

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    app: Any = asgi.Middleware(hang)
    if native:
        app = _native(measured)
        app.add_route("/{any}", lambda request: hang(request))  # noqa: PLW0108 - Starlette wants a function here

    async def silence() -> dict[str, Any]:
        return {"type": "http.request"}

    async def run() -> None:
        called = Called()
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "scheme": "http", "query_string": b""}
        task = asyncio.ensure_future(app(scope, server.receive if server else silence, called.take))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())

    assert {status} == {counted for _, counted in _counts(measured)}
    assert [status == "500"] == [
        not span.status.is_ok and span.status.is_unset is False
        for span in measured.spans()
        if span.kind is SpanKind.SERVER
    ]


def test_a_client_that_is_gone_when_the_application_sends_has_left(measured: Pipeline) -> None:
    """Servers of ASGI 2.4 raise an OSError from send."""

    async def take(_: Any) -> None:
        raise ConnectionResetError

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(ConnectionResetError):
        asyncio.run(asgi.Middleware(_sending(START, LAST))(scope, nothing, take))

    assert {("unmatched", "499"): 1} == _counts(measured)


def test_a_disconnect_after_the_last_byte_changes_nothing(measured: Pipeline) -> None:
    """Servers say `http.disconnect` to whoever asks after the response, too."""

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - as above
        await send(START)
        await send(LAST)
        await receive()

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(asgi.Middleware(app)(scope, gone, Called().take))

    assert {("unmatched", "200"): 1} == _counts(measured)


def test_a_websocket_without_a_close_frame_was_left(measured: Pipeline) -> None:
    """Where the server tells: code 1006."""
    messages = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006}]

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - as above
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    scope = {"type": "websocket", "path": "/", "headers": [], "route": "/ws/{room}"}
    asyncio.run(asgi.Middleware(app)(scope, receive, Called().take))
    (span,) = measured.spans()

    assert {("/ws/{room}", "101"): 1} == _counts(measured)
    assert span.attributes is not None
    assert "client_disconnected" == span.attributes["error.type"]
    assert span.status.is_unset


# ---- context ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF)])
@pytest.mark.parametrize("native", [False, True])
def test_counts_and_headers_do_not_depend_on_sampling(
    sampler: Any, native: bool, make_pipeline: Callable[..., Pipeline]
) -> None:
    """Nothing is sampled, everything is counted, and the answer names trace and span."""
    pipeline = make_pipeline(sampler=sampler)
    asgi.instrument()
    app: Any = _native(pipeline) if native else Starlette()
    app.add_route("/a", lambda _: PlainTextResponse("a"))
    called = asyncio.run(call(app, "/a", {"traceparent": f"00-{TRACE}-{PARENT}-00"}))
    asgi.uninstrument()

    assert () == pipeline.spans()
    assert {("/a", "200"): 1} == _counts(pipeline)
    assert TRACE == called.headers["x-trace-id"]
    assert PARENT != called.headers["x-span-id"] and 16 == len(called.headers["x-span-id"])


@pytest.mark.parametrize("native", [False, True])
def test_baggage_of_several_headers_reaches_the_handler(native: bool, measured: Pipeline) -> None:
    """W3C baggage may be spread over headers of the same name."""
    seen: list[Any] = []

    async def handler(_: Any) -> PlainTextResponse:
        seen.append(dict(baggage.get_all()))
        return PlainTextResponse("")

    app: Any = _native(measured) if native else Starlette()
    app.add_route("/a", handler)
    asyncio.run(call(app, "/a", headers_=[(b"baggage", b"a=1"), (b"baggage", b"b=2")]))

    assert [{"a": "1", "b": "2"}] == seen


def test_a_slow_request_is_an_exemplar_of_its_trace(measured: Pipeline) -> None:
    """The duration is recorded in the context of the span."""
    asyncio.run(call(asgi.Middleware(_sending(START, LAST)), "/"))
    (span,) = measured.spans()
    assert span.context is not None

    assert f'trace_id="{span.context.trace_id:032x}"' in measured.page(openmetrics=True)


def test_a_call_in_the_same_process_is_a_request_of_its_own(measured: Pipeline) -> None:
    """A handler that calls another application, or its own, has made a second request."""
    inner = asgi.Middleware(_sending(START, LAST))

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await call(inner, "/inner")
        await _sending(START, LAST)(scope, receive, send)

    asyncio.run(call(asgi.Middleware(outer), "/outer"))
    first, second = measured.spans()

    assert {("unmatched", "200"): 2} == _counts(measured)
    assert first.parent is not None and second.context is not None
    assert second.context.span_id == first.parent.span_id


def test_what_a_probe_has_started_is_measured_after_it(measured: Pipeline) -> None:
    """A task that outlives the probe in which it was started is not excluded for ever."""
    spans: list[trace.Span] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tracer = measured.tracer_provider.get_tracer("test")
        spans.append(tracer.start_span("within"))
        inherited = contextvars.copy_context()
        await _sending(START, LAST)(scope, receive, send)
        scope["later"] = lambda: inherited.run(lambda: spans.append(tracer.start_span("after")))

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/health", "headers": []}

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request"}

    asyncio.run(asgi.Middleware(app)(scope, nothing, Called().take))
    scope["later"]()

    assert [False, True] == [span.is_recording() for span in spans]
    assert inbound_request() is None


def test_what_a_probe_does_in_other_threads_is_left_out_until_it_has_ended(measured: Pipeline) -> None:
    """They get the context of OpenTelemetry and no other variable."""
    threads.instrument()
    released = Event()
    tracer = measured.tracer_provider.get_tracer("test")
    spans: list[trace.Span] = []

    def later() -> None:
        released.wait(5)
        spans.append(tracer.start_span("after"))

    outliving = Thread(target=later)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        outliving.start()
        loop = asyncio.get_running_loop()
        spans.append(await loop.run_in_executor(None, tracer.start_span, "within"))
        await _sending(START, LAST)(scope, receive, send)

    asyncio.run(call(asgi.Middleware(app), "/health"))
    released.set()
    outliving.join()
    threads.uninstrument()

    assert [False, True] == [span.is_recording() for span in spans]


def test_a_request_that_a_handler_records_by_hand_counts_too(measured: Pipeline) -> None:
    """What the application says itself is never taken away."""

    async def handler(_: Any) -> PlainTextResponse:
        record_http_request("GET", "/elsewhere", 200, 0.1)
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/a", handler)])
    asyncio.run(call(app, "/a"))

    assert {("/a", "200"): 1, ("/elsewhere", "200"): 1} == _counts(measured)


def test_no_context_fails_to_detach_wherever_a_request_is_closed(
    measured: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """A coroutine that the garbage collector closes runs its end in another context; nothing is said about that."""

    @types.coroutine
    def pause() -> Iterator[None]:
        yield

    async def hang(*_: Any) -> None:
        await pause()

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request"}

    with caplog.at_level(logging.DEBUG, logger="opentelemetry"):
        for app in (asgi.Middleware(hang), Starlette(routes=[Mount("/", hang)])):
            coroutine = app(dict(scope), nothing, Called().take)  # type: ignore[arg-type]  # of no messages
            contextvars.copy_context().run(coroutine.send, None)
            contextvars.copy_context().run(coroutine.close)

    assert [] == [record.message for record in caplog.records if "detach" in record.message]
    assert 2 == sum(_counts(measured).values())


def test_middleware_that_runs_the_application_in_a_task_is_no_obstacle(measured: Pipeline) -> None:
    """BaseHTTPMiddleware sends from another task than it was called in."""

    class Through(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    app = _native(measured)
    app.add_middleware(Through)
    app.add_route("/a/{b}", lambda _: PlainTextResponse(""))
    asyncio.run(call(app, "/a/1"))

    assert {("/a/{b}", "200"): 1} == _counts(measured)


# ---- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "measured_paths"),
    [
        ("JEEVES_OTEL_HTTP_EXCLUDED", "", ["/a/b", "/internal/x"]),
        ("JEEVES_OTEL_HTTP_EXCLUDED", "none", ["/a/b", "/health", "/healthz/", "/internal/x", "/metrics"]),
        ("JEEVES_OTEL_HTTP_EXCLUDED", "/internal/*, /metrics", ["/a/b", "/health", "/healthz/"]),
        ("OTEL_PYTHON_EXCLUDED_URLS", "internal,a/b$", []),
        ("OTEL_PYTHON_STARLETTE_EXCLUDED_URLS", "http://example.com:8000/int", ["/a/b"]),
        ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "internal", ["/a/b", "/internal/x"]),
    ],
)
def test_settings_say_what_is_excluded(
    name: str, value: str, measured_paths: list[str], measured: Pipeline, setting: Callable[[str, str], None]
) -> None:
    """Paths of ours in place of the default, expressions of OpenTelemetry besides it."""
    setting(name, value)
    app = Starlette()
    for path in ("/a/b", "/health", "/healthz/", "/internal/x", "/metrics"):
        asyncio.run(call(app, path, {"host": "example.com:8000"}))

    assert measured_paths == [span.attributes["url.path"] for span in measured.spans() if span.attributes]
    assert len(measured_paths) == sum(_counts(measured).values())


def test_a_root_path_is_no_part_of_what_is_excluded(measured: Pipeline) -> None:
    """Behind a proxy the path of a probe has the root in front."""
    asyncio.run(call(Starlette(), "/api/health", root_path="/api"))
    asyncio.run(call(Starlette(), "/health", root_path="/api"))

    assert {} == _counts(measured)


def test_a_root_path_and_mounts_are_part_of_the_route(measured: Pipeline) -> None:
    """The template begins at the server's root, and has the names of parameters, never their values."""
    leaf = Starlette(routes=[Route("/{leaf}", lambda _: PlainTextResponse(""))])
    middle = Starlette(routes=[Mount("/other/{middle}", leaf), Mount("/{middle}", leaf)])
    app = Starlette(routes=[Mount("/a", middle), Mount("/a/canary", leaf), Mount("/{outer}", middle)])
    for path in ("/api/a/canary/canary", "/api/canary/other/canary/canary"):
        asyncio.run(call(app, path, root_path="/api"))

    assert {
        ("/api/a/{middle}/{leaf}", "200"): 1,
        ("/api/{outer}/other/{middle}/{leaf}", "200"): 1,
    } == _counts(measured)


def test_the_page_on_the_application_is_not_measured(measured: Pipeline) -> None:
    """MetricsMiddleware answers inside the seam, and the scrape is no request."""
    app = Starlette()
    app.add_middleware(MetricsMiddleware, collector=measured.collector)
    called = asyncio.run(call(app, "/metrics"))

    assert 200 == called.status
    assert {} == _counts(measured)
    assert () == measured.spans()


# ---- failures of ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "site"),
    [
        ((asgi, "_opened"), "asgi.open"),
        ((exchanges.Request, "before"), "asgi.message"),
        ((exchanges.Request, "after"), "asgi.message"),
        ((exchanges.Request, "note_received"), "asgi.message"),
        ((exchanges.Request, "end"), "asgi.end"),
        ((exchanges.Request, "_record"), "asgi.message"),
    ],
)
def test_a_failure_of_ours_does_not_reach_the_application(
    place: tuple[Any, str], site: str, measured: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks in here, the client gets its answer, and the failure is counted."""
    failsafe.set_strict(False)

    def broken(*_: Any) -> None:
        raise RuntimeError

    async def echo(request: Any) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    monkeypatch.setattr(*place, broken)
    called = asyncio.run(call(Starlette(routes=[Route("/a", echo)]), "/a"))

    assert 200 == called.status
    assert {site} <= set(failsafe.counts())
    assert {("/a", "200"): 1} != _counts(measured) or place[1] in {"before", "end", "note_received"}


def test_it_waits_for_the_frameworks() -> None:
    """Activating it imports neither; what is imported later is measured."""
    script = (
        "import sys\n"
        "from jeeves_otel.integrations import asgi\n"
        "asgi.Instrumentor().instrument(skip_dep_check=True)\n"
        "assert not {'starlette', 'fastapi'} & set(sys.modules)\n"
        "import fastapi, starlette.applications\n"
        "assert 2 == len(asgi._hooks._originals)\n"
        "asgi.Instrumentor().uninstrument()\n"
        "assert not hasattr(fastapi.FastAPI.__call__, '__wrapped__')\n"
        "from jeeves_otel import failsafe; assert failsafe.counts() == {}\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)

# SPDX-License-Identifier: Apache-2.0
"""One request is one trace: from HTTP through gRPC to agents and the database, whatever runs where in between."""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import baggage, propagate
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from sqlalchemy import create_engine, text

from jeeves_otel import agent, pipeline as pipeline_run
from jeeves_otel.integrations import asgi, grpc as grpc_integration, sqlalchemy, threads
from jeeves_otel.propagators import AllowedBaggage
from tests.helpers import counts_by, poll_until
from tests.integration.serving import ask, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.helpers import Pipeline

pytestmark = pytest.mark.integration

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"baggage": "tenant=acme,secret=canary", "X-Workflow-ID": "wf-1", "X-Run-ID": "run-7"}
SAMPLED, UNSAMPLED = "01", "00"


class Kernel:
    """A gRPC server whose pipeline works in threads, pools and async generators, and asks a database."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self.baggage: list[dict[str, object]] = []
        self.log_records: list[logging.LogRecord] = []

    @agent("reader")
    def read(self) -> None:
        """Ask the database."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    @agent("writer")
    async def write(self) -> AsyncIterator[bytes]:
        """Yield what is written; its reader may leave early."""
        for piece in (b"a", b"b", b"c"):
            yield piece
            await asyncio.sleep(0)

    def work_in_thread(self) -> None:
        """Let a thread of its own read."""
        thread = Thread(target=self.read)
        thread.start()
        thread.join()

    async def serve(self, _: bytes, __: Any) -> AsyncIterator[bytes]:
        """Answer a call."""
        self.baggage.append(dict(baggage.get_all()))
        async with pipeline_run("chat"):
            with ThreadPoolExecutor(1) as pool:
                await asyncio.get_running_loop().run_in_executor(pool, self.work_in_thread)
            await asyncio.to_thread(self.read)
            async with aclosing(self.write()) as pieces:  # type: ignore[type-var]  # an async generator
                async for piece in pieces:
                    yield piece
            logging.getLogger("kernel").warning("written")


def _gateway(kernel: Kernel, telemetry: Any) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(kernel.serve)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", {"C": handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        target = f"127.0.0.1:{port}"
        with grpc.insecure_channel(target) as channel:
            async with grpc.aio.insecure_channel(target) as aio_channel:
                app.state.call, app.state.aio_call = channel.unary_stream("/a.B/C"), aio_channel.unary_stream("/a.B/C")
                yield
        await server.stop(1)

    app = FastAPI(lifespan=lifespan, telemetry=telemetry)

    @app.get("/blocking")
    def blocking() -> list[str]:
        return [piece.decode() for piece in app.state.call(b"")]

    @app.get("/streaming")
    async def streaming() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            async for piece in app.state.aio_call(b""):
                yield piece

        return StreamingResponse(pieces())

    return app


@pytest.fixture
def kernel(tmp_path: Any) -> Iterator[Kernel]:
    """Return a kernel with an empty database."""
    found = Kernel(f"sqlite:///{tmp_path}/context.db")
    yield found
    found.engine.dispose()


@pytest.fixture
def measured(make_pipeline: Callable[..., Pipeline]) -> Iterator[Pipeline]:
    """Return the pipeline into which every edge is measured; the caller decides what is sampled."""
    found = make_pipeline(sampler=ParentBased(ALWAYS_ON))
    stock = propagate.get_global_textmap()
    propagate.set_global_textmap(AllowedBaggage(stock, ["tenant"]))
    edges = (asgi, grpc_integration, sqlalchemy, threads)
    for edge in edges:
        edge.instrument()
    LoggingInstrumentor().instrument(inject_trace_context=True, enable_log_auto_instrumentation=False)
    yield found
    LoggingInstrumentor().uninstrument()
    for edge in edges:
        edge.uninstrument()
    propagate.set_global_textmap(stock)


def _ask(kernel: Kernel, measured: Pipeline, path: str, flags: str) -> Any:
    telemetry = {"tracer_provider": measured.tracer_provider, "meter_provider": measured.meter_provider}
    with served(_gateway(kernel, telemetry)) as port:
        answer = ask(port, path, headers={**HEADERS, "traceparent": f"00-{TRACE}-b7ad6b7169203331-{flags}"})
        poll_until(
            lambda: counts_by(measured.samples(), "jeeves_http_requests_total", "status_code"),
            "the request to be counted",
        )
    return answer


def _ancestors(span: ReadableSpan, by_id: dict[int, ReadableSpan]) -> list[str]:
    names = []
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        names.append(span.name)
    return names


@pytest.mark.parametrize("path", ["/blocking", "/streaming"])
def test_one_request_is_one_trace(
    path: str, kernel: Kernel, measured: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Over both processes' edges, threads, pools and async generators, without a complaint about contexts."""
    answer = _ask(kernel, measured, path, SAMPLED)
    spans = measured.spans()
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    selects = [span for span in spans if span.name.startswith("SELECT")]

    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE}
    assert 2 == len(selects)
    for select in selects:
        chain = [name for name in _ancestors(select, by_id) if not name.startswith("fastapi")]
        assert ["agent.process", "pipeline.execute", "a.B/C", "a.B/C", f"GET {path}"] == chain
    assert answer.headers["x-trace-id"] == TRACE
    (root,) = [span for span in spans if span.name == f"GET {path}"]
    assert root.context is not None
    assert answer.headers["x-span-id"] == f"{root.context.span_id:016x}"
    assert "detach" not in caplog.text


def test_ids_and_allowed_baggage_reach_the_kernel(kernel: Kernel, measured: Pipeline) -> None:
    """X-Workflow-ID and X-Run-ID stand on both server spans; baggage that is not allowed stops at the gateway."""
    _ask(kernel, measured, "/blocking", SAMPLED)
    noted = [
        (span.attributes["jeeves.workflow.id"], span.attributes["jeeves.run.id"])
        for span in measured.spans()
        if span.attributes and "jeeves.workflow.id" in span.attributes and span.kind.name == "SERVER"
    ]

    assert [("wf-1", "run-7")] * 2 == noted
    assert [{"tenant": "acme"}] == kernel.baggage


def test_log_records_name_trace_and_span(kernel: Kernel, measured: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    """A line of the application leads to the span in which it was written."""
    _ask(kernel, measured, "/blocking", SAMPLED)
    (record,) = [record for record in caplog.records if record.name == "kernel"]
    (run,) = [span for span in measured.spans() if span.name == "pipeline.execute"]

    assert run.context is not None
    assert (TRACE, f"{run.context.span_id:016x}") == (record.otelTraceID, record.otelSpanID)  # type: ignore[attr-defined]  # set by the instrumentation


@pytest.mark.parametrize("path", ["/blocking", "/streaming"])
def test_metrics_do_not_depend_on_sampling(path: str, make_pipeline: Any, tmp_path: Any, request: Any) -> None:
    """What is counted is the same whether the caller samples or not; spans are exported only if it does."""
    counts = []
    measured: Pipeline = request.getfixturevalue("measured")
    from jeeves_otel import recording

    for flags in (SAMPLED, UNSAMPLED):
        pipeline = make_pipeline(sampler=ParentBased(ALWAYS_ON))
        recording.bind(meter_provider=pipeline.meter_provider, tracer_provider=pipeline.tracer_provider)
        kernel = Kernel(f"sqlite:///{tmp_path}/{flags}.db")
        answer = _ask(kernel, pipeline, path, flags)
        kernel.engine.dispose()
        counts.append(
            {
                key: value
                for key, value in pipeline.samples().items()
                if re.fullmatch(r"jeeves_\w+(_total|_count)", key[0])
            }
        )
        assert (flags == SAMPLED) == bool(pipeline.spans())
        assert answer.headers["x-trace-id"] == TRACE

    assert counts[0] == counts[1]
    assert len(counts[0]) > 10
    assert measured.spans() == ()

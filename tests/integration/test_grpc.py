# SPDX-License-Identifier: Apache-2.0
"""gRPC calls on the wire: every ending of a call, as the page shows it."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer, GrpcInstrumentorServer

from jeeves_otel.integrations.grpc import (
    aio_client_interceptors,
    aio_server_interceptor,
    client_interceptor,
    instrument,
    server_interceptor,
    uninstrument,
)
from tests.helpers import Pipeline, counts_by, poll_until
from tests.integration.launching import free_port, launched, scrape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.integration

SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
# What the client asks for, what it sees, what the page says of it.
ENDINGS = [
    ("return", "OK", "success"),
    ("abort", "NOT_FOUND", "NotFound"),
    ("set_code", "INVALID_ARGUMENT", "InvalidArgument"),
    ("set_code and raise", "DATA_LOSS", "DataLoss"),
    ("raise", "UNKNOWN", "Unknown"),
    ("wait", "DEADLINE_EXCEEDED", "DeadlineExceeded"),
    ("unknown", "UNIMPLEMENTED", "Unimplemented"),
]


def _end(ending: str, context: Any) -> None:
    if ending.startswith("set_code"):
        context.set_code(grpc.StatusCode.DATA_LOSS if "raise" in ending else grpc.StatusCode.INVALID_ARGUMENT)
    if ending.endswith("raise"):
        raise ValueError("secret")


class Blocking(grpc.GenericRpcHandler):
    """Ends calls as their method says, in threads."""

    def __init__(self) -> None:
        self.released = Event()

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method such as /t.T/unary_unary."""
        shape = handler_call_details.method.rpartition("/")[2]
        if shape not in SHAPES:
            return None
        behavior = self.stream if shape.endswith("stream") else self.unary
        return getattr(grpc, f"{shape}_rpc_method_handler")(behavior)

    def unary(self, request: Any, context: Any) -> bytes:
        """Answer once."""
        ending = (request if isinstance(request, bytes) else next(request)).decode()
        if ending == "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "secret")
        if ending == "wait":
            self.released.wait(20)
        _end(ending, context)
        return b"answer"

    def stream(self, request: Any, context: Any) -> Iterator[bytes]:
        """Answer twice."""
        yield b"first"
        yield self.unary(request, context)


class Async(Blocking):
    """Ends calls as their method says, in the event loop."""

    async def unary(self, request: Any, context: Any) -> bytes:  # type: ignore[override]
        """Answer once."""
        ending = (request if isinstance(request, bytes) else await anext(aiter(request))).decode()
        if ending == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "secret")
        if ending == "wait":
            await asyncio.Event().wait()
        _end(ending, context)
        return b"answer"

    async def stream(self, request: Any, context: Any) -> AsyncIterator[bytes]:  # type: ignore[override]
        """Answer twice."""
        yield b"first"
        yield await self.unary(request, context)


class Writing(Async):
    """Ends calls as their method says, and writes its answers itself."""

    async def stream(self, request: Any, context: Any) -> None:  # type: ignore[override]
        """Answer twice."""
        await context.write(b"first")
        await context.write(await self.unary(request, context))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def _request(shape: str, ending: str) -> Any:
    return iter([ending.encode()]) if shape.startswith("stream") else ending.encode()


def _method(shape: str, ending: str) -> str:
    return "/t.T/unknown" if ending == "unknown" else f"/t.T/{shape}"


def _call(target: str, shape: str, ending: str, pipeline: Pipeline) -> str:
    with grpc.insecure_channel(target) as plain:
        channel = grpc.intercept_channel(plain, client_interceptor(pipeline.meter_provider))
        make = getattr(channel, shape)(_method(shape, ending))
        try:
            call = make(_request(shape, ending), timeout=0.5 if ending == "wait" else 20)
            if shape.endswith("stream"):
                list(call)
                return str(call.code().name)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "INVALID_ARGUMENT" if ending == "set_code" else "OK"


async def _aio_call(target: str, shape: str, ending: str, pipeline: Pipeline) -> str:
    interceptors = aio_client_interceptors(pipeline.meter_provider)
    async with grpc.aio.insecure_channel(target, interceptors=interceptors) as channel:
        make = getattr(channel, shape)(_method(shape, ending))
        call = make(_request(shape, ending), timeout=0.5 if ending == "wait" else 20)
        try:
            if shape.endswith("stream"):
                async for _ in call:
                    pass
            else:
                await call
        except grpc.RpcError as error:
            return str(error.code().name)
        return str((await call.code()).name)


def _client_codes(pipeline: Pipeline) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    data = pipeline.reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == "rpc.client.call.duration":
                    for point in metric.data.data_points:
                        key = (point.attributes["rpc.method"], point.attributes["rpc.response.status_code"])
                        found[key] = point.count
    return found


def _assert_served_once(pipeline: Pipeline, shape: str, ending: str, status: str) -> None:
    counted = poll_until(lambda: pipeline.counts_by("jeeves_grpc_requests_total", "status"), "the call to be counted")
    method = "/_OTHER" if ending == "unknown" else f"/t.T/{shape}"

    assert {status: 1} == counted
    assert {method: 1} == pipeline.counts_by("jeeves_grpc_requests_total", "method")
    assert {method: 1} == pipeline.counts_by("jeeves_grpc_request_duration_seconds_count", "method")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ending", "code", "status"), ENDINGS)
def test_every_ending_of_a_blocking_call_is_counted_once_with_its_status(
    shape: str, ending: str, code: str, status: str, pipeline: Pipeline
) -> None:
    """However a call ends in threads, the client sees what it would see anyway, and the page says it once."""
    handler = Blocking()
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[server_interceptor(pipeline.meter_provider)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        seen = _call(f"127.0.0.1:{port}", shape, ending, pipeline)
        _assert_served_once(pipeline, shape, ending, status)
    finally:
        handler.released.set()
        server.stop(0).wait()

    assert code == seen or (ending, shape[-5:]) == ("set_code", "unary")
    assert {(_method(shape, ending)[1:], code): 1} == _client_codes(pipeline)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ending", "code", "status"), ENDINGS)
def test_every_ending_of_an_asyncio_call_is_counted_once_with_its_status(
    shape: str, ending: str, code: str, status: str, pipeline: Pipeline
) -> None:
    """However a call ends in the event loop, the client sees what it would see anyway, and the page says it once."""

    async def run() -> str:
        server = grpc.aio.server(interceptors=[aio_server_interceptor(pipeline.meter_provider)])
        server.add_generic_rpc_handlers((Async(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        seen = await _aio_call(f"127.0.0.1:{port}", shape, ending, pipeline)
        await server.stop(1)
        return seen

    assert code == asyncio.run(run())
    _assert_served_once(pipeline, shape, ending, status)
    assert {(_method(shape, ending)[1:], code): 1} == _client_codes(pipeline)


def test_instrument_measures_each_call_once_even_beside_an_interceptor_by_hand(pipeline: Pipeline) -> None:
    """Wired by itself and by hand at once, a call is still one call on both sides."""
    instrument(pipeline.meter_provider)
    handler = Blocking()
    server = grpc.server(ThreadPoolExecutor(2), None, [server_interceptor(pipeline.meter_provider)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        seen = _call(f"127.0.0.1:{port}", "unary_unary", "return", pipeline)
        _assert_served_once(pipeline, "unary_unary", "return", "success")
    finally:
        uninstrument()
        server.stop(0).wait()

    assert "OK" == seen
    assert {("t.T/unary_unary", "OK"): 1} == _client_codes(pipeline)


SERVED = [ending for ending in ENDINGS if ending[0] != "unknown"]
SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "DATA_LOSS"}


@pytest.fixture
def wired(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Return a pipeline under which grpc is measured and has spans, wired by themselves."""
    instrument(pipeline.meter_provider)
    instrumentors = [GrpcInstrumentorServer(), GrpcAioInstrumentorServer()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=pipeline.tracer_provider)
    yield pipeline
    for instrumentor in instrumentors:
        instrumentor.uninstrument()
    uninstrument()


def _assert_span_says(pipeline: Pipeline, code: str) -> None:
    (span,) = poll_until(pipeline.spans, "the span to be exported")

    assert code == span.attributes["rpc.response.status_code"]
    assert grpc.StatusCode[code].value[0] == span.attributes["rpc.grpc.status_code"]
    assert ("ERROR" if code in SERVER_ERRORS else "UNSET") == span.status.status_code.name
    assert span.status.description is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ending", "code", "status"), SERVED)
def test_span_of_a_blocking_call_says_how_it_ended(
    shape: str, ending: str, code: str, status: str, wired: Pipeline
) -> None:
    """Whatever the instrumentation for spans has made of an ending, the exported span has the right status."""
    handler = Blocking()
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        _call(f"127.0.0.1:{port}", shape, ending, wired)
        _assert_served_once(wired, shape, ending, status)
    finally:
        handler.released.set()
        server.stop(1).wait()

    _assert_span_says(wired, code)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("handler", [Async, Writing])
@pytest.mark.parametrize(("ending", "code", "status"), SERVED)
def test_span_of_an_asyncio_call_says_how_it_ended(
    shape: str, handler: type[Async], ending: str, code: str, status: str, wired: Pipeline
) -> None:
    """The same for coroutines, async generators, and coroutines that write their answers."""
    assert code == asyncio.run(_serve_wired(handler(), shape, ending, wired))
    _assert_served_once(wired, shape, ending, status)
    _assert_span_says(wired, code)


@pytest.mark.parametrize("ending", ["return", "abort", "set_code", "raise"])
def test_blocking_handler_in_an_asyncio_server_works_under_instrumentation(ending: str, wired: Pipeline) -> None:
    """A handler that an asyncio server runs in its thread pool answers, is counted, and has a right span."""
    code, status = {name: (code, status) for name, code, status in ENDINGS}[ending]

    assert code == asyncio.run(_serve_wired(Blocking(), "unary_unary", ending, wired))
    _assert_served_once(wired, "unary_unary", ending, status)
    _assert_span_says(wired, code)


async def _serve_wired(handler: Blocking, shape: str, ending: str, pipeline: Pipeline) -> str:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    seen = await _aio_call(f"127.0.0.1:{port}", shape, ending, pipeline)
    await server.stop(1)
    return seen


def test_launched_kernel_is_measured_by_itself() -> None:
    """Under the launcher an asyncio server and its client need no line of code, and both ends are on the page."""
    port = free_port()
    with launched("kernel.py", METRICS_PORT=str(port), OTEL_TRACES_EXPORTER="none") as app:
        app.wait_ready()
        samples = scrape(port)

        assert app.finish() == 0
    assert {"success": 3, "NotFound": 1} == counts_by(samples, "jeeves_grpc_requests_total", "status")
    assert {"/kernel.v1.Kernel/Run": 4} == counts_by(samples, "jeeves_grpc_requests_total", "method")


@pytest.mark.parametrize("ending", ["future", "with_call", "cancel", "abandon"])
def test_other_ways_to_make_a_blocking_call_are_counted_once(ending: str, pipeline: Pipeline) -> None:
    """future(), with_call(), a cancelled stream and one that nobody holds any more end with the right status."""
    handler = Blocking()
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[server_interceptor(pipeline.meter_provider)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as plain:
        channel = grpc.intercept_channel(plain, client_interceptor(pipeline.meter_provider))
        if ending == "future":
            assert channel.unary_unary("/t.T/unary_unary").future(b"return").result() == b"answer"
        elif ending == "with_call":
            assert channel.unary_unary("/t.T/unary_unary").with_call(b"return")[1].code() is grpc.StatusCode.OK
        else:
            call = channel.unary_stream("/t.T/unary_stream")(b"wait")
            assert next(call) == b"first"
            if ending == "cancel":
                assert call.cancel()
            del call
        code, status = ("CANCELLED", "Canceled") if ending in {"cancel", "abandon"} else ("OK", "success")
        shape = "unary_stream" if code == "CANCELLED" else "unary_unary"
        _assert_served_once(pipeline, shape, ending, status)
        poll_until(lambda: _client_codes(pipeline) == {(f"t.T/{shape}", code): 1}, "the client's own count")
    handler.released.set()
    server.stop(1).wait()

# SPDX-License-Identifier: Apache-2.0
"""How gRPC is measured: wired or by hand, what travels in the metadata, what is current, and what it leaves alone."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry import baggage, context as otel_context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from jeeves_otel import failsafe, pipeline as pipeline_run, propagation, recording
from jeeves_otel.integrations import grpc as integration, grpc_calls
from tests.helpers import counts_by, poll_until
from tests.integration.launching import free_port, launched, scrape
from tests.integration.rpc import (
    LONG_S,
    SHAPES,
    Coroutines,
    Service,
    aio_call_once,
    aio_play,
    aio_serving,
    call_once,
    play,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import Pipeline

pytestmark = pytest.mark.integration

every_kind = pytest.mark.parametrize(
    ("play_once", "kind"),
    [(play, Service), (aio_play, Coroutines), (aio_play, Service)],
    ids=["blocking", "asyncio", "blocking in asyncio"],
)
IDS = [("x-workflow-id", "w-1"), ("x-run-id", "r-1")]


@pytest.fixture(autouse=True)
def _nothing_is_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No word of OpenTelemetry or ours, such as a context that cannot be detached."""
    caplog.set_level("CRITICAL", logger="grpc")
    yield
    assert [] == [record.getMessage() for record in caplog.get_records("call")]


@pytest.fixture
def measured(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Return the pipeline into which every server and channel that is made from now on is measured."""
    integration.instrument()
    yield pipeline
    integration.uninstrument()


def _counts(pipeline: Pipeline) -> tuple[float, dict[str, float]]:
    """Return how many calls were served, and ``{status: count}`` of those made."""
    samples = pipeline.samples()
    served = sum(value for (name, _), value in samples.items() if name == "jeeves_grpc_requests_total")
    made: dict[str, float] = {}
    for (name, labels), value in samples.items():
        if name == "rpc_client_call_duration_seconds_count":
            code = dict(labels).get("rpc_response_status_code", "")
            made[code] = made.get(code, 0) + value
    return served, made


def _await_counts(pipeline: Pipeline, served: float, made: dict[str, float]) -> None:
    """Wait until so many calls are on the page; more would fail."""
    poll_until(lambda: (served, made) == _counts(pipeline), f"{served} calls served and {made} made", timeout_s=5)


# ---- wired and by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wired", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_interceptors_by_hand_measure_once_beside_instrument_too(shape: str, wired: bool, pipeline: Pipeline) -> None:
    """The one-liners of the blocking interface; a call is one call on each side, however often it is asked for."""
    if wired:
        integration.instrument()
    service = Service()
    ours = [integration.server_interceptor()]
    with serving(service, ours) as (server, address), grpc.insecure_channel(address) as plain:
        channel = grpc.intercept_channel(plain, integration.client_interceptor())
        assert "NOT_FOUND" == call_once(channel, shape, "abort", service, server).code
    integration.uninstrument()

    _await_counts(pipeline, 1, {"NOT_FOUND": 1})
    assert sorted(["SERVER", "CLIENT"]) == sorted(span.kind.name for span in pipeline.spans())


@pytest.mark.parametrize("wired", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_asyncio_interceptors_by_hand_measure_once_beside_instrument_too(
    shape: str, wired: bool, pipeline: Pipeline
) -> None:
    """The one-liners of the asyncio interface, the same."""
    if wired:
        integration.instrument()

    async def run() -> str:
        service = Coroutines()
        server, address = await aio_serving(service, [integration.aio_server_interceptor()])
        interceptors = integration.aio_client_interceptors()
        async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
            seen = await aio_call_once(channel, shape, "abort", service, server)
        await server.stop(LONG_S)
        return seen.code

    code = asyncio.run(run())
    integration.uninstrument()

    assert "NOT_FOUND" == code
    _await_counts(pipeline, 1, {"NOT_FOUND": 1})
    assert sorted(["SERVER", "CLIENT"]) == sorted(span.kind.name for span in pipeline.spans())


def test_every_way_to_make_a_blocking_call_is_measured(measured: Pipeline) -> None:
    """Called, with_call, future, and a stream that is read in the caller's own thread."""
    option = ("SingleThreadedUnaryStream", 1)
    with serving(Service()) as (_, address), grpc.insecure_channel(address, [option]) as channel:
        unary, stream = channel.unary_unary("/t.T/unary_unary"), channel.unary_stream("/t.T/unary_stream")

        assert b"answer" == unary(b"return")
        assert b"answer" == unary.with_call(b"return", LONG_S, None)[0]
        assert b"answer" == unary.future(b"return", timeout=LONG_S).result()
        assert [b"first", b"answer"] == list(stream(b"return"))
        with pytest.raises(grpc.RpcError):
            unary(b"abort")
        _await_counts(measured, 5, {"OK": 4, "NOT_FOUND": 1})


def test_channels_and_servers_stay_what_grpc_made_and_close_when_they_are_dropped(measured: Pipeline) -> None:  # noqa: ARG001 - switches it on
    """Their class is a subclass of their own, of the same name, and nothing of ours holds them."""

    async def asyncio_ones() -> list[Any]:
        return [grpc.aio.insecure_channel("127.0.0.1:1"), grpc.aio.server()]

    made = [grpc.insecure_channel("127.0.0.1:1"), *asyncio.run(asyncio_ones())]
    gc.collect()
    gc.disable()
    try:
        kept = [weakref.ref(one) for one in made]
        names = [type(one).__name__ for one in made]
        assert isinstance(made[0], grpc.Channel) and isinstance(made[1], grpc.aio.Channel)
        del made[:]
        alive = [reference() for reference in kept]
    finally:
        gc.enable()

    assert ["Channel", "Channel", "Server"] == names
    assert [None, None, None] == alive


def test_after_uninstrument_what_was_made_before_is_silent_and_works(measured: Pipeline) -> None:
    """And grpc's own functions are back."""
    with serving(Service()) as (_, address), grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/t.T/unary_unary")
        integration.uninstrument()

        assert b"answer" == call(b"return")
        assert "grpc" == grpc.insecure_channel.__module__
        assert not hasattr(grpc.server, "__wrapped__")
        assert (0, {}) == _counts(measured)


# ---- calls that nobody waits for -------------------------------------------------------------------------------------


def test_a_stream_that_is_dropped_or_closed_early_is_cancelled(measured: Pipeline) -> None:
    """Dropped without a word, it ends as without us; its handler's generator is closed."""
    service = Service()
    with serving(service) as (_, address), grpc.insecure_channel(address) as channel:
        stream = channel.unary_stream("/t.T/unary_stream")
        dropped = stream(b"hang")
        assert b"first" == next(dropped)
        del dropped
        closed = stream(b"hang")
        next(closed)
        closed.cancel()
        _await_counts(measured, 2, {"CANCELLED": 2})
    poll_until(lambda: len(measured.spans()) == 4, "the spans of both sides")


def test_asyncio_calls_that_are_dropped_or_cancelled_at_once_are_measured(measured: Pipeline) -> None:
    """Never awaited, cancelled before they left, or in a task that is cancelled: each is one call of the client."""

    async def run() -> None:
        service = Coroutines()
        server, address = await aio_serving(service)
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary("/t.T/unary_unary")
            assert call(b"return").time_remaining() is None  # dropped; and an answer that an intercepted call has not
            call(b"hang").cancel()

            async def hang() -> None:
                await call(b"hang")

            task = asyncio.ensure_future(hang())
            assert await asyncio.to_thread(service.begun.wait, LONG_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(lambda: poll_until(lambda: _counts(measured)[1].get("OK"), "the dropped call"))
        await server.stop(LONG_S)

    asyncio.run(run())

    _await_counts(measured, 2, {"OK": 1, "CANCELLED": 2})


def test_a_call_that_never_left_is_an_error_without_a_status(measured: Pipeline) -> None:
    """A closed channel raises ValueError: the class stands for the status."""
    channel = grpc.insecure_channel("127.0.0.1:1")
    call = channel.unary_unary("/t.T/unary_unary")
    channel.close()
    with pytest.raises(ValueError, match="closed"):
        call(b"return")
    (span,) = measured.spans()

    assert (0, {"": 1}) == _counts(measured)
    assert span.attributes is not None
    assert "ValueError" == span.attributes["error.type"]


@every_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_no_call_outlives_its_end(play_once: Callable[..., Any], kind: Any, shape: str, measured: Pipeline) -> None:
    """Nothing waits for the garbage collector, on either side."""
    gc.collect()
    gc.disable()
    try:
        play_once(kind(), shape, "return")
        poll_until(lambda: len(measured.spans()) == 2, "both spans")
        left = poll_until(
            lambda: [[one for one in gc.get_objects() if issubclass(type(one), grpc_calls.Call)]], "a look"
        )
    finally:
        gc.enable()

    assert [[]] == left


# ---- interceptors of the application ---------------------------------------------------------------------------------


class _Own(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Calls as often as it is told to; without a call it answers itself."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        outcome: Any = _Answer()
        for _ in range(self.calls):
            outcome = continuation(details, request)
        return outcome


class _Answer:
    def result(self) -> bytes:
        return b"own"


@pytest.mark.parametrize(("calls", "answer"), [(0, b"own"), (1, b"answer"), (2, b"answer")])
def test_what_a_blocking_interceptor_puts_around_a_channel_is_outside_of_the_call(
    calls: int, answer: bytes, measured: Pipeline
) -> None:
    """An answer of its own is no call, and each of its attempts is one."""
    with serving(Service()) as (_, address), grpc.insecure_channel(address) as plain:
        channel = grpc.intercept_channel(plain, _Own(calls))

        assert answer == channel.unary_unary("/t.T/unary_unary")(b"return")
        _await_counts(measured, calls, {"OK": calls} if calls else {})


class _AioOwn(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # as above
    """As above; with ``raises`` it fails after that."""

    def __init__(self, calls: int, *, raises: bool = False) -> None:
        self.calls = calls
        self.raises = raises

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        outcome: Any = b"own"
        for _ in range(self.calls):
            outcome = await continuation(details, request)
            await outcome
        if self.raises:
            raise RuntimeError
        return outcome


@pytest.mark.parametrize(("calls", "code"), [(0, "OK"), (1, "OK"), (2, "OK"), (1, "UNKNOWN")])
def test_what_an_asyncio_channel_is_made_with_is_part_of_the_call(calls: int, code: str, measured: Pipeline) -> None:
    """The application sees one call, whatever its interceptors do; what they raise reaches it, and is UNKNOWN."""

    async def run() -> Any:
        service = Coroutines()
        server, address = await aio_serving(service)
        own = _AioOwn(calls, raises=code == "UNKNOWN")
        async with grpc.aio.insecure_channel(address, interceptors=[own]) as channel:
            try:
                return await channel.unary_unary("/t.T/unary_unary")(b"return")
            except RuntimeError:
                return None
            finally:
                await server.stop(LONG_S)

    assert {"UNKNOWN": None, "OK": b"answer" if calls else b"own"}[code] == asyncio.run(run())
    _await_counts(measured, calls, {code: 1})


class _Refusing(grpc.ServerInterceptor):  # type: ignore[misc]  # as above
    """Refuses calls itself, or fails."""

    def __init__(self, *, raises: bool) -> None:
        self.raises = raises
        self.seen: list[Any] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen.append(trace.get_current_span().get_span_context())
        if self.raises:
            raise RuntimeError

        def refuse(_: Any, context: Any) -> None:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

        return grpc.unary_unary_rpc_method_handler(refuse)


class _AioRefusing(_Refusing, grpc.aio.ServerInterceptor):  # type: ignore[misc]  # as above
    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        return super().intercept_service(continuation, details)


@pytest.mark.parametrize(("raises", "code"), [(False, "PERMISSION_DENIED"), (True, "UNKNOWN")])
def test_what_an_interceptor_of_the_server_refuses_is_an_ending_and_happens_in_its_span(
    raises: bool, code: str, measured: Pipeline
) -> None:
    """Ours comes first."""
    own = _Refusing(raises=raises)
    with serving(Service(), [own]) as (_, address):
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/t.T/unary_unary")(b"return")
        assert code == raised.value.code().name
        _await_counts(measured, 1, {code: 1})
    server = next(span for span in measured.spans() if span.kind is SpanKind.SERVER)

    assert [server.context] == own.seen


@pytest.mark.parametrize(("raises", "code"), [(False, "UNKNOWN"), (True, "UNKNOWN")])
def test_what_an_interceptor_of_an_asyncio_server_refuses_is_an_ending(
    raises: bool, code: str, measured: Pipeline
) -> None:
    """The same in the event loop, where an abort that nobody awaits is a failure of the handler."""

    async def run() -> str:
        server, address = await aio_serving(Coroutines(), (_AioRefusing(raises=raises),))
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary("/t.T/unary_unary")(b"return")
            seen = (await call.code()).name
        await server.stop(LONG_S)
        return seen

    seen = asyncio.run(run())
    assert code == seen if raises else seen in {"PERMISSION_DENIED", "UNKNOWN"}
    _await_counts(measured, 1, {seen: 1})


# ---- what travels, and what is current -------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_trace_baggage_and_ids_reach_the_handler_and_its_span(
    play_once: Callable[..., Any], kind: Any, shape: str, measured: Pipeline
) -> None:
    """A call inside a pipeline carries all of them; in the handler the server's span is current, and what it calls on."""
    seen: list[Any] = []

    def look(_: Any) -> None:
        with recording.tracer().start_as_current_span("inside"):
            seen.append((baggage.get_baggage("tenant"), propagation.outgoing()))

    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    with pipeline_run("answer", request_id="req-1"):
        play_once(kind(during=look), shape, "return")
    otel_context.detach(token)
    poll_until(lambda: len(measured.spans()) == 4, "all spans")
    spans = {span.name if span.kind is SpanKind.INTERNAL else span.kind.name: span for span in measured.spans()}
    chain = [spans[name] for name in ("inside", "SERVER", "CLIENT", "pipeline.execute")]

    assert [("acme", [("x-workflow-id", "answer"), ("x-run-id", "req-1")])] == seen
    assert [span.context and span.context.span_id for span in chain[1:]] == [
        span.parent and span.parent.span_id for span in chain[:-1]
    ]
    assert {"jeeves.workflow.id": "answer", "jeeves.run.id": "req-1"}.items() <= dict(
        spans["SERVER"].attributes or {}
    ).items()
    assert "req-1" not in measured.page()


@every_kind
def test_ids_that_came_in_go_on_through_a_kernel_to_the_next_one(
    play_once: Callable[..., Any], kind: Any, measured: Pipeline
) -> None:
    """From end to end, also without a span that is sampled."""
    passed_on: list[Any] = []
    recording.bind(meter_provider=measured.meter_provider, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    token = otel_context.attach(propagation.incoming(IDS, Context()))
    play_once(kind(during=lambda _: passed_on.append(propagation.outgoing())), "unary_unary", "return")
    otel_context.detach(token)

    assert [IDS] == passed_on
    _await_counts(measured, 1, {"OK": 1})
    assert () == measured.spans()


@pytest.mark.parametrize("given", [None, (), [("x-run-id", "mine"), ("a", "b"), ("a", "c"), ("blob-bin", b"\xff")]])
def test_what_the_application_says_in_the_metadata_holds(given: Any, measured: Pipeline) -> None:
    """Ours is added to it, never put in its place, by position and by name."""
    arrived: list[Any] = []

    def look(context: Any) -> None:
        arrived.append([tuple(pair) for pair in context.invocation_metadata() if pair[0] != "user-agent"])

    with serving(Service(during=look)) as (_, address), grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/t.T/unary_unary")
        with pipeline_run("answer", request_id="req-1"):
            call(b"return", LONG_S, given)
            call(b"return", metadata=given)
        _await_counts(measured, 2, {"OK": 2})
    ours = {"traceparent", "x-workflow-id", *(() if given else ("x-run-id",))}

    for metadata in arrived:
        assert [tuple(pair) for pair in given or ()] == [pair for pair in metadata if pair[0] not in ours]
        assert ours == {name for name, _ in metadata} - {name for name, _ in given or ()}


def test_a_thread_that_has_served_a_call_has_no_context_left_over(measured: Pipeline) -> None:
    """The next call that it serves without telemetry sees none of the call before."""
    seen: list[Any] = []
    service = Service(during=lambda _: seen.append(trace.get_current_span().get_span_context().is_valid))
    with serving(service) as (_, address), grpc.insecure_channel(address) as channel:
        for shape in ("unary_unary", "unary_stream"):
            make = getattr(channel, shape)(f"/t.T/{shape}")
            list(make(b"return"))
        integration.uninstrument()
        for shape in ("unary_unary", "unary_stream"):
            make = getattr(channel, shape)(f"/t.T/{shape}")
            list(make(b"return"))
    poll_until(lambda: len(measured.spans()) == 4, "the spans of two calls")

    assert [True, True, False, False] == seen


@every_kind
def test_exemplars_of_both_sides_are_the_spans_of_the_call(
    play_once: Callable[..., Any], kind: Any, measured: Pipeline
) -> None:
    """A measurement is made in its own span's context, not in the one around it."""
    play_once(kind(), "unary_unary", "return")
    poll_until(lambda: len(measured.spans()) == 2, "both spans")
    data = measured.reader.get_metrics_data()
    assert data is not None
    exemplars = {
        metric.name.split(".")[1].upper(): exemplar.span_id
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        for exemplar in point.exemplars
    }

    assert exemplars == {span.kind.name: span.context.span_id for span in measured.spans() if span.context}


# ---- what is left alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", recording.SUPPRESSED)
def test_suppressed_calls_are_not_measured_and_carry_nothing(key: str, measured: Pipeline) -> None:
    """Who suppresses instrumentation, as exporters do, is left alone; the server, which cannot know, counts it."""
    carried: list[Any] = []
    service = Service(during=lambda context: carried.append(dict(context.invocation_metadata())))
    token = otel_context.attach(otel_context.set_value(key, True))
    play(service, "unary_unary", "return")
    otel_context.detach(token)

    _await_counts(measured, 1, {})
    assert {"user-agent"} == set(carried[0])


def test_the_otlp_exporter_does_not_measure_itself(measured: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel is made and used like any other, and leaves neither a count nor a span."""
    from opentelemetry.exporter.otlp.proto.grpc import exporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    received: list[Any] = []

    def collect(request: bytes, _: Any) -> bytes:
        received.append(request)
        return b""

    monkeypatch.setattr(exporter, "insecure_channel", grpc.insecure_channel)
    play(Service(), "unary_unary", "return")
    spans = poll_until(lambda: len(measured.spans()) == 2 and measured.spans(), "two spans to export")
    integration.uninstrument()
    service = Service()
    service.service = lambda _: grpc.unary_unary_rpc_method_handler(collect)  # type: ignore[method-assign]
    with serving(service) as (_, address):
        integration.instrument()
        monkeypatch.setattr(exporter, "insecure_channel", grpc.insecure_channel)
        sender = OTLPSpanExporter(endpoint=address, insecure=True)
        sender.export(spans)
        sender.shutdown()

    assert 1 == len(received)
    assert (1, {"OK": 1}) == _counts(measured)
    assert 2 == len(measured.spans())


def test_metrics_do_not_depend_on_sampling_or_on_tracing_at_all(measured: Pipeline) -> None:
    """Every call is counted, whatever becomes of its span."""
    for provider in (TracerProvider(sampler=ALWAYS_OFF), trace.NoOpTracerProvider()):
        recording.bind(meter_provider=measured.meter_provider, tracer_provider=provider)
        play(Service(), "unary_unary", "abort")
        aio_play(Coroutines(), "unary_stream", "return")

    _await_counts(measured, 4, {"NOT_FOUND": 2, "OK": 2})
    assert () == measured.spans()


BREAKABLE = [
    (grpc_calls, "Call.__init__"),
    (grpc_calls, "Method.ended"),
    (grpc_calls.propagation, "outgoing"),
    (grpc_calls.propagation, "incoming"),
    (grpc_calls.recording, "instruments"),
]


@every_kind
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("owner", "name"), BREAKABLE, ids=[name for _, name in BREAKABLE])
def test_whatever_of_ours_breaks_the_call_works_and_it_is_counted(
    owner: Any,
    name: str,
    shape: str,
    play_once: Callable[..., Any],
    kind: Any,
    measured: Pipeline,  # noqa: ARG001 - switches it on
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client sees what it would see without us."""
    failsafe.set_strict(False)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(f"{owner.__name__}.{name}", broken)
    ending = "set_code" if play_once is aio_play else "abort"
    seen = play_once(kind(), shape, ending)

    assert {"set_code": "INVALID_ARGUMENT", "abort": "NOT_FOUND"}[ending] == seen.code
    assert {"grpc.server", "grpc.client"} >= set(failsafe.counts()) > set()
    caplog.clear()


class _Listed(Service):
    """Answers streams with a list, which is an iterable and no iterator."""

    def stream(self, request: Any, context: Any) -> Any:
        """Return the messages at once."""
        return list(super().stream(request, context))


@pytest.mark.parametrize("play_once", [play, aio_play], ids=["blocking", "blocking in asyncio"])
def test_what_a_blocking_handler_may_return_for_a_stream_stays_as_grpc_has_it(
    play_once: Callable[..., Any], pipeline: Pipeline
) -> None:
    """A list serves in an asyncio server and is refused in a blocking one, with us and without."""
    without = play_once(_Listed(), "unary_stream", "return")
    integration.instrument()
    measured_too = play_once(_Listed(), "unary_stream", "return")
    integration.uninstrument()

    assert (without.code, without.values) == (measured_too.code, measured_too.values)
    _await_counts(pipeline, 1, {without.code: 1})


@pytest.mark.parametrize("by_hand", ["instrument()", "Instrumentor().instrument(skip_dep_check=True)"])
def test_it_waits_for_grpc_and_imports_none(by_hand: str) -> None:
    """Importing and activating it imports no grpc; when the application does, everything is wired."""
    script = (
        "import sys\n"
        "from jeeves_otel.integrations import grpc as integration\n"
        f"integration.{by_hand}\n"
        "assert not any(name == 'grpc' or name.startswith('grpc.') for name in sys.modules)\n"
        "import grpc\n"
        "assert all(hasattr(make, '__wrapped__') for make in (grpc.server, grpc.insecure_channel, grpc.secure_channel))\n"
        "assert all(hasattr(make, '__wrapped__') for make in (grpc.aio.server, grpc.aio.insecure_channel))\n"
        "from jeeves_otel import failsafe; assert failsafe.counts() == {}\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


# The contrib package is installed here, and has its place only if ours is off by its own name.
CONTRIB = "grpc_client,grpc_server,grpc_aio_client,grpc_aio_server"


@pytest.mark.parametrize("disabled", ["", "jeeves_grpc", CONTRIB, "*"])
def test_under_the_launcher_a_kernel_is_measured_without_a_line_of_its_own(disabled: str) -> None:
    """Wired by itself on both sides, silent on stderr, off when it is disabled by its name or with everything."""
    port = free_port()
    with launched(
        "kernel.py", METRICS_PORT=str(port), OTEL_TRACES_EXPORTER="none", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled
    ) as app:
        app.wait_ready()
        samples = scrape(port)
        assert app.finish() == 0
    served = counts_by(samples, "jeeves_grpc_requests_total", "status")
    made = counts_by(samples, "rpc_client_call_duration_seconds_count", "rpc_response_status_code")

    assert ({} if disabled else {"success": 3, "NotFound": 1}) == served
    assert ({} if disabled else {"OK": 3, "NOT_FOUND": 1}) == made
    assert "Traceback" not in app.log

# SPDX-License-Identifier: Apache-2.0
"""gRPC on the wire: every ending of a call, on both sides, as the page and the exported spans show it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import SpanKind

from jeeves_otel import failsafe
from jeeves_otel.integrations import grpc as integration
from tests.helpers import poll_until
from tests.integration.rpc import SECRET, SHAPES, Coroutines, Seen, Service, Writing, aio_play, play

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.helpers import Pipeline

pytestmark = pytest.mark.integration

# What happens, the status that the client sees, and what the page calls it.
ENDINGS = [
    ("return", "OK", "success"),
    ("abort", "NOT_FOUND", "NotFound"),
    ("abort_with_status", "RESOURCE_EXHAUSTED", "ResourceExhausted"),
    ("set_code", "INVALID_ARGUMENT", "InvalidArgument"),
    ("set_code and raise", "DATA_LOSS", "DataLoss"),
    ("raise", "UNKNOWN", "Unknown"),
    ("unwritable", "INTERNAL", "Internal"),
    ("unreadable", "INTERNAL", "Internal"),
    ("unknown", "UNIMPLEMENTED", "Unimplemented"),
    ("deadline", "DEADLINE_EXCEEDED", "DeadlineExceeded"),
    ("client cancel", "CANCELLED", "Canceled"),
    ("context.cancel", "CANCELLED", "Canceled"),
    ("server.stop", "UNAVAILABLE", "Unavailable"),
]
# With us or without, a handler of grpc 1.85 may wait for ever for the rest of a stream that cannot be read.
BLOCKING = [(shape, *row) for shape in SHAPES for row in ENDINGS if row[0] != "unreadable" or shape.startswith("unary")]
# An asyncio server answers UNKNOWN where it cannot read or write a message, and its handlers cannot cancel a call.
AIO_ENDINGS = [
    (ending, *(("UNKNOWN", "Unknown") if code == "INTERNAL" else (code, status)))
    for ending, code, status in ENDINGS
    if ending != "context.cancel"
]
# With us or without, grpc 1.85 now and then never ends a blocking stream of an asyncio server whose call is cut short.
UNCUT = {"return", "set_code", "raise", "set_code and raise"}
THREADED = [
    (shape, *row)
    for shape in SHAPES
    for row in AIO_ENDINGS
    if row[0] in (UNCUT if shape.endswith("stream") else UNCUT | {"abort", "unwritable"})
]
SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}

every_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(autouse=True)
def _nothing_is_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No word of OpenTelemetry or ours, such as a context that cannot be detached."""
    # What grpc says of handlers that raise would keep their frames, and so their generators, until the test is over.
    caplog.set_level(logging.CRITICAL, logger="grpc")
    yield
    assert [] == [record.getMessage() for record in caplog.get_records("call")]


@pytest.fixture
def measured(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Return the pipeline into which every server and channel that is made from now on is measured."""
    integration.instrument()
    yield pipeline
    integration.uninstrument()


def _both_spans(pipeline: Pipeline) -> tuple[ReadableSpan, ReadableSpan]:
    """Return the span of the server and that of the client, once both have ended."""
    spans = poll_until(lambda: len(pipeline.spans()) == 2 and pipeline.spans(), "both spans")
    server, client = sorted(spans, key=lambda span: span.kind is SpanKind.CLIENT)
    assert [SpanKind.SERVER, SpanKind.CLIENT] == [server.kind, client.kind]
    return server, client


def _client_calls(pipeline: Pipeline) -> dict[tuple[str, str], float]:
    """Return ``{(method, status): count}`` of calls made, as the page has it."""
    return {
        (dict(labels)["rpc_method"], dict(labels).get("rpc_response_status_code", "")): value
        for (name, labels), value in pipeline.samples().items()
        if name == "rpc_client_call_duration_seconds_count"
    }


def _served(pipeline: Pipeline) -> dict[tuple[str, str], float]:
    """Return ``{(method, status): count}`` of calls served, without zeros; the histogram's counts must agree."""
    counts: dict[tuple[str, str], float] = {}
    histogram: dict[str, float] = {}
    by_method: dict[str, float] = {}
    for (name, labels), value in pipeline.samples().items():
        if name == "jeeves_grpc_requests_total" and value:
            counts[dict(labels)["method"], dict(labels)["status"]] = value
        if name == "jeeves_grpc_request_duration_seconds_count" and value:
            histogram[dict(labels)["method"]] = value
    for (method, _), value in counts.items():
        by_method[method] = by_method.get(method, 0) + value
    assert by_method == histogram
    return counts


def _assert_told(pipeline: Pipeline, shape: str, ending: str, code: str, status: str) -> None:
    """Check the page and the spans of one call."""
    known = ending != "unknown"
    asked = f"t.T/{shape if known else 'unknown'}"
    server, client = _both_spans(pipeline)

    assert {(f"/{asked}" if known else "/_OTHER", status): 1} == _served(pipeline)
    assert {(asked, code): 1} == _client_calls(pipeline)
    _assert_span(server, asked if known else "grpc", asked if known else "_OTHER", code, SERVER_ERRORS)
    _assert_span(client, asked, asked, code, {code} - {"OK"})
    assert client.context is not None
    assert server.parent is not None and client.context.span_id == server.parent.span_id
    assert client.attributes is not None and client.attributes["server.address"] == "127.0.0.1"
    assert isinstance(client.attributes["server.port"], int)
    assert SECRET not in pipeline.page(openmetrics=True)
    assert not any(SECRET in span.to_json() for span in (server, client))


def _assert_span(span: ReadableSpan, name: str, method: str, code: str, errors: set[str]) -> None:
    attributes = dict(span.attributes or {})
    failed = code in errors

    assert name == span.name
    assert ("grpc", method, code) == tuple(
        attributes.get(key) for key in ("rpc.system.name", "rpc.method", "rpc.response.status_code")
    )
    assert (code if failed else None) == attributes.get("error.type")
    assert ("ERROR" if failed else "UNSET") == span.status.status_code.name
    assert span.status.description is None


def _compare(
    play_once: Callable[[Service, str, str], Seen], kind: type[Service], shape: str, ending: str, code: str
) -> None:
    """Play without us, then with us; both must look the same to the client."""
    integration.uninstrument()
    without = play_once(kind(), shape, ending)
    integration.instrument()
    seen = play_once(kind(), shape, ending)

    assert code == without.code
    assert without == seen


@pytest.mark.parametrize(("shape", "ending", "code", "status"), BLOCKING)
def test_every_ending_of_a_blocking_call_is_told_once_on_both_sides_and_changes_nothing(
    shape: str, ending: str, code: str, status: str, measured: Pipeline
) -> None:
    """However a call ends in threads: values, error, status and metadata as without us; one count, one span per side."""
    _compare(play, Service, shape, ending, code)
    _assert_told(measured, shape, ending, code, status)


@every_shape
@pytest.mark.parametrize(("ending", "code", "status"), AIO_ENDINGS)
def test_every_ending_of_an_asyncio_call_is_told_once_on_both_sides_and_changes_nothing(
    shape: str, ending: str, code: str, status: str, measured: Pipeline
) -> None:
    """The same for coroutines and async generators."""
    _compare(aio_play, Coroutines, shape, ending, code)
    _assert_told(measured, shape, ending, code, status)


@pytest.mark.parametrize("shape", ["unary_stream", "stream_stream"])
@pytest.mark.parametrize(("ending", "code", "status"), AIO_ENDINGS)
def test_every_ending_of_a_handler_that_writes_is_told_once_on_both_sides_and_changes_nothing(
    shape: str, ending: str, code: str, status: str, measured: Pipeline
) -> None:
    """The same for coroutines that answer with ``context.write``."""
    _compare(aio_play, Writing, shape, ending, code)
    _assert_told(measured, shape, ending, code, status)


@pytest.mark.parametrize(("shape", "ending", "code", "status"), THREADED)
def test_every_ending_of_a_blocking_handler_in_an_asyncio_server_is_told_once_and_changes_nothing(
    shape: str, ending: str, code: str, status: str, measured: Pipeline
) -> None:
    """The same for handlers that an asyncio server runs in its threads."""
    _compare(aio_play, Service, shape, ending, code)
    _assert_told(measured, shape, ending, code, status)


@every_shape
@pytest.mark.parametrize(("play_once", "kind"), [(play, Service), (aio_play, Coroutines), (aio_play, Service)])
@pytest.mark.parametrize(("ending", "code", "status"), [row for row in ENDINGS if row[0] in {"return", "set_code"}])
def test_calls_without_serializers_are_told_once(
    play_once: Callable[..., Seen],
    kind: Any,
    shape: str,
    ending: str,
    code: str,
    status: str,
    measured: Pipeline,
) -> None:
    """Messages that are bytes end with the handler, not with a serializer."""
    assert code == play_once(kind(bare=True), shape, ending).code
    _assert_told(measured, shape, ending, code, status)


def test_nothing_was_swallowed(measured: Pipeline) -> None:
    """None of this goes through the fail-safe."""
    play(Service(), "stream_stream", "return")
    _both_spans(measured)

    assert {} == failsafe.counts()

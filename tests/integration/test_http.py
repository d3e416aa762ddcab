# SPDX-License-Identifier: Apache-2.0
"""HTTP over loopback: every ending of a request, on FastAPI, Starlette and bare ASGI, on the page and on the span."""

from __future__ import annotations

import gc
import socket
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from jeeves_otel.integrations import asgi
from tests.helpers import poll_until
from tests.integration.launching import free_port, launched, page_with_requests
from tests.integration.serving import KINDS, Gate, application, ask, open_request, served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

    from tests.helpers import Pipeline

pytestmark = pytest.mark.integration

Row = tuple[str, str, str]  # method, path, status_code


@pytest.fixture
def gate() -> Gate:
    """Return what slow handlers wait for."""
    return Gate()


@pytest.fixture
def measured(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Return the pipeline into which every application is measured."""
    asgi.instrument()
    yield pipeline
    asgi.uninstrument()


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of application."""
    name: str = request.param
    return name


@pytest.fixture
def port(kind: str, gate: Gate, measured: Pipeline) -> Iterator[int]:
    """Return where an application of *kind* is served."""
    with served(application(kind, gate, measured)) as where:
        yield where


every_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


def _requests(pipeline: Pipeline) -> dict[Row, float]:
    """Return ``{(method, path, status_code): count}``; the histogram's counts must agree."""
    counts: dict[Row, float] = {}
    histogram: dict[tuple[str, str], float] = {}
    for (name, labels), value in pipeline.samples().items():
        said = dict(labels)
        if name == "jeeves_http_requests_total":
            counts[said["method"], said["path"], said["status_code"]] = value
        if name == "jeeves_http_request_duration_seconds_count":
            histogram[said["method"], said["path"]] = value
    by_route: dict[tuple[str, str], float] = {}
    for (method, path, _), value in counts.items():
        by_route[method, path] = by_route.get((method, path), 0) + value
    assert by_route == histogram
    return counts


def _recorded(pipeline: Pipeline, count: int = 1) -> dict[Row, float]:
    """Return the requests once *count* are on the page, and their spans have ended."""

    def complete() -> dict[Row, float] | None:
        rows = _requests(pipeline)
        return rows if sum(rows.values()) >= count and len(_server_spans(pipeline)) >= count else None

    rows: dict[Row, float] = poll_until(complete, f"{count} requests on the page")
    return rows


def _active(pipeline: Pipeline) -> set[float]:
    """Return the values of the requests in progress, of all methods and meters."""
    return {value for (name, _), value in pipeline.samples().items() if name == "http_server_active_requests"}


def _cycle(port: int) -> RequestResponseCycle:
    """Return what uvicorn knows of the only request that it has served on *port*."""
    found = [each for each in gc.get_objects() if type(each).__name__ == "RequestResponseCycle"]
    (cycle,) = [each for each in found if each.scope["server"][1] == port]
    return cycle


def _server_spans(pipeline: Pipeline) -> list[ReadableSpan]:
    return [span for span in pipeline.spans() if span.kind is SpanKind.SERVER]


def _span(pipeline: Pipeline) -> tuple[str, int | None, str | None, bool]:
    """Return name, status code, error type and whether it is an error, of the only server span."""
    (span,) = _server_spans(pipeline)
    attributes: Any = span.attributes
    failed = span.status.status_code is StatusCode.ERROR
    return span.name, attributes.get("http.response.status_code"), attributes.get("error.type"), failed


MOUNTED = ("/raw", "/starlette", "/fastapi")

# path: (route, status that counts, status that was sent, error type), for applications that name their routes
ENDINGS: dict[str, tuple[str, str, int, str | None]] = {
    "/ok/7": ("/ok/{number}", "200", 200, None),
    "/nothing/7": ("unmatched", "404", 404, None),
    "/missing/7": ("/missing/{number}", "404", 404, None),
    "/post": ("/post", "405", 405, None),
    "/unavailable": ("/unavailable", "503", 503, "503"),
    "/error": ("/error", "500", 500, "ValueError"),
    "/cut": ("/cut", "500", 200, "ValueError"),
    "/raw/7": ("/raw/{path}", "200", 200, None),
    "/starlette/items/7": ("/starlette/items/{number}", "200", 200, None),
    "/starlette/nothing": ("unmatched", "404", 404, None),
    "/fastapi/here/items/7": ("/fastapi/{where}/items/{number}", "200", 200, None),
    "/fastapi/here/acme/sub/7": ("/fastapi/{where}/{tenant}/sub/{number}", "200", 200, None),
    "/fastapi/here/nothing/at/all": ("unmatched", "404", 404, None),
    "/fastapi/here/items/x": ("/fastapi/{where}/items/{number}", "422", 422, None),
}


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind in KINDS for path in ENDINGS if kind != "asgi" or not path.startswith(MOUNTED)],
    indirect=["kind"],
)
def test_a_request_counts_once_by_route_and_by_how_it_ended(
    path: str, kind: str, port: int, measured: Pipeline
) -> None:
    """One request is one request on the page and one server span, mounted or not, however it ends."""
    route, counts_as, sent, error = ENDINGS[path]
    answer = ask(port, path)
    rows = _recorded(measured)
    name, status, error_type, failed = _span(measured)

    shown = "unmatched" if kind == "asgi" else route
    assert sent == answer.status
    assert (path != "/cut") == answer.whole
    assert {("GET", shown, counts_as): 1} == rows
    assert ("GET" if shown == "unmatched" else f"GET {shown}") == name
    assert (sent, error, error is not None) == (status, error_type, failed)


@pytest.mark.parametrize("kind", ["asgi"], indirect=True)
def test_an_application_that_does_not_finish_its_answer_has_failed(port: int, measured: Pipeline) -> None:
    """The server cuts the connection: the request counts as 500, whatever status had been sent."""
    answer = ask(port, "/incomplete")

    assert (200, False) == (answer.status, answer.whole)
    assert {("GET", "unmatched", "500"): 1} == _recorded(measured)
    assert ("GET", 200, "incomplete_response", True) == _span(measured)


@every_kind
def test_a_stream_is_measured_to_its_last_byte(kind: str, port: int, gate: Gate, measured: Pipeline) -> None:
    """While it is open it is active and not counted; when its last byte has left it is counted."""
    connection = open_request(port, "/stream")
    gate.wait_reached()
    assert {} == _requests(measured)
    assert {1.0} == _active(measured)
    gate.open()
    rows = _recorded(measured)
    connection.close()

    assert {("GET", "unmatched" if kind == "asgi" else "/stream", "200"): 1} == rows
    assert {0.0} == _active(measured)
    assert (200, None, False) == _span(measured)[1:]


@every_kind
def test_a_background_task_is_not_part_of_the_request(kind: str, port: int, gate: Gate, measured: Pipeline) -> None:
    """The request is on the page, and its span has ended, while its background task still runs."""
    connection = open_request(port, "/background")
    gate.wait_reached()
    rows = _recorded(measured)
    gate.open()
    connection.close()

    assert {("GET", "unmatched" if kind == "asgi" else "/background", "200"): 1} == rows
    assert {0.0} == _active(measured)


@every_kind
@pytest.mark.parametrize("path", ["/slow", "/stream"])
def test_a_client_that_leaves_has_an_outcome_of_its_own_and_is_no_error(
    path: str, kind: str, port: int, gate: Gate, measured: Pipeline
) -> None:
    """Before the answer or within it: 499 on the page, `client_disconnected` and no error on the span."""
    connection = open_request(port, path)
    gate.wait_reached()
    connection.close()
    if path == "/slow":
        # The handler asks nothing of the server, which has to see the end of the connection first.
        poll_until(lambda: _cycle(port).disconnected, "the server to see that the client has left")
        gate.open()
    rows = _recorded(measured)
    _, _, error_type, failed = _span(measured)

    assert {("GET", "unmatched" if kind == "asgi" else path, "499"): 1} == rows
    assert ("client_disconnected", False) == (error_type, failed)
    assert {0.0} == _active(measured)


@every_kind
@pytest.mark.parametrize(
    ("method", "path", "row"),
    [
        ("HEAD", "/ok/7", ("HEAD", "/ok/{number}", "200")),
        ("OPTIONS", "/ok/7", ("OPTIONS", "/ok/{number}", "405")),
        ("BREW", "/ok/7", ("_OTHER", "/ok/{number}", "405")),
    ],
)
def test_methods_keep_their_names_if_they_have_one(
    method: str, path: str, row: Row, kind: str, port: int, measured: Pipeline
) -> None:
    """HEAD is HEAD; what no convention knows is `_OTHER`."""
    status = ask(port, path, method).status
    expected = (row[0], "unmatched", str(status)) if kind == "asgi" else row

    assert {expected: 1} == _recorded(measured)


@every_kind
@pytest.mark.parametrize("path", ["/health", "/health/", "/metrics"])
@pytest.mark.parametrize("traceparent", ["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])
def test_probes_and_scrapes_leave_no_trace(path: str, traceparent: str, port: int, measured: Pipeline) -> None:
    """Neither a count nor a span, also where the caller has sampled them; what is not excluded still counts."""
    answer = ask(port, path, headers={"traceparent": traceparent} if traceparent else None)
    ask(port, "/nothing/7")

    assert {"404"} == {status for _, _, status in _recorded(measured)}
    assert 1 == len(_server_spans(measured)) == sum(_requests(measured).values())
    assert "x-trace-id" not in answer.headers
    assert {0.0} == _active(measured)


@every_kind
@pytest.mark.parametrize("sampled", ["00", "01"])
def test_the_trace_of_the_caller_goes_on_and_the_answer_names_the_span(
    sampled: str, port: int, measured: Pipeline
) -> None:
    """X-Trace-ID is that of the traceparent, X-Span-ID that of the server's span."""
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    answer = ask(port, "/ok/7", headers={"traceparent": f"00-{trace_id}-{parent_id}-{sampled}"})
    _recorded(measured)
    (span,) = _server_spans(measured)

    assert span.parent is not None and span.context is not None
    assert parent_id == f"{span.parent.span_id:016x}"
    assert trace_id == answer.headers["x-trace-id"] == f"{span.context.trace_id:032x}"
    assert f"{span.context.span_id:016x}" == answer.headers["x-span-id"]


# ---- WebSocket connections -------------------------------------------------------------------------------------------


def _lifetimes(pipeline: Pipeline) -> dict[tuple[str | None, str | None], float]:
    """Return ``{(route, error type): accepted connections that have ended}``."""
    return {
        (dict(labels).get("http_route"), dict(labels).get("error_type")): value
        for (name, labels), value in pipeline.samples().items()
        if name == "jeeves_websocket_duration_seconds_count"
    }


def _open_connections(pipeline: Pipeline) -> set[float]:
    return {v for (name, _), v in pipeline.samples().items() if name == "jeeves_websocket_active_connections"}


@every_kind
def test_a_websocket_connection_is_one_request_and_one_lifetime(kind: str, port: int, measured: Pipeline) -> None:
    """Its handshake counts when it is accepted; its lifetime, apart from HTTP latency, when it has closed."""
    route = None if kind == "asgi" else "/ws/{room}"
    with connect(f"ws://127.0.0.1:{port}/ws/hall") as client:
        client.send("stay")
        assert "stay" == client.recv()
        shaken = _requests(measured)
        assert {} == _lifetimes(measured)
        assert {1.0} == _open_connections(measured)
        client.send("go")
    poll_until(lambda: _server_spans(measured), "the span of the connection")

    assert {("GET", route or "unmatched", "101"): 1} == shaken == _requests(measured)
    assert {(route, None): 1} == _lifetimes(measured)
    assert {0.0} == _open_connections(measured)
    assert (None, False) == _span(measured)[2:]
    assert not [span for span in measured.spans() if span.name.endswith(("send", "receive"))]


@every_kind
@pytest.mark.parametrize(
    ("room", "status", "error", "counts_as"),
    [("rejected", 403, None, "403"), ("broken", 500, "ValueError", "500")],
)
def test_a_websocket_connection_that_is_not_accepted_is_a_request_only(
    room: str, status: int, error: str | None, counts_as: str, kind: str, port: int, measured: Pipeline
) -> None:
    """Rejected it is a 403, and after an exception a 500; there is no lifetime."""
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{port}/ws/{room}"):
        pass
    rows = _recorded(measured)

    assert status == refused.value.response.status_code
    assert {("GET", "unmatched" if kind == "asgi" else "/ws/{room}", counts_as): 1} == rows
    assert {} == _lifetimes(measured)
    assert (error, error is not None) == _span(measured)[2:]


@every_kind
def test_an_error_in_an_open_websocket_connection_is_an_error_of_its_lifetime(
    kind: str, port: int, measured: Pipeline
) -> None:
    """The handshake went well; the lifetime and the span have the class of the exception."""
    with connect(f"ws://127.0.0.1:{port}/ws/hall") as client:
        client.send("error")
        with pytest.raises(ConnectionClosedError):
            client.recv()
    poll_until(lambda: _server_spans(measured), "the span of the connection")

    assert {"101"} == {status for _, _, status in _requests(measured)}
    assert {(None if kind == "asgi" else "/ws/{room}", "ValueError"): 1} == _lifetimes(measured)
    assert ("ValueError", True) == _span(measured)[2:]


@every_kind
@pytest.mark.parametrize("polite", [True, False])
def test_a_client_that_leaves_a_websocket_connection_is_no_error(
    polite: bool, kind: str, port: int, measured: Pipeline
) -> None:
    """With a close frame or without one, of which uvicorn does not tell."""
    with connect(f"ws://127.0.0.1:{port}/ws/hall") as client:
        client.send("stay")
        client.recv()
        if not polite:
            client.socket.shutdown(socket.SHUT_RDWR)
    poll_until(lambda: _server_spans(measured), "the span of the connection")

    assert {(None if kind == "asgi" else "/ws/{room}", None): 1} == _lifetimes(measured)
    assert {0.0} == _open_connections(measured)
    if kind != "fastapi":  # which raises WebSocketDisconnect, and calls that an error on its span
        assert (None, False) == _span(measured)[2:]


# ---- under the launcher ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["fastapi", "starlette"])
@pytest.mark.parametrize("disabled", ["", "fastapi,starlette", "fastapi,starlette,jeeves_asgi"])
def test_under_the_launcher_applications_are_measured_without_a_line_of_their_own(outer: str, disabled: str) -> None:
    """Wired by itself, silent on stderr, once beside the contrib package too; without it, what FastAPI measures is left."""
    where, metrics = free_port(), free_port()
    settings = {
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled,
        "JEEVES_OTEL_LOG_LEVEL": "warning",
    }
    off = disabled.endswith("jeeves_asgi")
    with launched("web.py", PORT=str(where), METRICS_PORT=str(metrics), OUTER=outer, **settings) as app:
        app.wait_for_page(f"http://127.0.0.1:{where}/up")
        for path in ("/inner/items/7", "/pages/home", "/bare", "/health", "/inner/nothing"):
            ask(where, path)
        seen = page_with_requests(2 if off and outer == "starlette" else 4, f"http://127.0.0.1:{metrics}/metrics")
        log = app.log
    counts = {
        (dict(labels)["path"], dict(labels)["status_code"]): value
        for (name, labels), value in seen.items()
        if name == "jeeves_http_requests_total" and value
    }

    if not off:
        assert {
            ("/inner/items/{number}", "200"): 1,
            ("/pages/{name}", "200"): 1,
            ("/bare", "200"): 1,
            ("unmatched", "404"): 1,
        } == counts
    assert "" == log

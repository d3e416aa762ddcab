# SPDX-License-Identifier: Apache-2.0
"""Follow one ASGI request or WebSocket connection from its first message to its last, and record it.

In: the scope, and the messages between the application and the server. Out: the measurements and the span of what
nobody else measures; corrections of what an instrumentation records of the others.
"""

from __future__ import annotations

import re
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context, propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, Status, StatusCode, set_span_in_context

from jeeves_otel import propagation, recording
from jeeves_otel.failsafe import failsafe
from jeeves_otel.inbound import CLIENT_LEFT, CUT_SHORT, OUTCOME, OpenRequest
from jeeves_otel.integrations.routes import REST, is_unmatched, route_of
from jeeves_otel.operations import error_type

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from opentelemetry.context import Context

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

# FastAPI's own key in the scope; it leaves a request alone in whose scope it stands (0.142 to 0.165).
FASTAPI = "fastapi.telemetry"

# Source: semantic conventions 1.44, registry attribute http.request.method.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LEFT = "client_disconnected"
_INCOMPLETE = "incomplete_response"
_ERROR, _ROUTE, _STATUS = "error.type", "http.route", "http.response.status_code"
_SERVER_ERROR = 500
_ABNORMAL_CLOSURE = 1006  # RFC 6455, 7.4.1: the connection went away without a close frame
_DISCONNECTS = frozenset({"WebSocketDisconnect", "ClientDisconnect", "ClientDisconnected"})

_HOST = re.compile(r"(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::\d+)?")  # anything else may hold anything

_message_guard = failsafe("asgi.message")


class Exchange(OpenRequest):
    """A request or connection while it is served: what passes between the application and the server is noted here.

    Args:
        scope: Of the application.
        receive: Of the server.
        send: Of the server.
        ours: Whether it is measured here, and not by an instrumentation.
        headers: Whether the response carries the ids of the span.

    Attributes:
        context: In which the application runs.
        entered: Whether there is nothing more to learn inside an instrumentation.
        complete: Whether the last byte has left.
    """

    __slots__ = (
        "_headers",
        "_method",
        "_outside",
        "_path",
        "_receive",
        "_root_path",
        "_send",
        "_span",
        "_started_s",
        "complete",
        "context",
        "disconnected",
        "entered",
        "scope",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, ours: bool, headers: bool) -> None:
        super().__init__(excluded=False, ours=ours)
        self.scope = scope
        self.status: int | None = None
        self.complete = False
        self.disconnected = False
        self._receive, self._send = receive, send
        self._headers = headers
        self._path, self._root_path = scope["path"], scope.get("root_path", "")
        method = scope.get("method", "GET")
        self._method = method if method in _METHODS else "_OTHER"
        self._span: Span | None = None
        self._outside = trace.get_current_span()
        self.context = propagation.incoming(scope["headers"])
        self.entered = True
        if ours:
            self.context = self._begin_span(self.context)
        elif scope.get(FASTAPI) is not None:  # we stand inside it
            self._span = self._outside
        else:
            self.entered = False
        self._started_s = perf_counter()

    def enter_inside(self) -> None:
        """Look around where the instrumentation that measures the request has called the application."""
        self.entered = True
        found = trace.get_current_span()
        context = propagation.incoming(self.scope["headers"])
        if found is not self._outside:
            self._span = found
            found.set_attributes(propagation.attributes(context))
        otel_context.attach(context)

    # ---- what the application and the server see

    async def receive(self) -> Message:
        """Hand on what the server sends."""
        message = await self._receive()
        with _message_guard:
            self.note_received(message)
        return message

    async def send(self, message: Message) -> None:
        """Hand on what the application sends."""
        with _message_guard:
            message = self.before(message)
        try:
            await self._send(message)
        except OSError:
            self.disconnected = self.disconnected or not self.complete
            raise
        with _message_guard:
            self.after(message)

    def note_received(self, message: Message) -> None:
        """Look at a message of the server."""
        raise NotImplementedError

    def before(self, message: Message) -> Message:
        """Look at a message of the application, and return what is sent in its place."""
        raise NotImplementedError

    def after(self, message: Message) -> None:
        """Look at a message that has been sent."""
        raise NotImplementedError

    def end(self, error: BaseException | None) -> None:
        """Record what is not recorded yet; the application has returned, or raised *error*."""
        raise NotImplementedError

    # ---- span, route, client

    def _begin_span(self, context: Context) -> Context:
        """Start the span; return the context with it. Source: semantic conventions 1.44, HTTP server spans."""
        scope = self.scope
        parent = propagate.extract(scope["headers"], context=context, getter=_HEADERS) or context
        attributes = {
            "http.request.method": self._method,
            "url.path": self._path,
            "url.scheme": scope.get("scheme", "http"),
        }
        self._span = recording.tracer().start_span(self._span_name(), parent, SpanKind.SERVER, attributes)
        if self._span.is_recording():
            self._span.set_attributes({**_details(scope), **propagation.attributes(context)})
            if self._method == "_OTHER":
                self._span.set_attribute("http.request.method_original", scope["method"][:32])
        return set_span_in_context(self._span, parent)

    def _span_name(self) -> str:
        return "HTTP" if self._method == "_OTHER" else self._method

    def server_span(self) -> Span:
        """Return the span of the request, whoever has begun it; to be asked while the application runs."""
        if self._span is not None:
            return self._span
        found = trace.get_current_span()
        # The contrib middleware, inside the application, sends within a span of its own.
        parent = getattr(found, "parent", None) if getattr(found, "kind", None) is SpanKind.INTERNAL else None
        return NonRecordingSpan(parent) if parent is not None else found

    def route(self, known: str | None = None) -> str | None:
        """Return the route template as far as it is known by now; *known* is what the instrumentation has recorded."""
        if is_unmatched(self.scope):
            return None
        if known is not None and not known.endswith(REST) and self.scope.get(FASTAPI) is not None:
            return known
        return route_of(self.scope, self._path, self._root_path) or known

    def _is_gone(self, kind: str | None) -> bool:
        """Return whether the client has left before the end, which came by an error of type *kind*, if any."""
        known: object = getattr(getattr(self._receive, "__self__", None), "disconnected", None)
        # uvicorn tells an application that does not ask nothing, and takes what it sends in silence; but its receive is
        # a method of the object that knows. Other servers cancel the application, as all do when they shut down.
        if self.disconnected or known is True:
            return True
        return known is not False and str(kind).endswith("CancelledError")

    def _end_span(self, attributes: dict[str, Any], route: str | None, *, failed: bool, end_ns: int) -> None:
        span = self._span
        if span is None or not self.ours:
            return
        if span.is_recording():
            if route is not None:
                span.update_name(f"{self._span_name()} {route}")
            span.set_attributes({key: value for key, value in attributes.items() if key != OUTCOME})
            if failed:
                span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)


class Request(Exchange):
    """An HTTP request, measured from the call of the application to the last byte of the response."""

    __slots__ = ("_cut", "_ended_ns", "_ended_s", "_recorded", "_trailers")

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, ours: bool, headers: bool) -> None:
        self._trailers = self._recorded = self._cut = False
        self._ended_s = 0.0
        self._ended_ns = 0
        super().__init__(scope, receive, send, ours=ours, headers=headers)
        if self.ours:
            recording.instruments().updowncounter("http.server.active_requests").add(1, self._load(), self.context)

    def note_received(self, message: Message) -> None:
        """See `Exchange`."""
        if message["type"] == "http.disconnect" and not self.complete:
            self.disconnected = True

    def before(self, message: Message) -> Message:
        """See `Exchange`."""
        if message["type"] != "http.response.start":
            return message
        self.status = message["status"]
        self._trailers = bool(message.get("trailers", False))
        return self._with_ids(message) if self._headers else message

    def after(self, message: Message) -> None:
        """See `Exchange`."""
        if self.complete or not self._is_last(message):
            return
        self.disconnected = self._is_gone(None)
        self.complete = True
        self._ended_s, self._ended_ns = perf_counter(), time_ns()
        # The class of the exception behind an answer of 500 is known when it gets here, after that answer.
        if self.ours and (self.status or 0) < _SERVER_ERROR:
            self._record(None)

    def end(self, error: BaseException | None) -> None:
        """See `Exchange`."""
        if not self.ours or self._recorded:
            return
        if not self.complete:
            self._ended_s, self._ended_ns = perf_counter(), time_ns()
        self._record(error)

    def corrected(self, attributes: Any) -> Any:
        """See `OpenRequest`."""
        fixed = dict(attributes or {})
        recorded = fixed.pop(_ROUTE, None)
        route = self.route(recorded)
        if route is not None:
            fixed[_ROUTE] = route
        if route != recorded:
            self._rename_span(route)
        error, status = fixed.get(_ERROR), fixed.get(_STATUS, fixed.get("http.status_code"))
        if self.disconnected or (not self.complete and self._is_gone(error)):
            fixed |= {_ERROR: _LEFT, OUTCOME: CLIENT_LEFT}
            self._excuse_span()
        elif error is not None and not (isinstance(status, int) and status >= _SERVER_ERROR):
            fixed[OUTCOME] = CUT_SHORT
        return fixed

    def _rename_span(self, route: str | None) -> None:
        span = self.server_span()
        if not span.is_recording():  # the contrib middleware ends it before it measures
            return
        span.update_name(self._span_name() if route is None else f"{self._span_name()} {route}")
        if route is not None:  # an attribute cannot be taken away again
            span.set_attribute(_ROUTE, route)

    def _excuse_span(self) -> None:
        """Say on the span of an instrumentation that the client has left, which is no error of the service."""
        span = self.server_span()
        if not span.is_recording():  # as above
            return
        span.set_attribute(_ERROR, _LEFT)
        status = getattr(span, "status", None)
        if status is not None and status.status_code is StatusCode.ERROR:
            span.set_status(Status(StatusCode.OK))  # it cannot be unset any more

    def _record(self, error: BaseException | None) -> None:
        self._recorded = True
        status, kind, outcome = self._outcome(error)
        route = self.route()
        pairs = (
            ("network.protocol.version", self.scope.get("http_version")),
            (_ROUTE, route),
            (_STATUS, status),
            (_ERROR, kind),
            (OUTCOME, outcome),
        )
        attributes = {**self._load(), **{key: value for key, value in pairs if value is not None}}
        duration_s = max(0.0, self._ended_s - self._started_s)
        instruments = recording.instruments()
        instruments.histogram("http.server.request.duration").record(duration_s, attributes, self.context)
        instruments.updowncounter("http.server.active_requests").add(-1, self._load(), self.context)
        self._end_span(attributes, route, failed=kind not in {None, _LEFT}, end_ns=self._ended_ns)

    def _outcome(self, error: BaseException | None) -> tuple[int | None, str | None, int | None]:
        """Return the status that was sent, the type of the error, and what the request counts as where that differs."""
        status = self.status
        kind = error_type(error) if error is not None else None
        if self.disconnected or (not self.complete and self._is_gone(kind)):
            return status, _LEFT, CLIENT_LEFT
        if self.complete:
            failed = status is not None and status >= _SERVER_ERROR
            return status, (kind or str(status)) if failed else None, None
        kind = kind or _INCOMPLETE
        if status is None:
            return _SERVER_ERROR, kind, None  # what servers answer in place of an application that did not
        return status, kind, CUT_SHORT if status < _SERVER_ERROR else None

    def _load(self) -> dict[str, Any]:
        return {"http.request.method": self._method, "url.scheme": self.scope.get("scheme", "http")}

    def _is_last(self, message: Message) -> bool:
        kind = message["type"]
        if kind in {"http.response.body", "http.response.zerocopysend"}:
            return not message.get("more_body", False) and not self._trailers
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        return bool(kind == "http.response.pathsend" and not self._trailers)

    def _with_ids(self, message: Message) -> Message:
        """Return *message* with the ids of the span, as a copy: an application may send the same list again."""
        found = self.server_span().get_span_context()
        if not found.is_valid:
            return message
        headers = list(message.get("headers", ()))
        given = {name.lower() for name, _ in headers}
        for name, value in (
            (b"x-trace-id", trace.format_trace_id(found.trace_id)),
            (b"x-span-id", trace.format_span_id(found.span_id)),
        ):
            if name not in given:
                headers.append((name, value.encode()))
        return {**message, "headers": headers}


class Connection(Exchange):
    """A WebSocket connection: its handshake counts as an HTTP request, its lifetime is measured by itself."""

    __slots__ = ("_accepted_s", "_closed_s", "_code", "_where")

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, ours: bool, headers: bool) -> None:
        self._accepted_s: float | None = None
        self._closed_s: float | None = None
        self._code: int | None = None
        self._where: dict[str, Any] = {}
        super().__init__(scope, receive, send, ours=ours, headers=headers)

    def note_received(self, message: Message) -> None:
        """See `Exchange`."""
        if message["type"] == "websocket.disconnect" and not self.complete:
            self._code = message.get("code", 1005)
            self.disconnected = self._accepted_s is None or self._code == _ABNORMAL_CLOSURE
            self._close()

    def before(self, message: Message) -> Message:
        """See `Exchange`."""
        return message

    def after(self, message: Message) -> None:
        """See `Exchange`."""
        kind = message["type"]
        if kind == "websocket.accept" and self._accepted_s is None:
            upgrade = str(self.scope.get("http_version", "1.1")).startswith("1")
            self._shake_hands(101 if upgrade else 200, None)  # RFC 6455, RFC 8441
            self._accepted_s = perf_counter()
            self._where = {} if (route := self._known_route()) is None else {_ROUTE: route}
            self._active(1)
        elif kind == "websocket.close":
            if self._accepted_s is None and self.status is None:
                self._shake_hands(403, None)  # the ASGI specification, WebSocket, close before accept
            self._close()
        elif kind == "websocket.http.response.start":
            self._shake_hands(message["status"], None)

    def end(self, error: BaseException | None) -> None:
        """See `Exchange`."""
        self._close()
        disconnect = isinstance(error, OSError) or type(error).__name__ in _DISCONNECTS
        kind = None
        if self.disconnected or (
            self._accepted_s is None and self.status is None and self._is_gone(type(error).__name__)
        ):
            kind = _LEFT
        elif error is not None and not (disconnect and self._code is not None) and not _is_cancelled(error):
            kind = error_type(error)
        elif error is None and self.status is None:
            kind = _INCOMPLETE
        if self.status is None:
            self._shake_hands(None if kind == _LEFT else _SERVER_ERROR, kind)
        if self._accepted_s is not None and self._closed_s is not None:
            attributes = {**self._where, **({_ERROR: kind} if kind else {})}
            lifetime = recording.instruments().histogram("jeeves.websocket.duration")
            lifetime.record(max(0.0, self._closed_s - self._accepted_s), attributes, self.context)
            self._active(-1)
        attributes = {**({_STATUS: self.status} if self.status else {}), **({_ERROR: kind} if kind else {})}
        route = self._known_route()
        if route is not None:
            attributes[_ROUTE] = route
        self._end_span(attributes, route, failed=kind not in {None, _LEFT}, end_ns=time_ns())

    def _known_route(self) -> str | None:
        # Of a router that is included FastAPI knows more than the scope says (0.165; the name is not public).
        return self.route(getattr(self.scope.get(FASTAPI), "route", None))

    def _close(self) -> None:
        if not self.complete:
            self.complete = True
            self._closed_s = perf_counter()

    def _active(self, change: int) -> None:
        counter = recording.instruments().updowncounter("jeeves.websocket.active_connections")
        counter.add(change, self._where, self.context)

    def _shake_hands(self, status: int | None, kind: str | None) -> None:
        """Record the HTTP request with which the connection began."""
        self.status = status
        attributes: dict[str, Any] = {
            "http.request.method": self._method,
            "url.scheme": self.scope.get("scheme", "ws"),
        }
        outcome = CLIENT_LEFT if kind == _LEFT else None
        pairs = ((_ROUTE, self._known_route()), (_STATUS, status), (_ERROR, kind), (OUTCOME, outcome))
        attributes.update({key: value for key, value in pairs if value is not None})
        duration = recording.instruments().histogram("http.server.request.duration")
        duration.record(max(0.0, perf_counter() - self._started_s), attributes, set_span_in_context(self.server_span()))


def _is_cancelled(error: BaseException) -> bool:
    return type(error).__name__ == "CancelledError"


# ---- headers ---------------------------------------------------------------------------------------------------------


class _Headers(Getter["Iterable[tuple[bytes, bytes]]"]):
    """Read the headers of a scope, whose names are in lower case."""

    def get(self, carrier: Iterable[tuple[bytes, bytes]], key: str) -> list[str] | None:
        name = key.lower().encode("latin-1")
        values = [value.decode("latin-1") for given, value in carrier if given == name]
        if not values:
            return None
        return [",".join(values)] if name == b"baggage" else values  # its propagator reads the first one only

    def keys(self, carrier: Iterable[tuple[bytes, bytes]]) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_HEADERS = _Headers()


def header(scope: Scope, name: bytes) -> str:
    """Return the first header *name* (in lower case) of a request; empty if there is none."""
    for given, value in scope["headers"]:
        if given == name:
            return str(value.decode("latin-1"))
    return ""


def _details(scope: Scope) -> dict[str, Any]:
    """Return the attributes of a span that nobody samples by."""
    details: dict[str, Any] = {}
    if scope.get("http_version"):
        details["network.protocol.version"] = scope["http_version"]
    host, port = scope.get("server") or (None, None)
    if _HOST.fullmatch(named := header(scope, b"host")):
        # The address in brackets of RFC 3986 is IPv6, which has colons of its own.
        host, _, after = named.rpartition(":") if not named.endswith("]") and ":" in named else (named, "", "")
        port = int(after) if after.isdigit() else _PORTS.get(scope.get("scheme", "http"))
    if host:
        details["server.address"] = host.strip("[]")
        if port is not None:
            details["server.port"] = port
    return details

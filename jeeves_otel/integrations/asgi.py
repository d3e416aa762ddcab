# SPDX-License-Identifier: Apache-2.0
"""Measure what an ASGI application serves: HTTP requests to their last byte, and WebSocket connections.

In: the scope and the messages of FastAPI, Starlette and bare ASGI applications. Out: ``http.server.request.duration``,
``http.server.active_requests``, ``jeeves.websocket.*``, a SERVER span, and ``X-Trace-ID`` and ``X-Span-ID`` in responses.
Where an instrumentation measures the application (FastAPI's own telemetry, opentelemetry-instrumentation-asgi), it goes
on to do so and its measurements are corrected. docs/decisions/0008-http.md says why. Importing this module imports no
framework.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import sys
from threading import Lock
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context, propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, Status, StatusCode, set_span_in_context
from wrapt import register_post_import_hook

from jeeves_otel import recording
from jeeves_otel.failsafe import failsafe
from jeeves_otel.inbound import CLIENT_LEFT, CUT_SHORT, OUTCOME, OpenRequest, enter, leave
from jeeves_otel.integrations.routes import REST, is_unmatched, route_of
from jeeves_otel.operations import error_type
from jeeves_otel.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping
    from types import ModuleType

    from opentelemetry.context import Context

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[Any]]

_SERVED = frozenset({"http", "websocket"})
_OPEN = "jeeves_otel.request"  # the key in the scope under which an inner application finds that it is measured
_FASTAPI = "fastapi.telemetry"  # FastAPI's own; it leaves a request alone in whose scope it stands (0.142 to 0.165)
_STARLETTE = "starlette.opentelemetry"  # the same of starlette.middleware.opentelemetry (1.10)
_CONTRIB = "opentelemetry.instrumentation.asgi"
# Where the seam is hung in, and into which class: whichever is outermost opens the request.
_TARGETS = {
    "starlette.applications": "Starlette",
    "fastapi.applications": "FastAPI",
    _CONTRIB: "OpenTelemetryMiddleware",
}

# Source: semantic conventions 1.44, registry attribute http.request.method.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LEFT = "client_disconnected"
_INCOMPLETE = "incomplete_response"
_ERROR, _ROUTE, _STATUS = "error.type", "http.route", "http.response.status_code"
_SERVER_ERROR = 500
_ABNORMAL_CLOSURE = 1006  # RFC 6455, 7.4.1: the connection went away without a close frame
_DISCONNECTS = frozenset({"WebSocketDisconnect", "ClientDisconnect", "ClientDisconnected"})
_DEEPEST = 64  # middleware in middleware

_open_guard = failsafe("asgi.open")
_message_guard = failsafe("asgi.message")
_end_guard = failsafe("asgi.end")


# ---- switching it on -------------------------------------------------------------------------------------------------


class Middleware:
    """Measure a bare ASGI application: ``app = Middleware(app)``.

    FastAPI and Starlette applications need no such line under the launcher; one that is wrapped all the same is measured
    once. A bare application has the route ``unmatched``, unless it says ``scope["route"] = "/users/{id}"``.

    Args:
        app: The application.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        """Be the application for whoever looks at its attributes (``app.state``, ``app.router``…)."""
        return getattr(self.__dict__.get("app"), name)  # not there yet while a copy is being made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, measured."""
        if _OPEN in scope or scope["type"] not in _SERVED:
            await self.app(scope, receive, send)
        else:
            await _serve(self.app, self.app, scope, receive, send)


def instrument() -> None:
    """Measure every FastAPI and Starlette application of the process; waits for their packages to be imported."""
    with failsafe("asgi.instrument"):
        _hooks.install()


def uninstrument() -> None:
    """Measure no application any more, but those that are wrapped by hand."""
    with failsafe("asgi.uninstrument"):
        _hooks.remove()


class Instrumentor:
    """The shape in which the launcher activates integrations (entry point ``jeeves_asgi``)."""

    def instrument(self, **_: Any) -> None:
        """See `instrument`."""
        instrument()

    def uninstrument(self, **_: Any) -> None:
        """See `uninstrument`."""
        uninstrument()


class _Hooks:
    """What has been hung into the classes of applications: their ``__call__``, around everything that they do."""

    def __init__(self) -> None:
        self._on = False
        self._waiting: set[str] = set()
        self._originals: dict[type, Any] = {}
        self._lock = Lock()

    def install(self) -> None:
        """Hang it into what is imported, and into the rest when it is."""
        self._on = True
        _rules.cache_clear()
        for module in _TARGETS:
            if module in sys.modules:
                self._hang(sys.modules[module])
            elif module not in self._waiting:
                self._waiting.add(module)
                register_post_import_hook(self._imported, module)

    def remove(self) -> None:
        """Take everything out again."""
        self._on = False
        with self._lock:
            for cls, original in self._originals.items():
                cls.__call__ = original  # type: ignore[method-assign]  # what stood there
            self._originals.clear()

    def unlock(self) -> None:
        """Forget who held the lock, in the child of a fork."""
        self._lock = Lock()

    def _imported(self, module: ModuleType) -> None:
        with failsafe("asgi.instrument"):
            if self._on:
                self._hang(module)

    def _hang(self, module: ModuleType) -> None:
        cls = getattr(module, _TARGETS[module.__name__])
        with self._lock:
            if cls not in self._originals:
                self._originals[cls] = cls.__call__
                cls.__call__ = _measured(cls.__call__)


_hooks = _Hooks()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_hooks.unlock)


def _measured(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> Any:  # noqa: N807 - it takes the place of that method
        if scope["type"] not in _SERVED:
            return await original(self, scope, receive, send)
        if _OPEN not in scope:
            return await _serve(functools.partial(original, self), self, scope, receive, send)
        exchange = scope[_OPEN]
        if exchange is None or exchange.entered:
            return await original(self, scope, receive, send)
        return await _inside(functools.partial(original, self), exchange, receive, send)

    return __call__


# ---- what is left out ------------------------------------------------------------------------------------------------


class _Rules:
    """Which requests are excluded, and what responses carry."""

    def __init__(self, settings: Settings) -> None:
        paths = {path.rstrip("/") for path in settings.http_excluded}
        self._paths = {path for path in paths if not set(path) & set("*?[")}
        globs = [fnmatch.translate(path) for path in sorted(paths - self._paths)]
        self._globs = re.compile("|".join(globs)) if globs else None
        self._urls = {
            name: re.compile("|".join(expressions)) if expressions else None
            for name, expressions in (
                ("fastapi", settings.fastapi_excluded_urls or settings.excluded_urls),
                ("starlette", settings.starlette_excluded_urls or settings.excluded_urls),
                ("", settings.excluded_urls),
            )
        }
        self.headers = settings.response_headers

    def exclude(self, app: object, scope: Scope) -> bool:
        """Return whether nothing is measured of the request with *scope* to *app*."""
        path, root = scope["path"], scope.get("root_path", "").rstrip("/")
        if root and path.startswith(f"{root}/"):  # some servers put the root in front of the path, some do not
            path = path[len(root) :]
        path = path.rstrip("/")
        if path in self._paths or (self._globs is not None and self._globs.match(path)):
            return True
        urls = self._urls["fastapi" if _is_a(app, "fastapi.applications") else _framework(app)]
        return urls is not None and urls.search(_url(scope)) is not None


@functools.cache
def _rules() -> _Rules:
    return _Rules(Settings.of_process())


def _framework(app: object) -> str:
    return "starlette" if _is_a(app, "starlette.applications") else ""


def _is_a(app: object, module: str) -> bool:
    """Return whether *app* is an instance of the class of *module* into which the seam is hung."""
    cls = getattr(sys.modules.get(module), _TARGETS[module], None)
    return cls is not None and isinstance(app, cls)


def _url(scope: Scope) -> str:
    host, port = scope.get("server") or ("", None)
    named = _header(scope, b"host") or (f"{host}:{port}" if port is not None else host)
    return f"{scope.get('scheme', 'http')}://{named}{scope['path']}"


# ---- one request -----------------------------------------------------------------------------------------------------


async def _serve(call: App, app: object, scope: Scope, receive: Receive, send: Send) -> Any:
    """Serve one request or connection to *app* through *call*, measured as far as that works."""
    request: OpenRequest | None = None
    with _open_guard:
        request = _opened(app, scope, receive, send)
    if request is None:
        return await call(scope, receive, send)
    # Restored rather than detached: a token fails, and is logged, where a coroutine is closed in another context.
    around, previous = enter(request), otel_context.get_current()
    try:
        if not isinstance(request, _Exchange):
            return await call(scope, receive, send)
        otel_context.attach(request.context)
        return await _through(call, request)
    finally:
        otel_context.attach(previous)
        leave(request, around)


def _opened(app: object, scope: Scope, receive: Receive, send: Send) -> OpenRequest:
    rules = _rules()
    if rules.exclude(app, scope):
        _leave_alone(scope)
        return OpenRequest(excluded=True, ours=False)
    kind = _Request if scope["type"] == "http" else _Connection
    return kind(app, scope, receive, send, rules)


async def _inside(call: App, exchange: _Exchange, receive: Receive, send: Send) -> Any:
    """Serve a request inside the instrumentation that measures it, which has begun its span and a context of its own."""
    previous = otel_context.get_current()
    with _open_guard:
        exchange.enter_inside()
    try:
        return await call(exchange.scope, receive, send)
    finally:
        otel_context.attach(previous)


async def _through(call: App, exchange: _Exchange) -> Any:
    try:
        result = await call(exchange.scope, exchange.receive, exchange.send)
    except BaseException as error:
        with _end_guard:
            exchange.end(error)
        raise
    with _end_guard:
        exchange.end(None)
    return result


def _leave_alone(scope: Scope) -> None:
    """Keep whoever else would measure the request from doing so."""
    scope[_OPEN] = None
    scope[_FASTAPI] = None
    scope[_STARLETTE] = True


def _is_measured_by_others(app: object, scope: Scope) -> bool:
    """Return whether an instrumentation that we leave in its place measures *app*."""
    if scope.get(_FASTAPI) is not None:
        return True  # we stand inside FastAPI's own
    if _has_contrib(app):
        scope[_FASTAPI] = None  # it would measure a FastAPI application that is mounted here again
        return True
    return "fastapi.telemetry" in sys.modules and _is_a(app, "fastapi.applications")


def _has_contrib(app: object) -> bool:
    """Return whether the application or its middleware was given to opentelemetry-instrumentation-asgi."""
    contrib = getattr(sys.modules.get(_CONTRIB), _TARGETS[_CONTRIB], None)
    if contrib is None:
        return False
    layer: Any = app
    if _is_a(app, "starlette.applications"):
        if layer.middleware_stack is None:  # as the application itself would do now
            layer.middleware_stack = layer.build_middleware_stack()
        layer = layer.middleware_stack
    for _ in range(_DEEPEST):
        if layer is None or isinstance(layer, contrib):
            break
        layer = getattr(layer, "app", None)
    return layer is not None


def _incoming(scope: Scope) -> Context:  # noqa: ARG001 - as the comment says
    """Return the current context with what the headers of the request say about it, besides the trace."""
    # The place of jeeves_otel.propagation: ``return propagation.incoming(scope["headers"])``.
    return otel_context.get_current()


class _Exchange(OpenRequest):
    """A request or connection while it is served: what passes between the application and the server is noted here.

    Attributes:
        context: In which the application runs.
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

    def __init__(self, app: object, scope: Scope, receive: Receive, send: Send, rules: _Rules) -> None:
        super().__init__(excluded=False, ours=not _is_measured_by_others(app, scope))
        self.scope = scope
        self.status: int | None = None
        self.complete = False
        self.disconnected = False
        self._receive, self._send = receive, send
        self._headers = rules.headers
        self._path, self._root_path = scope["path"], scope.get("root_path", "")
        method = scope.get("method", "GET")
        self._method = method if method in _METHODS else "_OTHER"
        self._span: Span | None = None
        self._outside = trace.get_current_span()
        self.context = _incoming(scope)
        self.entered = True
        if self.ours:
            _leave_alone(scope)
            self.context = self._begin_span(self.context)
        elif scope.get(_FASTAPI) is not None:  # we stand inside it
            self._span = self._outside
        else:
            self.entered = False
        scope[_OPEN] = self
        self._started_s = perf_counter()

    def enter_inside(self) -> None:
        """Look around where the instrumentation that measures the request has called the application."""
        self.entered = True
        found = trace.get_current_span()
        if found is not self._outside:
            self._span = found
        otel_context.attach(_incoming(self.scope))

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
            self._span.set_attributes(_details(scope))
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
        if known is not None and not known.endswith(REST) and self.scope.get(_FASTAPI) is not None:
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


class _Request(_Exchange):
    """An HTTP request, measured from the call of the application to the last byte of the response."""

    __slots__ = ("_cut", "_ended_ns", "_ended_s", "_recorded", "_trailers")

    def __init__(self, app: object, scope: Scope, receive: Receive, send: Send, rules: _Rules) -> None:
        self._trailers = self._recorded = self._cut = False
        self._ended_s = 0.0
        self._ended_ns = 0
        super().__init__(app, scope, receive, send, rules)
        if self.ours:
            recording.instruments().updowncounter("http.server.active_requests").add(1, self._load(), self.context)

    def note_received(self, message: Message) -> None:
        """See `_Exchange`."""
        if message["type"] == "http.disconnect" and not self.complete:
            self.disconnected = True

    def before(self, message: Message) -> Message:
        """See `_Exchange`."""
        if message["type"] != "http.response.start":
            return message
        self.status = message["status"]
        self._trailers = bool(message.get("trailers", False))
        return self._with_ids(message) if self._headers else message

    def after(self, message: Message) -> None:
        """See `_Exchange`."""
        if self.complete or not self._is_last(message):
            return
        self.disconnected = self._is_gone(None)
        self.complete = True
        self._ended_s, self._ended_ns = perf_counter(), time_ns()
        # The class of the exception behind an answer of 500 is known when it gets here, after that answer.
        if self.ours and (self.status or 0) < _SERVER_ERROR:
            self._record(None)

    def end(self, error: BaseException | None) -> None:
        """See `_Exchange`."""
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
        span.update_name(self._span_name() if route is None else f"{self._span_name()} {route}")
        if route is not None:  # an attribute cannot be taken away again
            span.set_attribute(_ROUTE, route)

    def _excuse_span(self) -> None:
        """Say on the span of an instrumentation that the client has left, which is no error of the service."""
        span = self.server_span()
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


class _Connection(_Exchange):
    """A WebSocket connection: its handshake counts as an HTTP request, its lifetime is measured by itself."""

    __slots__ = ("_accepted_s", "_closed_s", "_code", "_where")

    def __init__(self, app: object, scope: Scope, receive: Receive, send: Send, rules: _Rules) -> None:
        self._accepted_s: float | None = None
        self._closed_s: float | None = None
        self._code: int | None = None
        self._where: dict[str, Any] = {}
        super().__init__(app, scope, receive, send, rules)

    def note_received(self, message: Message) -> None:
        """See `_Exchange`."""
        if message["type"] == "websocket.disconnect" and not self.complete:
            self._code = message.get("code", 1005)
            self.disconnected = self._accepted_s is None or self._code == _ABNORMAL_CLOSURE
            self._close()

    def before(self, message: Message) -> Message:
        """See `_Exchange`."""
        return message

    def after(self, message: Message) -> None:
        """See `_Exchange`."""
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
        """See `_Exchange`."""
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
        return self.route(getattr(self.scope.get(_FASTAPI), "route", None))

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


def _header(scope: Scope, name: bytes) -> str:
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
    if named := _header(scope, b"host"):
        # The address in brackets of RFC 3986 is IPv6, which has colons of its own.
        host, _, after = named.rpartition(":") if not named.endswith("]") and ":" in named else (named, "", "")
        port = int(after) if after.isdigit() else _PORTS.get(scope.get("scheme", "http"))
    if host:
        details["server.address"] = host.strip("[]")
        if port is not None:
            details["server.port"] = port
    return details

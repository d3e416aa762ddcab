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
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from wrapt import register_post_import_hook

from jeeves_otel.failsafe import failsafe
from jeeves_otel.inbound import OpenRequest, enter, leave, with_excluded
from jeeves_otel.integrations.exchanges import FASTAPI, Connection, Exchange, Request, header
from jeeves_otel.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    from jeeves_otel.integrations.exchanges import Receive, Scope, Send

    App = Callable[[Scope, Receive, Send], Awaitable[Any]]

_SERVED = frozenset({"http", "websocket"})
_OPEN = "jeeves_otel.request"  # the key in the scope under which an inner application finds that it is measured
_STARLETTE = "starlette.opentelemetry"  # the same as FASTAPI for starlette.middleware.opentelemetry (1.10)
_CONTRIB = "opentelemetry.instrumentation.asgi"
# Where the seam is hung in, and into which class: whichever is outermost opens the request.
_TARGETS = {
    "starlette.applications": "Starlette",
    "fastapi.applications": "FastAPI",
    _CONTRIB: "OpenTelemetryMiddleware",
}

_DEEPEST = 64  # middleware in middleware

_open_guard = failsafe("asgi.open")
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
        cls = _class_of(module.__name__)
        with self._lock:
            if cls is not None and cls not in self._originals:
                self._originals[cls] = cls.__call__
                innermost = module.__name__ == "starlette.applications"
                cls.__call__ = _measured(cls.__call__, innermost=innermost)  # type: ignore[method-assign]  # on purpose


_hooks = _Hooks()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_hooks.unlock)


def _measured(original: Callable[..., Awaitable[Any]], *, innermost: bool) -> Callable[..., Awaitable[Any]]:
    """Return the ``__call__`` of a class of applications with the seam around it.

    Args:
        original: What it was.
        innermost: Whether what comes next is the application itself, and no instrumentation any more.
    """

    @functools.wraps(original)
    async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> Any:  # noqa: N807 - it takes the place of that method
        if scope["type"] not in _SERVED:
            return await original(self, scope, receive, send)
        if _OPEN not in scope:
            return await _serve(functools.partial(original, self), self, scope, receive, send)
        exchange = scope[_OPEN]
        if not innermost or exchange is None or exchange.entered:
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
        plain = path.rstrip("/")
        if plain in self._paths or (self._globs and (self._globs.match(plain) or self._globs.match(path))):
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
    cls = _class_of(module)
    return cls is not None and isinstance(app, cls)


_classes: dict[str, type] = {}


def _class_of(module: str) -> type | None:
    """Return the class of *module* into which the seam is hung; None if it is not imported."""
    found = _classes.get(module)
    if found is None and module in sys.modules:
        # The contrib package puts a subclass of its own in the place of the class.
        offered = getattr(sys.modules[module], _TARGETS[module], object)
        found = next((cls for cls in offered.__mro__ if cls.__module__ == module), None)
        if found is not None:
            _classes[module] = found
    return found


def _url(scope: Scope) -> str:
    host, port = scope.get("server") or ("", None)
    named = header(scope, b"host") or (f"{host}:{port}" if port is not None else host)
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
        if not isinstance(request, Exchange):
            otel_context.attach(with_excluded(request, previous))
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
    ours = not _is_measured_by_others(app, scope)
    kind = Request if scope["type"] == "http" else Connection
    exchange = kind(scope, receive, send, ours=ours, headers=rules.headers)
    if ours:
        _leave_alone(scope)
    scope[_OPEN] = exchange
    return exchange


async def _inside(call: App, exchange: Exchange, receive: Receive, send: Send) -> Any:
    """Serve a request inside the instrumentation that measures it, which has begun its span and a context of its own."""
    previous = otel_context.get_current()
    with _open_guard:
        exchange.enter_inside()
    try:
        return await call(exchange.scope, receive, send)
    finally:
        otel_context.attach(previous)


async def _through(call: App, exchange: Exchange) -> Any:
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
    scope[FASTAPI] = None
    scope[_STARLETTE] = True


def _is_measured_by_others(app: object, scope: Scope) -> bool:
    """Return whether an instrumentation that we leave in its place measures *app*."""
    if scope.get(FASTAPI) is not None:
        return True  # we stand inside FastAPI's own
    if _has_contrib(app):
        scope[FASTAPI] = None  # it would measure a FastAPI application that is mounted here again
        return True
    return "fastapi.telemetry" in sys.modules and _is_a(app, "fastapi.applications")


def _has_contrib(app: object) -> bool:
    """Return whether the application or its middleware was given to opentelemetry-instrumentation-asgi."""
    contrib = _class_of(_CONTRIB)
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

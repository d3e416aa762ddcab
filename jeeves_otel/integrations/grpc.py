# SPDX-License-Identifier: Apache-2.0
"""Measure gRPC servers and clients, blocking and asyncio, unary and streaming.

In: calls. Out: ``rpc.server.call.duration`` and ``rpc.client.call.duration`` [s] with full method and status, through
opentelemetry-api. Spans come from opentelemetry-instrumentation-grpc, if it is installed; the status of its server
spans is corrected here.

Under the launcher nothing needs to be done. By hand, one line each::

    server = grpc.server(pool, interceptors=[server_interceptor()])
    server = grpc.aio.server(interceptors=[aio_server_interceptor()])
    channel = grpc.intercept_channel(grpc.insecure_channel(target), client_interceptor())
    channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors())

or, for every server and channel that is made from now on::

    instrument()

With another interceptor that makes spans, ours comes after it, so that the span is there to be corrected.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from jeeves_otel.failsafe import failsafe
from jeeves_otel.integrations import grpc_client, grpc_server
from jeeves_otel.integrations.grpc_calls import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.metrics import MeterProvider

_SPANS = "opentelemetry.instrumentation.grpc"
_wired: list[_Wiring] = []


def server_interceptor(meter_provider: MeterProvider | None = None) -> grpc_server.ServerInterceptor:
    """Return an interceptor for ``grpc.server``; None means the global meter provider, here and below."""
    return grpc_server.ServerInterceptor(Recorder("server", meter_provider))


def aio_server_interceptor(meter_provider: MeterProvider | None = None) -> grpc_server.AioServerInterceptor:
    """Return an interceptor for ``grpc.aio.server``."""
    return grpc_server.AioServerInterceptor(Recorder("server", meter_provider))


def client_interceptor(meter_provider: MeterProvider | None = None) -> grpc_client.ClientInterceptor:
    """Return an interceptor for ``grpc.intercept_channel``."""
    return grpc_client.ClientInterceptor(Recorder("client", meter_provider))


def aio_client_interceptors(meter_provider: MeterProvider | None = None) -> list[Any]:
    """Return the interceptors for ``grpc.aio`` channels, one per arity."""
    recorder = Recorder("client", meter_provider)
    return [kind(recorder) for kind in grpc_client.AIO]


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Measure every server and channel that is made from now on; a second call does nothing."""
    if not _wired:
        wiring = _Wiring(meter_provider)
        _wired.append(wiring)
        wiring.connect()


def uninstrument() -> None:
    """Undo `instrument`; servers and channels that were made in between measure no more."""
    while _wired:
        _wired.pop().disconnect()


class _Wiring:
    """What `instrument` has put around grpc.

    Args:
        meter_provider: Where calls are recorded.
    """

    def __init__(self, meter_provider: MeterProvider | None) -> None:
        self._server = server_interceptor(meter_provider)
        self._aio_server = aio_server_interceptor(meter_provider)
        self._client = client_interceptor(meter_provider)
        self._aio_clients = aio_client_interceptors(meter_provider)
        self._put: list[tuple[Any, str, Any, Any]] = []

    def connect(self) -> None:
        """Put ourselves around what makes servers and channels."""
        self._wrap(grpc, "server", lambda make: _adding(make, 2, [self._server]))
        self._wrap(grpc.aio, "server", lambda make: _adding(make, 2, [self._aio_server]))
        for name, place in (("insecure_channel", 3), ("secure_channel", 4)):
            self._wrap(grpc, name, self._intercepting)
            self._wrap(grpc.aio, name, partial(_adding, place=place, ours=self._aio_clients))

    def disconnect(self) -> None:
        """Take out what nobody has wrapped since, and silence the rest."""
        for interceptor in (self._server, self._aio_server, self._client, *self._aio_clients):
            interceptor.enabled = False
        for module, name, original, ours in self._put:
            if getattr(module, name) is ours:
                setattr(module, name, original)

    def _wrap(self, module: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        original = getattr(module, name)
        ours = wrap(original)
        ours.__name__, ours.__doc__, ours.__wrapped__ = name, original.__doc__, original
        setattr(module, name, ours)
        self._put.append((module, name, original, ours))

    def _intercepting(self, make: Callable[..., Any]) -> Any:
        def channel(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            with failsafe("grpc.channel"):
                return grpc.intercept_channel(made, self._client)
            return made

        return channel


def _adding(make: Callable[..., Any], place: int, ours: Sequence[Any]) -> Any:
    """Return *make* with our interceptors among those it is given, at position *place* or by name."""

    def making(*args: Any, **kwargs: Any) -> Any:
        with failsafe("grpc.interceptors"):
            args, kwargs = _with(args, kwargs, place, ours)
        return make(*args, **kwargs)

    return making


def _with(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int, ours: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # By position and by name at once: the instrumentation for spans has added its own to a call that gave them by position.
    given = [*(kwargs.get("interceptors") or ()), *((args[place] if len(args) > place else None) or ())]
    if not any(isinstance(interceptor, type(ours[0])) for interceptor in given):
        # After those that open spans, before those of the application, whose refusals are endings, too.
        spans = [one for one in given if type(one).__module__.startswith(_SPANS)]
        mended = [_mended(one) for one in spans]
        given = [*mended, *ours, *(one for one in given if one not in spans)]
    if len(args) > place:
        kwargs = {name: value for name, value in kwargs.items() if name != "interceptors"}
        return (*args[:place], given, *args[place + 1 :]), kwargs
    return args, {**kwargs, "interceptors": given}


def _mended(spans: Any) -> Any:
    return grpc_server.Mending(spans) if isinstance(spans, grpc.aio.ServerInterceptor) else spans

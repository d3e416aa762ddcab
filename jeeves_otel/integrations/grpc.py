# SPDX-License-Identifier: Apache-2.0
"""Measure gRPC servers and clients, blocking and asyncio, unary and streaming: durations with status, and spans.

In: calls. Out: ``rpc.server.call.duration`` and ``rpc.client.call.duration`` [s] with full method and status, SERVER and
CLIENT spans, W3C Trace Context and Baggage and the ids of workflow and run in the metadata. No message, no metadata value
and no text of an exception is recorded anywhere. Importing this module does not import grpc.

Under the launcher nothing needs to be done. By hand, one line each::

    server = grpc.server(pool, interceptors=[server_interceptor()])
    server = grpc.aio.server(interceptors=[aio_server_interceptor()])
    channel = grpc.intercept_channel(grpc.insecure_channel(target), client_interceptor())
    channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors())

or, for every server and channel that is made from now on::

    instrument()
"""

from __future__ import annotations

import functools
import sys
from threading import Lock
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

from jeeves_otel.failsafe import failsafe
from jeeves_otel.integrations.grpc_calls import Switch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jeeves_otel.integrations.grpc_client import ClientInterceptor
    from jeeves_otel.integrations.grpc_server import AioServerInterceptor, ServerInterceptor

_INTERCEPTORS = 2  # their position among the arguments of `grpc.server` and `grpc.aio.server`

_guard = failsafe("grpc.instrument")


def server_interceptor() -> ServerInterceptor:
    """Return an interceptor for ``grpc.server``; it comes first, so that what others refuse is counted too."""
    from jeeves_otel.integrations import grpc_server  # noqa: PLC0415 - imports grpc, which only its users need

    return grpc_server.ServerInterceptor()


def aio_server_interceptor() -> AioServerInterceptor:
    """Return an interceptor for ``grpc.aio.server``; it comes first, as above."""
    from jeeves_otel.integrations import grpc_server  # noqa: PLC0415 - as above

    return grpc_server.AioServerInterceptor()


def client_interceptor() -> ClientInterceptor:
    """Return an interceptor for ``grpc.intercept_channel``."""
    from jeeves_otel.integrations import grpc_client  # noqa: PLC0415 - as above

    return grpc_client.ClientInterceptor()


def aio_client_interceptors() -> list[Any]:
    """Return the interceptors for ``grpc.aio`` channels, one per arity."""
    from jeeves_otel.integrations import grpc_client  # noqa: PLC0415 - as above

    return [kind() for kind in grpc_client.AIO_INTERCEPTORS]


def instrument() -> None:
    """Measure every server and channel that is made from now on; waits for grpc to be imported."""
    with _guard:
        _wiring.wanted = True
        if "grpc" in sys.modules:
            _wiring.connect()
        elif not _wiring.waiting:
            _wiring.waiting = True
            register_post_import_hook(_imported, "grpc")


def uninstrument() -> None:
    """Undo `instrument`; servers and channels that were made in between measure no more. Not those made by hand."""
    with _guard:
        _wiring.disconnect()


class Instrumentor:
    """The shape in which the launcher activates integrations (entry point ``jeeves_grpc``)."""

    def instrument(self, **_: Any) -> None:
        """See `instrument`."""
        instrument()

    def uninstrument(self, **_: Any) -> None:
        """See `uninstrument`."""
        uninstrument()


def _imported(_: object) -> None:
    with _guard:
        if _wiring.wanted:
            _wiring.connect()


class _Wiring:
    """What has been put around the functions of grpc that make servers and channels."""

    def __init__(self) -> None:
        self.wanted = False
        self.waiting = False
        self._switch = Switch()
        self._put: list[tuple[Any, str, Any, Any]] = []
        self._lock = Lock()

    def connect(self) -> None:
        """Put ourselves around them, once."""
        import grpc  # noqa: PLC0415 - imported by the application, never by us
        import grpc.aio  # noqa: PLC0415 - as above

        from jeeves_otel.integrations import grpc_server  # noqa: PLC0415 - as above

        with self._lock:
            if self._put:
                return
            self._switch = switch = Switch()
            kinds = {grpc: grpc_server.ServerInterceptor, grpc.aio: grpc_server.AioServerInterceptor}
            for module, kind in kinds.items():
                self._wrap(module, "server", functools.partial(_serving, kind=kind, switch=switch))
                for name in ("insecure_channel", "secure_channel"):
                    self._wrap(module, name, functools.partial(_calling, switch=switch))

    def disconnect(self) -> None:
        """Take out what nobody has wrapped since, and silence the rest."""
        self.wanted = False
        with self._lock:
            self._switch.on = False
            for module, name, original, ours in self._put:
                if getattr(module, name) is ours:
                    setattr(module, name, original)
            self._put.clear()

    def _wrap(self, module: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        original = getattr(module, name)
        ours = functools.wraps(original)(wrap(original))
        setattr(module, name, ours)
        self._put.append((module, name, original, ours))


_wiring = _Wiring()


def _calling(make: Callable[..., Any], switch: Switch) -> Any:
    """Return *make* with the channel that it makes measured, if none of our interceptors does that already."""
    from jeeves_otel.integrations import grpc_client  # noqa: PLC0415 - as above

    def channel(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        with _guard:
            target = args[0] if args else kwargs.get("target")
            given = [one for value in (*args, *kwargs.values()) if isinstance(value, list | tuple) for one in value]
            if not any(isinstance(one, grpc_client.AioInterceptor) for one in given):
                return grpc_client.measured(made, target if isinstance(target, str) else "", switch)
        return made

    return channel


def _serving(make: Callable[..., Any], kind: type[Any], switch: Switch) -> Any:
    """Return *make* with an interceptor of ours among those that it is given."""
    from jeeves_otel.integrations import grpc_server  # noqa: PLC0415 - as above

    def server(*args: Any, **kwargs: Any) -> Any:
        stop = grpc_server.Stop()
        with _guard:
            args, kwargs = _with(kind(switch, stop), args, kwargs)
        return grpc_server.stopping(make(*args, **kwargs), stop)

    return server


def _with(ours: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    by_position = len(args) > _INTERCEPTORS
    given = tuple((args[_INTERCEPTORS] if by_position else kwargs.get("interceptors")) or ())
    if any(isinstance(interceptor, type(ours)) for interceptor in given):
        return args, kwargs
    # First, so that what those of the application refuse is an ending, too.
    if by_position:
        return (*args[:_INTERCEPTORS], (ours, *given), *args[_INTERCEPTORS + 1 :]), kwargs
    return args, {**kwargs, "interceptors": (ours, *given)}

# SPDX-License-Identifier: Apache-2.0
"""Measure calls that are served: interceptors for ``grpc.server`` and ``grpc.aio.server``, all four arities.

In: the handlers of the application. Out: handlers that do, give and raise the same, and a `ServedCall` for each call.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import grpc

from jeeves_otel.integrations.grpc_calls import OTHER, Call, Recorder, ServedCall, method_name, suppressed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_SHAPES = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def rebuilt(handler: Any, wrap: Callable[[Any, bool], Any]) -> Any:
    """Return *handler* with ``wrap(behavior, streams responses)`` in place of its behavior."""
    name, make = _SHAPES[bool(handler.request_streaming), bool(handler.response_streaming)]
    behavior = getattr(handler, name)
    if getattr(behavior, "experimental_non_blocking", False):
        return handler  # answers through a callback of its own, which nothing but grpc's tests uses
    return make(
        wrap(behavior, bool(handler.response_streaming)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class _Noting:
    """The context of a blocking handler in an asyncio server, which cannot be asked for the code that was set.

    Args:
        servicer: What grpc gives to the handler; it still answers everything.
    """

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer
        self._set: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._servicer, name)

    def code(self) -> Any:
        """Return the code that the handler has set, or None."""
        return self._set

    def set_code(self, code: Any) -> None:
        """Set the code."""
        self._set = code
        self._servicer.set_code(code)

    def abort(self, code: Any, *args: Any, **kwargs: Any) -> Any:
        """End the call with *code*."""
        self._set = code
        return self._servicer.abort(code, *args, **kwargs)


class _Measured:
    """What both interceptors do.

    Args:
        recorder: Where calls are recorded.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.enabled = True

    def _skips(self, details: Any) -> bool:
        return not self.enabled or suppressed(details.method)

    def _wrapped(self, handler: Any, call: Call, method: str) -> Any:
        """Return *handler* measured; an unknown method (no handler) is recorded at once."""
        if handler is None:
            Call(self._recorder, OTHER, call.started_at).end("UNIMPLEMENTED")
            return None
        with self._recorder.guard:
            return rebuilt(handler, lambda behavior, streams: self._behavior(behavior, streams, method))
        return handler

    def _behavior(self, behavior: Any, streams: bool, method: str) -> Any:  # noqa: FBT001 - as grpc passes it
        return self._blocking(behavior, streams, method)

    def _blocking(self, behavior: Any, streams: bool, method: str) -> Any:  # noqa: FBT001 - as above
        noting = isinstance(self, AioServerInterceptor)

        def handle(request: Any, servicer: Any) -> Any:
            if noting:
                servicer = _Noting(servicer)
            call = ServedCall(self._recorder, method, servicer)
            call.watch(servicer.add_callback, cancellable=not noting)
            try:
                response = behavior(request, servicer)
            except BaseException as error:
                call.failed(error)
                raise
            if streams:
                return _responses(response, call)
            call.returned()
            return response

        return handle


def _responses(responses: Any, call: ServedCall) -> Iterator[Any]:
    try:
        yield from responses
    except BaseException as error:
        call.failed(error)
        raise
    call.returned()


class ServerInterceptor(_Measured, grpc.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Measures the calls of one or more ``grpc.server``."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call, measured."""
        if self._skips(handler_call_details):
            return continuation(handler_call_details)
        method = method_name(handler_call_details.method)
        call = Call(self._recorder, method)
        try:
            handler = continuation(handler_call_details)
        except BaseException:
            call.end("UNKNOWN")  # what grpc answers if an interceptor raises
            raise
        return self._wrapped(handler, call, method)


class AioServerInterceptor(_Measured, grpc.aio.ServerInterceptor):  # type: ignore[misc]  # as above
    """Measures the calls of one or more ``grpc.aio.server``: coroutines, async generators and blocking handlers."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return the handler of a call, measured."""
        if self._skips(handler_call_details):
            return await continuation(handler_call_details)
        method = method_name(handler_call_details.method)
        call = Call(self._recorder, method)
        try:
            handler = await continuation(handler_call_details)
        except BaseException:
            call.end("UNKNOWN")  # as above
            raise
        return self._wrapped(handler, call, method)

    def _behavior(self, behavior: Any, streams: bool, method: str) -> Any:  # noqa: FBT001 - as above
        if inspect.isasyncgenfunction(behavior):
            return self._generator(behavior, method)
        if inspect.iscoroutinefunction(behavior):
            return self._coroutine(behavior, method)
        return self._blocking(behavior, streams, method)

    def _coroutine(self, behavior: Any, method: str) -> Any:
        async def handle(request: Any, servicer: Any) -> Any:
            call = ServedCall(self._recorder, method, servicer)
            try:
                response = await behavior(request, servicer)
            except BaseException as error:
                call.failed(error)
                raise
            call.returned()
            return response

        return handle

    def _generator(self, behavior: Any, method: str) -> Any:
        async def handle(request: Any, servicer: Any) -> AsyncIterator[Any]:
            call = ServedCall(self._recorder, method, servicer)
            # A generator that nobody asks for more is closed only when it is collected.
            call.watch(servicer.add_done_callback)
            responses = behavior(request, servicer)
            try:
                async for response in responses:
                    yield response
            except BaseException as error:
                call.failed(error)
                raise
            finally:
                await responses.aclose()
            call.returned()

        return handle


class Mending(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # as above
    """Hands to the interceptor that makes spans only what it can serve.

    opentelemetry-instrumentation-grpc 0.66b1 takes every handler of an asyncio server for a coroutine or an async
    generator, so that blocking handlers and those that write their answers fail under it. Remove when it does not.

    Args:
        spans: Its interceptor.
    """

    def __init__(self, spans: Any) -> None:
        self._spans = spans

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return the handler of a call, with a span."""
        handler = await continuation(handler_call_details)
        name = (
            None if handler is None else _SHAPES[bool(handler.request_streaming), bool(handler.response_streaming)][0]
        )
        behavior = None if name is None else getattr(handler, name)
        if behavior is not None and not (inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)):
            return _blocking_spans(self._spans, handler, handler_call_details)
        if behavior is not None and handler.response_streaming and inspect.iscoroutinefunction(behavior):
            handler = rebuilt(handler, lambda writes, _: _generating(writes))

        async def given(_: Any) -> Any:
            return handler

        return await self._spans.intercept_service(given, handler_call_details)


def _blocking_spans(spans: Any, handler: Any, details: Any) -> Any:
    # The class for blocking servers is among its bases.
    bases: tuple[Any, ...] = type(spans).__mro__
    for base in bases:
        if issubclass(base, grpc.ServerInterceptor) and not issubclass(base, grpc.aio.ServerInterceptor):
            return base.intercept_service(spans, lambda _: handler, details)
    return handler


def _generating(writes: Any) -> Any:
    """Return an async generator that gives nothing, because *writes* has written it."""

    async def handle(request: Any, servicer: Any) -> AsyncIterator[Any]:
        await writes(request, servicer)
        nothing: tuple[Any, ...] = ()
        for message in nothing:
            yield message

    return handle

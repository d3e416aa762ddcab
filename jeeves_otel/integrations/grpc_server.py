# SPDX-License-Identifier: Apache-2.0
"""Measure calls that are served: interceptors for ``grpc.server`` and ``grpc.aio.server``, all four arities.

In: the handlers of the application. Out: handlers that do, give and raise the same, and a `Call` for each request, which
is current in the handler and in the interceptors after ours. Imports grpc.
"""

from __future__ import annotations

import inspect
from asyncio import CancelledError, current_task
from functools import wraps
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import ref

import grpc
from opentelemetry import context as otel_context

from jeeves_otel import recording
from jeeves_otel.integrations.grpc_calls import (
    SERVER,
    Call,
    Switch,
    method_of,
    received,
    status_name,
    status_of_number,
)

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    Wrap = Callable[[Any, Any, bool, bool], Any]  # (behavior, call, streams, waits for its serializer) → behavior

_SHAPES = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
# The client's clock ends a call, and grpc rounds the time-out that it tells the server up by as much as 1 %.
_LATE_S, _LATE_RATIO = 0.02, 0.01
_UNAUTHENTICATED = 16
_FOREVER_S = 10 * 365 * 86_400  # what grpc says where there is no deadline is longer


class Stop:
    """When a server that is being stopped cuts off the calls that still run.

    Attributes:
        at: On the clock of ``perf_counter``.
    """

    def __init__(self) -> None:
        self.at = inf


def stopping(server: Any, stop: Stop) -> Any:
    """Return *server*, the very object, which says from now on in *stop* when it stops."""
    with SERVER.guard:
        kind: Any = type(server)

        def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
            with SERVER.guard:
                stop.at = perf_counter() + ((args[0] if args else kwargs.get("grace")) or 0)
            return kind.stop(self, *args, **kwargs)

        # Its class and not its attribute: that would hold it in a cycle, and a server stops when it is dropped.
        namespace = {"__slots__": (), "__module__": kind.__module__, "stop": wraps(kind.stop)(stopped)}
        server.__class__ = type(kind.__name__, (kind,), namespace)
    return server


class _Served(Call):
    """A call that is being served. None of its methods raises.

    Args:
        method: What is called, as grpc says it.
        metadata: What came with the request.
        stop: Of the server.
    """

    unreadable = "INTERNAL"  # what grpc answers where a message cannot be deserialized or serialized
    iterates = False  # whether grpc takes any iterable from a blocking handler, such as a list; else iterators only

    def __init__(self, method: str | bytes, metadata: Any, stop: Stop) -> None:
        super().__init__(SERVER, method_of(method), received(metadata))
        self._stop = stop
        self._servicer: Any = None
        self._outside: Any = None
        self._left = False

    # ---- the context of the call, current in one thread or task ------------------------------------------------------

    def enter(self) -> None:
        """Make the call current."""
        self._outside = otel_context.get_current()
        otel_context.attach(self.context)

    def leave(self) -> None:
        """Make current what was before, if the call still is."""
        # Restored rather than detached: a token fails, and is logged, where another thread closes a generator.
        if self._outside is not None and otel_context.get_current() is self.context:
            otel_context.attach(self._outside)

    # ---- ends --------------------------------------------------------------------------------------------------------

    def returned(self) -> None:
        """End the call as its handler returned, or gave its last message."""
        with SERVER.guard:
            self.end(self._gone() if self._is_gone() else self._code() or "OK")
        self.left()

    def failed(self, error: BaseException) -> None:
        """End the call as its handler raised *error*, which may be how it was aborted or cancelled."""
        with SERVER.guard:
            if isinstance(error, (CancelledError, GeneratorExit)) or self._is_gone():
                self.end(self._gone())
            elif isinstance(error, Exception):
                code = self._code()
                self.end(code or "UNKNOWN", error if code is None else None)
            # What ends a thread leaves the client without an answer, until it goes away.
        self.left()

    def left(self) -> None:
        """Note that the handler is done; its span ends with it, even if the call has ended before."""
        self._left = True
        if self.ended:
            self.close()

    def close(self) -> None:
        """End the span, once, and let go of what grpc knows of the call."""
        super().close()
        self._servicer = None

    def over(self, *_: Any) -> None:
        """End the call, if it has not ended, as grpc says that it is over: its other side has ended it."""
        if not self.ended:
            with SERVER.guard:
                self.end(self._gone())
        if self._left:
            self.close()

    def garbled(self) -> None:
        """End the call because grpc could not read or write a message, which it answers at once."""
        with SERVER.guard:
            self.end(self._code() or self.unreadable)
            if self._servicer is None or self._left:
                self.close()

    def handed(self, servicer: Any) -> Any:
        """Note what grpc hands to a handler in a thread, and return what the handler gets."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether grpc will serialize the response."""
        return True

    def _is_gone(self) -> bool:
        raise NotImplementedError

    def _code(self) -> str | None:
        servicer = self._servicer
        return None if servicer is None else status_name(servicer.code())

    def _gone(self) -> str:
        """Return how a call ended that its other side has ended, or the server as it stopped."""
        if perf_counter() >= self._stop.at:
            return "UNAVAILABLE"
        servicer = self._servicer
        remaining_s = None if servicer is None else servicer.time_remaining()
        if remaining_s is None or remaining_s > _FOREVER_S:
            return "CANCELLED"
        total_s = perf_counter() - self.started_at + remaining_s
        return "DEADLINE_EXCEEDED" if remaining_s <= _LATE_S + _LATE_RATIO * total_s else "CANCELLED"

    # ---- messages ----------------------------------------------------------------------------------------------------

    def reading(self, deserialize: Any) -> Any:
        """Return *deserialize*; what it cannot read is an end of the call."""
        return deserialize and self._watching(deserialize, None)

    def writing(self, serialize: Any, *, last: bool) -> Any:
        """Return *serialize*; what it cannot write is an end of the call, and so is a message that is the *last*."""
        return serialize and self._watching(serialize, self.returned if last else None)

    def _watching(self, convert: Any, then: Callable[[], None] | None) -> Any:
        def watching(message: Any) -> Any:
            try:
                converted = convert(message)
            except BaseException:
                self.garbled()
                raise
            if converted is None:
                self.garbled()
            elif then is not None:
                then()
            return converted

        return watching


def _rebuilt(handler: Any, call: _Served, wrap: Wrap) -> Any:
    """Return *handler* with *wrap* around its behavior, and its messages watched."""
    streams = bool(handler.response_streaming)
    name, make = _SHAPES[bool(handler.request_streaming), streams]
    behavior = getattr(handler, name)
    if getattr(behavior, "experimental_non_blocking", False):
        return handler  # answers through a callback of its own, which nothing but grpc's tests uses
    waits = not streams and handler.response_serializer is not None
    handle = wrap(behavior, call, streams, waits)
    pool = getattr(behavior, "experimental_thread_pool", None)
    if pool is not None:
        handle.experimental_thread_pool = pool
    return make(
        handle,
        request_deserializer=call.reading(handler.request_deserializer),
        response_serializer=call.writing(handler.response_serializer, last=waits),
    )


def _blocking(behavior: Any, call: _Served, streams: bool, waits: bool) -> Any:  # noqa: FBT001 - one shape for all
    """Return *behavior*, which runs in a thread, measured."""

    def handle(request: Any, servicer: Any) -> Any:
        servicer = call.handed(servicer)
        call.enter()
        try:
            response = behavior(request, servicer)
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            call.leave()
        if streams:
            return _responses(response, call)
        if waits and call.answers():
            call.left()
        else:
            call.returned()
        return response

    return handle


def _responses(responses: Any, call: _Served) -> Iterator[Any]:
    """Yield what *responses* yields, which is what grpc would do with it: closed when it is dropped."""
    call.enter()
    try:
        if call.iterates:
            responses = iter(responses)
        while True:
            try:
                response = next(responses)
            except StopIteration:
                break
            yield response
    except BaseException as error:
        if isinstance(error, GeneratorExit) and hasattr(responses, "close"):
            responses.close()
        call.failed(error)
        raise
    finally:
        call.leave()
    call.returned()


class _Interceptor:
    """What both interceptors do.

    Args:
        switch: Whether to measure.
        stop: Of the server; one that is made by hand never says.
    """

    kind: type[_Served]

    def __init__(self, switch: Switch | None = None, stop: Stop | None = None) -> None:
        self._switch = switch or Switch()
        self._stop = stop or Stop()

    def _begun(self, details: Any) -> Any:
        if self._switch.on and not recording.is_suppressed():
            with SERVER.guard:
                call = self.kind(details.method, details.invocation_metadata, self._stop)
                call.enter()
                return call
        return None

    @staticmethod
    def _handed(handler: Any, call: _Served, wrap: Wrap) -> Any:
        """Return *handler* measured; an unknown method (no handler) is recorded at once."""
        if handler is None:
            call.rename()
            call.finish("UNIMPLEMENTED")
            return None
        with SERVER.guard:
            return _rebuilt(handler, call, wrap)
        return handler


# ---- grpc.server -----------------------------------------------------------------------------------------------------


class _Threaded(_Served):
    """A call that is served by a thread of ``grpc.server``."""

    _cancelled = False

    def handed(self, servicer: Any) -> Any:
        """Note what grpc hands to the handler, and return the very same."""
        self._servicer = servicer
        with SERVER.guard:
            servicer.add_callback(self.over)
            cancel, known = type(servicer).cancel, ref(servicer)

            def noted() -> Any:
                self._cancelled = True
                return cancel(known())

            servicer.cancel = noted  # there is nothing to ask afterwards
        return servicer

    def _is_gone(self) -> bool:
        servicer = self._servicer
        return self._cancelled or (servicer is not None and not servicer.is_active())

    def _gone(self) -> str:
        return "CANCELLED" if self._cancelled else super()._gone()


class ServerInterceptor(_Interceptor, grpc.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Measures the calls of one or more ``grpc.server``."""

    kind = _Threaded

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call, measured."""
        call: _Threaded | None = self._begun(handler_call_details)
        if call is None:
            return continuation(handler_call_details)
        try:
            handler = continuation(handler_call_details)
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            call.leave()
        return self._handed(handler, call, _blocking)


# ---- grpc.aio.server -------------------------------------------------------------------------------------------------


class _Tasked(_Served):
    """A call that is served by a task of ``grpc.aio.server``, which may hand it to a thread."""

    unreadable = "UNKNOWN"
    iterates = True

    def __init__(self, method: str | bytes, metadata: Any, stop: Stop) -> None:
        super().__init__(method, metadata, stop)
        self._garbled = False
        self._threaded = False
        # grpc serves each call in a task of its own. Its end is the one sign that a call is over which holds for every
        # kind of handler, and which does not tie what grpc knows of the call into a cycle.
        self._task: Task[Any] | None = current_task()

    def handed(self, servicer: Any) -> Any:
        """Note what grpc hands to a handler in a thread, and return what can be asked for the code that was set."""
        self._threaded = True
        self._servicer = _Noting(servicer)
        self._watch()
        return self._servicer

    def awaited(self, servicer: Any) -> None:
        """Note what grpc hands to a coroutine."""
        self._servicer = servicer
        if self._task is not None:
            self._task.add_done_callback(self.over)

    def _watch(self) -> None:
        """Have `over` called, from wherever this is called."""
        with SERVER.guard:
            if self._task is not None:
                self._task.get_loop().call_soon_threadsafe(self._task.add_done_callback, self.over)

    def over(self, *_: Any) -> None:
        """End the call as its task is over."""
        if not self.ended:
            with SERVER.guard:
                self.end(self._gone())
        if not self._threaded or self._left:
            self.close()

    def garbled(self) -> None:
        # The handler may be the one to see this, and go on; grpc answers only what leaves it, or never reaches it.
        self._garbled = True
        if self._servicer is None:
            self._watch()

    def answers(self) -> bool:
        """Return whether grpc will serialize the response, which it does not beside an error."""
        with SERVER.guard:
            return self._code() is None
        return False

    def _code(self) -> str | None:
        servicer = self._servicer
        code = None if servicer is None else servicer.code()
        # Here, but not in `grpc.server`, a number will do, if it is not the last one.
        name = status_of_number(code) if isinstance(code, int) and code < _UNAUTHENTICATED else status_name(code)
        return None if name == "OK" else name  # an exception is UNKNOWN all the same

    def _is_gone(self) -> bool:
        return self._task is not None and self._task.cancelling() > 0

    def _gone(self) -> str:
        servicer = self._servicer
        answered = servicer is not None and servicer.done()
        code = self._code() or (self.unreadable if self._garbled else None)
        if code is not None and (answered or (self._garbled and not self._is_gone())):
            return code
        return super()._gone()


class _Noting:
    """The context of a blocking handler in an asyncio server, which cannot be asked for the code that was set.

    Args:
        servicer: What grpc gives to the handler; it still answers everything.
    """

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer
        self._set: Any = None
        self._aborted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._servicer, name)

    def code(self) -> Any:
        """Return the code that the handler has set, or None."""
        return self._set

    def done(self) -> bool:
        """Return whether the status was sent before the handler has returned."""
        return self._aborted

    def set_code(self, code: Any) -> None:
        """Set the code."""
        self._set = code
        self._servicer.set_code(code)

    def abort(self, code: Any, *args: Any, **kwargs: Any) -> Any:
        """End the call with *code*."""
        self._set = code
        self._aborted = True
        return self._servicer.abort(code, *args, **kwargs)


class AioServerInterceptor(_Interceptor, grpc.aio.ServerInterceptor):  # type: ignore[misc]  # as above
    """Measures the calls of one or more ``grpc.aio.server``: coroutines, async generators and blocking handlers."""

    kind = _Tasked

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return the handler of a call, measured."""
        # The call stays current in its task, which ends with it: there is nothing to restore.
        call: _Tasked | None = self._begun(handler_call_details)
        if call is None:
            return await continuation(handler_call_details)
        try:
            handler = await continuation(handler_call_details)
        except BaseException as error:
            call.failed(error)
            raise
        return self._handed(handler, call, _by_kind)


def _by_kind(behavior: Any, call: _Tasked, streams: bool, waits: bool) -> Any:  # noqa: FBT001 - one shape for all
    """Return *behavior* measured, and of its own kind, by which grpc tells how to run it."""
    if inspect.isasyncgenfunction(behavior):
        return _generator(behavior, call)
    if inspect.iscoroutinefunction(behavior):
        return _coroutine(behavior, call, waits)
    return _blocking(behavior, call, streams, waits)


def _coroutine(behavior: Any, call: _Tasked, waits: bool) -> Any:  # noqa: FBT001 - as above
    async def handle(request: Any, servicer: Any) -> Any:
        call.awaited(servicer)
        try:
            response = await behavior(request, servicer)
        except BaseException as error:
            call.failed(error)
            raise
        if waits and call.answers():
            call.left()
        else:
            call.returned()
        return response

    return handle


def _generator(behavior: Any, call: _Tasked) -> Any:
    async def handle(request: Any, servicer: Any) -> AsyncIterator[Any]:
        call.awaited(servicer)
        responses = behavior(request, servicer)
        try:
            async for response in responses:
                yield response
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                await responses.aclose()
            call.failed(error)
            raise
        call.returned()

    return handle

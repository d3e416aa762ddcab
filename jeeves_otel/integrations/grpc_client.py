# SPDX-License-Identifier: Apache-2.0
"""Measure calls that are made: channels of ``grpc`` and ``grpc.aio``, all four arities, and interceptors by hand.

In: the calls of the application. Out: the very results, call objects and exceptions that grpc made, and the end of a
`Call` when grpc says that it is over: answered, iterated, cancelled or abandoned. Imports grpc.
"""

from __future__ import annotations

from asyncio import CancelledError
from contextvars import ContextVar
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import context as otel_context

from jeeves_otel import recording
from jeeves_otel.integrations.grpc_calls import CLIENT, Call, Method, Switch, method_of, sent, status_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_OTLP = "opentelemetry.proto.collector."  # our own telemetry on its way out, whoever sends it
_METADATA = 2  # its position among the arguments of a call

# The method of the call that an interceptor of ours hands down: a measured channel further in leaves that one alone.
_handed_down: ContextVar[str] = ContextVar("jeeves-grpc-call", default="")


def _begun(method: Method, switch: Switch) -> Call | None:
    """Return a call of *method* that has begun; None if it is not to be measured."""
    current = otel_context.get_current()
    if (
        not switch.on
        or _handed_down.get() == method.name
        or method.name.startswith(_OTLP)
        or recording.is_suppressed(current)
    ):
        return None
    return Call(CLIENT, method, current)


def _failed(call: Call, error: BaseException) -> None:
    """End *call* as *error* left it, which need not be one of grpc."""
    with CLIENT.guard:
        code = status_name(error.code()) if isinstance(error, grpc.RpcError) and hasattr(error, "code") else None
        if code is None and (isinstance(error, CancelledError) or not isinstance(error, Exception)):
            code = "CANCELLED"
        call.finish(code, None if code else error)


# ---- channels --------------------------------------------------------------------------------------------------------


def measured(channel: Any, target: str, switch: Switch) -> Any:
    """Return *channel*, the very object, with its calls measured until *switch* is off."""
    with CLIENT.guard:
        if not hasattr(channel, "jeeves_otel"):
            kind: Any = type(channel)
            # Its class and not its attributes: those would hold it in a cycle, and a channel closes when it is dropped.
            channel.__class__ = _measuring(kind)
            channel.jeeves_otel = target, switch
    return channel


@cache
def _measuring(channel: Any) -> Any:
    """Return the class *channel* with measured calls, under its own name, which is what messages and logs show."""
    unary, stream = (_Aio, _Aio) if issubclass(channel, grpc.aio.Channel) else (_Unary, _Stream)
    kinds = {"unary_unary": unary, "unary_stream": stream, "stream_unary": unary, "stream_stream": stream}
    makes = {name: _making(getattr(channel, name), kind) for name, kind in kinds.items()}
    return type(channel.__name__, (channel,), {"__slots__": (), "__module__": channel.__module__, **makes})


def _making(make: Callable[..., Any], kind: type[_Calls]) -> Callable[..., Any]:
    """Return *make*, a method of a channel that makes one of its methods callable, with that measured."""

    @wraps(make)
    def making(channel: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        calls = make(channel, method, *args, **kwargs)
        with CLIENT.guard:
            target, switch = channel.jeeves_otel
            return kind(calls, method_of(method, target), switch)
        return calls

    return making


class _Calls:
    """One method of a channel, callable.

    Args:
        make: What grpc calls it with.
        method: Which one.
        switch: Whether to measure.
    """

    def __init__(self, make: Any, method: Method, switch: Switch) -> None:
        self._make = make
        self._method = method
        self._switch = switch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make, name)

    def _measured(
        self,
        make: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        watch: Callable[[Any, Call], None],
    ) -> Any:
        call = None
        with CLIENT.guard:
            call = _begun(self._method, self._switch)
            if call is not None:
                args, kwargs = _with_metadata(args, kwargs, call)
        if call is None:
            return make(*args, **kwargs)
        try:
            outcome = make(*args, **kwargs)
        except BaseException as error:
            _failed(call, error)
            raise
        with CLIENT.guard:
            watch(outcome, call)
        return outcome


def _with_metadata(args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > _METADATA:
        return (*args[:_METADATA], sent(args[_METADATA], call.context), *args[_METADATA + 1 :]), kwargs
    return args, {**kwargs, "metadata": sent(kwargs.get("metadata"), call.context)}


def _answered(_: Any, call: Call) -> None:
    call.finish("OK")


class _Unary(_Calls, grpc.UnaryUnaryMultiCallable, grpc.StreamUnaryMultiCallable):  # type: ignore[misc]  # grpc carries no types
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(self._make, args, kwargs, _answered)

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(self._make.with_call, args, kwargs, _answered)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(self._make.future, args, kwargs, _watch)


class _Stream(_Calls, grpc.UnaryStreamMultiCallable, grpc.StreamStreamMultiCallable):  # type: ignore[misc]  # as above
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(self._make, args, kwargs, _watch)


class _Aio(
    _Calls,
    grpc.aio.UnaryUnaryMultiCallable,  # type: ignore[misc]  # as above
    grpc.aio.UnaryStreamMultiCallable,  # type: ignore[misc]  # as above
    grpc.aio.StreamUnaryMultiCallable,  # type: ignore[misc]  # as above
    grpc.aio.StreamStreamMultiCallable,  # type: ignore[misc]  # as above
):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(self._make, args, kwargs, _watch_aio)


# ---- how a call that runs on ends ------------------------------------------------------------------------------------


def _watch(outcome: Any, call: Call) -> None:
    """End *call* when *outcome*, a future, a stream or an exception of blocking grpc, is over."""
    done = getattr(outcome, "done", None)  # a stream that is read in the caller's thread has none
    if done is not None and done():
        call.finish(status_name(outcome.code()) or "UNKNOWN")
        return
    # What grpc knows of a call, without the object that the application holds: a callback that held that one would
    # keep an abandoned call from being collected, which is what cancels it. There is no public way to that.
    known = getattr(outcome, "_state", outcome)  # another interceptor may have made an object of its own

    def over() -> None:
        with CLIENT.guard:
            code = known.code() if callable(known.code) else known.code
            call.finish(status_name(code) or "UNKNOWN")

    if not outcome.add_callback(over):
        over()


def _watch_aio(outcome: Any, call: Call) -> None:
    """End *call* when *outcome*, a call of asyncio grpc, is over."""

    def over(done: Any) -> None:
        with CLIENT.guard:
            call.finish(_now(done.code()))

    if outcome.done():
        over(outcome)
    else:
        outcome.add_done_callback(over)


def _now(code: Any) -> str:
    """Return the name of the status that the coroutine *code* gives, which it does without waiting once a call is over."""
    try:
        code.send(None)
    except StopIteration as result:
        return status_name(result.value) or "UNKNOWN"
    except Exception:  # noqa: BLE001 - what an interceptor of the application raised, and the caller gets to see
        return "UNKNOWN"
    code.close()
    return "UNKNOWN"


# ---- interceptors, for channels that are made by hand -----------------------------------------------------------------


class ClientInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]  # grpc carries no types
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]  # as above
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]  # as above
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]  # as above
):
    """Measures the calls of one or more channels: blocking, ``with_call``, ``future`` and streams."""

    _switch = Switch()

    def _intercept(self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any) -> Any:
        details, call = client_call_details, None
        with CLIENT.guard:
            call = _begun(method_of(details.method), self._switch)
            if call is not None:
                details = _Details(details, sent(details.metadata, call.context))
        if call is None:
            return continuation(client_call_details, request)
        around = _handed_down.get()
        _handed_down.set(method_of(details.method).name)
        try:
            outcome = continuation(details, request)
        except BaseException as error:
            _failed(call, error)
            raise
        finally:
            _handed_down.set(around)
        with CLIENT.guard:
            _watch(outcome, call)
        return outcome

    intercept_unary_unary = _intercept
    intercept_unary_stream = _intercept
    intercept_stream_unary = _intercept
    intercept_stream_stream = _intercept


class _Details(grpc.ClientCallDetails):  # type: ignore[misc]  # as above
    """The details of a call with other metadata; what it does not know, such as a later field of grpc, is the original's."""

    def __init__(self, original: Any, metadata: tuple[tuple[str, Any], ...]) -> None:
        self._original = original
        self.metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class AioInterceptor:
    """What the interceptors of the four arities do."""

    _switch = Switch()

    async def _intercept(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        details, call = client_call_details, None
        with CLIENT.guard:
            call = _begun(method_of(details.method), self._switch)
            if call is not None:
                metadata = grpc.aio.Metadata(*sent(details.metadata, call.context))
                details = grpc.aio.ClientCallDetails(
                    details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
                )
        if call is None:
            return await continuation(client_call_details, request)
        try:
            outcome = await continuation(details, request)
        except BaseException as error:
            _failed(call, error)
            raise
        with CLIENT.guard:
            _watch_aio(outcome, call)
        return outcome


class AioUnaryUnary(AioInterceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # as above
    """Measures calls that ask once and answer once."""

    intercept_unary_unary = AioInterceptor._intercept  # noqa: SLF001 - its own base


class AioUnaryStream(AioInterceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]  # as above
    """Measures calls that answer with a stream."""

    intercept_unary_stream = AioInterceptor._intercept  # noqa: SLF001 - its own base


class AioStreamUnary(AioInterceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]  # as above
    """Measures calls that ask with a stream."""

    intercept_stream_unary = AioInterceptor._intercept  # noqa: SLF001 - its own base


class AioStreamStream(AioInterceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]  # as above
    """Measures calls that ask and answer with streams."""

    intercept_stream_stream = AioInterceptor._intercept  # noqa: SLF001 - its own base


AIO_INTERCEPTORS = (AioUnaryUnary, AioUnaryStream, AioStreamUnary, AioStreamStream)

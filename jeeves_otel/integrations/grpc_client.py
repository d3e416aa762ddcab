# SPDX-License-Identifier: Apache-2.0
"""Measure calls that are made: interceptors for ``grpc`` channels and ``grpc.aio`` channels, all four arities.

In: the calls of the application. Out: the very call objects that grpc made, and one measurement when grpc says that
a call is over: awaited, iterated, cancelled or abandoned.
"""

from __future__ import annotations

from asyncio import CancelledError
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc

from jeeves_otel.integrations.grpc_calls import Call, Recorder, method_name, status_name, suppressed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# True while a call is handed down to the next interceptor: a second one of ours, further in, leaves it alone.
_measuring: ContextVar[bool] = ContextVar("jeeves-grpc-measuring", default=False)


class _Measured:
    """What all client interceptors do.

    Args:
        recorder: Where calls are recorded.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.enabled = True

    def _skips(self, details: Any) -> bool:
        return not self.enabled or _measuring.get() or suppressed(details.method)


class ClientInterceptor(
    _Measured,
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]  # grpc carries no types
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]  # grpc carries no types
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]  # grpc carries no types
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]  # grpc carries no types
):
    """Measures the calls of one or more channels: blocking, ``with_call``, ``future`` and streams."""

    def _intercept(self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any) -> Any:
        if self._skips(client_call_details):
            return continuation(client_call_details, request)
        call = Call(self._recorder, method_name(client_call_details.method))
        token = _measuring.set(True)
        try:
            outcome = continuation(client_call_details, request)
        except BaseException as error:
            call.end(_failure(error))
            raise
        finally:
            _measuring.reset(token)
        with self._recorder.guard:
            _watch(outcome, call)
        return outcome

    intercept_unary_unary = _intercept
    intercept_unary_stream = _intercept
    intercept_stream_unary = _intercept
    intercept_stream_stream = _intercept


def _watch(outcome: Any, call: Call) -> None:
    done = getattr(outcome, "done", None)  # a stream that is read in the caller's thread has none
    if done is not None and done():
        call.end(status_name(outcome.code()) or "UNKNOWN")
        return
    # What grpc knows of a call, without the object that the application holds: a callback that held that one would
    # keep an abandoned call from being collected, which is what ends it.
    state = getattr(outcome, "_state", None)
    if state is None:  # another interceptor has made an object of its own
        outcome.add_done_callback(lambda over: call.end(status_name(over.code()) or "UNKNOWN"))
        return

    def over() -> None:
        call.end(status_name(state.code) or "UNKNOWN")

    if not outcome.add_callback(over):
        over()


def _failure(error: BaseException) -> str:
    if isinstance(error, grpc.RpcError) and hasattr(error, "code"):
        return status_name(error.code()) or "UNKNOWN"
    return "CANCELLED" if isinstance(error, CancelledError) else "UNKNOWN"


class _AioMeasured(_Measured):
    async def _intercept(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        if self._skips(client_call_details):
            return await continuation(client_call_details, request)
        call = Call(self._recorder, method_name(client_call_details.method))
        token = _measuring.set(True)
        try:
            outcome = await continuation(client_call_details, request)
        except BaseException as error:
            call.end(_failure(error))
            raise
        finally:
            _measuring.reset(token)
        with self._recorder.guard:
            _watch_aio(outcome, call)
        return outcome


class AioUnaryUnary(_AioMeasured, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # as above
    """Measures unary calls."""

    intercept_unary_unary = _AioMeasured._intercept  # noqa: SLF001 - its own base


class AioUnaryStream(_AioMeasured, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]  # as above
    """Measures calls that answer with a stream."""

    intercept_unary_stream = _AioMeasured._intercept  # noqa: SLF001 - its own base


class AioStreamUnary(_AioMeasured, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]  # as above
    """Measures calls that ask with a stream."""

    intercept_stream_unary = _AioMeasured._intercept  # noqa: SLF001 - its own base


class AioStreamStream(_AioMeasured, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]  # as above
    """Measures calls that ask and answer with streams."""

    intercept_stream_stream = _AioMeasured._intercept  # noqa: SLF001 - its own base


AIO = (AioUnaryUnary, AioUnaryStream, AioStreamUnary, AioStreamStream)


def _watch_aio(outcome: Any, call: Call) -> None:
    inner = getattr(outcome, "_cython_call", None)  # for the same reason as ``_state`` above
    if inner is not None:
        inner.add_done_callback(lambda: call.end(_now(inner.status())))
        return
    if hasattr(outcome, "done") and outcome.done():
        call.end(_now(outcome.code()))
        return
    outcome.add_done_callback(lambda done: call.end(_now(done.code())))


def _now(code: Any) -> str:
    """Return the name of the status that the coroutine *code* gives, which it does without waiting once a call is over."""
    try:
        code.send(None)
    except StopIteration as result:
        value = result.value.code() if hasattr(result.value, "code") else result.value
        return status_name(value) or "UNKNOWN"
    code.close()
    return "UNKNOWN"

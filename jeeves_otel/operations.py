# SPDX-License-Identifier: Apache-2.0
"""Give an operation one shape for ``with``, ``async with`` and decorators, and one life that ends exactly once.

In: a factory of handles, each of which knows its span and what to record. Out: `Operation`, entered or used as a
decorator over sync, async and generator functions. The application's exception always passes untouched, and nothing in
here fails because telemetry does.
"""

from __future__ import annotations

import functools
import inspect
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import trace

from jeeves_otel.failsafe import failsafe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

    from opentelemetry.context import Context

Outcome = Literal["ok", "error", "cancelled", "interrupted"]
Function = TypeVar("Function", bound="Callable[..., Any]")


def outcome_of(error: BaseException | None) -> Outcome:
    """Return how an operation ended that *error* has left (None: it came to its end).

    A consumer that closes a generator early interrupts it; what stops a task or the process cancels it.
    """
    if error is None:
        return "ok"
    if isinstance(error, GeneratorExit):
        return "interrupted"
    if not isinstance(error, Exception) or type(error).__name__ == "CancelledError":
        return "cancelled"
    return "error"


def error_type(error: BaseException) -> str:
    """Return the class of *error* as the attribute ``error.type`` wants it: qualified, builtins without module.

    Source: semantic conventions 1.44, registry attribute ``error.type``.
    """
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Handle:
    """One running operation. Subclasses say what its span is called and what is recorded at its end.

    Its methods never raise; a second finish does nothing. Not meant for several threads at once.
    """

    site = "operation"

    def __init__(self) -> None:
        self._finished = False
        self._started = perf_counter()
        self.span: trace.Span = trace.INVALID_SPAN
        self._previous: Context | None = None
        self._context: Context | None = None
        # What is recorded belongs to the span, but not to the operation itself: see layers.
        self.record_context: Context | None = None
        self._outcome: Outcome | None = None
        self._error_type: str | None = None

    # ---- what subclasses say -----------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Start the span and set ``record_context``; may fail."""
        self.record_context = otel_context.get_current()

    def _opened_context(self, current: Context) -> Context:
        """Return *current* with this operation open in it."""
        return current

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        """Record the end: outcome, seconds, and the error type if there is one; may fail."""

    # ---- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the operation and make it current."""
        with failsafe(f"{self.site}.start"):
            self._previous = otel_context.get_current()
            self._open()
            if self.record_context is not None:
                self._context = self._opened_context(self.record_context)
                otel_context.attach(self._context)

    def step_out(self) -> None:
        """Stop being current; the operation goes on."""
        # Restored rather than detached: a token fails, and is logged, where another task ends what this one began.
        if self._context is not None and otel_context.get_current() is self._context and self._previous is not None:
            otel_context.attach(self._previous)

    def resumed(self) -> _Resumed:
        """Return a context manager in which the operation is current again."""
        return _Resumed(self)

    def fail(self, kind: str) -> None:
        """Let the operation end as an error of class *kind*, although no exception leaves it."""
        with failsafe(f"{self.site}.fail"):
            self._outcome, self._error_type = "error", str(kind)

    def finish(self, error: BaseException | None = None) -> None:
        """End the operation, once; *error* is the exception that left it, if any."""
        if self._finished:
            return
        self._finished = True
        duration_s = perf_counter() - self._started
        with failsafe(f"{self.site}.finish"):
            self.step_out()
        with failsafe(f"{self.site}.record"):
            outcome = outcome_of(error) if error is not None else (self._outcome or "ok")
            kind = error_type(error) if error is not None and outcome != "interrupted" else self._error_type
            self._mark_span(outcome, kind)
            self._close(outcome, duration_s, kind)
        with failsafe(f"{self.site}.end"):
            self.span.end()

    def _mark_span(self, outcome: Outcome, kind: str | None) -> None:
        if not self.span.is_recording():
            return
        if outcome in {"error", "cancelled"} and kind is not None:
            self.span.set_attribute("error.type", kind)
            # The text of an exception may quote a prompt, so only its class is recorded.
            self.span.add_event("exception", {"exception.type": kind})
        if outcome == "error":
            self.span.set_status(trace.StatusCode.ERROR, kind)
        elif outcome == "ok":
            self.span.set_status(trace.StatusCode.OK)


class _Resumed:
    """Make a handle current for one step of a generator, and restore what was current before."""

    __slots__ = ("_before", "_handle")

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._before: Context | None = None

    def __enter__(self) -> None:
        with failsafe("operation.resume"):
            self._before = otel_context.get_current()
            if self._handle._context is not None:  # noqa: SLF001 - two halves of one class
                otel_context.attach(self._handle._context)  # noqa: SLF001

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with failsafe("operation.resume"):
            if self._before is not None:
                otel_context.attach(self._before)


H = TypeVar("H", bound=Handle)


class Operation(Generic[H]):
    """An operation that has not begun: enter it with ``with`` or ``async with``, or decorate a function with it.

    Each entry and each call of a decorated function begins a fresh one, so one object may be used again and nested.

    Args:
        make: Makes the handle of one run.
    """

    __slots__ = ("_make", "_running")

    def __init__(self, make: Callable[[], H]) -> None:
        self._make = make
        self._running: list[H] = []

    def __enter__(self) -> H:
        handle = self._make()
        handle.start()
        self._running.append(handle)
        return handle

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave().finish(error)

    def _leave(self) -> H:
        # One object may be open in several tasks at once: the one that is current here is the one to end.
        current = otel_context.get_current()
        for position in range(len(self._running) - 1, -1, -1):
            if self._running[position]._context is current:  # noqa: SLF001 - two halves of one class
                return self._running.pop(position)
        return self._running.pop()

    async def __aenter__(self) -> H:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Function) -> Function:
        """Return *function* run inside a fresh operation: sync, async, generator or async generator."""
        if inspect.isasyncgenfunction(function):
            wrapped: Callable[..., Any] = self._around_async_generator(function)
        elif inspect.isgeneratorfunction(function):
            wrapped = self._around_generator(function)
        elif inspect.iscoroutinefunction(function):
            wrapped = self._around_coroutine(function)
        else:
            wrapped = self._around(function)
        return cast("Function", functools.wraps(function)(wrapped))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with Operation(self._make):
                return function(*args, **kwargs)

        return wrapper

    def _around_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with Operation(self._make):
                return await function(*args, **kwargs)

        return wrapper

    def _begin(self) -> H:
        # A generator runs in whatever context its consumer is in: it is current only while it is running.
        handle = self._make()
        handle.start()
        handle.step_out()
        return handle

    def _around_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Iterator[Any]:
            handle = self._begin()
            try:
                generator = function(*args, **kwargs)
                with handle.resumed():
                    value = next(generator)
                while True:
                    try:
                        sent = yield value
                    except GeneratorExit:
                        with handle.resumed():
                            generator.close()
                        raise
                    except BaseException as thrown:  # noqa: BLE001 - handed to the generator, whose right it is to answer
                        with handle.resumed():
                            value = generator.throw(thrown)
                    else:
                        with handle.resumed():
                            value = generator.send(sent)
            except StopIteration as stop:
                handle.finish()
                return stop.value
            except BaseException as error:
                handle.finish(error)
                raise

        return wrapper

    def _around_async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            handle = self._begin()
            try:
                generator = function(*args, **kwargs)
                with handle.resumed():
                    value = await anext(generator)
                while True:
                    try:
                        sent = yield value
                    except GeneratorExit:
                        with handle.resumed():
                            await generator.aclose()
                        raise
                    except BaseException as thrown:  # noqa: BLE001 - as above
                        with handle.resumed():
                            value = await generator.athrow(thrown)
                    else:
                        with handle.resumed():
                            value = await generator.asend(sent)
            except StopAsyncIteration:
                handle.finish()
            except BaseException as error:
                handle.finish(error)
                raise

        return wrapper

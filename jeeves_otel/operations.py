# SPDX-License-Identifier: Apache-2.0
"""Give an operation one shape for ``with``, ``async with`` and decorators, and one life that ends exactly once.

In: a factory of handles, each of which knows its span and what to record. Out: `Operation`, entered or used as a
decorator over sync, async and generator functions. The application's exception always passes untouched, and nothing in
here fails because telemetry does.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from _thread import start_new_thread
from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast
from uuid import UUID

from opentelemetry import context as otel_context, trace

from jeeves_otel.failsafe import failsafe, is_under_a_lock, swallow
from jeeves_otel.layers import OpenOperation, opened, running, with_opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from types import TracebackType

    from opentelemetry.context import Context

Outcome = Literal["ok", "error", "cancelled", "interrupted"]
Function = TypeVar("Function", bound="Callable[..., Any]")

OTHER_ERROR = "_OTHER"  # what the conventions say for an error whose class is not known


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


def error_type(error: BaseException | type[BaseException]) -> str:
    """Return the class of *error* as the attribute ``error.type`` wants it: qualified, builtins without module.

    Source: semantic conventions 1.44, registry attribute ``error.type``.
    """
    kind = error if isinstance(error, type) else type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# How many forks lie between this process and the one that was launched.
_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - one number per process
    _forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_count_fork)


class Handle:
    """One running operation. Subclasses say what its span is called and what is recorded at its end.

    Its methods never raise; a second finish does nothing. Not meant for several threads at once.

    Args:
        name: What a client's point must say to be a point of this operation; see `layers.OpenOperation`.
    """

    site = "operation"
    cancellation_fails = True  # a timeout around a provider that hangs arrives as a cancellation

    # One guard per step, made once per class: a step that fails takes no other along.
    _start_guard = failsafe("operation.start")
    _context_guard = failsafe("operation.context")
    _record_guard = failsafe("operation.record")
    _span_guard = failsafe("operation.span")
    _end_guard = failsafe("operation.end")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for step in ("start", "context", "record", "span", "end"):
            setattr(cls, f"_{step}_guard", failsafe(f"{cls.site}.{step}"))

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.span: trace.Span = trace.INVALID_SPAN
        # What is recorded belongs to the span, but not to the operation itself: see layers.
        self.record_context: Context | None = None
        self._entry = OpenOperation(self.site, name, self)
        self._context: Context | None = None
        self._previous: Context | None = None
        self._failed_as: str | None = None
        self._finished = False
        self._forks = _forks
        self._started = perf_counter()

    # ---- what subclasses say -----------------------------------------------------------------------------------------

    def _open(self, current: Context) -> None:
        """Start the span in *current* and set ``record_context``; may fail."""

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        """Record the end: outcome, seconds, and the class of the error if it failed; may fail."""

    def _describe(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        """Set what is known at the end on the span, which is recording; may fail."""

    # ---- life --------------------------------------------------------------------------------------------------------

    def open(self) -> Context | None:
        """Begin, and return the context in which the operation is open; it is not current yet."""
        with self._start_guard:
            self._previous = self.record_context = otel_context.get_current()
            self._open(self._previous)
        with self._context_guard:
            self._entry.outer = running(self.site, self.record_context)
            self._context = with_opened(self._entry, self.record_context)
        return self._context

    def start(self) -> None:
        """Begin and become current."""
        with self._context_guard:
            context = self.open()
            if context is not None:
                otel_context.attach(context)

    def leave(self, error: BaseException | None) -> None:
        """Stop being current and finish; *error* is the exception that leaves the block, if any."""
        with self._context_guard:
            # Restored rather than detached: a token fails, and is logged, where another task ends what this one began.
            current = otel_context.get_current()
            if self._previous is not None and (current is self._context or self._entry.is_open_in(current)):
                otel_context.attach(self._previous)
        if isinstance(error, GeneratorExit) and is_under_a_lock():
            # A generator that nobody has closed is being collected here. Not a `threading.Thread`: starting one takes
            # a lock that this thread may hold too.
            with self._end_guard:
                start_new_thread(self.finish, (error,))
        else:
            self.finish(error)
        self._entry.handle = None  # contexts that outlive the operation need the entry, not what the application held

    def fail(self, kind: str | BaseException | type[BaseException]) -> None:
        """Let the operation end as an error of class *kind*, although no exception leaves it."""
        self._failed_as = error_kind(kind, f"{self.site}.fail")

    def finish(self, error: BaseException | None = None) -> None:
        """End the operation, once; *error* is the exception that left it, if any."""
        if self._finished:
            return
        self._finished = True
        now = perf_counter()
        duration_s = now - self._started
        outcome, kind = self._ending(error)
        if self._forks == _forks:  # else it is the operation of a parent, which counts it
            with self._record_guard:
                self._record(outcome, duration_s, kind)
        self._entry.ended_at = now
        with self._span_guard:
            if self.span.is_recording():
                self._mark_span(kind, raised=error is not None)
                self._describe(outcome, duration_s, kind)
        with self._end_guard:
            self.span.end()

    def _ending(self, error: BaseException | None) -> tuple[Outcome, str | None]:
        """Return the outcome, and the class of the error if the operation failed."""
        outcome = outcome_of(error)
        if error is not None and (outcome == "error" or (outcome == "cancelled" and self.cancellation_fails)):
            return outcome, error_type(error)
        return ("error", self._failed_as) if self._failed_as is not None else (outcome, None)

    def _mark_span(self, kind: str | None, *, raised: bool) -> None:
        if kind is None:
            self.span.set_status(trace.StatusCode.OK)
            return
        self.span.set_attribute("error.type", kind)
        if raised:
            # The text of an exception may quote a prompt, so only its class is recorded.
            self.span.add_event("exception", {"exception.type": kind})
        self.span.set_status(trace.StatusCode.ERROR, kind)


def error_kind(value: object, site: str) -> str:
    """Return *value*, a text or an exception, as ``error.type``; never the text of an exception."""
    with failsafe(site):
        if isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException)):
            return error_type(value)
        if value is not None:
            return _converted(value) or OTHER_ERROR
    return OTHER_ERROR


def text_of(value: object, site: str) -> str | None:
    """Return *value* as the text of an attribute; None, counted against *site*, for what should not be one.

    Text, numbers, bytes, members of an enumeration and UUIDs have a text that is worth an attribute. Anything else has
    an address or its content in it, or code of the application behind it.
    """
    if type(value) is str or value is None:
        return value
    with failsafe(site):
        return _converted(value)
    return None


def _converted(value: object) -> str:
    if isinstance(value, Enum):
        value = value.value if isinstance(value.value, str | int) else value.name
    if isinstance(value, str):
        return str.__str__(value)  # the text itself, whatever a subclass shows
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float | UUID):
        return str(value)
    raise TypeError("an attribute of an operation is text")


class _Inside:
    """Make a generator's own context current for one step of it, and its consumer's again afterwards.

    What the body opens and leaves open across a ``yield`` is current again in its next step.
    """

    __slots__ = ("_context", "_outside")

    def __init__(self, context: Context | None) -> None:
        self._context = context
        self._outside: Context | None = None

    def __enter__(self) -> None:
        with _STEP_GUARD:
            self._outside = otel_context.get_current()
            if self._context is not None:
                otel_context.attach(self._context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _STEP_GUARD:
            self._context = otel_context.get_current()
            if self._outside is not None:
                otel_context.attach(self._outside)


_STEP_GUARD = failsafe("operation.step")


def _first_step(generator: AsyncGenerator[Any, Any]) -> Awaitable[Any]:
    """Return the first step of *generator*, unknown to the event loop.

    The loop closes at its end all generators that it knows, at the same time: it knows the wrapper, which closes this.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return anext(generator)
    finally:
        sys.set_asyncgen_hooks(*hooks)


H = TypeVar("H", bound=Handle)


class Operation(Generic[H]):
    """An operation that has not begun: enter it with ``with`` or ``async with``, or decorate a function with it.

    Each entry and each call of a decorated function begins a fresh one, so one object may be used again, nested, and
    from several threads and tasks at once.

    Args:
        handle: The class of the handle of one run.
        arguments: What each handle is made with.
    """

    __slots__ = ("_arguments", "_entered", "_handle")

    def __init__(self, handle: type[H], *arguments: Any) -> None:
        self._handle = handle
        self._arguments = arguments
        self._entered: dict[H, None] = {}  # in the order of entry

    def __enter__(self) -> H:
        handle = self._handle(*self._arguments)
        handle.start()
        self._entered[handle] = None
        return handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        handle = self._innermost()
        if handle is not None:
            handle.leave(error)

    def _innermost(self) -> H | None:
        # One object may be open in several tasks at once: the one to end is the one that is open here.
        entry = opened(self._handle.site)
        while entry is not None:
            handle = cast("H", entry.handle)
            if handle in self._entered:
                del self._entered[handle]
                return handle
            entry = entry.outer
        try:
            # The context was lost on the way, as in the teardown of an async fixture: the last one in is the likeliest.
            return self._entered.popitem()[0]
        except KeyError as error:
            swallow(f"{self._handle.site}.context", error, "it was left more often than entered")
            return None

    async def __aenter__(self) -> H:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Function) -> Function:
        """Return *function* run inside a fresh operation: sync, async, generator or async generator."""
        if isinstance(function, staticmethod | classmethod):
            return cast("Function", type(function)(self(function.__func__)))
        if inspect.isasyncgenfunction(function):
            wrapped: Callable[..., Any] = self._around_async_generator(function)
        elif inspect.isgeneratorfunction(function):
            wrapped = self._around_generator(function)
        elif inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004 - its kind is asked, not whether it is there
            wrapped = self._around_coroutine(function)
        else:
            wrapped = self._around(function)
        return cast("Function", functools.wraps(function)(wrapped))

    def _started(self) -> H:
        handle = self._handle(*self._arguments)
        handle.start()
        return handle

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            handle = self._started()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                handle.leave(error)
                raise
            handle.leave(None)
            return result

        return wrapper

    def _around_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            handle = self._started()
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                handle.leave(error)
                raise
            handle.leave(None)
            return result

        return wrapper

    # A generator runs in whatever context its consumer is in: its operation is current only while it is running.
    # What the consumer throws is kept and thrown outside the `except`, or it would become the context of whatever
    # the generator raises later in that step.

    def _around_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            handle = self._handle(*self._arguments)
            inside = _Inside(handle.open())
            thrown: BaseException | None = None
            closed = False
            try:
                generator = function(*args, **kwargs)
                with inside:
                    value = next(generator)
                while True:
                    sent = thrown = None
                    try:
                        sent = yield value
                    except BaseException as error:  # noqa: BLE001 - the generator's to answer
                        thrown = error
                        closed = isinstance(error, GeneratorExit)
                    with inside:
                        value = generator.send(sent) if thrown is None else generator.throw(thrown)
            except StopIteration as stop:
                handle.leave(GeneratorExit() if closed else None)
                return stop.value
            except BaseException as error:
                handle.leave(error)
                raise
            finally:
                thrown = None  # or its traceback and this frame would hold each other

        return wrapper

    def _around_async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            handle = self._handle(*self._arguments)
            inside = _Inside(handle.open())
            thrown: BaseException | None = None
            closed = False
            try:
                generator = function(*args, **kwargs)
                with inside:
                    value = await _first_step(generator)
                while True:
                    sent = thrown = None
                    try:
                        sent = yield value
                    except BaseException as error:  # noqa: BLE001 - as above
                        thrown = error
                        closed = isinstance(error, GeneratorExit)
                    with inside:
                        value = await (generator.asend(sent) if thrown is None else generator.athrow(thrown))
            except StopAsyncIteration:
                handle.leave(GeneratorExit() if closed else None)
            except BaseException as error:
                handle.leave(error)
                raise
            finally:
                thrown = None  # as above

        return wrapper

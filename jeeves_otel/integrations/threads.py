# SPDX-License-Identifier: Apache-2.0
"""Carry the OpenTelemetry context into threads and thread pools: what they do belongs to the trace that asked for it.

Only the OpenTelemetry context goes along, no other context variable: the application behaves as without us. A thread
keeps the context of whoever started it for its whole life; a pool's worker has that of each job while it runs it.
opentelemetry-instrumentation-threading does the same, but pins an older SDK (decision 0010) and misses threads whose class
overrides ``run``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from threading import Thread
from typing import TYPE_CHECKING, Any

from opentelemetry.context import attach, detach, get_current

from jeeves_otel.failsafe import failsafe

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

_guard = failsafe("threads.start")
_originals: dict[type, Any] = {}


def instrument() -> None:
    """Carry the context into every thread started and every job submitted from now on."""
    if not _originals:
        _originals.update({Thread: Thread.start, ThreadPoolExecutor: ThreadPoolExecutor.submit})
        Thread.start = _starting(Thread.start)  # type: ignore[method-assign,assignment]  # there is no hook
        ThreadPoolExecutor.submit = _submitting(ThreadPoolExecutor.submit)  # type: ignore[method-assign]  # as above


def uninstrument() -> None:
    """Carry it no more. Threads that run keep the context that they have."""
    if _originals:
        Thread.start = _originals.pop(Thread)  # type: ignore[method-assign]  # as above
        ThreadPoolExecutor.submit = _originals.pop(ThreadPoolExecutor)  # type: ignore[method-assign]  # as above


class Instrumentor:
    """The shape in which the launcher activates integrations (entry point ``jeeves_threads``)."""

    def instrument(self, **_: Any) -> None:
        """See `instrument`."""
        instrument()

    def uninstrument(self, **_: Any) -> None:
        """See `uninstrument`."""
        uninstrument()


def _starting(original: Callable[[Thread], None]) -> Callable[[Thread], None]:
    @wraps(original)
    def start(self: Thread) -> None:
        with _guard:
            current = get_current()
            if current and not self.ident:
                # On the instance, because a subclass may have a `run` of its own; gone when it has run.
                run, own = self.run, self.__dict__.get("run")

                def run_in_context() -> None:
                    self.__dict__.pop("run", None)
                    if own is not None:
                        self.__dict__["run"] = own
                    _in_context(current, run)

                self.run = run_in_context  # type: ignore[method-assign]  # of the instance
        return original(self)

    return start


def _submitting(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def submit(self: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        # Also where the context is empty: the worker may have been started in another one.
        return original(self, _in_context, get_current(), function, *args, **kwargs)

    return submit


def _in_context(context: Context, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = attach(context)
    try:
        return function(*args, **kwargs)
    finally:
        detach(token)

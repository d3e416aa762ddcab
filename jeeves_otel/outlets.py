# SPDX-License-Identifier: Apache-2.0
"""Stand between the SDK's tracer and logger providers and the processors of this process.

In: finished spans and log records. Out: the same ones, to processors that can be taken away and replaced, because those of
a parent are of no use in its forked child.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import SpanProcessor

from jeeves_otel.failsafe import failsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk._logs import LogRecordProcessor, ReadWriteLogRecord
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, Span


class SpanOutlet(SpanProcessor):
    """The one span processor of the tracer provider. Safe from several threads.

    Args:
        on_first: Called by the thread that ends the first span, before it leaves, and again after each `detach`.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._idle = True
        self._processors: tuple[SpanProcessor, ...] = ()
        self._since = 0
        self._resource: Resource | None = None

    @property
    def used(self) -> bool:
        """Whether a span has ended since the start or the last `detach`."""
        return not self._idle

    def attach(self, processors: Sequence[SpanProcessor]) -> None:
        """Give spans to *processors* from now on."""
        self._processors = tuple(processors)

    def detach(self, resource: Resource) -> None:
        """Let go of the processors without a word to them, and of the spans that an earlier process has begun.

        Args:
            resource: Of the present process, which the SDK renews after a fork.
        """
        self._processors, self._idle, self._since, self._resource = (), True, time_ns(), resource

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for processor in self._processors:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if self._idle:
            self._idle = False
            with failsafe("outputs.open"):
                self._on_first()
        if (span.start_time or 0) < self._since and span.resource is not self._resource:
            return  # the parent's; one with an early start that was set is ours
        for processor in self._processors:
            processor.on_end(span)

    def shutdown(self) -> None:
        for processor in self._processors:
            processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        flushed = [processor.force_flush(timeout_millis) for processor in self._processors]
        return all(flushed)


class LogRecordOutlet:
    """The one log record processor of the logger provider, without its base, which only log records that leave import.

    Safe from several threads.

    Args:
        on_first: As for `SpanOutlet`.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._idle = True
        self._processors: tuple[LogRecordProcessor, ...] = ()

    def attach(self, processors: Sequence[LogRecordProcessor]) -> None:
        """Give log records to *processors* from now on."""
        self._processors = tuple(processors)

    def detach(self) -> None:
        """Let go of the processors without a word to them."""
        self._processors, self._idle = (), True

    def enabled(self, **_: Any) -> bool:
        """Return whether a record would be taken: every one is."""
        return True

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Pass one record on."""
        if self._idle:
            self._idle = False
            with failsafe("outputs.open"):
                self._on_first()
        for processor in self._processors:
            processor.on_emit(log_record)

    def shutdown(self) -> None:
        """Stop the processors."""
        for processor in self._processors:
            processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits."""
        flushed = [processor.force_flush(timeout_millis) for processor in self._processors]
        return all(flushed)

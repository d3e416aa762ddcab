# SPDX-License-Identifier: Apache-2.0
"""Say which operation of the recording API a measurement was made in.

``operations`` puts an `OpenOperation` into the context; the meter provider looks it up when a client instrumentation
records, so that one call which both have measured is counted once per layer (docs/architecture.md, "Two layers").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import context as otel_context

if TYPE_CHECKING:
    from opentelemetry.context import Context

LAYER = "jeeves.llm.layer"
ENGINE = "engine"  # what the calling agent sees
PROVIDER = "provider"  # what left for the provider
INNER = "inner"  # an llm_call between the two: neither layer, so that nesting does not multiply

_KEYS = {
    operation: otel_context.create_key(f"jeeves-{operation}")
    for operation in ("operation", "pipeline", "agent", "llm_call", "tool", "interrupt", "orchestration", "session")
}


class OpenOperation:
    """An operation in a context: what client instrumentations have measured of it so far.

    It stays in the contexts that were copied while it ran (streams, background tasks), so it knows when it ended.
    Safe from several threads.

    Args:
        operation: Which one, ``llm_call``…
        name: What the attribute of a client's point must say to be a point of this very operation.
        handle: What the recording API gave to the application; None once that is over.

    Attributes:
        outer: The operation of the same kind around it that was running when it began.
        request_id: Of a pipeline: the id that everything inside it notes on its span.
        reported: Instruments (or the operation's name) that a client has recorded inside.
        settled: Instruments that the operation itself has recorded at its end, for both layers.
        ended_at: When it ended, on the clock of ``perf_counter``; None while it runs.
    """

    __slots__ = ("ended_at", "handle", "name", "operation", "outer", "reported", "request_id", "settled")

    def __init__(self, operation: str, name: str | None, handle: object = None) -> None:
        self.operation = operation
        self.name = name
        self.handle = handle
        self.outer: OpenOperation | None = None
        self.request_id: str | None = None
        self.reported: set[str] = set()
        self.settled: set[str] = set()
        self.ended_at: float | None = None

    def is_open_in(self, current: Context) -> bool:
        """Return whether *current* was made by this operation or anything inside it."""
        found = opened(self.operation, current)
        while found is not None and found is not self:
            found = found.outer
        return found is not None


def opened(operation: str, current: Context | None = None) -> OpenOperation | None:
    """Return the innermost *operation* in *current* (or the current context), which may have ended, or None."""
    context = otel_context.get_current() if current is None else current
    return context.get(_KEYS[operation])  # type: ignore[return-value]  # nobody else has these keys


def running(operation: str, current: Context | None = None) -> OpenOperation | None:
    """Return the innermost *operation* in *current* (or the current context) that has not ended, or None."""
    found = opened(operation, current)
    while found is not None and found.ended_at is not None:
        found = found.outer
    return found


def with_opened(entry: OpenOperation, current: Context | None = None) -> Context:
    """Return *current* (or the current context) with *entry* as the innermost operation of its kind."""
    return otel_context.set_value(_KEYS[entry.operation], entry, current)

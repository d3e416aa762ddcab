# SPDX-License-Identifier: Apache-2.0
"""Say which operation of the recording API a measurement was made in.

``recording`` puts an `OpenOperation` into the context; the meter provider looks it up when a client instrumentation
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

_KEYS = {operation: otel_context.create_key(f"jeeves-{operation}") for operation in ("pipeline", "agent", "llm_call", "tool")}


class OpenOperation:
    """An operation that is running: what client instrumentations have measured of it so far.

    ``handle`` is what the recording API gave to the application; ``reported`` holds the instruments that a client has recorded inside, ``settled`` those that the operation itself has
    recorded at its end. Sets under the GIL: several threads may report.
    """

    __slots__ = ("handle", "name", "outer", "reported", "settled")

    def __init__(self, name: str, outer: OpenOperation | None, handle: object = None) -> None:
        self.name = name
        self.outer = outer
        self.handle = handle
        self.reported: set[str] = set()
        self.settled: set[str] = set()


def opened(operation: str, current: Context | None = None) -> OpenOperation | None:
    """Return the innermost open *operation* in *current* (or the current context), or None."""
    found = otel_context.get_value(_KEYS[operation], current)
    return found if isinstance(found, OpenOperation) else None


def with_opened(operation: str, entry: OpenOperation, current: Context | None = None) -> Context:
    """Return *current* (or the current context) with *entry* as the innermost open *operation*."""
    return otel_context.set_value(_KEYS[operation], entry, current)
